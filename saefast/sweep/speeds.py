"""Time and disk space of cells, estimated from measurements of a few rows and steps."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saefast.activations import open_activations
from saefast.pipeline.job import Job
from saefast.pipeline.settings import HarvestSettings, PlantedSettings, RunSettings, StoreSettings
from saefast.pipeline.together import harvest_together, store_key
from saefast.sae import SAE
from saefast.stability.overlap import measure_overlap
from saefast.sweep.definition import Cell
from saefast.train.config import TrainConfig
from saefast.train.train import train_saes

_FEW_ROWS = 1024
_STEPS = 3
_MOST_FEATURES = 2048
_FORWARD = 1 / 3
"""Time of a pass over rows without gradients, as a share of a training step"""


class Speeds:
    """Estimates of the cost of cells, for which each measurement is made only once.

    Args:
        scratch: folder for the rows of measurements.
        tell: function that is called with a line of text when a measurement begins.
    """

    def __init__(self, scratch: Path, tell: Callable[[str], None]) -> None:
        self._scratch, self._tell = scratch, tell
        self._rows: dict[str, tuple[Path, int, float, float]] = {}
        self._steps: dict[str, float] = {}
        self._pairs: dict[tuple[int, int], float] = {}

    def width(self, cell: Cell) -> int:
        """Return the width of the rows of a cell."""
        return self._few_rows(cell)[1]

    def harvest(self, cells: Sequence[Cell]) -> float:
        """Return the seconds of harvesting the rows of cells that share a store."""
        data = cells[0].settings.data
        if isinstance(data, StoreSettings):
            return 0.0
        _, _, fixed, each = self._few_rows(cells[0])
        return fixed + each * _rows_of(cells[0].settings)

    def store_bytes(self, cells: Sequence[Cell]) -> int:
        """Return the bytes of the rows of cells that share a store."""
        data = cells[0].settings.data
        if isinstance(data, StoreSettings):
            return 0
        width = self.width(cells[0])
        if isinstance(data, HarvestSettings):
            sites = {getattr(cell.settings.data, "site", "") for cell in cells}
            # bfloat16 activations, int32 tokens and positions
            return len(sites) * _rows_of(cells[0].settings) * (2 * width + 8)
        return _rows_of(cells[0].settings) * 4 * width

    def train(self, cell: Cell) -> float:
        """Return the seconds of training the SAEs of a cell."""
        config = cell.settings.train
        return len(config.seeds) * config.steps * self._step(cell)

    def later(self, cell: Cell, until: str) -> float:
        """Return the seconds of the stages statistics, match, pool and evaluate up to `until`.

        A pass over rows is assumed to take a third of the time of training steps, and pooling the
        time of its trainings.
        """
        settings, config = cell.settings, cell.settings.train
        seeds = len(config.seeds)
        row = self._step(cell) / config.batch_size
        stages = ["statistics", "match", "stability", "subspace", "pool", "evaluate", "report"]
        if until in ("harvest", "train"):
            return 0.0
        wanted = stages[: stages.index(until) + 1] if until in stages else stages[:3]
        if until == "evaluate":
            wanted.remove("pool")
        train_rows, held_out = self._numbers_of_rows(cell)
        counted = min(settings.evaluate.statistics_rows or train_rows, train_rows)
        seconds = seeds * counted * row * _FORWARD
        if "match" in wanted:
            seconds += seeds * (seeds - 1) / 2 * self._pair(config.latents, self.width(cell))
        if "pool" in wanted:
            seconds += row * _pooling_rows(settings)
        if "evaluate" in wanted:
            passes = 1 + 4 * (1 + settings.evaluate.draws)
            seconds += seeds * held_out * row * _FORWARD * passes
        return seconds

    def cell_bytes(self, cell: Cell) -> int:
        """Return the bytes of the SAEs of a cell, their training state and tables of features."""
        config = cell.settings.train
        weights = 2 * config.latents * self.width(cell) * 4
        kept = 4 if cell.settings.trainer.keep_training else 1
        seeds = len(config.seeds)
        pairs = seeds * (seeds - 1) * config.latents * 2 * 24
        return seeds * weights * kept + weights + pairs + seeds * config.latents * 200

    def _few_rows(self, cell: Cell) -> tuple[Path, int, float, float]:
        """Return a path of some rows, their width, the seconds of the start and of each row."""
        content = dataclasses.asdict(cell.settings.data)
        key = json.dumps([store_key(cell.settings), content.get("site", "")])
        if key not in self._rows:
            self._rows[key] = self._made_rows(cell.settings)
        return self._rows[key]

    def _made_rows(self, settings: RunSettings) -> tuple[Path, int, float, float]:
        data = settings.data
        if isinstance(data, StoreSettings):
            return Path(data.train), open_activations(data.train).d, 0.0, 0.0
        self._tell("measuring how fast rows are made")
        times = []
        for number, few in ((0, _FEW_ROWS), (1, 3 * _FEW_ROWS)):
            less: Any
            if isinstance(data, HarvestSettings):
                less = dataclasses.replace(data, tokens=few, held_out=_FEW_ROWS // 4)
            elif isinstance(data, PlantedSettings):
                less = dataclasses.replace(data, rows=few, held_out=_FEW_ROWS // 4)
            place = self._scratch / f"rows-{len(self._rows)}-{number}"
            job = Job(place / "run", dataclasses.replace(settings, data=less), False)
            begun = time.perf_counter()
            harvest_together([job], place / "stores", progress=False)
            times.append(time.perf_counter() - begun)
        each = max(times[1] - times[0], 0.0) / (2 * _FEW_ROWS)
        fixed = max(times[1] - each * 3 * _FEW_ROWS, 0.0)
        return job.train_rows, open_activations(str(job.train_rows)).d, fixed, each

    def _step(self, cell: Cell) -> float:
        """Return the seconds of a training step of one SAE."""
        config = cell.settings.train
        few = dataclasses.replace(config, seeds=(0,), name="")
        kind = {**few.to_dict(), "lr": 0, "tokens": 0, "data_seed": 0}
        key = json.dumps([kind, self.width(cell), cell.settings.trainer.device])
        if key not in self._steps:
            self._tell(f"measuring the training of {cell.name}")
            rows = self._few_rows(cell)[0]
            device = cell.settings.trainer.device
            times = [_trained(rows, few, steps, device) for steps in (_STEPS, 3 * _STEPS)]
            self._steps[key] = max(times[1] - times[0], 0.0) / (2 * _STEPS)
        return self._steps[key]

    def _pair(self, latents: int, width: int) -> float:
        """Return the seconds of comparing two SAEs."""
        # Larger SAEs are extrapolated by the square of their size.
        size = min(latents, _MOST_FEATURES)
        if (size, width) not in self._pairs:
            self._tell(f"measuring the comparison of {size:,} features")
            saes = [SAE(width, size, k=1, seed=seed) for seed in (0, 1)]
            begun = time.perf_counter()
            measure_overlap(saes[0], saes[1], signs=("signed",), progress=False)
            self._pairs[size, width] = time.perf_counter() - begun
        return self._pairs[size, width] * (latents / size) ** 2

    def _numbers_of_rows(self, cell: Cell) -> tuple[int, int]:
        data = cell.settings.data
        if isinstance(data, HarvestSettings):
            return data.tokens, data.held_out
        if isinstance(data, PlantedSettings):
            return data.rows, data.held_out
        if not isinstance(data, StoreSettings):
            return 0, 0
        sources = (open_activations(path) for path in (data.train, data.held_out or data.train))
        train, held_out = (source.rows or 0 for source in sources)
        return train, held_out


def _rows_of(settings: RunSettings) -> int:
    """Return the number of rows that a run writes."""
    data = settings.data
    if isinstance(data, HarvestSettings):
        return data.tokens + data.held_out
    return data.rows + data.held_out if isinstance(data, PlantedSettings) else 0


def _pooling_rows(settings: RunSettings) -> int:
    """Return the number of training rows of pooling and its controls, summed over their SAEs."""
    how, config = settings.pool, settings.train
    tuned = how.tokens or max(config.tokens // 4, 1)
    half = len(config.seeds) // 2
    if not how.compare or half < 2:
        return tuned
    scratch = how.scratch_tokens or half * config.tokens + tuned
    return tuned + 2 * (2 * tuned + scratch)


def _trained(rows: Path, config: TrainConfig, steps: int, device: str | None) -> float:
    begun = time.perf_counter()
    config = dataclasses.replace(config, tokens=steps * config.batch_size)
    train_saes(str(rows), config, progress=False, device=device)
    return time.perf_counter() - begun
