"""The report of a sweep in a real Chromium; skipped where there is none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import SCREENS, chromium, opened
from helpers.swept_table import AXES, Row, measured, swept_table

from saefast.sweep import write_sweep_report

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="needs playwright (pip) and a Chromium (apt install chromium)"
)
UNKNOWN = "\N{EN DASH}"
FAILED = "latents-128_k-8_variant-relu"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of cells of which one failed."""

    def change(row: Row) -> Row:
        if row["cell"] != FAILED:
            return row
        known = {key: row[key] for key in ("cell", "level", "seed")}
        return known | {"status": "failed", "reason": "ValueError: NaN", "report": None}

    root = tmp_path_factory.mktemp("sweeps") / ("long" * 20)
    return write_sweep_report(swept_table(root, change=change))


@pytest.fixture
def page(report: Path) -> Iterator[Any]:
    with opened(report, "light") as (page, complaints):
        yield page
        assert complaints == []


def column(page: Any, name: str) -> list[str]:
    """Return the texts of a column of the table."""
    heads = page.eval_on_selector_all("#cells th", "all => all.map(th => th.dataset.column)")
    place = heads.index(name) + 1
    return page.locator(f"#cells tbody td:nth-child({place})").all_inner_texts()


def lines(page: Any, figure: str) -> int:
    """Return the number of visible lines in a figure, without nulls."""
    shown = "all => all.filter(path => path.checkVisibility()).length"
    return int(page.eval_on_selector_all(f"#{figure} path.l:not(.s2)", shown))


@pytest.mark.parametrize("screen", sorted(SCREENS))
def test_it_loads_and_fits(report: Path, screen: str) -> None:
    """No console message, no request, no scrolling sideways, for any choice of lines."""
    with opened(report, screen) as (page, complaints):
        for choice in range(len(AXES) + 1):
            page.check(f"#lines-{choice}")
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= SCREENS[screen]["viewport"]["width"]
            boxes = [box for svg in page.locator("figure svg").all() if (box := svg.bounding_box())]
            assert len(boxes) == page.locator("figure").count()
            assert all(box["width"] > 250 and box["height"] > 150 for box in boxes)
        assert complaints == []


def test_lines_are_chosen_without_javascript(report: Path) -> None:
    with opened(report, "light", javascript=False) as (page, complaints):
        assert [lines(page, f"fig-0-{axis}") for axis in range(3)] == [1, 1, 1]
        page.check("#lines-1")
        assert [lines(page, f"fig-0-{axis}") for axis in range(3)] == [1, 3, 3]
        assert page.locator(".key:visible").inner_text().split() == ["64", "128", "256", "null"]
        page.check("#lines-3")
        assert [lines(page, f"fig-0-{axis}") for axis in range(3)] == [2, 2, 1]
        assert complaints == []


def test_cells_are_filtered_and_sorted(page: Any) -> None:
    assert page.inner_text("#count") == "12 of 12 cells"
    page.select_option("#axis-0", "128")
    page.select_option("#axis-2", "relu")
    assert column(page, "cell") == ["latents-128_k-4_variant-relu", FAILED]
    page.select_option("#status", "failed")
    assert column(page, "status") == ["failed\nValueError: NaN"]
    for name in ("#axis-0", "#axis-2", "#status"):
        page.select_option(name, "")
    page.fill("#search", "nan")
    assert column(page, "cell") == [FAILED]
    page.fill("#search", "")
    head = page.locator("th[data-column=measure-0] button")
    head.click()
    shares = [text.split()[0] for text in column(page, "measure-0")]
    best = measured({"train.latents": 64, "train.k": 4})["stable_share"]
    assert float(shares[0]) == pytest.approx(best, abs=1e-3)
    assert [float(share) for share in shares[:-1]] == sorted(map(float, shares[:-1]), reverse=True)
    assert shares[-1] == UNKNOWN
    head.click()
    assert column(page, "measure-0")[-1] == UNKNOWN
    page.locator("th[data-column=axis-0] button").click()
    assert column(page, "axis-0") == ["64"] * 4 + ["128"] * 4 + ["256"] * 4


def test_reports_of_cells_are_one_click_away(report: Path, page: Any) -> None:
    cell = "latents-64_k-4_variant-topk"
    link = page.locator("#cells tbody a").first
    assert link.inner_text() == cell
    wanted = report.with_name("cells") / cell / "report.html"
    assert link.evaluate("a => a.href") == wanted.as_uri()
    assert page.locator("#cells tbody a").count() == 11
    dot = page.locator(f"#fig-0-0 a:has-text('{cell}')").first
    assert dot.evaluate("a => new URL(a.href.baseVal, location).href") == wanted.as_uri()
