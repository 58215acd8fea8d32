"""`saefast evaluate --judge`: able judges, unable judges, and their cost."""

import json
import re
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.chat_server import serving

from saefast.cli import main
from saefast.disk.tables import read_json, read_table
from saefast.pipeline import settings_of
from saefast.run_folder import EVALUATIONS, FEATURES, SCORES

_OF_SHAPES = {
    "a number": string.digits,
    "a number in code": string.digits,
    "punctuation": string.punctuation,
    "a token that begins with a capital letter": string.ascii_uppercase,
    "a comment in code": "#",
    "a string in code": "\"'",
    "an operator or bracket in code": "()[]{}=+-*/<>",
}


_OF_RUN = set("etaoinshrdlu<> \n")
"""Letters of the texts of the run, and of the marks"""


def reads(body: dict[str, Any]) -> str:
    """Return whether a text has the letters that a description names."""
    asked = json.loads(body["messages"][-1]["content"])
    if isinstance(asked, list):
        return "Description: letters"
    described = asked["description"]
    letters = re.findall(r'"(.*?)"', described) or _OF_SHAPES.get(described, "")
    passages = [
        passage.lower() if "token" in described else passage for passage in asked["passages"]
    ]
    if "capital" in described:
        passages = asked["passages"]
    return str([int(any(each in passage for each in letters)) for passage in passages])


def never(body: dict[str, Any]) -> str:
    asked = json.loads(body["messages"][-1]["content"])
    return "none" if isinstance(asked, list) else str([0] * len(asked["passages"]))


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return shutil.copytree(place / "run", tmp_path / "run")


def measures(run: Path, evaluation: str) -> dict[str, dict[str, Any]]:
    """Return the scores of trained SAEs over all latents, by measure."""
    return {
        row["measure"]: row
        for row in read_table(run / SCORES).to_pylist()
        if row["evaluation"] == evaluation
        and row["condition"] == "trained"
        and not (row["task"] or row["group"])
        and row["seed"] is None
    }


def test_steering_uses_an_able_judge(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(answer=reads) as server:
        judge = ["--judge", f"{server.url}#reader"]
        before = settings_of(run)
        assert main(["evaluate", str(run), "steer", *judge, "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert not server.bodies
        assert settings_of(run) == before
        assert main(["evaluate", str(run), "steer", *judge]) == 0
        bodies = [json.loads(body["messages"][-1]["content"]) for body in server.bodies]
    requests = int(re.search(r"at most about (\d+) requests", printed)[1])
    assert 0.3 * requests < len(bodies) <= requests
    # Both texts of a pair in one request, in either order; windows of the run's own text, whose
    # rules are rated, are no such pairs.
    pairs = {(each["description"], *each["passages"]) for each in bodies}
    there = [each for each in pairs if len(each) == 3 and not set("".join(each[1:])) <= _OF_RUN]
    assert len(there) < len(pairs) - 80
    assert sum((words, b, a) in pairs for words, a, b in there) > 0.9 * (len(there) - 80)
    found = measures(run, "steer")
    score = found["success by judge"]
    assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert score["n"] > 0
    assert 0 <= score["floor"] <= 1  # successes of a second unsteered text
    notes = read_json(run / EVALUATIONS / "steer.json")["notes"]
    assert "features with a known explanation" in notes[0]
    # The same judge rates the rules of the latents that are steered with, and of no others.
    features = read_table(run / FEATURES)
    steered, rated = (
        np.isfinite(features[name].to_numpy()) for name in ("steer_strength", "steer_detection")
    )
    assert rated.any()
    assert not (rated & ~steered).any()
    assert {"steer_specificity", "steer_fuzzing"} <= set(features.column_names)
    assert (run / EVALUATIONS / "judgements.jsonl").is_file()
    assert settings_of(run).evaluate.steer.judge == f"{server.url}#reader"
    assert settings_of(run).evaluate.explain == before.evaluate.explain


def test_steering_leaves_out_an_unable_judge(run: Path) -> None:
    with serving(answer=never) as server:
        assert main(["evaluate", str(run), "steer", "--judge", f"{server.url}#never"]) == 0
        calls = len(server.bodies)
    assert calls < 150  # only those of the calibration
    assert not any("judge" in measure for measure in measures(run, "steer"))
    assert "steer_detection" not in read_table(run / FEATURES).column_names
    notes = read_json(run / EVALUATIONS / "steer.json")["notes"]
    assert "cannot tell right explanations from wrong ones, and its scores are withheld" in notes[0]


def test_scores_of_an_unable_local_model_are_withheld(
    place: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = ["--judge", f"local:{place / 'model'}"]
    assert main(["evaluate", str(run), "explain", *judge]) == 0
    printed = capsys.readouterr().out
    assert "cannot tell right explanations from wrong ones, and its scores are withheld" in printed
    found = measures(run, "explain")
    assert "rule balanced accuracy" in found
    assert not {"specificity", "detection", "fuzzing"} & found.keys()
    assert "detection" not in printed


def test_a_dry_run_needs_judged_evaluations(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "probe", "--dry-run"]) == 1
    assert "name explain or steer only" in capsys.readouterr().err
    assert main(["evaluate", str(run), "probe", "--judge", "embedding"]) == 1
    assert "judge applies to explain and steer only; name one of them" in capsys.readouterr().err
    assert main(["evaluate", str(run), "explain", "steer", "--dry-run"]) == 0
    assert "no judge would be called" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("budget", "latents"),
    [("quick", 3 * 8), ("full", 3 * 16 + 3 * 8)],  # full: also the three untrained SAEs
)
def test_the_full_budget_steers_with_more_latents_of_trained_saes(
    run: Path, budget: str, latents: int, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = ["--judge", "http://localhost:9/v1#none", "--dry-run"]
    assert main(["evaluate", str(run), "steer", "--budget", budget, *judge]) == 0
    assert f"for {latents} latents and its calibration" in capsys.readouterr().out
