"""The Triton kernels in Triton's interpreter, in a separate pytest run by `make test`.

The ops take their GPU path on CPU tensors: this tests the work of a GPU in float32, without races
and tensor cores. The interpreter's bfloat16 arithmetic is wrong, so bfloat16 products are computed
in float32 here.
"""

import os
from collections.abc import Iterator

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError(
        "tests/interpreted needs TRITON_INTERPRET=1 before Python starts: "
        "TRITON_INTERPRET=1 pytest tests/interpreted"
    )

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
