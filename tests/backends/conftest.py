from tests.tiny_kernels import compiled_kernels_for_tiny_tensors

__all__ = ["compiled_kernels_for_tiny_tensors"]
