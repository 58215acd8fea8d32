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

from saefast import checks

_T = TypeVar("_T")


class Graph(Protocol):
    """What records the kernels of a function, and starts them again."""

    def record(self, phase: Callable[[], _T]) -> _T:
        """Call the function without running its kernels; what it returns is filled by `replay`."""
        ...

    def replay(self) -> None:
        """Run the kernels, on the tensors that they were recorded with."""
        ...


class RecordingFailed(RuntimeError):
    """A step could not be recorded; nothing of it was computed."""


class CudaGraph:
    """A `torch.cuda.CUDAGraph` as a `Graph`.

    Args:
        beside: a recorded graph that is replayed before this one, whose memory this one may use.
        pool: memory for intermediate results, from `torch.cuda.graph_pool_handle`; graphs that are
            never replayed at the same time can share one.
    """

    def __init__(self, beside: "CudaGraph | None" = None, pool: Any = None) -> None:
        self._graph: torch.cuda.CUDAGraph = torch.cuda.CUDAGraph()
        self._pool = pool if beside is None else beside._graph.pool()

    def record(self, phase: Callable[[], _T]) -> _T:
        """See `Graph`."""
        # Threads that read batches or write checkpoints call CUDA while this one records.
        with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
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
    """returns what is fixed in a recording, or None while a step cannot be recorded: not before a
    step of this kind has compiled its kernels. Where it has changed, the step is recorded anew"""
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

    A step is taken without a recording until one of its kind can be recorded, and where an encode
    lacked places; the next one is recorded.

    Args:
        phases: the parts of the step.
        x: [n, d] a batch of the shape of all batches.
        target: [n, d_out] what is to be reconstructed, if it is not x.
        graph: makes a graph; its argument is one that is replayed before, or None.
    """

    def __init__(
        self,
        phases: Phases[_E, _R],
        x: Tensor,
        target: Tensor | None,
        graph: Callable[[Any], Graph],
    ) -> None:
        self._phases, self._graph = phases, graph
        self._x = torch.empty_like(x, requires_grad=False)
        self._target = None if target is None else torch.empty_like(target, requires_grad=False)
        self._recording: _Recording | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor, target: Tensor | None = None) -> _R:
        """Train on x [n, d], and target [n, d_out] where the step was captured with one.

        Raises `RecordingFailed` where a step cannot be recorded, before any of it is computed.
        """
        phases, kind = self._phases, self._phases.kind()
        self._load(x, target)
        if self._recording is None or self._recording.kind != kind:
            self._recording = None  # its memory is free for the next one
            if kind is None:
                return phases.whole(self._x, self._target)
            try:
                self._recording = self._record(kind)
            except RuntimeError as error:  # running out of memory is one, too
                raise RecordingFailed(f"the step could not be recorded: {error}") from error
        phases.prepare()
        recording = self._recording
        recording.first.replay()
        if recording.second is not None:
            assert recording.report is not None
            # The only wait of a step: what was found has no bound that the host knows.
            if not phases.fits(recording.report.tolist()):
                return phases.whole(self._x, self._target)
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

    def _record(self, kind: Hashable) -> _Recording:
        phases, x = self._phases, self._x
        target = x if self._target is None else self._target
        first = self._graph(None)

        def both() -> tuple[_E, _R | None]:
            encoding = phases.encode(x)
            if encoding.report is not None:
                return encoding, None
            return encoding, phases.train(x, target, encoding)

        encoding, result = first.record(both)
        if encoding.report is None:
            return _Recording(kind, first, None, None, result)
        second = self._graph(first)
        result = second.record(lambda: phases.train(x, target, encoding))
        return _Recording(kind, first, second, encoding.report, result)
