"""Summary and figures of the report in a real Chromium: values, and the features of a mark."""

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import SCREENS, missing, opened
from helpers.report_screen import alive, detail, shown, tip

from saefast.disk.tables import read_json
from saefast.report import findings_of
from saefast.run_folder import STABILITY

pytestmark = pytest.mark.skipif(
    missing(), reason="needs playwright (pip) and a Chromium (apt install chromium)"
)


@pytest.mark.parametrize("screen", sorted(SCREENS))
def test_the_summary_is_seen_without_scrolling(report: Path, screen: str) -> None:
    """Four numbers, each with its null, and on a wide screen the first claims."""
    with opened(report, screen) as (page, _):
        height = SCREENS[screen]["viewport"]["height"]
        tiles = page.locator("#summary .tile")
        assert tiles.count() == 4
        assert all(":" in null for null in tiles.locator(".null").all_inner_texts())
        first = page.locator("#summary .number").first.bounding_box()
        assert first["y"] + first["height"] < height
        if screen != "phone":
            row = page.locator(".claims tbody tr").first.bounding_box()
            assert row["y"] + row["height"] < height


def test_claims_lead_to_their_figures(report: Path, page: Any) -> None:
    claims = [each for each in findings_of(report.parent) if each.claim]
    rows = page.locator(".claims tbody tr")
    assert rows.count() == len(claims)
    for place, each in enumerate(claims):
        row = rows.nth(place)
        assert each.holds in row.inner_text()
        row.locator("a").click()
        assert page.url.endswith(f"#fig-{each.figure}")
        box = page.locator(f"#fig-{each.figure}").bounding_box()
        assert 0 <= box["y"] < SCREENS["light"]["viewport"]["height"]
        page.go_back()


def test_pointing_shows_values(report: Path, page: Any) -> None:
    """Values of a shape, and values of every line at one place."""
    rows = alive(report)
    never = sum(row["score"] == 0 for row in rows) / len(rows)
    page.locator("#fig-stability-histogram rect.s1[data-mark='0']").hover()
    assert re.match(rf"0/3: {100 * never:.0f} %", tip(page))
    curve = read_json(report.parent / STABILITY)["curve"]
    chart = page.locator("#fig-threshold-curves svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    lines = tip(page).splitlines()
    at = float(lines[0].partition(": ")[2])
    point = next(each for each in curve if each["threshold"] == pytest.approx(at))
    values = dict(line.split(": ") for line in lines[1:])
    assert set(values) == {"mean score", "stable", "unstable", "chance"}
    assert float(values["mean score"]) == pytest.approx(point["score"], rel=1e-3)
    assert float(values["unstable"]) == pytest.approx(point["unstable"], rel=1e-3)
    page.mouse.move(5, 5)
    assert tip(page) == ""


def test_a_mark_opens_its_features(report: Path, page: Any) -> None:
    """One row is opened; several are listed, as many as the mark says."""
    marks = page.locator("#fig-similarity-frequency rect[data-mark]")
    texts = []
    for place in range(marks.count()):
        marks.nth(place).hover()
        texts.append(tip(page).splitlines()[0])
    for words, open_rows in (("1 features", 1), ("2 features", 0)):
        marks.nth(texts.index(words)).click()
        names = shown(page, "feature")
        assert len(names) == int(words[0])
        assert page.locator("tr.detail").count() == open_rows
        assert page.inner_text("#chosen span").startswith("From “Are frequent features")
        assert page.locator("#features h2").bounding_box()["y"] < 100
    page.click("#chosen button")
    assert page.inner_text("#count").startswith(f"{len(alive(report))} of")


@pytest.mark.parametrize(
    ("figure", "column", "mark"),
    [("stability-histogram", "support", lambda row: row["support"] - 1),
     ("membership", "support", lambda row: row["support"])],
)  # fmt: skip
def test_bars_hold_the_features_of_the_table(
    report: Path, page: Any, figure: str, column: str, mark: Any
) -> None:
    rows = alive(report)
    for number in {mark(row) for row in rows}:
        page.locator(f"#fig-{figure} [data-mark='{number}']").dispatch_event("click")
        wanted = sum(mark(row) == number for row in rows)
        assert page.inner_text("#count") == f"{wanted} of {len(rows)} features"


def test_a_point_opens_the_row_of_its_feature(evaluated: Path) -> None:
    with opened(evaluated, "light") as (page, complaints):
        points = page.locator("#fig-explanations-steering circle[data-mark]")
        points.last.hover()
        name = tip(page).split()[0]
        points.last.click()
        assert shown(page, "feature") == [name]
        assert "steering succeeds" in detail(page)
        assert page.evaluate("document.activeElement.textContent") == name
        assert complaints == []


def test_figures_need_no_mouse(page: Any) -> None:
    page.focus("#fig-membership svg")
    page.keyboard.press("ArrowRight")
    assert tip(page).startswith("in 1 of 4: ")
    page.keyboard.press("End")
    assert tip(page).startswith("in 4 of 4: ")
    page.keyboard.press("Escape")
    assert tip(page) == ""
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.inner_text("#chosen span").startswith("From “Number of SAEs")
    page.focus("#fig-threshold-curves svg")
    page.keyboard.press("Home")
    assert "mean score: " in tip(page)


def test_a_finger_sees_the_value_first(report: Path) -> None:
    with opened(report, "phone") as (page, complaints):
        slice_of_all = page.locator("#fig-membership [data-mark='4']")
        slice_of_all.tap(position={"x": 8, "y": 60})
        assert tip(page).startswith("in 4 of 4")
        assert not page.is_visible("#chosen")
        slice_of_all.tap(position={"x": 8, "y": 60})
        assert page.is_visible("#chosen")
        assert complaints == []
