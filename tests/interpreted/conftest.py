"""The Triton kernels in Triton's interpreter, in a separate pytest run by `make test`.

The ops take their GPU path on CPU tensors: this tests the work of a GPU in float32, without races
and tensor cores. The interpreter's bfloat16 arithmetic is wrong, so bfloat16 products are computed
in float32 here.
"""

import functools
import inspect
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError(
        "tests/interpreted needs TRITON_INTERPRET=1 before Python starts: "
        "TRITON_INTERPRET=1 pytest tests/interpreted"
    )

import triton.language as tl
from triton.runtime import interpreter

from saefast.ops import gpu
from saefast.ops.decode_prefixes import decode_prefixes
from saefast.ops.decode_residual import decode_residual
from saefast.ops.gather_dots import gather_dots
from saefast.ops.gpu_screens import ENVIRONMENT, SCREENS
from saefast.ops.keep_of_batch import keep_of_batch
from saefast.ops.latent_sum import latent_sum
from saefast.ops.latent_update import gradient_squares, latent_update
from saefast.ops.sparse_decode import sparse_decode_op
from saefast.ops.threshold_encode import threshold_encode_op
from saefast.ops.topk_encode import topk_encode_op

gpu.has = lambda tensor: True
# Torch fills allocated memory with NaN: memory that was never written must not be read.
torch.use_deterministic_algorithms(True)
for op in (
    decode_prefixes,
    decode_residual,
    gather_dots,
    gradient_squares,
    keep_of_batch,
    latent_sum,
    latent_update,
    sparse_decode_op,
    threshold_encode_op,
    topk_encode_op,
):
    op.register_kernel("cpu")(op._backend_fns["cuda"])

_patch_language = interpreter._patch_lang


@functools.cache
def _languages_of(function: Any) -> list[Any]:
    known = [value for value in function.__globals__.values() if inspect.ismodule(value)]
    return [module for module in known if module in (tl, tl.core)]


def _patch_once(function: Any) -> Any:
    """Patch Triton's language for a launch, and not again for each call inside of the kernel.

    The interpreter replaces the members of the language for every call of a function by a kernel,
    although the launch has replaced them.

    Args:
        function: kernel that is launched, or function that a kernel calls.

    Returns:
        Triton's record of what is restored after a launch; None for a call inside of it.
    """
    languages = _languages_of(function)
    # `range` is a class, and a function where the language is patched.
    if languages and not any(inspect.isclass(language.range) for language in languages):
        return None
    return _patch_language(function)


interpreter._patch_lang = _patch_once


def pytest_configure(config: pytest.Config) -> None:
    """Ignore a deprecation of NumPy 2.3 in Triton 3.6's interpreter."""
    config.addinivalue_line(
        "filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
    )


@pytest.fixture(params=[str(screen) for screen in SCREENS[:-1]])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each engine and product of the GPU's encode."""
    monkeypatch.setenv(ENVIRONMENT, request.param)
    return request.param
