"""The steps of an SAE on a GPU: recorded in a CUDA graph where that is possible, then replayed."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from saefast.ops import gpu
from saefast.train.captured_step import CudaGraph, Graph, RecordingFailed
from saefast.train.objectives import FusedPath
from saefast.train.step import FusedStep
from saefast.train.step_result import StepResult

WARM_UP = 3
"""Steps of a kind that are taken before one is recorded: the first compile kernels, time the
candidates for the encode, and allocate what stays from step to step"""


class Graphs:
    """What the recorded steps of one run share.

    The SAEs of a run take their steps one after the other, so one pool of memory serves the
    intermediate results of all: a graph of its own for each SAE would keep as many copies of them.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._warned = False

    def graph(self, beside: CudaGraph | None) -> Graph:
        """Make a graph in the pool, which is made with the first one; see `FusedStep.capture`."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return CudaGraph(beside, self._pool)

    def warn(self, error: Exception) -> None:
        """Say once in a run that a recording failed."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"steps are taken without a CUDA graph, which costs the host's time for each "
                f"kernel, since recording one failed: {error}",
                RuntimeWarning,
                stacklevel=2,
            )


class RecordedSteps:
    """Takes steps, and from the one after `WARM_UP` on by replaying a recorded one.

    A step is recorded on a CUDA device if the objective has a fused path and its number of active
    latents, which a graph holds fixed, stays as it is. Where a step cannot be recorded, it and all
    further ones are taken as the first ones were.
    """

    def __init__(self, step: FusedStep, graphs: Graphs) -> None:
        self._step, self._graphs = step, graphs
        self._taken = 0
        self._possible = step.objective.fused is not FusedPath.NEVER
        self._replay: Callable[[Tensor, Tensor | None], StepResult] | None = None

    @property
    def replaying(self) -> bool:
        """Whether steps are replayed."""
        return self._replay is not None

    def __call__(self, x: Tensor, target: Tensor | None, *, settled: bool) -> StepResult:
        """Take a step on x [n, d] and `target` [n, d_out].

        The tensors of the result may be overwritten by the next step of any SAE of the run.

        Args:
            settled: whether the number of active latents is the same in all steps that follow.
        """
        if self._replay is None and self._possible and settled and gpu.has(x):
            if self._taken == WARM_UP:  # once, whether it succeeds or not
                self._record(x, target)
            self._taken += 1
        if self._replay is not None:
            try:
                return self._replay(x, target)
            except RecordingFailed as error:
                self._replay = None
                self._graphs.warn(error)
        return self._step(x, target)

    def _record(self, x: Tensor, target: Tensor | None) -> None:
        try:
            self._replay = self._step.capture(x, target, graph=self._graphs.graph)
        except ValueError as error:
            self._graphs.warn(error)
