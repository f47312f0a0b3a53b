"""The step in Triton: one launch for all tensors of a dtype, generated from the rules."""
