"""Kernels of the auxiliary loss for dead latents, and of the list of them."""
