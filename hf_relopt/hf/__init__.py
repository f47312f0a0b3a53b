"""Integration with Transformers and Accelerate: all code that knows them."""
