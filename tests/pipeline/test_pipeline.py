"""A run: finished stages are skipped, changed ones run again, and settings are checked first."""

import dataclasses
import importlib.util
import json
import math
import os
import shutil
import signal
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from helpers.tiny_run import SETTINGS

from saefast import SAE, activation_covariance, fit_subspaces, load_sae, save_sae
from saefast.activations import open_pt, opening
from saefast.cli import COMMANDS, main
from saefast.disk.tables import read_json, read_table, write_json, write_table
from saefast.pipeline import (
    EVALUATIONS,
    NAMES,
    Outcome,
    RunSettings,
    run_pipeline,
    settings_of,
)
from saefast.pipeline.job import Job
from saefast.pipeline.settings import SOURCES, PlantedSettings
from saefast.pipeline.settings_file import settings_from
from saefast.run_folder import FEATURES, STAGES
from saefast.synthetic.low_rank import LowRankWorld
from saefast.train.initial import Sample, Scales, begin
from saefast.train.loggers import LOGGERS
from saefast.train.seed_trainer import SeedTrainer


@pytest.fixture
def run(planted_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(planted_run, tmp_path / "run")


def done(outcomes: list[Outcome]) -> list[str]:
    """Return the stages that were not finished before."""
    return [each.stage for each in outcomes if not each.skipped]


def go_on(run: Path, settings: RunSettings, until: str = "report") -> list[str]:
    return done(run_pipeline(settings, run, until=until, resume=True, progress=False))


@pytest.mark.parametrize(
    ("part", "given", "message"),
    [
        ("stability", {"threshold": 2.0}, "threshold must be above 0 and at most 1, or 'null'"),
        ("stability", {"match": "best"}, "match must be one of nearest, mutual, one_to_one"),
        ("stability", {"side": "left"}, "side must be one of decoder, encoder, both"),
        ("subspace", {"rank": 0}, "rank must be at least 1, got 0"),
        ("subspace", {"draws": 0}, "draws must be at least 1, got 0"),
        ("subspace", {"seed": -1}, "seed must be at least 0, got -1"),
        ("planted", {"held_out": 1}, "held_out must be at least 2, got 1"),
        ("trainer", {"initial": ["sae"]}, "initial must be one for each seed .*, 4, got 1"),
        ("pool", {"width": 0}, "width must be at least 1, got 0"),
        ("pool", {"scratch_tokens": -4}, "scratch_tokens must be at least 1, got -4"),
        ("pool", {"margin": -0.5}, "margin must be at least 0, got -0.5"),
        ("evaluate", {"draws": 0}, "draws must be at least 1, got 0"),
        ("evaluate", {"tokens": -1}, "tokens must be at least 0, got -1"),
        ("evaluate", {"statistics_rows": 0}, "statistics_rows must be at least 1, got 0"),
    ],
)
def test_settings_are_checked_before_a_run_begins(
    part: str, given: dict[str, Any], message: str
) -> None:
    """A later stage would otherwise refuse them after the training."""
    with pytest.raises(ValueError, match=message):
        settings_from(SETTINGS | {part: given})


def test_a_refused_setting_does_not_change_the_run(run: Path) -> None:
    before = (run / "settings.json").read_bytes()
    assert main(["stability", str(run), "--threshold", "2"]) == 1
    assert (run / "settings.json").read_bytes() == before


def test_a_stage_has_one_name_everywhere() -> None:
    for name in NAMES:
        if name != "report":
            module = import_module(f"saefast.pipeline.stages.{name}")
            assert getattr(module, name).__module__ == module.__name__
        assert name == "statistics" or name in COMMANDS or name in EVALUATIONS
    kinds = get_type_hints(RunSettings)
    tables = SOURCES | {name: kinds[name] for name in kinds if name not in ("data", "train")}
    for name, kind in tables.items():
        assert kind.__name__ == f"{name.capitalize()}Settings"


def test_finished_stages_are_skipped(run: Path) -> None:
    settings = settings_of(run)
    assert settings == settings_from(SETTINGS)
    assert go_on(run, settings) == ["report"]
    left = run / "unfinished" / "pool"  # by a kill at the end of the stage
    left.mkdir(parents=True)
    assert go_on(run, settings) == []
    assert not left.exists()


def test_a_change_runs_its_stage_and_later_ones_again(run: Path) -> None:
    settings = settings_of(run)
    other = dataclasses.replace(
        settings, stability=dataclasses.replace(settings.stability, threshold=0.9)
    )
    assert go_on(run, other, "subspace") == ["stability", "subspace"]
    assert go_on(run, other, "subspace") == []
    # Results from the old scores are not used any more.
    assert set(read_json(run / STAGES)) == {
        *("harvest", "train", "statistics", "match", "stability", "subspace")
    }
    scores = read_table(run / FEATURES)["score"].to_pylist()
    assert go_on(run, settings, "stability") == ["stability"]
    assert read_table(run / FEATURES)["score"].to_pylist() != scores


def test_a_missing_file_is_written_again(run: Path) -> None:
    settings = settings_of(run)
    before = (run / "stability.json").read_text()
    (run / "stability.json").unlink()
    assert go_on(run, settings, "stability") == ["stability"]
    assert (run / "stability.json").read_text() == before


def test_an_interrupted_stage_is_not_finished(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(run)
    changed = dataclasses.replace(
        settings, subspace=dataclasses.replace(settings.subspace, draws=4)
    )

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("saefast.pipeline.stages.subspace.write_table", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go_on(run, changed, "subspace")
    assert go_on(run, changed, "subspace") == ["subspace"]


def test_subspaces_use_the_same_covariance_on_any_number_of_threads(
    run: Path, torch_threads: None
) -> None:
    """The files equal the result of `fit_subspaces` with `activation_covariance`, bit for bit."""
    settings = settings_of(run)
    rule, how = settings.stability, settings.subspace
    job = Job(run, settings, progress=False)
    rows = [Sample(torch.ones(1, SETTINGS["planted"]["d"]), None), Scales(1.0, 1.0)]
    found = fit_subspaces(
        job.dictionaries,
        job.stability,
        stable=rule.stable,
        unstable=rule.unstable,
        rank=how.rank,
        covariance=activation_covariance(str(job.train_rows), progress=False),
        initial=[begin(settings.train, seed, *rows).W_dec.detach() for seed in job.seeds],
        draws=how.draws,
        seed=how.seed,
        progress=False,
    )
    for name in ("nulls", "curves"):
        write_table(run / f"expected-{name}.parquet", found.to_table(name))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        shutil.rmtree(run / "subspaces")
        assert go_on(run, settings, "subspace") == ["subspace"]
        for name in ("nulls", "curves"):
            written = read_table(run / "subspaces" / f"{name}.parquet")
            assert written.equals(read_table(run / f"expected-{name}.parquet"))


def test_changed_settings_of_training_are_refused(run: Path) -> None:
    settings = settings_of(run)
    other = dataclasses.replace(settings, train=dataclasses.replace(settings.train, lr=0.5))
    with pytest.raises(ValueError, match=r"cannot be resumed.*lr"):
        go_on(run, other, "train")
    assert settings_of(run) == settings  # refused settings do not change the settings of the run
    assert go_on(run, settings) == ["report"]


def test_missing_activations_leave_no_run(tmp_path: Path) -> None:
    train = {"latents": 64, "seeds": [0, 1]}
    settings = settings_from({"store": {"train": str(tmp_path / "nowhere")}, "train": train})
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; give a store"):
        run_pipeline(settings, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_file_of_rows_is_read_once_for_all_checks_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .pt file is loaded whole when it is opened."""
    rows = tmp_path / "rows.pt"
    torch.save(torch.randn(300, 8), rows)
    store = {"train": str(rows)}
    train = {"latents": 16, "k": 2, "seeds": [0, 1], "tokens": 300, "batch_size": 100}
    settings = settings_from({"store": store, "train": train})
    run_pipeline(settings, tmp_path / "run", until="match", progress=False)
    opened = []

    def counted(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return open_pt(*arguments, **options)

    monkeypatch.setattr(opening, "open_pt", counted)
    assert go_on(tmp_path / "run", settings, until="match") == []
    assert opened == []
    torch.save(torch.randn(300, 8), rows)
    with pytest.raises(ValueError, match=r"cannot be resumed, since data.fingerprint was"):
        go_on(tmp_path / "run", settings, until="match")
    assert len(opened) == 2  # to compare it, and to train


def test_a_training_that_cannot_begin_leaves_no_run(tmp_path: Path) -> None:
    """The rows would otherwise be harvested first."""
    other = tmp_path / "other"
    save_sae(SAE(24, 48, k=3, variant="relu"), other)
    for trainer, kind, message in (
        ({"device": "tpu:none"}, ValueError, "device must be cpu, cuda or cuda:"),
        ({"initial": ["nowhere"] * 4}, FileNotFoundError, "nowhere does not exist"),
        ({"initial": [str(other)] * 4}, ValueError, "initial must have variant='topk'"),
    ):
        settings = settings_from(SETTINGS | {"trainer": trainer})
        with pytest.raises(kind, match=message):
            run_pipeline(settings, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_of_a_logger_leaves_no_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    settings = settings_from(SETTINGS | {"trainer": {"log_to": [name]}})
    with pytest.raises(ImportError, match=f"log_to '{name}' needs the package {name}; run: pip"):
        run_pipeline(settings, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_finished_training_needs_neither_its_device_nor_its_packages(run: Path) -> None:
    settings = json.loads((run / "settings.json").read_text())
    trainer = settings["trainer"] | {"device": "tpu:none", "log_to": ["wandb"]}
    settings |= {"trainer": trainer, "subspace": {"draws": 2}}
    assert go_on(run, settings_from(settings), until="subspace") == ["subspace"]


def test_the_table_of_features_has_results_of_each_stage(run: Path) -> None:
    table = read_table(run / FEATURES).to_pydict()
    latents = SETTINGS["train"]["latents"]
    assert table["seed"] == [seed for seed in range(4) for _ in range(latents)]
    assert table["feature"] == [*range(latents)] * 4
    wanted = {"firing_rate", "mass", "group", "score", "support", "similarity", "partner", "effect"}
    assert wanted <= set(table)
    content = read_json(run / "stability.json")
    for seed, each in enumerate(content["seeds"]):
        mine = table["group"][seed * latents : (seed + 1) * latents]
        for name in ("stable", "unstable", "dead"):
            assert mine.count(name) == each[name]
    similar = torch.tensor(table["similarity"])
    hits = (similar >= 0.7).sum(1).double() / 3
    assert torch.equal(hits, torch.tensor(table["score"], dtype=torch.float64))


def test_features_outside_the_planted_subspace_recur(run: Path) -> None:
    """A run finds the planted features: 24 separate ones, and 96 in 8 dimensions."""
    planted = {
        key: SETTINGS["planted"][key] for key in ("d", "stable", "rank", "rare", "rare_rate")
    }
    world = LowRankWorld.create(**planted)
    group = read_table(run / FEATURES)["group"].to_pylist()
    rows = torch.cat([load_sae(run / f"seed-{seed}").W_dec.detach() for seed in range(4)])
    inside = (rows @ world.subspace.T).square().sum(1) > 0.5
    shares = {}
    for lies in (False, True):
        mine = [g for g, i in zip(group, inside.tolist(), strict=True) if i == lies]
        shares[lies] = mine.count("stable") / (len(mine) - mine.count("dead"))
    assert shares[False] > 0.8
    assert shares[True] < 0.5
    evaluation = read_json(run / "evaluation.json")
    for each in evaluation["seeds"]:
        keep = {g["group"]: g["keep"] for g in each["groups"] if g["control"] == ""}
        assert keep["stable"] > 0.4 > keep["unstable"]


def test_pools_have_disjoint_seeds_and_one_is_saved(run: Path) -> None:
    content = read_json(run / "pooling.json")
    assert content["groups"] == [[0, 1], [2, 3]]
    pooled = load_sae(run / "pooled")
    assert pooled.m == content["width"]
    assert all(math.isfinite(row["explained_variance"]) for row in content["methods"])


def _tiny(**train: Any) -> RunSettings:
    """Return settings of a run of seconds with two SAEs."""
    return settings_from(
        {
            "planted": {"rows": 2000, "held_out": 500},
            "train": {"latents": 64, "k": 4, "tokens": 4000, "batch_size": 500, "seeds": [0, 1]}
            | train,
            "pool": {"tokens": 500},
        }
    )


def test_firings_are_counted_on_the_first_rows_alone(tmp_path: Path) -> None:
    settings = _tiny()
    run_pipeline(settings, tmp_path, until="statistics", progress=False)
    whole = read_table(tmp_path / FEATURES)["fired"].to_pylist()
    few = dataclasses.replace(settings.evaluate, statistics_rows=500)
    assert go_on(tmp_path, dataclasses.replace(settings, evaluate=few), "statistics") == [
        "statistics"
    ]
    counted = read_table(tmp_path / FEATURES)["fired"].to_pylist()
    assert sum(counted) == sum(whole) / 4 == 500 * 4 * 2
    more = dataclasses.replace(settings.evaluate, statistics_rows=9999)
    go_on(tmp_path, dataclasses.replace(settings, evaluate=more), "statistics")
    assert read_table(tmp_path / FEATURES)["fired"].to_pylist() == whole


def test_fewer_rows_than_were_written_raise(tmp_path: Path) -> None:
    """Otherwise the settings would state fewer rows than the SAEs are trained on."""
    settings = _tiny()
    run_pipeline(settings, tmp_path, until="harvest", progress=False)
    assert isinstance(settings.data, PlantedSettings)
    fewer = dataclasses.replace(settings, data=dataclasses.replace(settings.data, rows=1500))
    with pytest.raises(ValueError, match="holds 2000 rows, more than the 1500 that are requested"):
        go_on(tmp_path, fewer, "harvest")


def test_gated_saes_are_not_pooled_and_the_reason_is_recorded(tmp_path: Path) -> None:
    settings = _tiny(variant="gated")
    run_pipeline(settings, tmp_path, until="report", progress=False)
    assert "magnitude" in read_json(tmp_path / "pooling.json")["reason"]
    assert not (tmp_path / "pooled").exists()
    assert go_on(tmp_path, settings) == []


def test_saes_that_rank_by_norm_are_pooled_and_compared(tmp_path: Path) -> None:
    """Files hold them with decoder rows of norm one, where the rule makes no difference."""
    settings = _tiny(by_norm=True, rules={"unit_norm": False}, seeds=[0, 1, 2, 3])
    run_pipeline(settings, tmp_path, until="pool", progress=False)
    recorded = read_json(tmp_path / "pooling.json")
    assert {row["method"] for row in recorded["methods"]} == {
        "pooled",
        "pruned",
        "scratch",
        "single",
    }
    norms = load_sae(tmp_path / "pooled").W_dec.detach().norm(dim=1)
    assert norms == pytest.approx(torch.ones(recorded["width"]), abs=1e-5)


def test_interrupted_pooling_resumes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step of its three trainings is repeated, and the bits are equal."""
    settings = settings_of(run)
    files = [run / "pooling.json", run / "pooled" / "sae_weights.safetensors"]
    whole = [file.read_bytes() for file in files]
    taken: list[tuple[str, int]] = []
    interrupted_at: set[int] = set()
    train = SeedTrainer.train

    def counting(self: SeedTrainer, number: int, batch: Any) -> None:
        taken.append((self.label, number))
        if len(taken) in interrupted_at:
            os.kill(os.getpid(), signal.SIGINT)
        train(self, number, batch)

    monkeypatch.setattr(SeedTrainer, "train", counting)

    def again(at: set[int], settings: RunSettings = settings) -> int:
        """Run again from the start; return the number of interruptions."""
        (run / "pooling.json").unlink(missing_ok=True)
        interrupted_at.clear()
        interrupted_at.update(at)
        taken.clear()
        for interruptions in range(len(at) + 1):
            try:
                assert go_on(run, settings, "pool") == ["pool"]
            except KeyboardInterrupt:
                continue
            return interruptions
        raise AssertionError

    assert again(set()) == 0
    steps = list(taken)
    assert {label for label, _ in steps} == {
        *("seed-0", "seed-1", "pooled-seed-0", "pooled-seed-1", "pruned-seed-0", "pruned-seed-1")
    }
    assert [file.read_bytes() for file in files] == whole
    assert again({5, 20, len(steps) - 30}) == 3
    assert taken == steps
    assert [file.read_bytes() for file in files] == whole
    assert not (run / "unfinished").exists()
    # Work started with other settings is not resumed.
    other = dataclasses.replace(settings, pool=dataclasses.replace(settings.pool, tokens=900))
    interrupted_at.add(20)
    taken.clear()
    (run / "pooling.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        go_on(run, other, "pool")
    assert again(set()) == 0
    assert taken == steps
    assert not (run / "unfinished" / "pool").exists()


def test_two_runs_have_the_same_bits(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    run_pipeline(settings_from(SETTINGS), again, until="evaluate", progress=False)
    for name in ("stability.json", "evaluation.json"):
        assert (run / name).read_text() == (again / name).read_text()
    mine, other = (read_table(place / FEATURES) for place in (run, again))
    assert mine.equals(other.select(mine.column_names))


def test_nan_becomes_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1]})
    assert read_json(tmp_path / "x.json") == {"a": None, "b": [None, 1]}
    assert read_json(tmp_path / "nothing.json") is None
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_json(tmp_path / "x.json")
