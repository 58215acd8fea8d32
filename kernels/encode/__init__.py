"""Kernels that select latents: a screen by tensor cores, exact scores, and lists of the best."""
