"""`saefast evaluate`: evaluations of runs and of SAEs alone, resumed, stored and reported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

import saefast.lm
from saefast.cli import main
from saefast.disk.tables import read_json, read_table, write_json
from saefast.evaluation import Evaluation
from saefast.pipeline import NAMES, EvaluateSettings, settings_of
from saefast.pipeline.evaluations import evaluate_run
from saefast.pipeline.job import Job
from saefast.pipeline.subject import Subject, subject_of_run
from saefast.run_folder import EVALUATIONS, FEATURES, SCORES, SETTINGS


@pytest.fixture(scope="module")
def probed(place: Path) -> Path:
    run = shutil.copytree(place / "run", place / "probed")
    assert main(["evaluate", str(run), "probe", "--tasks", str(place / "labelled.csv")]) == 0
    return run


def test_scores_of_a_run_include_all_conditions(probed: Path) -> None:
    rows = read_table(probed / SCORES).to_pylist()
    overall = {row["condition"] for row in rows if not row["task"] and row["seed"] is None}
    assert {"trained", "untrained", "residual", "pca", "frozen_decoder", "full", "text"} <= overall
    assert {"stable", "unstable", "stable:mass", "unstable:mass"} <= {row["group"] for row in rows}
    trained = next(row for row in rows if row["primary"] and row["condition"] == "trained")
    assert trained["low"] <= trained["value"] <= trained["high"]
    assert trained["value"] > 0.9  # vowels against consonants
    summary = read_json(probed / EVALUATIONS / "probe.json")
    assert summary["budget"] == "quick"
    assert "frozen_decoder" in summary["conditions"]


def test_a_second_call_measures_and_changes_nothing(
    place: Path, probed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (probed / SCORES).read_bytes(), (probed / EVALUATIONS / "probe.json").read_bytes()
    command = ["evaluate", str(probed), "probe", "--tasks", str(place / "labelled.csv")]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["stages"]["probe"]["was_finished"]
    assert printed["probe"]["scores"][0]["condition"] == "trained"
    assert before == (
        (probed / SCORES).read_bytes(),
        (probed / EVALUATIONS / "probe.json").read_bytes(),
    )


def test_the_same_settings_give_the_same_bytes(place: Path, probed: Path, tmp_path: Path) -> None:
    again = shutil.copytree(place / "run", tmp_path / "again")
    assert main(["evaluate", str(again), "probe", "--tasks", str(place / "labelled.csv")]) == 0
    assert (again / SCORES).read_bytes() == (probed / SCORES).read_bytes()


def test_baselines_follow_the_settings_of_the_run(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "run", tmp_path / "run")
    command = ["evaluate", str(run), "probe", "--tasks", str(place / "labelled.csv")]
    other = tmp_path / "run" / EVALUATIONS / "baselines" / "of-other-settings"
    other.mkdir(parents=True)
    (other / "run.json").write_text("{}")
    assert main(command) == 0
    (kept,) = other.parent.iterdir()
    assert kept != other
    assert {path.name for path in kept.glob("frozen-decoder-seed-*")} == {
        f"frozen-decoder-seed-{seed}" for seed in (0, 1, 2)
    }


@pytest.mark.parametrize("budget", ["quick", "full"])
def test_budgets_neither_train_nor_remove_baselines(
    place: Path, tmp_path: Path, budget: Literal["quick", "full"]
) -> None:
    run = shutil.copytree(place / "run", tmp_path / "run")
    settings = settings_of(run)
    job, how = Job(run, settings, False), replace(settings.evaluate, budget=budget)
    asked = subject_of_run(job, replace(how, baselines=("frozen_decoder",)))
    assert [each.name for each in asked.baselines] == ["frozen_decoder"]
    trained = sorted((run / EVALUATIONS / "baselines").rglob("*"))
    assert subject_of_run(job, replace(how, baselines=())).baselines == ()
    assert sorted((run / EVALUATIONS / "baselines").rglob("*")) == trained


def test_a_permuted_decoder_leaves_scores_of_the_encoder(place: Path, tmp_path: Path) -> None:
    """Named in the settings, it is evaluated without a training, and is no rival.

    The labels are arbitrary, so that scores differ from those of other conditions.
    """
    run = shutil.copytree(place / "run", tmp_path / "run")
    settings = read_json(run / SETTINGS)
    settings["evaluate"]["baselines"] = ["permuted_decoder"]
    write_json(run / SETTINGS, settings)
    texts = [line.split(",")[0] for line in (place / "labelled.csv").read_text().splitlines()[1:]]
    table = tmp_path / "arbitrary.csv"
    lines = [f"{text},{number % 3 == 0}" for number, text in enumerate(texts)]
    table.write_text("\n".join(["text,label", *lines]))
    assert main(["evaluate", str(run), "probe", "--tasks", str(table)]) == 0
    assert not (run / EVALUATIONS / "baselines").exists()
    rows = read_table(run / SCORES).to_pylist()
    values: dict[str, list[tuple[str, str, int | None, float]]] = {}
    for row in rows:
        if row["measure"].startswith("auroc") and not row["group"]:
            key = row["measure"], row["task"], row["seed"], row["value"]
            values.setdefault(row["condition"], []).append(key)
    assert len(values["trained"]) > 3
    assert values["permuted_decoder"] == values["trained"]
    assert values["untrained"] != values["trained"]
    assert "permuted_decoder" not in {row["rival"] for row in rows}


def test_missing_conditions_are_reported(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "run", tmp_path / "run")
    settings = settings_of(run)
    how = replace(settings.evaluate, baselines=("frozen",))
    names = "frozen_decoder, soft_frozen, frozen_encoder, permuted_decoder"
    with pytest.raises(ValueError, match=f"baselines must be one of {names}, got 'frozen'"):
        subject_of_run(Job(run, settings, False), how)


def test_an_evaluation_does_not_repeat_worth(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "run", tmp_path / "run")
    assert main(["evaluate", str(run), "--tokens", "100", "--draws", "2"]) == 0
    before = read_json(run / "stages.json")["evaluate"]
    assert main(["evaluate", str(run), "probe", "--tasks", str(place / "labelled.csv")]) == 0
    assert read_json(run / "stages.json")["evaluate"] == before
    assert (run / "report.html").is_file()


def test_several_evaluations_share_one_language_model(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(place / "run", tmp_path / "run")
    loaded: list[str] = []
    load_model = saefast.lm.load_model

    def counted(name: str, **settings: Any) -> Any:
        loaded.append(name)
        return load_model(name, **settings)

    monkeypatch.setattr("saefast.lm.load_model", counted)
    tasks = ["--tasks", str(place / "labelled.csv")]
    assert main(["evaluate", str(run), "probe", "explain", *tasks]) == 0
    assert len(loaded) == 1
    for name in ("probe", "explain"):
        assert (run / EVALUATIONS / f"{name}.json").is_file()


@pytest.mark.parametrize("name", ["explain", "steer", "edit", "absorb"])
def test_all_evaluations_of_a_run_are_stored(probed: Path, tmp_path: Path, name: str) -> None:
    run = shutil.copytree(probed, tmp_path / "run")
    assert main(["evaluate", str(run), name]) == 0
    summary = read_json(run / EVALUATIONS / f"{name}.json")
    measured = {row["evaluation"] for row in read_table(run / SCORES).to_pylist()}
    # A model with random weights knows neither facts nor letters, which the notes state.
    assert "probe" in measured
    assert name in measured or summary["notes"]
    assert (run / "report.html").is_file()


def test_features_of_other_saes_have_null_values(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "run", tmp_path / "run")
    settings = settings_of(run)
    job = Job(run, replace(settings, evaluate=replace(settings.evaluate, baselines=())), False)

    def first_only(subject: Subject, how: EvaluateSettings) -> Evaluation:
        (sae,) = subject.first(1).saes
        return Evaluation(name="edit", scores=(), features=({"edit_score": [0.5] * sae.m},))

    evaluate_run("edit", first_only, job)
    table = read_table(run / FEATURES)
    values = table["edit_score"].to_pylist()
    assert values[:48] == [0.5] * 48
    assert values[48:] == [None] * 96


def test_a_dry_run_counts_requests_to_the_judge(
    probed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = ["--judge", "http://localhost:9/v1#none", "--dry-run"]
    assert main(["evaluate", str(probed), "explain", *judge, "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "requests" in notes[-1]
    assert "tokens" in notes[-1]
    assert not (probed / EVALUATIONS / "explain.json").exists()


def test_saes_without_a_run_are_evaluated_with_a_model(place: Path, tmp_path: Path) -> None:
    saes = [str(place / "run" / f"seed-{seed}") for seed in (0, 1)]
    out = tmp_path / "out"
    command = ["evaluate", *saes, "probe", "--tasks", str(place / "labelled.csv")]
    where = ["--model", str(place / "model"), "--site", "resid.1", "--out", str(out)]
    assert main([*command, *where]) == 0
    rows = read_table(out / "scores.parquet").to_pylist()
    assert {"trained", "untrained"} <= {row["condition"] for row in rows}
    assert {"stable", "unstable"} <= {row["group"] for row in rows}
    assert read_json(out / "probe.json")["name"] == "probe"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{place}/nothing", "probe"], "is neither a run nor an SAE"),
        (["probe"], "sources must be a run or at least one SAE"),
        (["{place}/run/seed-0", "probe", "--model", "{place}/model"], "model and site must both"),
        (
            ["{place}/run/seed-0", "--model", "{place}/model", "--site", "resid.1"],
            "name one of probe",
        ),
    ],
)
def test_errors_are_one_sentence(
    place: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(place=place) for argument in arguments]
    assert main(["evaluate", *given]) == 1
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.startswith("saefast: ")
    assert printed.count("\n") == 1


def test_runs_without_a_language_model_are_refused(
    planted_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(planted_run, tmp_path / "run")
    assert main(["evaluate", str(run), "probe"]) == 1
    assert "does not record the language model" in capsys.readouterr().err


def test_every_evaluation_is_a_stage_of_the_same_name() -> None:
    from saefast.cli.evaluate import NAMES as OFFERED
    from saefast.pipeline import EVALUATIONS as KINDS

    assert tuple(KINDS) == OFFERED[1:]
    assert set(KINDS) < set(NAMES)
