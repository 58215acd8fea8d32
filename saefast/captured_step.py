"""A training step that is recorded once and replayed: CUDA graphs with at most one read between.

A step has two phases: the encode, and everything after it. Where the number of active latents of a
row has no bound, the host must read between the phases whether the encode had places for all, so
each phase is a graph of its own. Where k bounds it, one graph holds both.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from saefast.ops import checks

_T = TypeVar("_T")


class Graph(Protocol):
    """What records the kernels of a function, and starts them again."""

    def record(self, phase: Callable[[], _T]) -> _T:
        """Call the function without running its kernels; what it returns is filled by `replay`."""
        ...

    def replay(self) -> None:
        """Run the kernels, on the tensors that they were recorded with."""
        ...


class CudaGraphs:
    """Makes CUDA graphs that share their memory, since they are replayed in order."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self) -> "CudaGraph":
        return CudaGraph(self._pool)


class CudaGraph:
    """A `torch.cuda.CUDAGraph` as a `Graph`."""

    def __init__(self, pool: tuple[int, int]) -> None:
        self._pool, self._graph = pool, torch.cuda.CUDAGraph()

    def record(self, phase: Callable[[], _T]) -> _T:
        """See `Graph`."""
        with torch.cuda.graph(self._graph, pool=self._pool):
            return phase()

    def replay(self) -> None:
        """See `Graph`."""
        self._graph.replay()


class Encoding(Protocol):
    """What the first phase hands to the second."""

    @property
    def report(self) -> Tensor | None:
        """What the host must read in between, int64 [r]; None if nothing."""
        ...


_E = TypeVar("_E", bound=Encoding)
_R = TypeVar("_R")


@dataclass(frozen=True)
class Phases(Generic[_E, _R]):
    """The parts of a step, each as a function."""

    kind: Callable[[], Hashable]
    """returns what is fixed in a recording; where it has changed, the step is recorded anew"""
    prepare: Callable[[], None]
    """writes what schedules say to where the kernels read it"""
    encode: Callable[[Tensor], _E]
    """the first phase, of x [n, d]"""
    fits: Callable[[Sequence[int]], bool]
    """returns whether an encode with this report is complete"""
    train: Callable[[Tensor, Tensor, _E], _R]
    """the second phase, of x, target [n, d_out] and what the first one returned"""
    whole: Callable[[Tensor, Tensor | None], _R]
    """the step without a recording"""


class _Recording(NamedTuple):
    """The graphs of one kind of step, and the tensors that they fill."""

    kind: Hashable
    first: Graph
    second: Graph | None
    """None where one graph holds both phases"""
    report: Tensor | None
    result: Any


class CapturedStep(Generic[_E, _R]):
    """Takes steps by replaying them. The tensors of a result are overwritten by the next step.

    Where the encode lacked places, and wherever the kind of the step has changed, a step is taken
    without a recording, which also compiles what the new kind needs; the next one is recorded.

    Args:
        phases: the parts of the step; one of this kind has been taken already.
        x: [n, d] a batch of the shape of all batches.
        target: [n, d_out] what is to be reconstructed, if it is not x.
        graphs: makes a new graph.
    """

    def __init__(
        self,
        phases: Phases[_E, _R],
        x: Tensor,
        target: Tensor | None,
        graphs: Callable[[], Graph],
    ) -> None:
        self._phases, self._graphs = phases, graphs
        self._x = x.clone()
        self._target = None if target is None else target.clone()
        self._compiled = phases.kind()
        self._recording: _Recording | None = self._record()

    def __call__(self, x: Tensor, target: Tensor | None = None) -> _R:
        """Train on x [n, d], and target [n, d_out] where the step was captured with one."""
        phases, kind = self._phases, self._phases.kind()
        self._load(x, target)
        if self._recording is None or self._recording.kind != kind:
            self._recording = None  # its memory is free for the next one
            if self._compiled != kind:
                return self._whole()
            self._recording = self._record()
        phases.prepare()
        recording = self._recording
        recording.first.replay()
        if recording.second is not None:
            assert recording.report is not None
            # The only wait of a step: what was found has no bound that the host knows.
            if not phases.fits(recording.report.tolist()):
                return self._whole()
            recording.second.replay()
        result: _R = recording.result
        return result

    def _load(self, x: Tensor, target: Tensor | None) -> None:
        """Copy a batch to where the kernels read it."""
        if (target is None) != (self._target is None):
            given = "without" if self._target is None else "with"
            raise TypeError(f"target must be as it was in capture, {given} a tensor")
        for name, rows, mine in (("x", x, self._x), ("target", target, self._target)):
            if rows is not None and mine is not None:
                checks.shape(name, rows, tuple(mine.shape))
                mine.copy_(rows)

    def _whole(self) -> _R:
        """Take the step without a recording."""
        result = self._phases.whole(self._x, self._target)
        self._compiled = self._phases.kind()
        return result

    def _record(self) -> _Recording:
        phases, x = self._phases, self._x
        target = x if self._target is None else self._target
        first = self._graphs()

        def both() -> tuple[_E, _R | None]:
            encoding = phases.encode(x)
            if encoding.report is not None:
                return encoding, None
            return encoding, phases.train(x, target, encoding)

        encoding, result = first.record(both)
        if encoding.report is None:
            return _Recording(phases.kind(), first, None, None, result)
        second = self._graphs()
        result = second.record(lambda: phases.train(x, target, encoding))
        return _Recording(phases.kind(), first, second, encoding.report, result)
