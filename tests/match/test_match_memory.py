"""Memory of a matching on a GPU, counted on meta tensors of full size without running kernels."""

from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from helpers.allocated import Allocated
from torch import Tensor

pytest.importorskip("triton", reason="Triton is a package of Linux only")

import triton

from saefast import checks
from saefast.kernels.encode import screening
from saefast.match import engines
from saefast.match.engines import Encode
from saefast.match.neighbours import Search, nearest, nearest_both_ways
from saefast.match.plan import divided
from saefast.ops import encode_gpu, gpu
from saefast.ops.gather_dots import gather_dots
from saefast.ops.sparse_decode import sparse_decode_op
from saefast.unit_rows import normalised


class MetaRows(NamedTuple):
    """A `UnitRows` whose rows have no values."""

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def block(self, start: int, stop: int) -> Tensor:
        return normalised(self.rows[start:stop].double())

    @classmethod
    def of_size(cls, rows: int, width: int) -> "MetaRows":
        return cls(torch.empty(rows, width, device="meta"))


@pytest.fixture
def gpu_path_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send meta tensors through the GPU path of encode and products, without its kernels."""
    monkeypatch.setattr(gpu, "has", lambda tensor: True)
    monkeypatch.setattr(gpu, "runs_triton", lambda tensor: True)
    monkeypatch.setattr(gpu, "device_of", lambda tensor: nullcontext())
    monkeypatch.setattr(screening, "shared_bytes", lambda tensor: 232_448)
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", lambda *a, **o: None)
    monkeypatch.setattr(checks, "finite_operands", lambda *a: None)
    monkeypatch.setattr(encode_gpu, "check_rounded", lambda *a: None)
    monkeypatch.setattr(engines, "gather_dots", gather_dots._backend_fns["cuda"])
    monkeypatch.setattr(
        engines,
        "topk_encode",
        lambda x, weight, bias, *, k: encode_gpu.encode_on_gpu(x, weight, bias, None, k, "exact"),
    )


def decide(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Return a decision that leaves this share of the rows in doubt."""
    monkeypatch.setattr(
        engines,
        "_doubtful",
        lambda values, last, error: torch.arange(int(share * len(values)), device="meta"),
    )


def test_the_recorder_counts_tensors_alive_without_views() -> None:
    given = torch.empty(1000, device="meta")
    with Allocated([given]) as allocated:
        one = torch.empty(100, device="meta")
        both = one[:50], given[:500]
        del one
        assert allocated.now == 400
        more = [torch.empty(100, device="meta") + 1 for _ in range(3)]
        assert allocated.now == 1600
        del both, more
    assert allocated.now == 0
    assert allocated.peak == 2000


@pytest.mark.parametrize(
    ("wanted", "memory", "doubtful"), [(1, 4.0, 0.05), (64, 4.0, 0.5), (64, 2.0, 0.0)]
)
@pytest.mark.usefixtures("gpu_path_on_meta")
def test_a_large_matching_stays_within_its_memory(
    wanted: int, memory: float, doubtful: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32768 with 131072 features of width 4096: gathered candidates alone would take 86 GB."""
    decide(monkeypatch, doubtful)
    x, y = MetaRows.of_size(32_768, 4096), MetaRows.of_size(131_072, 4096)
    k, _, rest = divided(memory * 1e9, len(x), len(y), wanted, solved=wanted > 1)
    with Allocated([x.rows, y.rows]) as allocated:
        forward, backward = nearest_both_ways(
            Search(x, y, Encode(absolute=False), absolute=False, memory=rest), k
        )
    assert forward.values.shape == (32_768, k)
    assert backward.values.shape == (131_072, k)
    assert allocated.peak <= memory * 1e9


@pytest.mark.usefixtures("gpu_path_on_meta")
def test_a_search_from_one_side_stays_within_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later rounds of a one-to-one matching search in this way."""
    decide(monkeypatch, 0.05)
    x, y = (MetaRows.of_size(32_768, 4096) for _ in range(2))
    with Allocated([x.rows, y.rows]) as allocated:
        found = nearest(x, y, 8, Encode(absolute=True), 3e9)
    assert found.values.shape == (32_768, 8)
    assert allocated.peak <= 3e9


@pytest.mark.parametrize("op", ["gather_dots", "sparse_decode"])
@pytest.mark.usefixtures("gpu_path_on_meta")
def test_without_triton_the_reference_runs_in_slices(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "serves", lambda *a: False)
    monkeypatch.setattr("saefast.ops.sparse_decode.check_in_range", lambda *a: None)
    n, k, m, d = 32_768, 64, 40_000, 1024
    rows, weight = (torch.empty(s, d, dtype=torch.float64, device="meta") for s in (n, m))
    indices = torch.empty(n, k, dtype=torch.int64, device="meta")
    values = torch.empty(n, k, dtype=torch.float64, device="meta")
    with Allocated([rows, weight, indices, values]) as allocated:
        if op == "gather_dots":
            assert engines.gather_dots(rows, weight, indices).shape == (n, k)
        else:
            decode = sparse_decode_op._backend_fns["cuda"]
            assert decode(values, indices, weight, None).shape == (n, d)
    assert allocated.peak <= 2 * 2**30


@pytest.mark.usefixtures("gpu_path_on_meta")
def test_a_float64_encode_keeps_no_scores_of_earlier_slices() -> None:
    x, weight = (torch.empty(s, 64, dtype=torch.float64, device="meta") for s in (9_000, 100_000))
    with Allocated([x, weight]) as allocated:
        code = encode_gpu.encode_on_gpu(x, weight, None, None, 8, "exact")
    assert code.values.shape == (9_000, 8)
    assert allocated.peak <= 2**30
