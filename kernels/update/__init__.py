"""Kernels of a training step's update: clipping, Adam, biases and scalars of the schedule."""
