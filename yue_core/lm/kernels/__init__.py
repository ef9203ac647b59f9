"""The decode step on CUDA, in Triton.

product.py streams a matrix past a few rows; layer.py builds a Llama layer's kernels on it; attention.py splits a row's
keys; sampling.py turns logits into the next token; step.py strings them together; twins.py says the same in plain
torch; build.py compiles all of it without a GPU. Imported on CUDA only.
"""
