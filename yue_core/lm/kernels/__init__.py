"""The decode step on CUDA: Triton kernels for few rows, and the step that strings them together."""
