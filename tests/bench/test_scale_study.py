"""Texts, pieces and rows of the study of scale."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from bench import study
from bench.study import figures, texts
from bench.study.axes import BASE, along, label
from bench.study.claims import Claim, Trend, decided, direction
from bench.study.measures import at_equal_rate, jackknife_interval, measures
from bench.study.pieces import PIECES, Piece
from bench.study.rows import rows_of
from saefast.evaluation.intervals import student_interval
from saefast.pipeline.settings_file import read_settings
from saefast.report.run_data import RunData
from saefast.sweep import read_sweep

TINY = """
base = "quick"
[settings]
"planted.rows" = 4000
"planted.held_out" = 500
"train.tokens" = 100_000
"train.seeds" = [0, 1, 2]
"subspace.draws" = 3
"pool.tokens" = 512
"pool.compare" = false
[grid]
"train.latents" = [96, 128]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of a study with one tiny piece, of which both cells are finished."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.toml").write_text(TINY)
    command = [sys.executable, "-P", "-m", "saefast", "sweep", "tiny.toml", "--out", "tiny"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_texts_that_differ_in_case_or_white_space_alone_count_once():
    seen = set()
    assert list(texts.distinct(["One two", "one\n TWO ", " ", "three"], seen)) == [
        "One two",
        "three",
    ]
    assert list(texts.distinct(["Three", "four"], seen)) == ["four"]


def test_short_texts_are_joined_until_a_file_is_full():
    parts = ["a" * 4, "b" * 4, "c" * 4, "d" * 4, "e" * 4]
    assert list(texts.joined(parts, 8, 100)) == ["aaaa\n\nbbbb", "cccc\n\ndddd", "eeee"]
    assert list(texts.joined(parts, 8, 12)) == ["aaaa\n\nbbbb", "cccc"]


def test_markup_is_removed():
    assert texts.without_markup("<p>A &amp;  B</p>\n<a href='x'>c</a>") == "A & B c"


def test_texts_are_written_once_with_a_digest(tmp_path, monkeypatch):
    given = [texts.Text("one", "a", "first"), texts.Text("two", "b", "second text")]
    monkeypatch.setattr(texts, "_texts", lambda: iter(given))
    monkeypatch.setattr(texts, "version", lambda name: "1")
    found = texts.assemble(tmp_path / "texts")
    assert found["sources"] == {
        "one": {"files": 1, "characters": 5},
        "two": {"files": 1, "characters": 11},
    }
    files = sorted((tmp_path / "texts").glob("*.txt"))
    assert sorted(file.read_text() for file in files) == ["first", "second text"]
    monkeypatch.setattr(texts, "_texts", lambda: pytest.fail("texts are assembled twice"))
    assert texts.assemble(tmp_path / "texts") == found


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.name)
def test_cells_of_a_piece_share_the_rows_of_the_base(piece):
    """Only pieces on text and layers have other rows, for which they harvest again."""
    base = read_settings(piece.file.parent / "base.toml")
    cells = read_sweep(piece.file).cells
    assert cells
    for cell in cells:
        assert cell.settings != base or piece.name == "membership"
        if piece.name not in ("text", "layers", "model"):
            assert cell.settings.data == base.data


def test_the_jackknife_of_values_that_add_up_over_items_is_students_interval():
    items = [0.1, 0.4, 0.2, 0.9]
    pairs = {(a, b): (items[a] + items[b]) / 2 for a in range(len(items)) for b in range(a + 1, 4)}
    assert jackknife_interval(pairs) == pytest.approx(student_interval(items))


def test_two_items_have_a_mean_without_interval():
    value, low, high = jackknife_interval({(0, 1): 0.5})
    assert value == 0.5
    assert np.isnan(low)
    assert np.isnan(high)


def test_at_equal_rate_a_difference_that_follows_from_rates_vanishes():
    generator = np.random.default_rng(0)
    rate = generator.uniform(size=4000)
    a = generator.uniform(size=4000) < rate  # more of the frequent features
    values = np.floor(10 * rate)
    assert abs(at_equal_rate(values, rate, a, ~a)) < 0.1
    assert values[a].mean() - values[~a].mean() > 2
    assert at_equal_rate(values + a, rate, a, ~a) == pytest.approx(1, abs=0.1)


def test_rows_have_the_settings_and_measures_of_finished_cells(root):
    rows = rows_of(root, [Piece("tiny", 0.0), Piece("not begun", 0.0)])
    assert [(row["piece"], row["latents"]) for row in rows] == [("tiny", 96), ("tiny", 128)]
    row = rows[0]
    found = row["measures"]
    data = RunData(root / "tiny" / "cells" / "latents-96")
    shares = [each.stable / each.alive for each in data.stability.seeds]
    assert row["complete"]
    assert found["stable_share"] == pytest.approx(student_interval(shares), rel=1e-4)
    shared = [
        each["value"]
        for each in data.overlap
        if (each["name"], each["match"], each["of"], each["side"], each["threshold"])
        == ("shared", "nearest", "both", "decoder", 0.7)
    ]
    assert found["shared"][0] == pytest.approx(np.mean(shared), rel=1e-4)
    assert found["shared"][1] < found["shared"][0] < found["shared"][2]
    for name in ("explained_variance", "stable_lead", "unstable_lead", "unstable_r2"):
        low, high = found[name][1:]
        assert low <= found[name][0] <= high
    assert found["unstable_beyond_subset"][0] == pytest.approx(
        found["unstable_overlap"][0] - found["unstable_overlap_subset"][0], abs=1e-4
    )
    assert row["seconds"]["train"] > 0
    assert "commit" in row  # None where the package is installed without its repository
    assert row["machine"]
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("stage", ["match", "subspace"])
def test_an_interrupted_cell_has_the_measures_of_finished_stages(root, stage):
    record = root / "tiny" / "cells" / "latents-128" / "stages.json"
    text = record.read_text()
    record.write_text(text.replace(f'"{stage}"', '"other"'))
    try:
        rows = rows_of(root, [Piece("tiny", 0.0)])
    finally:
        record.write_text(text)
    found = {row["latents"]: row for row in rows}
    assert found[96]["complete"]
    assert set(found) == ({96, 128} if stage == "subspace" else {96})
    if stage == "subspace":
        assert not found[128]["complete"]
        assert "stable_share" in found[128]["measures"]
        assert "unstable_overlap" not in found[128]["measures"]
        assert "unstable_overlap" in found[96]["measures"]


def test_measures_that_a_run_does_not_allow_are_left_out(tmp_path):
    assert measures(RunData(tmp_path)) == {}


def test_pieces_share_one_folder_of_rows_and_resume(root, tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.toml").write_text(TINY.replace("[96, 128]", "[96]"))
    piece = Piece("tiny", 0.0)
    monkeypatch.setattr(Piece, "file", property(lambda self: tmp_path / f"{self.name}.toml"))
    for module in (study, sys.modules["bench.study.rows"]):
        monkeypatch.setattr(module, "PIECES", (piece,))
    monkeypatch.setattr(study, "assemble", lambda folder: {"digest": "none"})
    monkeypatch.setattr(study, "link_model", lambda link: None)
    monkeypatch.setattr(study, "rows_of", lambda folder: rows_of(folder, (piece,)))
    out = tmp_path / "out"
    arguments = [str(out), "--json", str(tmp_path / "study.json"), "--processes", "1"]
    assert study.main(arguments) == 0
    assert (out / "tiny" / "stores").resolve() == (out / "stores").resolve()
    assert any((out / "stores").iterdir())
    before = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert len(before) == 1
    assert study.main(arguments) == 0
    assert json.loads((tmp_path / "study.json").read_text())["rows"] == before
    capsys.readouterr()
    # In another folder, the rows of pieces that are not there are kept.
    elsewhere = [str(tmp_path / "elsewhere"), *arguments[1:], "--pieces"]
    assert study.main(elsewhere) == 0
    assert json.loads((tmp_path / "study.json").read_text())["rows"] == before
    monkeypatch.setattr(study, "assemble", lambda folder: {"digest": "other"})
    with pytest.raises(SystemExit):
        study.main(elsewhere)
    assert "rows of other texts" in capsys.readouterr().err


def row_of(measures, **settings):
    return {**BASE, "piece": "tokens", "measures": measures, **settings}


def test_rows_along_an_axis_have_the_other_settings_of_the_base():
    rows = [
        row_of({}, tokens=4_000_000),
        row_of({}),
        row_of({}, tokens=4_000_000, k=8),
        row_of({}, variant="gated"),
        row_of({}, unit_norm=False),
        row_of({}, unit_norm=False, penalty="mean_abs"),
        row_of({}, site="resid.4"),
        row_of({}, seeds=9),
        row_of({}, model="minilm", site="resid.3", tokens=500_000),
        row_of({}, rate=0.003, lr=0.003),
    ]
    assert [label(row, "tokens") for row in along(rows, "tokens")] == ["2 M rows", "4 M rows"]
    assert [label(row, "variant") for row in along(rows, "variant")] == ["topk", "gated"]
    assert [label(row, "site") for row in along(rows, "site")] == ["layer 4", "layer 12"]
    assert [label(row, "penalty") for row in along(rows, "penalty")] == [
        *("unit norm", "free norm, L1", "free norm"),
    ]
    assert [row["rate"] for row in along(rows, "rate")] == [0.003, "default"]
    assert [label(row, "model") for row in along(rows, "model")] == [
        *("minilm, resid.3, 0.5 M rows", "smollm2, resid.12, 2 M rows"),
    ]


@pytest.mark.parametrize(
    ("value", "above", "expected"),
    [
        ([0.2, 0.1, 0.3], True, "yes"),
        ([0.2, 0.1, 0.3], False, "no"),
        ([-0.2, -0.3, -0.1], False, "yes"),
        ([0.2, -0.1, 0.3], True, "?"),
        ([0.2, None, None], True, "?"),
    ],
)
def test_a_claim_is_decided_by_the_interval(value, above, expected):
    claim = Claim("", "lead", 0, above)
    assert decided(claim, row_of({"lead": value})) == expected
    assert decided(claim, row_of({})) == ""


@pytest.mark.parametrize(
    ("last", "expected"),
    [([0.5, 0.4, 0.6], "yes"), ([0.05, 0.04, 0.06], "no"), ([0.3, 0.1, 0.5], "?")],
)
def test_a_trend_needs_intervals_that_are_apart(last, expected):
    first = row_of({"shared_both": [0.2, 0.1, 0.3]})
    assert direction(Trend("tokens", True, ""), first, row_of({"shared_both": last})) == expected


def test_figures_are_drawn_from_committed_rows():
    drawn = figures.drawn()
    assert {file.stem for file in figures.FOLDER.glob("*.svg")} == set(drawn)
    for name, svg in drawn.items():
        assert (figures.FOLDER / f"{name}.svg").read_text() == svg


def test_the_page_states_no_measured_number_outside_of_its_tables():
    """Every number of the text comes from the rows."""
    page = (figures.FOLDER.parent / "study.md").read_text()
    prose = re.sub(r"<!-- table: \w+ -->\n.*?<!-- end of table -->", "", page, flags=re.DOTALL)
    prose = prose.replace("95 %", "")  # of intervals
    assert not re.findall(r"(?<![\d.])0?\.\d+|\d+(?:\.\d+)? ?%", prose)
