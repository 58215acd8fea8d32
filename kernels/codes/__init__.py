"""Kernels on sparse codes: decodes, products with their gradients, and sums by latent."""
