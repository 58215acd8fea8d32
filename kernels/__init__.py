"""Triton kernels of saefast, one file per op; in the wheel this package is `saefast.kernels`."""
