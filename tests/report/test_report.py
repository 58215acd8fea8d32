"""The report is complete, lists missing parts, and escapes data."""

import dataclasses
import functools
import re
import shutil
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from helpers.report_page import Page, page_of
from helpers.tiny_run import NASTY, with_language_model

from saefast.disk.tables import read_json, read_table, write_json
from saefast.pipeline import run_pipeline, settings_of
from saefast.report import write_report
from saefast.report.figures import SECTIONS
from saefast.run_folder import CONTEXTS, EVALUATION, FEATURES, POOLING, SUBSPACES


@pytest.fixture
def run(planted_run: Path, tmp_path: Path) -> Path:
    """Return a run with every result."""
    return with_language_model(planted_run, tmp_path / planted_run.name)


def test_a_complete_run_has_every_figure_in_a_well_formed_page(run: Path, tmp_path: Path) -> None:
    written = write_report(run, figures=tmp_path / "figures")
    page = Page(written[0].read_text(encoding="utf-8"))
    wanted = sum(len(several) for several in SECTIONS.values())
    assert len(written) == 1 + wanted
    drawn = [name for name in page.ids if name.startswith("fig-")]
    assert sorted(drawn) == sorted(f"fig-{path.stem}" for path in written[1:])
    assert len(set(page.ids)) == len(page.ids)
    named = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(named) == wanted
    assert all(value and len(value) > 20 for value in named)
    readings = re.findall(r'<p class="reading">([^<]*)</p>', written[0].read_text())
    assert len(readings) == wanted
    assert all(re.fullmatch(r"[A-Z0-9].*\.", each) for each in readings)
    assert all(re.search(r"\d", each) or "enough" in each for each in readings)
    assert "missing" not in page.ids


def test_figures_are_standalone_svg_files(run: Path, tmp_path: Path) -> None:
    for path in write_report(run, figures=tmp_path / "figures")[1:]:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        marks = [each.tag.split("}")[1] for each in root.iter()]
        assert "title" in marks
        assert len(marks) > 10
        numbers = re.findall(r'(?:d|x|y|cx|cy|width|height)="([^"]*)"', path.read_text())
        assert not any("nan" in each or "inf" in each for each in numbers)


def test_figures_have_their_own_colours(run: Path, tmp_path: Path) -> None:
    """Programs without support for CSS variables would draw everything in black."""
    for path in write_report(run, figures=tmp_path / "figures")[1:]:
        text = path.read_text()
        style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)[0]
        assert "var(" not in text
        assert "@media" not in text
        assert "fill: #2463c2" in style
        used = {name for names in re.findall(r'class="([^"]*)"', text) for name in names.split()}
        assert all(f".{name}" in style for name in used if name), used


def test_figures_are_written_as_png_on_request(run: Path, tmp_path: Path) -> None:
    svg_to_bytes = pytest.importorskip("resvg_py").svg_to_bytes
    written = write_report(run, figures=tmp_path / "figures", png=True)[1:]
    pictures = [path for path in written if path.suffix == ".png"]
    assert [path.with_suffix(".svg") for path in pictures] == [
        path for path in written if path.suffix == ".svg"
    ]
    for path in pictures:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert struct.unpack(">II", content[16:24]) == (1920, 1200)
    # Text and colours are visible.
    svg = path.with_suffix(".svg").read_text()
    for part in (r"<text.*?</text>", r"<style>.*?</style>"):
        assert bytes(svg_to_bytes(re.sub(part, "", svg, flags=re.DOTALL), zoom=2)) != content


def test_without_a_font_no_png_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The renderer would omit all text."""
    resvg = pytest.importorskip("resvg_py")
    blind = functools.partial(resvg.svg_to_bytes, skip_system_fonts=True)
    monkeypatch.setattr(resvg, "svg_to_bytes", blind)
    with pytest.raises(OSError, match="need a font"):
        write_report(run, figures=tmp_path / "figures", png=True)
    assert not (tmp_path / "figures").exists()


def test_nothing_is_loaded_from_the_network(run: Path) -> None:
    text = write_report(run)[0].read_text(encoding="utf-8")
    page = Page(text)
    loading = ("src", "href", "action", "data", "poster", "srcset")
    for tag, name, value in page.attributes:
        if name in loading:
            assert str(value).startswith("#"), (tag, name, value)
    assert not re.search(r"https?://", text.replace("http://www.w3.org/2000/svg", ""))
    assert "@import" not in text
    assert "url(" not in text
    policy = next(v for tag, name, v in page.attributes if (tag, name) == ("meta", "content"))
    assert "default-src 'none'" in str(policy)


def test_text_from_data_is_escaped(run: Path) -> None:
    """The name of the folder, texts of the corpus and settings may contain anything."""
    settings = read_json(run / "settings.json")
    settings["store"] = {"train": NASTY, "held_out": ""}
    del settings["planted"]
    write_json(run / "settings.json", settings)
    write_json(run / SUBSPACES / "skipped.json", [NASTY])
    page = page_of(run)
    assert sorted(page.scripts) == ["code", "details-0", "rows"]
    text = "".join(page.text)
    assert text.count(NASTY) == 3  # below the heading, among the facts, and what was left out
    assert "tiny <&> run" in text
    assert not any(tag == "b" for tag, _, _ in page.attributes)
    rows = page.rows
    assert all(token.startswith(NASTY) for token in rows["token"])
    assert [each[0][1] for each in rows["contexts"]] == rows["token"]


def test_the_table_equals_the_files(run: Path) -> None:
    table = read_table(run / FEATURES).to_pylist()
    alive = [row for row in table if row["alive"]]
    rows = page_of(run).rows
    assert len(rows["feature"]) == len(alive) < len(table) + 1
    for number, row in enumerate(alive):
        assert (rows["seed"][number], rows["feature"][number]) == (row["seed"], row["feature"])
        assert rows["group"][number] == row["group"]
        assert rows["score"][number] == pytest.approx(row["score"], abs=1e-3)
        assert rows["effect"][number] == pytest.approx(row["effect"], rel=1e-2)
        partners = {seed: partner for seed, partner, _ in rows["partners"][number]}
        assert partners == {s: p for s, p in enumerate(row["partner"]) if p >= 0}
        assert row["seed"] not in partners
    contexts = [
        each
        for each in read_table(run / CONTEXTS).to_pylist()
        if (each["seed"], each["feature"]) == (alive[3]["seed"], alive[3]["feature"])
    ]
    assert [each[0] for each in rows["contexts"][3]] == [each["before"] for each in contexts]


@pytest.mark.parametrize(
    ("gone", "lost", "message"),
    [
        (POOLING, {"pooling-frontier"}, "pooling and its controls"),
        (
            SUBSPACES,
            {"spectra", "angles", "overlap-stable", "overlap-unstable", "contributions"},
            "subspaces",
        ),
        (EVALUATION, {"keep-drop", "keep-drop-ce"}, "an evaluation"),
        ("metrics.jsonl", {"training"}, "the log of the training"),
        ("membership.json", {"only-in-one"}, "membership"),
        ("overlap.parquet", {"shared-curves", "pair-heat-map"}, "matches between pairs"),
        ("matches", {"decoder-encoder"}, "matches by decoder"),
    ],
)
def test_missing_parts_are_left_out_and_named(
    run: Path, gone: str, lost: set[str], message: str
) -> None:
    complete = {name for name in page_of(run).ids if name.startswith("fig-")}
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of(run)
    left = {name for name in page.ids if name.startswith("fig-")}
    assert complete - left == {f"fig-{name}" for name in lost}
    assert message in "".join(page.text).partition("Missing from this report")[2]


def test_results_from_old_scores_are_left_out(run: Path) -> None:
    """After a change of the threshold, subspaces, pools and contributions are outdated."""
    settings = settings_of(run)
    rule = dataclasses.replace(settings.stability, threshold=0.9)
    changed = dataclasses.replace(settings, stability=rule)
    run_pipeline(changed, run, until="stability", resume=True, progress=False)
    page = page_of(run)
    left = {name for name in page.ids if name.startswith("fig-")}
    gone = {"spectra", "angles", "overlap-stable", "keep-drop", "pooling-frontier"}
    assert not left & {f"fig-{name}" for name in gone}
    assert "fig-stability-histogram" in left
    assert "saefast pool" in "".join(page.text)


def test_a_run_with_only_a_training_has_a_report(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(run / name, bare)
    page = page_of(bare)
    assert [name for name in page.ids if name.startswith("fig-")] == ["fig-training"]
    assert "Nothing yet" in "".join(page.text)
    assert list(page.scripts) == ["code"]


def test_a_report_without_a_run_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report(tmp_path)


def test_the_same_files_give_the_same_bytes(run: Path) -> None:
    first = write_report(run)[0].read_bytes()
    assert write_report(run)[0].read_bytes() == first
