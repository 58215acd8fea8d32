"""Records of the JSON files of a run, written by the stages of the pipeline, read by the report.

A result whose values can all be represented in JSON is stored as part of a record. The other files
are run.json (`TrainConfig` and additions of `train_saes`), settings.json (`RunSettings`), and the
tables, whose columns are the fields of the results.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from saefast.disk.tables import read_json, write_json
from saefast.nulls.draws import Spreads
from saefast.stability.membership import PowerLaw, SubsetPoint
from saefast.stability.result import StabilityRule
from saefast.stability.score import CurvePoint

Record = TypeVar("Record")

_PLAIN: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (float, int, type(None)),  # None: not finite, see `write_json`
    str: (str,),
    bool: (bool,),
}
"""Types of JSON values by the type of a field"""


@dataclass(frozen=True)
class SeedStability:
    """Numbers of alive, dead, stable and unstable features of one SAE."""

    seed: int
    alive: int
    dead: int
    stable: int
    unstable: int


@dataclass(frozen=True)
class StabilityRecord:
    """Contents of stability.json."""

    rule: StabilityRule
    stable_cut: float
    unstable_cut: float
    least_rate: float
    thresholds: list[float]
    chance: list[float]
    mean: float
    seeds: list[SeedStability]
    curve: list[CurvePoint]


@dataclass(frozen=True)
class MembershipRecord:
    """Contents of membership.json."""

    counts: list[list[int]]
    """[SAEs, SAEs] numbers of the features of each SAE by the number of SAEs that have them"""
    curve: list[SubsetPoint]
    power_law: PowerLaw | None = None
    """fitted power law; None if there are too few points"""


@dataclass(frozen=True)
class SeedEvaluation:
    """Explained variance of one SAE and of its groups of features."""

    seed: int
    explained_variance: float
    groups: list[Spreads]


@dataclass(frozen=True)
class RegressionRecord:
    """`EffectRegression` at equal frequency, or the reason why it could not be computed."""

    coefficient: dict[str, float] | None = None
    standard_error: dict[str, float] | None = None
    unadjusted: float | None = None
    unadjusted_error: float | None = None
    r_squared: float | None = None
    features: int | None = None
    left_out: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class EstimateRecord:
    """A mean and its standard error."""

    value: float
    error: float | None


@dataclass(frozen=True)
class EffectRecord:
    """Losses of a language model with patched activations: `PatchEffect`."""

    ce: EstimateRecord
    ce_increase: EstimateRecord | None = None
    kl: EstimateRecord | None = None
    ce_score: EstimateRecord | None = None
    kl_score: EstimateRecord | None = None
    ce_score_mean: EstimateRecord | None = None
    kl_score_mean: EstimateRecord | None = None


@dataclass(frozen=True)
class PatchingRecord:
    """Losses of a language model with reconstructions of one SAE: `Patching`."""

    seed: int
    contexts: int
    predictions: int
    clean: EffectRecord
    zero: EffectRecord
    mean: EffectRecord
    full: EffectRecord
    keep: dict[str, EffectRecord]
    """effect of keeping only a group, by name of the group and of its `as_active` control"""
    drop: dict[str, EffectRecord]


def as_active(group: str) -> str:
    """Return the name of the control of random features with a group's activation mass."""
    return f"{group}:mass"


@dataclass(frozen=True)
class EvaluationRecord:
    """Contents of evaluation.json."""

    rows: int
    held_out: bool
    """whether the rows were not used for training"""
    seeds: list[SeedEvaluation]
    regression: RegressionRecord
    language_model: PatchingRecord | None


@dataclass(frozen=True)
class MethodRecord:
    """`MethodResult` of one method: its SAEs as they are, and cut to equal numbers of latents."""

    method: str
    latents: int
    tokens: int
    explained_variance: float
    match_share: float
    pw_mcc: float
    alive: float
    match_share_error: float
    pw_mcc_error: float
    equal_explained_variance: float
    equal_match_share: float
    equal_pw_mcc: float
    equal_alive: float
    equal_match_share_error: float
    equal_pw_mcc_error: float


@dataclass(frozen=True)
class PoolingRecord:
    """Contents of pooling.json: the pool, and its comparison or the reason why there is none."""

    width: int
    unique: int
    tokens: int
    reason: str | None = None
    groups: list[list[int]] | None = None
    methods: list[MethodRecord] | None = None
    beaten: dict[str, bool] | None = None
    verdict: str | None = None
    margin: float | None = None


@dataclass(frozen=True)
class EvaluationSummary:
    """Contents of evaluation/NAME.json: the context of one evaluation's scores."""

    name: str
    """probe, explain, steer, edit, absorb or core"""
    noise: dict[str, float | None]
    """standard deviation of the overall value over repetitions with other seeds, by measure; None
    if unknown"""
    notes: list[str]
    """omissions, with counts, and limitations of the scores"""
    budget: str
    """quick or full"""
    conditions: list[str]
    """names of the conditions evaluated in addition to the trained SAEs"""
    seconds: float


@dataclass(frozen=True)
class StageRecord:
    """Entry of stages.json for a finished stage."""

    digest: str
    seconds: float


def write_record(path: Path, record: Any) -> None:
    """Write a record as JSON; fields that have the default None are omitted."""
    write_json(path, _plain(record))


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """Read a record from JSON.

    Returns:
        The record, or None if the file does not exist.

    Raises:
        ValueError: the file is not JSON, or lacks a field.
    """
    value = read_json(path)
    if value is None:
        return None
    try:
        return typing.cast(Record, _built(kind, value, ""))
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is not a valid {kind.__name__}: {error}; remove it and run its stage again"
        ) from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.default is not None or getattr(value, field.name) is not None
        }
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _built(hint: Any, value: Any, name: str) -> Any:
    """Convert a JSON value to the type of an annotation, including lists and dicts of records."""
    inner = typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        found = {}
        for field in dataclasses.fields(hint):
            place = f"{name}.{field.name}".lstrip(".")
            if field.name in value:
                found[field.name] = _built(hints[field.name], value[field.name], place)
            elif field.default is dataclasses.MISSING:
                raise LookupError(f"{place} is missing")
        return typing.cast(Any, hint)(**found)
    if isinstance(hint, types.UnionType):
        records = [each for each in inner if each is not type(None)]
        return value if value is None or len(records) > 1 else _built(records[0], value, name)
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            raise TypeError(f"{name} must be a list, got {value!r:.80}")
        return [_built(inner[0], each, f"{name}[{i}]") for i, each in enumerate(value)]
    if typing.get_origin(hint) is dict:
        return {key: _built(inner[1], each, f"{name}.{key}") for key, each in value.items()}
    if hint in _PLAIN and type(value) not in _PLAIN[hint]:
        raise TypeError(f"{name} must be {hint.__name__}, got {value!r:.80}")
    return value
