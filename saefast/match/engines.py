"""Engines that search the nearest features in a block: the encode of saefast, or FAISS."""

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
_SPARE = 16  # additional candidates, so that rounding leaves few rows undecided
_WORTH_MEASURING = 2e12  # multiplications, a few seconds; below, FAISS is not imported
_FAISS_GPU_MOST = 2048  # maximum number of neighbours of FAISS on a GPU

Find = Callable[[Tensor, int], SparseCode]
"""Function from rows [n, d] float64 and k to the k nearest of the block, in float64"""
Candidates = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Function from float32 rows and k to scores [n, k], descending, and int64 indices [n, k]"""


class Engine(Protocol):
    """Engine that searches the nearest of blocks of unit rows."""

    @property
    def exact(self) -> bool:
        """Whether rows that are not returned are proven to be further away."""

    def prepare(self, block: Tensor, price: Tensor | None) -> Find:
        """Return a search of `block` [m, d] float64 by similarity minus `price` [m], if given."""


class Encode(NamedTuple):
    """Search by top-k encoding, with the block as the weight and negative prices as the bias."""

    absolute: bool
    """whether opposite directions count as similar"""

    @property
    def exact(self) -> bool:
        """True: rows that are not returned are proven to be further away."""
        return True

    def prepare(self, block: Tensor, price: Tensor | None) -> Find:
        """Return a search of the block.

        With `absolute` a row of the block may be in a list twice, once for each sign.
        """
        weight, signs = _signed(block, self.absolute)
        bias = None if price is None else -price.repeat_interleave(signs)
        if not gpu.has(block):
            return lambda x, k: _folded(topk_encode(x, weight, bias, k=k), signs)
        small, few = weight.float(), None if bias is None else bias.float()
        largest = 0.0 if bias is None else float(bias.abs().amax())
        error = _float32_error(block.shape[1], 2.0**-24) + 2.0**-22 * largest

        def candidates(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
            code = topk_encode(x, small, few, k=k)
            return code.values, code.indices

        return settled(candidates, weight, bias, error, signs)


class Faiss(NamedTuple):
    """Search by FAISS: a flat index on all visible GPUs or the CPU, or an approximate index."""

    kind: str
    """"faiss" for a flat index, or one of `APPROXIMATE`"""
    absolute: bool
    """whether opposite directions count as similar"""

    @property
    def exact(self) -> bool:
        """Whether the index is flat, so that it compares all rows of a block."""
        return self.kind == "faiss"

    def prepare(self, block: Tensor, price: Tensor | None) -> Find:
        """Return a search of the block: float32 scores select candidates, float64 orders them.

        With prices, `Encode` searches.
        """
        if price is not None:
            return Encode(self.absolute).prepare(block, price)
        weight, signs = _signed(block, self.absolute)
        index, on_gpu = _index(self.kind, weight.float().cpu().numpy())

        def candidates(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
            if on_gpu and k > _FAISS_GPU_MOST:
                raise ValueError(
                    f"neighbours must be at most {_FAISS_GPU_MOST - _SPARE} for FAISS on a GPU, "
                    f"got {k - _SPARE}; use backend='saefast'"
                )
            scores, indices = index.search(x.cpu().numpy(), k)
            return torch.from_numpy(scores).to(x.device), torch.from_numpy(indices).to(x.device)

        # On a GPU, FAISS allows TF32, whose operands have eleven bits.
        error = _float32_error(block.shape[1], 2.0**-11 if on_gpu else 2.0**-24)
        if self.exact:
            return settled(candidates, weight, None, error, signs)
        return lambda x, k: _approximate(candidates, x, weight, k, signs)


def settled(
    candidates: Candidates, weight: Tensor, bias: Tensor | None, error: float, signs: int
) -> Find:
    """Return an exact search from candidates whose scores have an error of at most `error`.

    More candidates than requested are scored again in float64. Rows of the block that are no
    candidates score at most as much as the last candidate plus the error. Queries for which this
    does not decide the list are searched in float64. All values are computed by `gather_dots`, so
    their bits do not depend on how they were found.
    """

    def find(x: Tensor, k: int) -> SparseCode:
        width = min(k + _SPARE, len(weight))
        scores, indices = candidates(x.float(), width)
        values, indices = _rescored(x, weight, bias, indices)
        if width < len(weight):
            doubtful = _doubtful(values[:, k - 1], scores[:, -1], error)
            # So few at a time that their scores take no more memory than the block itself.
            for rows in torch.split(doubtful, max(1, x.shape[1] // _SCORES_AT_ONCE)):
                full = topk_encode(x[rows], weight, bias, k=width)
                values[rows], indices[rows] = _rescored(x[rows], weight, bias, full.indices)
        return _folded(SparseCode(values[:, :k], indices[:, :k]), signs)

    return find


def _doubtful(values: Tensor, last: Tensor, error: float) -> Tensor:
    """Return the queries for which a row that is no candidate may reach their last value."""
    return (values <= last.double() + error).nonzero()[:, 0]


def _approximate(
    candidates: Candidates, x: Tensor, weight: Tensor, k: int, signs: int
) -> SparseCode:
    _, indices = candidates(x.float(), k)
    found = indices >= 0  # an index may find fewer than k
    indices = indices.clamp(min=0)
    values: Tensor = gather_dots(x, weight, indices).where(found, -torch.inf)
    order = values.sort(dim=1, descending=True, stable=True).indices
    return _folded(SparseCode(values.gather(1, order), indices.gather(1, order)), signs)


def _rescored(
    x: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Return values in float64 and indices, by descending value, then ascending index."""
    indices = indices.sort(dim=1).values
    values: Tensor = gather_dots(x, weight, indices)
    if bias is not None:
        values = values + bias[indices]
    order = values.sort(dim=1, descending=True, stable=True).indices
    return values.gather(1, order), indices.gather(1, order)


def _signed(block: Tensor, absolute: bool) -> tuple[Tensor, int]:
    """Return the rows to search, and their number for each row of the block.

    With `absolute` each row is followed by its opposite, so that equal similarities of either sign
    are in the order of the block.
    """
    return (torch.stack([block, -block], 1).flatten(0, 1), 2) if absolute else (block, 1)


def _folded(code: SparseCode, signs: int) -> SparseCode:
    """Replace the indices of searched rows by those of the rows of the block."""
    return code._replace(indices=code.indices // signs)


def _float32_error(d: int, operand: float) -> float:
    """Bound the error of a dot product of unit rows: rounded operands, d additions in any order."""
    return 1.1 * (2 * operand + operand**2 + (d + 8) * 2.0**-24)


def _index(kind: str, rows: Any) -> tuple[Any, bool]:
    """Build an index of the rows and return it, with whether it is on a GPU."""
    faiss = _faiss()
    size, d = rows.shape
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    if kind == "cagra":
        if not gpus or not hasattr(faiss, "GpuIndexCagra"):
            raise RuntimeError(
                "backend='cagra' needs a GPU and a FAISS built with cuVS; use backend='auto'"
            )
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
    """Return the engine of a backend; for "auto", the faster one on a sample of these `UnitRows`.

    Args:
        backend: one of `BACKENDS`.
        absolute: whether opposite directions count as similar.
        x: `UnitRows` whose neighbours are searched.
        others: `UnitRows` among which they are searched.
        k: number of neighbours.

    Returns:
        The engine.
    """
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
    """Time the second of two searches: the first starts threads and fills caches."""
    find = engine.prepare(block, None)
    find(sample, k)
    start = time.perf_counter()
    find(sample, k)
    return time.perf_counter() - start
