"""Options of `saefast train`: every setting of a training, in groups for the help."""

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any

import tyro

from saefast.pipeline.settings import TrainerSettings
from saefast.train.config import TrainConfig
from saefast.train.settings import AuxK, Penalty, Rules

GROUPS = {
    "training": (
        "Size and number of SAEs, and length of the training.",
        *("latents", "k", "variant", "seeds", "tokens", "batch_size", "lr", "data_seed", "name"),
    ),
    "objective": (
        "Objective of the variant, and precision of a step.",
        *("by_norm", "sparsity", "bandwidth", "group_shares", "precision"),
    ),
    "schedule": (
        "Settings that change during training.",
        *("lr_warmup", "lr_decay", "lr_decay_share", "k_start", "k_anneal", "sparsity_warmup"),
    ),
    "start": (
        "Initial weights, and scale of the activations.",
        *("tied", "directions", "decoder_norm", "b_dec", "activation_scaling"),
    ),
}
"""Settings of `TrainConfig` by the group of their options, whose description comes first. `rules`
and `auxk` have groups of their own; `loss` is a function and can be set in Python alone."""

_SEEDS = (0, 1, 2, 3)
"""Default seeds of the command: several, unlike `TrainConfig`, since later stages compare seeds"""

_PENALTY = tyro.constructors.PrimitiveConstructorSpec(
    nargs=3,
    metavar="SIDE NORM WEIGHT",
    instance_from_str=lambda words: Penalty(words[0], words[1], float(words[2])),
    is_instance=lambda value: isinstance(value, Penalty),
    str_from_instance=lambda penalty: [penalty.side, penalty.norm, str(penalty.weight)],
)

_ON = "(default: True; the option sets False)"

_REVIVE = Annotated[
    bool,
    tyro.conf.arg(
        name="auxk",
        prefix_name=False,
        help="whether to revive dead latents by the auxiliary loss",
        help_behavior_hint=_ON,
    ),
]


def train_options() -> Any:
    """Return the dataclass of all options, whose instances `chosen` converts to settings."""
    flat = tyro.conf.OmitArgPrefixes
    groups: list[tuple[Any, ...]] = []
    for name, (about, *names) in GROUPS.items():
        kind = _group(name, about, _fields(TrainConfig, names, {"seeds": _SEEDS}))
        groups.append((name, flat[kind]) if "latents" in names else (name, flat[kind], kind()))
    rules = _group("rules", _summary(Rules), _fields(Rules, changed=vars(TrainConfig(1, 1).rules)))
    auxk = _group("auxk", _summary(AuxK), [("revive", _REVIVE, True), *_fields(AuxK)])
    trainer = _group("trainer", _summary(TrainerSettings), _fields(TrainerSettings))
    groups += [
        ("rules", rules, rules()),
        ("auxk", auxk, auxk()),
        ("trainer", flat[trainer], trainer()),
    ]
    return _group("TrainOptions", "", groups)


def chosen(options: Any) -> tuple[TrainConfig, TrainerSettings]:
    """Return the settings of the training and trainer from parsed options."""
    values: dict[str, Any] = {}
    for name in GROUPS:
        values |= vars(getattr(options, name))
    auxk = dict(vars(options.auxk))
    config = TrainConfig(
        **values,
        rules=Rules(**vars(options.rules)),
        auxk=AuxK(**auxk) if auxk.pop("revive") else None,
    )
    return config, TrainerSettings(**vars(options.trainer))


def _fields(
    kind: Any, names: Iterable[str] | None = None, changed: Mapping[str, Any] | None = None
) -> list[tuple[Any, ...]]:
    """Return fields of a dataclass, each with its documentation as help.

    Args:
        kind: the dataclass.
        names: names of the fields to return; None: all.
        changed: defaults that replace those of the dataclass.

    Returns:
        Fields for `dataclasses.make_dataclass`.
    """
    hints, docs = typing.get_type_hints(kind), _field_docs(kind)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    defaults.update(changed or {})
    found = []
    for name in defaults if names is None else names:
        hint = hints[name]
        if hint == tuple[Penalty, ...]:
            hint = tuple[Annotated[Penalty, _PENALTY], ...]
        on = _ON if defaults[name] is True else None
        shown = tyro.conf.arg(help=docs[name], help_behavior_hint=on)
        field = (name, Annotated[hint, shown], defaults[name])
        found.append(field[:2] if defaults[name] is dataclasses.MISSING else field)
    return found


def _group(name: str, about: str, fields: list[tuple[Any, ...]]) -> Any:
    """Make a dataclass, which tyro shows as a separate group in the help."""
    return dataclasses.make_dataclass(name, fields, frozen=True, namespace={"__doc__": about})


def _summary(kind: Any) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _field_docs(kind: Any) -> dict[str, str]:
    """Return the text under each field of a dataclass, on one line."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
