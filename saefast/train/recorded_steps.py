"""Steps of an SAE on a GPU, recorded in a CUDA graph if possible, then replayed."""

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
"""Number of steps taken before one is recorded: they compile kernels, time the candidates for the
encode, and allocate the memory that is kept from step to step."""


class Graphs:
    """Resources shared by the recorded steps of one run.

    The SAEs of a run take their steps one after the other, so one memory pool can hold the
    intermediate results of all; separate pools would keep a copy of them for each SAE.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._warned = False

    def graph(self, beside: CudaGraph | None) -> Graph:
        """Create a graph in the pool, which is created on first use; see `FusedStep.capture`."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return CudaGraph(beside, self._pool)

    def warn(self, error: Exception) -> None:
        """Warn once per run that a recording failed."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"steps run without a CUDA graph, which costs host time for each kernel, because "
                f"recording failed: {error}",
                RuntimeWarning,
                stacklevel=2,
            )


class RecordedSteps:
    """Takes steps, after the first `WARM_UP` ones by replaying a recorded step.

    A step is recorded on a CUDA device if the objective has a fused path and the number of active
    latents, which a graph fixes, is constant. If recording fails, this step and all further ones
    are taken without a graph.
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
        """Take a step on one batch.

        The tensors of the result may be overwritten by the next step of any SAE of the run.

        Args:
            x: [n, d] activations.
            target: [n, d_out] rows to reconstruct; None: x.
            settled: whether the number of active latents is constant from this step on.

        Returns:
            Loss, code and statistics of the step.
        """
        if self._replay is None and self._possible and settled and gpu.has(x):
            if self._taken == WARM_UP:  # only once, whether recording succeeds or not
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
