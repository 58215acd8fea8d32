"""Shared state of the stages of a run: its folder, its settings and results of earlier stages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.dictionary import Dictionary
from saefast.disk.tables import add_columns, read_table
from saefast.match.all_pairs import Pairs, match_all
from saefast.pipeline.settings import HarvestSettings, RunSettings, StoreSettings, TrainedSettings
from saefast.run_folder import FEATURES, HELD_OUT_ROWS, MATCHES, TRAIN_ROWS
from saefast.sae import SAE, UP_TO_SIGN
from saefast.stability.result import Stability
from saefast.stability.score import score_stability
from saefast.storage import load_dictionaries, load_sae
from saefast.train.config import labels_of


@dataclass(frozen=True)
class Job:
    """One run, through which stages read and write."""

    run: Path
    """folder of the run"""
    settings: RunSettings
    progress: bool = True

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the SAEs, in the order of all results."""
        return self.settings.train.seeds

    @property
    def absolute(self) -> bool:
        """Whether opposite directions count as similar in all matches of the run."""
        return self.settings.train.variant in UP_TO_SIGN

    @property
    def knows_rows(self) -> bool:
        """Whether the run has activations and not SAEs alone."""
        return not isinstance(self.settings.data, TrainedSettings)

    @property
    def train_rows(self) -> Path:
        """Path of the activations to train on."""
        data = self.settings.data
        if not self.knows_rows:
            raise ValueError(
                f"{self.run} does not record its activations, which this stage needs; start a run "
                f"with saefast train or saefast run"
            )
        return Path(data.train) if isinstance(data, StoreSettings) else self.run / TRAIN_ROWS

    @property
    def held_out_rows(self) -> Path:
        """Path of the activations to evaluate on, the training ones if there are no others."""
        data = self.settings.data
        if isinstance(data, StoreSettings):
            return Path(data.held_out or data.train)
        if not self.knows_rows:
            return self.train_rows
        return self.run / HELD_OUT_ROWS

    @property
    def folders(self) -> list[Path]:
        """Folders of the SAEs."""
        return [self.run / label for label in labels_of([self.settings.train])]

    @cached_property
    def initial(self) -> list[SAE] | None:
        """Initial SAEs of the training; None if they are drawn from their seeds."""
        return [load_sae(path) for path in self.settings.trainer.initial] or None

    @cached_property
    def saes(self) -> list[SAE]:
        """Trained SAEs."""
        return [load_sae(folder) for folder in self.folders]

    @cached_property
    def dictionaries(self) -> list[Dictionary]:
        """Dictionaries of the SAEs; features below the settings' least rate count as dead."""
        rates = self.column("firing_rate")
        least = self.settings.stability.least_rate
        loaded = load_dictionaries(*self.folders, encoder=True)
        return [
            replace(dictionary, firing_rate=rate.float() * (rate >= least))
            for dictionary, rate in zip(loaded, rates, strict=True)
        ]

    @cached_property
    def stability(self) -> Stability:
        """Stability of all SAEs, from the matches on disk."""
        return self.stability_among(range(len(self.seeds)))

    def stability_among(self, places: Sequence[int]) -> Stability:
        """Score the stability of some of the SAEs without the others."""
        rule = self.settings.stability
        sides = ("decoder", "encoder") if rule.side == "both" else (rule.side,)
        found = [
            {(s, t): pairs[places[s], places[t]] for s, t in permutations(range(len(places)), 2)}
            for side in sides
            for pairs in (self.matches(side, rule.match == "one_to_one"),)
        ]
        return score_stability(
            [self.dictionaries[place] for place in places],
            threshold=rule.threshold,
            match=rule.match,
            side=rule.side,
            absolute=self.absolute,
            matches=found[0] if len(found) == 1 else (found[0], found[1]),
        )

    @property
    def groups(self) -> list[dict[str, Tensor]]:
        """Stable and unstable features of each SAE, {name: [m] bool}."""
        rule = self.settings.stability
        return self.stability.groups(rule.stable, rule.unstable)

    def matches(self, side: str, one_to_one: bool = False) -> Pairs:
        """Match every pair of SAEs; pairs already on disk are read."""
        name = f"{side}-one-to-one" if one_to_one else side
        out = self.run / MATCHES / name
        return match_all(
            self.dictionaries,
            out=out,
            resume=True,
            progress=self.progress,
            side=side,
            one_to_one=one_to_one,
            absolute=self.absolute,
        )

    @cached_property
    def language_model(self) -> Any:
        """Language model of the activations, in float32; None if the run names none."""
        data = self.settings.data
        if not isinstance(data, HarvestSettings):
            return None
        from saefast.lm import load_model

        return load_model(data.model, device=data.device, progress=self.progress)

    def column(self, name: str) -> list[Tensor]:
        """Return a column of features.parquet, [m] for each SAE."""
        table = read_table(self.run / FEATURES)
        if table is None or name not in table.column_names:
            raise FileNotFoundError(
                f"{self.run / FEATURES} has no {name}; run the earlier stages: saefast run "
                f"{self.run}"
            )
        values = torch.from_numpy(table[name].to_numpy().copy())
        return list(torch.split(values, [sae.m for sae in self.saes]))

    def add_features(self, columns: dict[str, Sequence[Any]]) -> None:
        """Add columns, given for each SAE, to features.parquet."""
        joined = {name: _joined(parts) for name, parts in columns.items()}
        add_columns(self.run / FEATURES, joined)


def _joined(parts: Sequence[Any]) -> Any:
    import pyarrow as pa

    def array(part: Any) -> Any:
        if isinstance(part, Tensor):
            part = part.cpu().numpy()
            part = list(part) if part.ndim == 2 else part
        return pa.array(part)

    arrays = [array(part) for part in parts]
    # Parts without values take the type of the others.
    types = [each.type for each in arrays if not pa.types.is_null(each.type)]
    return pa.chunked_array([each.cast(types[0]) if types else each for each in arrays])
