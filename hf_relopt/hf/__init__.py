"""The doors to Transformers and Accelerate; everything that knows them is here."""
