"""A single pass over activations for measurements, which unlike training read no row twice."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.activations.opening import open_activations
from saefast.activations.protocol import Activations, ActivationSource, Batch
from saefast.activations.shuffled import Shuffled
from saefast.activations.store import StoreActivations
from saefast.progress import ProgressBar


class PassRows(NamedTuple):
    """Rows read by one step of a pass."""

    x: Tensor
    """[n, d]"""
    target: Tensor
    """[n, d_out] rows to reconstruct: x itself, except for a transcoder"""
    numbers: Tensor
    """[n] int64, number of each row in its source"""
    beside: dict[str, Tensor]
    """[n] int64 each, integers beside the rows by name, such as "tokens" and "positions"."""


def count_rows(source: Activations, rows: int | None, least: int) -> int:
    """Return how many rows a pass reads.

    Args:
        source: activations to read.
        rows: maximum number of rows; None: all rows of the source.
        least: smallest value of `rows` that makes sense for the caller.

    Returns:
        The lesser of `rows` and the number of rows in the source.
    """
    if rows is None:
        if source.rows is None:
            raise ValueError(
                "rows must be given, since the activations do not state how many there are, got "
                "None"
            )
        rows = source.rows
    checks.whole("rows", rows, least)
    return rows if source.rows is None else min(rows, source.rows)


class OnePass:
    """Read activations of any size once, in constant memory; each iteration is another pass.

    Args:
        activations: any source that `open_activations` accepts.
        batch_size: number of rows held in memory at once.
        rows: number of rows to read; required if the source has no known number of rows.
        seed: seed of the order of the rows. None: tensors and files are read in their order, other
            sources in the order of their batches.
        beside: names of integers to yield beside the rows, each with a tensor [rows] or with None,
            which takes them from the store if the store keeps them. Requires seed=None, since the
            rows must come in the order of the file.
        what: label of the progress bar.
        progress: show a progress bar on stderr.
    """

    def __init__(
        self,
        activations: ActivationSource,
        *,
        batch_size: int = 4096,
        rows: int | None = None,
        seed: int | None = None,
        beside: Mapping[str, Tensor | None] | None = None,
        what: str = "rows",
        progress: bool = True,
    ) -> None:
        self.source: Activations = open_activations(activations)
        checks.whole("batch_size", batch_size, 1)
        self._batch_size, self._what, self._progress = batch_size, what, progress
        self.rows, self._seed = self._limit(rows), seed
        self._given: dict[str, Tensor] = {}
        self._stored: list[str] = []
        for name, values in ({} if beside is None else beside).items():
            if values is not None:
                self._given[name] = self._checked(name, values)
            elif isinstance(self.source, StoreActivations) and name in self.source.index.extras:
                self._check_stored(name, self.source)
                self._stored.append(name)

    @property
    def names(self) -> list[str]:
        """Names of the integers that are yielded beside the rows."""
        return [*self._given, *self._stored]

    def __iter__(self) -> Iterator[PassRows]:
        left = self.rows
        bar = ProgressBar(self._what, total=self.rows, unit="rows", progress=self._progress)
        with bar:
            for batch in self._batches():
                rows = self._rows(batch, left)
                yield rows
                left -= len(rows.x)
                bar.update(len(rows.x))
                if left == 0:
                    return

    def _batches(self) -> Iterator[Batch]:
        size = max(1, min(self._batch_size, self.rows))
        if self._seed is None and isinstance(self.source, Shuffled):
            return self.source.in_order(size)
        return self.source.batches(size, seed=self._seed or 0)

    def _rows(self, batch: Batch, left: int) -> PassRows:
        """Return the first `left` rows of the batch, after checking that they are finite."""
        x = batch.x[:left]
        target = x if batch.target is None else batch.target[:left]
        numbers = torch.from_numpy(batch.rows[:left])
        for name, values in (("activations", x), ("targets", target)):
            if not bool(values.isfinite().all()):
                row = int(numbers[(~values.isfinite()).any(1).nonzero()[0, 0].cpu()])
                raise ValueError(
                    f"the {name} hold NaN or infinity: {self.source.locate(row)}; remove such rows"
                )
        beside = {name: values[numbers].long() for name, values in self._given.items()}
        if isinstance(self.source, StoreActivations):
            first, end = int(numbers[0]), int(numbers[-1]) + 1
            for name in self._stored:
                beside[name] = self.source.read(name, first, end).long()
        return PassRows(x, target, numbers, beside)

    def _limit(self, rows: int | None) -> int:
        known = self.source.rows
        if rows is None:
            if known is None:
                raise ValueError(
                    "rows must be given, since the activations do not state how many there are, "
                    "got None"
                )
            return known
        checks.whole("rows", rows)
        checks.between("rows", rows, 1, rows if known is None else known, "the activations")
        return rows

    def _checked(self, name: str, values: Tensor) -> Tensor:
        if not isinstance(values, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor [rows], got {type(values).__name__}")
        _check_integers(name, values.dtype, tuple(values.shape[1:]), values.ndim)
        if len(values) < self.rows:
            raise ValueError(
                f"{name} must have one entry for each row, {self.rows}, got {len(values)}"
            )
        return values

    def _check_stored(self, name: str, store: StoreActivations) -> None:
        kept = store.index.extras[name]
        _check_integers(f"{name} of the store", kept.dtype, kept.tail, 1 + len(kept.tail))


def _check_integers(name: str, dtype: torch.dtype, tail: tuple[int, ...], ndim: int) -> None:
    if dtype.is_floating_point or dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {str(dtype).removeprefix('torch.')}")
    if ndim != 1:
        raise ValueError(f"{name} must have shape [rows], got {['rows', *tail]}")
