"""Record a training step in CUDA graphs and replay it, with at most one read by the host.

A step has two phases: the encode, and everything after it. If the number of active latents of a row
is unbounded, the host must read between the phases whether the encode had room for all of them, so
each phase is a graph of its own. If k bounds it, one graph holds both phases.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from saefast import checks

_T = TypeVar("_T")


class Graph(Protocol):
    """An object that records the kernels of a function and replays them."""

    def record(self, phase: Callable[[], _T]) -> _T:
        """Call the function without running its kernels; `replay` fills the tensors it returns."""
        ...

    def replay(self) -> None:
        """Run the recorded kernels on the tensors with which they were recorded."""
        ...


class RecordingFailed(RuntimeError):
    """A step could not be recorded; no part of it was computed."""


class CudaGraph:
    """A `torch.cuda.CUDAGraph` as a `Graph`.

    Args:
        beside: recorded graph that is replayed before this one and whose memory pool is shared.
        pool: memory for intermediate results, from `torch.cuda.graph_pool_handle`; graphs that are
            never replayed at the same time can share one.
    """

    def __init__(self, beside: "CudaGraph | None" = None, pool: Any = None) -> None:
        self._graph: torch.cuda.CUDAGraph = torch.cuda.CUDAGraph()
        self._pool = pool if beside is None else beside._graph.pool()

    def record(self, phase: Callable[[], _T]) -> _T:
        """See `Graph`."""
        # Threads that read batches or write checkpoints call CUDA during the recording.
        with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
            return phase()

    def replay(self) -> None:
        """See `Graph`."""
        self._graph.replay()


class Encoding(Protocol):
    """The result of the first phase, passed to the second."""

    @property
    def report(self) -> Tensor | None:
        """[r] int64, values that the host must read between the phases; None if there are none."""
        ...


_E = TypeVar("_E", bound=Encoding)
_R = TypeVar("_R")


@dataclass(frozen=True)
class Phases(Generic[_E, _R]):
    """The parts of a step, each as a function."""

    kind: Callable[[], Hashable]
    """key of the settings that a recording fixes; None while a step cannot be recorded, that is,
    until a step of this kind has compiled its kernels. A new key requires a new recording"""
    prepare: Callable[[], None]
    """writes scheduled values to the memory from which the kernels read them"""
    encode: Callable[[Tensor], _E]
    """first phase, of x [n, d]"""
    fits: Callable[[Sequence[int]], bool]
    """whether an encode with this report is complete"""
    train: Callable[[Tensor, Tensor, _E], _R]
    """second phase, of x, target [n, d_out] and the result of the first phase"""
    whole: Callable[[Tensor, Tensor | None], _R]
    """the step without a recording"""


class _Recording(NamedTuple):
    """The graphs of one kind of step, and the tensors that they fill."""

    kind: Hashable
    first: Graph
    second: Graph | None
    """None if one graph holds both phases"""
    report: Tensor | None
    result: Any


class CapturedStep(Generic[_E, _R]):
    """A step that is replayed. The tensors of a result are overwritten by the next step.

    A step is taken without a recording until one of its kind can be recorded, and when an encode
    lacked room; the next step is recorded.

    Args:
        phases: the parts of the step.
        x: [n, d] example batch with the shape of all batches.
        target: [n, d_out] example of the rows to reconstruct; None: x.
        graph: constructor of a graph; its argument is the graph that is replayed before, or None.
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
        """Train on x [n, d], and on target [n, d_out] if the step was captured with one.

        Returns:
            Result of the step.

        Raises:
            RecordingFailed: the step could not be recorded; no part of it was computed.
        """
        phases, kind = self._phases, self._phases.kind()
        self._load(x, target)
        if self._recording is None or self._recording.kind != kind:
            self._recording = None  # frees its memory for the next recording
            if kind is None:
                return phases.whole(self._x, self._target)
            try:
                self._recording = self._record(kind)
            except RuntimeError as error:  # includes running out of memory
                raise RecordingFailed(f"the step could not be recorded: {error}") from error
        phases.prepare()
        recording = self._recording
        recording.first.replay()
        if recording.second is not None:
            assert recording.report is not None
            # The only wait of a step: the host has no bound on the number of active latents.
            if not phases.fits(recording.report.tolist()):
                return phases.whole(self._x, self._target)
            recording.second.replay()
        result: _R = recording.result
        return result

    def _load(self, x: Tensor, target: Tensor | None) -> None:
        """Copy a batch to the memory from which the kernels read it."""
        if (target is None) != (self._target is None):
            given = "None" if self._target is None else "a tensor"
            raise TypeError(f"target must be {given}, as in capture")
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
