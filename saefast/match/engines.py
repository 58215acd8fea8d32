"""Who finds the nearest of a block of features: saefast's encode, or FAISS."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from saefast import checks
from saefast.ops import gpu
from saefast.ops.gather_dots import gather_dots
from saefast.ops.topk_encode import topk_encode
from saefast.types import SparseCode

BACKENDS = ("auto", "saefast", "faiss", "ivf", "hnsw", "cagra")
APPROXIMATE = ("ivf", "hnsw", "cagra")

_SCORES_AT_ONCE = 6  # float64 numbers for each score while the reference sorts a row
_SPARE = 16  # candidates more than are wanted, so that rounding leaves few rows in doubt
_WORTH_MEASURING = 2e12  # multiplications, a few seconds: below, FAISS is not even imported
_FAISS_GPU_MOST = 2048  # neighbours that FAISS finds on a GPU

Find = Callable[[Tensor, int], SparseCode]
"""Rows [n, d] and k to the k nearest of the block, float64"""
Candidates = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Float32 rows and k to scores [n, k], descending, and int64 indices"""


class Engine(Protocol):
    """Finds the nearest of blocks of unit rows."""

    @property
    def exact(self) -> bool:
        """Whether what it leaves out is proven to be further away."""

    def prepare(self, block: Tensor, price: Tensor | None) -> Find:
        """Those of `block` [m, d] float64, less `price` [m] if there is one."""


class Encode(NamedTuple):
    """Matching is top-k encoding: the others are the weight, their prices the bias."""

    absolute: bool

    @property
    def exact(self) -> bool:
        """What it leaves out is proven to be further away."""
        return True

    def prepare(self, block: Tensor, price: Tensor | None) -> Find:
        """With `absolute` one of the block may stand in a list twice, under either sign."""
        weight = torch.cat([block, -block]) if self.absolute else block
        bias = None if price is None else -(price.repeat(2) if self.absolute else price)
        if not gpu.has(block):
            return lambda x, k: _folded(topk_encode(x, weight, bias, k=k), len(block))
        small, few = weight.float(), None if bias is None else bias.float()
        largest = 0.0 if bias is None else float(bias.abs().amax())
        error = _float32_error(block.shape[1], 2.0**-24) + 2.0**-22 * largest

        def candidates(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
            code = topk_encode(x, small, few, k=k)
            return code.values, code.indices

        return settled(candidates, weight, bias, error, len(block))


class Faiss(NamedTuple):
    """An index of FAISS: flat, on all GPUs it sees or on the CPU, or one of the approximate."""

    kind: str
    absolute: bool

    @property
    def exact(self) -> bool:
        """What no candidate is, is proven to be further away: a flat index looked at it."""
        return self.kind == "faiss"

    def prepare(self, block: Tensor, price: Tensor | None) -> Find:
        """Its float32 scores choose candidates; float64 decides."""
        if price is not None:
            return Encode(self.absolute).prepare(block, price)
        weight = torch.cat([block, -block]) if self.absolute else block
        index, on_gpu = _index(self.kind, weight.float().cpu().numpy())

        def candidates(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
            if on_gpu and k > _FAISS_GPU_MOST:
                raise ValueError(
                    f"neighbours must be at most {_FAISS_GPU_MOST - _SPARE} for FAISS on a GPU, "
                    f"got {k - _SPARE}; use backend='saefast'"
                )
            scores, indices = index.search(x.cpu().numpy(), k)
            return torch.from_numpy(scores).to(x.device), torch.from_numpy(indices).to(x.device)

        # On a GPU, FAISS allows TF32: operands of eleven bits.
        error = _float32_error(block.shape[1], 2.0**-11 if on_gpu else 2.0**-24)
        if self.exact:
            return settled(candidates, weight, None, error, len(block))
        return lambda x, k: _approximate(candidates, x, weight, k, len(block))


def settled(
    candidates: Candidates, weight: Tensor, bias: Tensor | None, error: float, size: int
) -> Find:
    """Exact lists from scores that are off by at most `error`.

    More candidates than wanted are scored again in float64. What is no candidate scores at most as
    much as the last of them and the error: rows where that does not decide are searched in float64.
    All values come from `gather_dots`, so that they have the same bits however they were found.
    """

    def find(x: Tensor, k: int) -> SparseCode:
        width = min(k + _SPARE, len(weight))
        scores, indices = candidates(x.float(), width)
        values, indices = _rescored(x, weight, bias, indices)
        if width < len(weight):
            doubtful = _doubtful(values[:, k - 1], scores[:, -1], error)
            # So few at a time that their scores take no more room than the block itself.
            for rows in torch.split(doubtful, max(1, x.shape[1] // _SCORES_AT_ONCE)):
                full = topk_encode(x[rows], weight, bias, k=width)
                values[rows], indices[rows] = _rescored(x[rows], weight, bias, full.indices)
        return _folded(SparseCode(values[:, :k], indices[:, :k]), size)

    return find


def _doubtful(values: Tensor, last: Tensor, error: float) -> Tensor:
    """The rows where what is no candidate may be larger than these values."""
    return (values <= last.double() + error).nonzero()[:, 0]


def _approximate(
    candidates: Candidates, x: Tensor, weight: Tensor, k: int, size: int
) -> SparseCode:
    _, indices = candidates(x.float(), k)
    found = indices >= 0  # an index may find fewer than k
    values: Tensor = gather_dots(x, weight, indices.clamp(min=0)).where(found, -torch.inf)
    order = values.sort(dim=1, descending=True, stable=True).indices
    return _folded(SparseCode(values.gather(1, order), indices.gather(1, order)), size)


def _rescored(
    x: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Values in float64, descending, equal ones by lower index."""
    indices = indices.sort(dim=1).values
    values: Tensor = gather_dots(x, weight, indices)
    if bias is not None:
        values = values + bias[indices]
    order = values.sort(dim=1, descending=True, stable=True).indices
    return values.gather(1, order), indices.gather(1, order)


def _folded(code: SparseCode, size: int) -> SparseCode:
    """Opposites counted as what they are opposite to."""
    return code._replace(indices=code.indices % size)  # of -1, none, the last: -infinity marks it


def _float32_error(d: int, operand: float) -> float:
    """How far a product of unit rows can be off: operands rounded, d additions in any order."""
    return 1.1 * (2 * operand + operand**2 + (d + 8) * 2.0**-24)


def _index(kind: str, rows: Any) -> tuple[Any, bool]:
    """An index of these rows, and whether it is on a GPU."""
    faiss = _faiss()
    size, d = rows.shape
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    if kind == "cagra":
        if not gpus or not hasattr(faiss, "GpuIndexCagra"):
            raise RuntimeError("backend='cagra' needs a GPU and a FAISS built with cuVS")
        index = faiss.GpuIndexCagra(faiss.StandardGpuResources(), d, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        return index, True
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(d, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = 128
    elif kind == "ivf":
        lists = max(1, min(int(4 * size**0.5), size // 39))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(1, lists // 16)
        index.train(rows)
    else:
        index = faiss.IndexFlatIP(d)
        if gpus:
            options = faiss.GpuMultipleClonerOptions()
            options.shard = True
            index = faiss.index_cpu_to_all_gpus(index, co=options)
    index.add(rows)
    return index, bool(gpus) and kind == "faiss"


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "this backend needs FAISS: pip install 'saefast[cpu]' or 'saefast[gpu]'"
        ) from error
    return faiss


def engine_for(backend: str, absolute: bool, x: Any, others: Any, k: int) -> Engine:
    """The engine of that name; of "auto", what is faster on a sample of these `UnitRows`."""
    checks.one_of("backend", backend, BACKENDS)
    ours = Encode(absolute)
    if backend == "saefast":
        return ours
    if backend != "auto":
        _faiss()
        return Faiss(backend, absolute)
    if float(len(x)) * len(others) * others.width < _WORTH_MEASURING or not _has_faiss():
        return ours
    theirs = Faiss("faiss", absolute)
    sample, block = x.block(0, 1024), others.block(0, 16_384)
    times = [_seconds(engine, sample, block, min(k, len(block))) for engine in (ours, theirs)]
    return ours if times[0] <= times[1] else theirs


@cache
def _has_faiss() -> bool:
    from importlib.util import find_spec

    return find_spec("faiss") is not None


def _seconds(engine: Engine, sample: Tensor, block: Tensor, k: int) -> float:
    """Of the second search: the first starts threads and fills caches."""
    find = engine.prepare(block, None)
    find(sample, k)
    start = time.perf_counter()
    find(sample, k)
    return time.perf_counter() - start
