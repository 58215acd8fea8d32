"""The benchmark of matching at tiny sizes: checks, rivals and plan."""

import json

import pytest

from bench import match, match_rivals
from saefast.match.plan import plan_matching


def test_neighbours_agree_with_faiss():
    rows = match._neighbours(600, 16, 8, 1)
    assert [row["rival"] for row in rows] == ["torch.mm", "saefast"] + ["faiss IndexFlatIP"] * 2
    assert all(row["agrees"] and row["ms"] > 0 for row in rows)


def test_one_to_one_agrees_with_sparse_solvers():
    ours, *rivals = match._large(400, 12, 8, 4.0)
    assert ours["certified"]
    assert ours["agrees"]
    assert ours["value"] == pytest.approx(ours["upper_bound"])
    scipy = rivals[0]
    assert scipy["agrees"]
    assert scipy["value"] == pytest.approx(ours["value"])


def test_a_rival_that_disagrees_is_reported(monkeypatch):
    wrong = "import json; print(json.dumps({'ms': 1, 'value': 1.0}))"
    monkeypatch.setattr(
        match_rivals, "_PROGRAMS", {"wrong": wrong, "broken": "raise ValueError('no')"}
    )
    _, first, second = match._large(100, 8, 4, 4.0)
    assert not first["agrees"]
    assert second["ms"] is None
    assert second["note"] == "ValueError: no"


def test_kinds_are_compared_with_scipy(monkeypatch):
    assert match._of_kind("ties", 90, 70)["agrees"]
    monkeypatch.setattr(match, "best_value", lambda *_: 1.0)
    assert not match._of_kind("ties", 90, 70)["agrees"]


def test_parts_share_a_file(tmp_path, monkeypatch):
    file = tmp_path / "match.json"
    monkeypatch.setattr(match, "PARTS", {"one": lambda _: [{"a": 1}], "two": lambda _: [{"a": 2}]})
    for name in ("one", "two", "two"):
        match.main(["--in-process", "--parts", name, "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["part"], row["a"]) for row in rows] == [("one", 1), ("two", 2)]


def test_the_plan_counts_blocks_and_products(capsys):
    plan = plan_matching(5000, 16, neighbours=8, memory=1e-3)
    assert plan.blocks == -(-5000 // plan.block_rows)
    assert plan.blocks > 1
    assert plan.flops == 4.0 * 5000 * 5000 * 16
    assert plan.neighbours == 1
    assert plan.lists_gb == pytest.approx(2 * 5000 * 16 / 1e9)
    assert plan.seconds == pytest.approx(2 * 5000**2 / plan.pairs_per_second)
    match.main(["--dry-run", "--m", "5000", "--d", "16", "--memory", "0.001"])
    assert f"{plan.blocks} x {plan.blocks} blocks" in capsys.readouterr().out
    plenty = plan_matching(5000, 16, neighbours=8)
    assert (plenty.blocks, plenty.neighbours) == (1, 8)
