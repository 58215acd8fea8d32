"""Settings of a training on the command line and in a file, and unknown names."""

import dataclasses
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_run import as_toml

import saefast
from saefast import AuxK, Penalty, Rules, TrainConfig
from saefast.cli import main
from saefast.pipeline.settings import TrainerSettings
from saefast.train.train import train_runs

DEFAULT = TrainConfig(latents=40, seeds=(0, 1))
VALUES: dict[str, Any] = {
    "latents": 64,
    "k": 3,
    "variant": "batchtopk",
    "seeds": (3, 5, 8),
    "tokens": 1234,
    "batch_size": 99,
    "lr": 0.25,
    "data_seed": 7,
    "name": "mine",
    "lr_warmup": 0.5,
    "lr_decay": "cosine",
    "lr_decay_share": 0.75,
    "k_start": 12,
    "k_anneal": 0.125,
    "rules.betas": (0.5, 0.75),
    "rules.eps": 0.5,
    "rules.unit_norm": False,
    "rules.remove_parallel": False,
    "rules.clip": None,
    "rules.penalties": (Penalty("decoder", "fro", 0.5), Penalty("encoder", "mean_abs", 2.0)),
    "rules.frozen": "decoder",
    "rules.tether": 0.5,
    "auxk": None,
    "auxk.k": 5,
    "auxk.coefficient": 0.5,
    "auxk.dead_after": 77,
    "auxk.capacity": 9,
    "auxk.normalised": False,
    "auxk.signed": True,
    "by_norm": True,
    "sparsity": 0.5,
    "sparsity_warmup": 0.25,
    "bandwidth": 0.5,
    "group_shares": (0.25, 0.5),
    "precision": "bf16",
    "tied": False,
    "directions": "cov",
    "decoder_norm": 0.5,
    "b_dec": "zeros",
    "activation_scaling": "none",
}
"""For each setting of `TrainConfig` a value that is not its default"""
TRAINER: dict[str, Any] = {
    "device": "cuda:3",
    "checkpoint_minutes": 2.5,
    "log_every": 11,
    "log_to": ("tensorboard", "wandb"),
    "keep_training": False,
}
"""The same for arguments of `train_saes`"""


def leaves(settings: Any, prefix: str = "") -> Iterator[str]:
    """Return the dotted names of all settings."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not dataclasses.is_dataclass(value) or field.name == "auxk":
            yield prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")


def changed(settings: Any, name: str, value: Any) -> Any:
    """Return the settings with one of them changed."""
    first, _, rest = name.partition(".")
    if rest:
        value = changed(getattr(settings, first), rest, value)
    return dataclasses.replace(settings, **{first: value})


def as_option(name: str, value: Any) -> list[str]:
    """Return one setting as an option."""
    *groups, last = name.replace("_", "-").split(".")
    if value is False or name == "auxk":
        return ["--" + ".".join([*groups, f"no-{last}"])]
    option = "--" + ".".join([*groups, last])
    if value is True:
        return [option]
    several = value if isinstance(value, tuple) else (value,)
    words = [
        v
        for each in several
        for v in (vars(each).values() if isinstance(each, Penalty) else [each])
    ]
    return [option, *map(str, words)]


def as_tables(name: str, value: Any) -> dict[str, Any]:
    """Return one setting as tables of a file."""
    first, _, rest = name.partition(".")
    if rest:
        return {first: as_tables(rest, value)}
    if isinstance(value, tuple):
        value = [vars(each) if isinstance(each, Penalty) else each for each in value]
    return {first: "none" if value is None else value}


class Reached(Exception):
    """Raised in place of a training."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Record the arguments of trainings: `config` and `initial` of the run, and the rest."""
    seen: list[dict[str, Any]] = []

    def recorded(*arguments: Any, **options: Any) -> None:
        call = inspect.signature(train_runs).bind(*arguments, **options)
        call.apply_defaults()
        [run] = call.arguments["runs"]
        seen.append(call.arguments | {"config": run.configs[0], "initial": run.initial})
        raise Reached

    monkeypatch.setattr("saefast.pipeline.stages.train.train_runs", recorded)
    # The device and the loggers need not be here.
    monkeypatch.setattr("saefast.pipeline.runner.check_training", lambda _job: None)
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.zeros((4, 8), np.float32))
    return seen


def by_command(options: list[str]) -> None:
    sizes = [] if "--latents" in options else ["--latents", "40"]
    seeds = [] if "--seeds" in options else ["--seeds", "0", "1"]
    with pytest.raises(Reached):
        main(["train", "rows.npy", "--out", "command", *sizes, *seeds, *options, "--debug"])


def by_file(train: dict[str, Any], trainer: dict[str, Any] | None = None) -> None:
    train = {"latents": 40, "seeds": [0, 1]} | train
    tables = {"store": {"train": "rows.npy"}, "train": train, "trainer": trainer or {}}
    Path("asked.toml").write_text(as_toml(tables))
    with pytest.raises(Reached):
        main(["run", "asked.toml", "--until", "train", "--out", "file", "--debug"])


def test_every_setting_of_a_training_has_a_value_here() -> None:
    assert set(leaves(DEFAULT)) - {"loss"} == set(VALUES)
    parameters = inspect.signature(saefast.train_saes).parameters
    # Left out: the data, and the arguments that the command sets: folder, resume, and torchrun's
    # processes.
    own = {"activations", "config", "out", "resume", "progress", "ranks"}
    assert set(parameters) - own == {"initial", *TRAINER}
    assert {field.name for field in dataclasses.fields(TrainerSettings)} == {"initial", *TRAINER}
    for name in TRAINER:
        assert getattr(TrainerSettings(), name) == parameters[name].default


@pytest.mark.parametrize("name", VALUES)
def test_every_setting_can_be_given_as_an_option_and_in_a_file(name: str, asked: list[Any]) -> None:
    expected = changed(DEFAULT, name, VALUES[name])
    assert expected != DEFAULT
    by_command(as_option(name, VALUES[name]))
    by_file(as_tables(name, VALUES[name]))
    assert [each["config"] for each in asked] == [expected, expected]


@pytest.mark.parametrize("name", TRAINER)
def test_every_argument_of_train_saes_can_be_given(name: str, asked: list[Any]) -> None:
    by_command(as_option(name, TRAINER[name]))
    by_file({}, as_tables(name, TRAINER[name]))
    others = TRAINER.keys() - {name}
    for each in asked:
        assert each[name] == TRAINER[name]
        assert {other: each[other] for other in others} == {
            other: getattr(TrainerSettings(), other) for other in others
        }
    assert len(asked) == 2


def test_initial_saes_can_be_given(asked: list[Any]) -> None:
    saes = [saefast.SAE(8, 40, k=2, seed=seed) for seed in (5, 6)]
    for number, sae in enumerate(saes):
        saefast.save_sae(sae, f"sae-{number}")
    by_command(["--initial", "sae-0", "sae-1"])
    by_file({}, {"initial": ["sae-0", "sae-1"]})
    for each in asked:
        for given, sae in zip(each["initial"], saes, strict=True):
            assert given.W_dec.equal(sae.W_dec)
    assert len(asked) == 2


def test_several_settings_of_a_table_leave_the_others_at_their_defaults(asked: list[Any]) -> None:
    """This holds where the defaults of training and class differ: gradients are clipped."""
    by_file({"rules": {"frozen": "decoder"}, "auxk": {"k": 3}})
    assert asked[0]["config"].rules == Rules(clip=1.0, frozen="decoder")
    assert asked[0]["config"].auxk == AuxK(k=3)


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("--latent", "--latents"),
        ("--rules.penalty", "--rules.penalties"),
        ("--auxk.dead-afte", "--auxk.dead-after"),
        ("--checkpoint-minute", "--checkpoint-minutes"),
    ],
)
def test_an_unknown_option_suggests_the_nearest(
    option: str, near: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["train", "rows.npy", "--out", "x", "--latents", "40", option, "3"])
    assert end.value.code != 0
    printed = capsys.readouterr().err
    assert "Perhaps you meant" in printed
    assert near in printed.split("Perhaps you meant")[1]


@pytest.mark.parametrize(
    ("train", "trainer", "message"),
    [
        ({"latent": 4}, {}, "train has no setting 'latent'; did you mean latents"),
        ({"lr_dekay": 1}, {}, "did you mean lr_decay or lr_decay_share"),
        (
            {"rules": {"penalty": []}},
            {},
            "train.rules has no setting 'penalty'; did you mean pen",
        ),
        (
            {"auxk": {"dead_afer": 4}},
            {},
            "train.auxk has no setting 'dead_afer'; did you mean dead_after?",
        ),
        ({}, {"log": 4}, "trainer has no setting 'log'; did you mean log_to"),
        ({"zzz": 4}, {}, "train has no setting 'zzz'; known settings are latents, k,"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(
    train: dict[str, Any],
    trainer: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    file = tmp_path / "asked.toml"
    train = {"latents": 40} | train
    file.write_text(as_toml({"store": {"train": "x"}, "train": train, "trainer": trainer}))
    assert main(["run", str(file), "--out", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err


def test_the_help_explains_every_option_in_its_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    titles = re.findall(r"^\W*([a-z ]*(?:arguments|options)) ", printed, re.MULTILINE)
    assert titles == [
        "positional arguments",
        *("options", "training options", "objective options", "schedule options"),
        *("start options", "rules options", "auxk options", "trainer options"),
    ]
    lines = [line.strip("│| ") for line in printed.splitlines()]
    begins = [place for place, line in enumerate(lines) if re.match("--[a-z]", line)]
    assert len(begins) > len(VALUES)
    for begin, end in itertools.pairwise([*begins, len(lines)]):
        about = re.sub(r"^--\S+( --\S+)?", "", " ".join(lines[begin:end]))
        assert re.search(r"[a-z]{2,} [a-z]{2,}.* \((default|required)", about), lines[begin]
