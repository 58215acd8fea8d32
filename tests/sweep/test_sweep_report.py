"""The report of a sweep: its numbers are those of the table, and data stay text."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from helpers.report_page import Page
from helpers.swept_table import AXES, Row, measured, swept_table
from helpers.tiny_run import NASTY

from saefast.report.scale import Scale
from saefast.sweep import SweepFolder, write_sweep_report
from saefast.sweep.report.curves import curves_over, null_over
from saefast.sweep.report.measures import measures_of
from saefast.sweep.report.sweep_data import Axis, SweepData, read_sweep_data

ALL_MEASURES = 18


def page_of(folder: SweepFolder) -> Page:
    return Page(write_sweep_report(folder).read_text(encoding="utf-8"))


def text_of(page: Page) -> str:
    return " ".join("".join(page.text).split())


def titles_of(folder: SweepFolder) -> list[str]:
    """Return the hover texts of points."""
    return re.findall(r"<title>(.*?)</title></circle>", write_sweep_report(folder).read_text())


def measure_of(data: SweepData, column: str) -> Any:
    return next(measure for measure in data.measures if measure.column == column)


def test_every_measure_is_drawn_over_every_axis(tmp_path: Path) -> None:
    folder = swept_table(tmp_path / "sweep")
    page = page_of(folder)
    figures = [name for name in page.ids if name.startswith("fig-")]
    assert figures == [f"fig-{m}-{a}" for m in range(ALL_MEASURES) for a in range(len(AXES))]
    assert len(set(page.ids)) == len(page.ids)
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == len(figures) * len(AXES)
    assert any("Stable share by train.k. Means: " in str(label) for label in labels)
    for svg in re.findall(r"<svg .*?</svg>", (tmp_path / "sweep/report.html").read_text()):
        marks = [each.tag.split("}")[-1] for each in ElementTree.fromstring(svg).iter()]
        assert not re.search(r'="[^"]*(nan|inf)\b', svg), svg
        assert len(marks) > 1


def test_means_bands_and_nulls_match_the_rows(tmp_path: Path) -> None:
    folder = swept_table(tmp_path / "sweep")
    data = read_sweep_data(folder)
    shares = [
        measured({"train.latents": latents, "train.k": 8})["stable_share"]
        for latents in AXES["train.latents"]
    ]
    curves = curves_over(data, measure_of(data, "stable_share"), 0, 1)
    assert [point.reading.value for point in curves[1].points] == pytest.approx(shares)
    for point in curves[1].points:
        low, high = point.reading.band or (0, 0)
        assert (low, high) == pytest.approx(
            (point.reading.value - 0.03, point.reading.value + 0.03)
        )
    nulls = null_over(data, measure_of(data, "shared"), 0, "shared_null")
    assert [null.mean for null in nulls] == pytest.approx([0.0064, 0.0128, 0.0256])
    spread = curves_over(data, measure_of(data, "explained_variance"), 1, None)[0].points[0]
    assert spread.reading.band == pytest.approx((0.53, 0.55))  # of its two SAEs
    ce = curves_over(data, measure_of(data, "ce"), 1, None)[0].points[0]
    assert ce.reading.band == pytest.approx((3.4 - 0.0196, 3.4 + 0.0196), abs=1e-5)
    assert "train.k" in text_of(page_of(folder))
    assert f"latents = 256: {sum(share for share in [0.604, 0.564]) / 2:.4g} (" in " ".join(
        titles_of(folder)
    )


def test_a_changed_row_changes_the_page(tmp_path: Path) -> None:
    before = titles_of(swept_table(tmp_path / "one"))

    def change(row: Row) -> Row:
        chosen = row["cell"] == "latents-64_k-4_variant-topk" and row["level"] == "cell"
        return {**row, "shared": 0.123456} if chosen else row

    after = titles_of(swept_table(tmp_path / "other", change=change))
    new = set(after) - set(before)
    assert any(hover.startswith("latents-64_k-4_variant-topk: 0.1235 (") for hover in new)
    assert any(hover.startswith("latents = 64: ") for hover in new)
    page = page_of(SweepFolder(tmp_path / "other"))
    shared = [m.column for m in measures_of(measured({}))].index("shared")
    assert page.rows[f"measure-{shared}"][0][0] == 0.12346


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = swept_table(tmp_path / "sweep")
    first = write_sweep_report(folder).read_bytes()
    assert write_sweep_report(folder).read_bytes() == first
    assert [path.name for path in folder.root.glob("*.part*")] == []


def test_means_compare_like_with_like(tmp_path: Path) -> None:
    """Without the cell that failed at k = 8, its counterpart at k = 4 does not count either."""

    def change(row: Row) -> Row:
        if row["cell"] == "latents-256_k-8_variant-topk":
            return {**{key: row[key] for key in ("cell", "level", "seed")}, "status": "failed"}
        return row

    data = read_sweep_data(swept_table(tmp_path / "sweep", change=change))
    curve = curves_over(data, measure_of(data, "stable_share"), 1, None)[0]
    assert [len(point.cells) for point in curve.points] == [5, 5]
    drop = curve.points[0].reading.value - curve.points[1].reading.value
    assert drop == pytest.approx(0.04)
    assert curve.alike


def test_means_over_different_settings_say_so(tmp_path: Path) -> None:
    axes = {"train.latents": [64, 128], "train.k": [4, 8]}

    def change(row: Row) -> Row | None:
        return row if row["cell"] in ("latents-64_k-4", "latents-128_k-8") else None

    folder = swept_table(tmp_path / "sweep", axes, change)
    assert "means at different places are over different settings" in text_of(page_of(folder))
    assert "different settings" not in text_of(page_of(swept_table(tmp_path / "whole", axes)))


def test_data_stay_text(tmp_path: Path) -> None:
    """Names of cells, axes and folders, values and reasons may hold anything."""
    axes = {"sets": [NASTY, "plain"], NASTY: [1, 2]}

    def change(row: Row) -> Row:
        renamed = {**row, "torch": NASTY, "machine": NASTY}
        return {**renamed, "status": "failed", "reason": NASTY} if "plain" in row["cell"] else row

    folder = swept_table(tmp_path / "a <b>bold & sweep", axes, change)
    record = folder.read()
    page = page_of(folder)
    assert sorted(page.scripts) == ["code", "rows"]
    assert not any(tag == "b" for tag, _, _ in page.attributes)
    assert text_of(page).count("a <b>bold & sweep") == 2  # title and heading
    assert text_of(page).count(" ".join(NASTY.split())) >= 5
    assert page.rows["cell"] == list(record.cells)
    assert page.rows["names-0"] == [NASTY, "plain"]


def test_a_hostile_name_stays_in_the_folder(tmp_path: Path) -> None:
    names = iter(['javascript:alert(1)//"><b>', "https://example.com/?a#b"])

    def change(row: Row) -> Row:
        return {**row, "report": next(names)} if row["level"] == "cell" else row

    page = page_of(swept_table(tmp_path / "sweep", {"train.k": [2, 4]}, change))
    links = {str(value) for _, name, value in page.attributes if name == "href"}
    assert links | set(page.rows["link"]) == {
        *(link for link in links if link.startswith("#")),
        "cells/k-2/report.html",
        "cells/k-4/report.html",
    }


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    text = write_sweep_report(swept_table(tmp_path / "sweep")).read_text(encoding="utf-8")
    page = Page(text)
    loading = ("src", "action", "data", "poster", "srcset")
    assert not [each for each in page.attributes if each[1] in loading]
    assert not re.search(r"https?://", text.replace("http://www.w3.org/2000/svg", ""))
    assert "url(" not in text
    policy = next(v for tag, name, v in page.attributes if (tag, name) == ("meta", "content"))
    assert "default-src 'none'" in str(policy)


def test_failed_and_unfinished_cells_are_named_with_their_reason(tmp_path: Path) -> None:
    def change(row: Row) -> Row | None:
        if row["level"] == "sae":
            return None
        status = "failed" if "topk" in row["cell"] else "unfinished"
        return {
            **{key: row[key] for key in ("cell", "level", "seed")},
            "status": status,
            "reason": "ValueError: rows hold NaN",
            "report": None,
        }

    page = page_of(swept_table(tmp_path / "sweep", change=change))
    assert "12: 6 failed, 6 unfinished" in text_of(page)
    assert text_of(page).count("ValueError: rows hold NaN") == 6
    assert "There are no figures yet" in text_of(page)
    assert not [name for name in page.ids if name.startswith("fig-")]
    assert set(page.rows["link"]) == {""}


def test_an_empty_table_is_a_sweep_of_unfinished_cells(tmp_path: Path) -> None:
    page = page_of(swept_table(tmp_path / "sweep", change=lambda row: None))
    assert "12: 12 unfinished" in text_of(page)
    page = page_of(swept_table(tmp_path / "none", {}))
    assert "There are no figures yet" in text_of(page)
    assert not page.scripts


def test_a_single_cell_has_a_table_and_no_figures(tmp_path: Path) -> None:
    page = page_of(swept_table(tmp_path / "sweep", {"train.k": [4]}))
    assert "There are no figures yet" in text_of(page)
    assert page.rows["cell"] == ["k-4"]
    assert page.rows["measure-0"][0][0] == pytest.approx(measured({"train.k": 4})["stable_share"])


def test_measures_that_are_not_known_are_left_out(tmp_path: Path) -> None:
    def values(at: Any) -> Row:
        return {"explained_variance": 0.5, "shared": None, "mmcs": float("nan")}

    data = read_sweep_data(swept_table(tmp_path / "sweep", values=values))
    assert [measure.column for measure in data.measures] == ["explained_variance"]
    assert "MMCS" not in text_of(page_of(SweepFolder(tmp_path / "sweep")))


def test_a_measure_of_some_cells_is_drawn_where_it_is_known(tmp_path: Path) -> None:
    def change(row: Row) -> Row:
        if "k-8" in row["cell"]:
            return {key: value for key, value in row.items() if not key.startswith("ce")}
        return row

    data = read_sweep_data(swept_table(tmp_path / "sweep", change=change))
    curve = curves_over(data, measure_of(data, "ce"), 1, None)[0]
    assert [point.place for point in curve.points] == [0]
    page_of(SweepFolder(tmp_path / "sweep"))


@pytest.mark.parametrize(
    ("name", "values", "ordered", "scale"),
    [
        ("train.latents", (128, 64), (64, 128), "log"),
        ("train.k", (5, 6), (5, 6), "log"),
        ("train.lr", (0.001, 0.1), (0.001, 0.1), "log"),
        ("stability.threshold", (0.5, 0.7), (0.5, 0.7), "linear"),
        ("train.auxk", (0, 0.1, 0.001), (0, 0.001, 0.1), "names"),
        ("train.variant", ("topk", "relu"), ("topk", "relu"), "names"),
        ("stability.threshold", (0.5, "null"), (0.5, "null"), "names"),
        ("train.seeds", ([0, 1], [2, 3]), ([0, 1], [2, 3]), "names"),
        ("train.flag", (True, False), (True, False), "names"),
    ],
)
def test_axes_of_every_type(
    tmp_path: Path, name: str, values: tuple[Any, ...], ordered: tuple[Any, ...], scale: str
) -> None:
    folder = swept_table(tmp_path / "sweep", {name: values, "pool.width": [3, "null"]})
    axis = read_sweep_data(folder).axes[0]
    assert axis.values == ordered
    assert axis.numeric == (scale != "names")
    assert axis.scale.log == (scale == "log")
    places = [axis.scale(place) for place in axis.places]
    assert places == sorted(places)
    assert 0 < places[0] < places[-1] < 1
    assert "fig-0-1" in page_of(folder).ids


def test_words_of_values() -> None:
    axis = Axis("a", (4096, 16384, 20_000, 2_000_000, 0.5, "null", "", [1, 2], True))
    assert axis.names == ["4,096", "16,384", "20K", "2M", "0.5", "null", '""', "[1, 2]", "true"]
    assert Axis("a", (1, 2)).scale == Scale(0.94, 2.06)


def test_many_values_have_some_lines_and_say_so(tmp_path: Path) -> None:
    axes = {"train.seed": list(range(1, 26)), "train.k": [4, 8]}
    page = page_of(swept_table(tmp_path / "sweep", axes))
    assert "not drawn: 15" in text_of(page)


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        write_sweep_report(SweepFolder(tmp_path))
    folder = swept_table(tmp_path)
    folder.results.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no results\.parquet; saefast report"):
        write_sweep_report(folder)
