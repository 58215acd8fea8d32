"""Tests of the wheel built with SAEFAST_CUDA=ON, in a separate run by `make cuda`."""

import importlib.util

import pytest

if importlib.util.find_spec("saefast._cuda") is None:
    raise pytest.UsageError(
        "tests/cuda needs a saefast that was built with -C cmake.define.SAEFAST_CUDA=ON: make cuda"
    )
