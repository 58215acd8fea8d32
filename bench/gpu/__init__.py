"""Run correctness checks, profiles and timings of saefast on an NVIDIA GPU."""

from bench.gpu.session import main

__all__ = ["main"]
