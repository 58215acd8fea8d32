"""Output of the benchmarks that run studies and the demo."""

import json
from dataclasses import dataclass, replace

from bench import demo, studies
from saefast.pipeline import PRESETS
from saefast.studies.result import StudyResult
from saefast.studies.validity import ValidityRank, ValidityResult


@dataclass
class Row:
    value: float


@dataclass
class Result:
    rows: tuple[Row, ...]

    def as_text(self) -> str:
        return "a table"


def test_a_study_keeps_the_results_of_others(tmp_path, monkeypatch, capsys):
    file = tmp_path / "studies.json"
    parts = {name: lambda name=name: Result((Row(len(name)),)) for name in ("one", "three")}
    monkeypatch.setattr(studies, "PARTS", parts)
    for name in ("one", "three", "one"):
        studies.main(["--in-process", "--parts", name, "--json", str(file)])
    printed = json.loads(file.read_text())["studies"]
    assert {name: study["rows"] for name, study in printed.items()} == {
        "one": [{"value": 3}],
        "three": [{"value": 5}],
    }
    assert all(study["seconds"] >= 0 and study["commit"] for study in printed.values())
    # Studies of one file may come from different machines.
    assert all(study["machine"]["cores"] for study in printed.values())
    assert capsys.readouterr().out == "a table\n" * 3


def test_ranks_of_the_validity_study_are_kept_and_nan_is_null(tmp_path, monkeypatch, capsys):
    nothing = float("nan")
    rank = ValidityRank("probing", "tokens", 0.5, nothing, nothing, 7)
    found = ValidityResult(rows=(), ranks=StudyResult(rows=(rank,)))
    monkeypatch.setattr(studies, "PARTS", {"validity": lambda: found})
    file = tmp_path / "studies.json"
    studies.main(["--in-process", "--json", str(file), "--parts", "validity"])
    assert "NaN" not in file.read_text()
    (kept,) = json.loads(file.read_text())["studies"]["validity"]["ranks"]
    assert kept["measure"] == "probing"
    assert (kept["correlation"], kept["low"], kept["high"], kept["saes"]) == (0.5, None, None, 7)
    assert "probing" in capsys.readouterr().out


def test_the_demo_is_recorded_with_its_stages(tmp_path, monkeypatch, capsys):
    """On planted rows; an existing run is not repeated."""
    quick = PRESETS["quick"]
    small = replace(
        quick,
        data=replace(quick.data, rows=4_000, held_out=1_000),
        train=replace(quick.train, tokens=8_000, seeds=(0, 1)),
        pool=replace(quick.pool, tokens=2_000),
    )
    monkeypatch.setitem(PRESETS, "demo", small)
    file = tmp_path / "demo.json"
    for _ in range(2):
        demo.main(["--run", str(tmp_path / "run"), "--json", str(file)])
    printed = json.loads(file.read_text())
    stages = printed["stages"]
    assert [*stages][:: len(stages) - 1] == ["harvest", "report"]
    assert printed["seconds"] == round(sum(stages.values()), 1)
    assert printed["findings"][0]["topic"] == "Stability"
    assert "- Stability: " in capsys.readouterr().out
