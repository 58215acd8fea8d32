"""The report in a real Chromium; skipped without one."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import SCREENS, chromium, opened
from helpers.evaluated_run import with_evaluations
from helpers.tiny_run import with_language_model

from saefast.disk.tables import read_table
from saefast.report import write_report
from saefast.report.figures import SECTIONS
from saefast.run_folder import FEATURES

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="needs playwright (pip) and a Chromium (apt install chromium)"
)


@pytest.fixture(scope="module")
def report(planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / ("long" * 20)
    return write_report(with_language_model(planted_run, out))[0]


@pytest.fixture(scope="module")
def evaluated(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of the run with evaluations."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(report.parent, run)
    return write_report(with_evaluations(run))[0]


@pytest.fixture
def page(report: Path) -> Iterator[Any]:
    with opened(report, "light") as (page, complaints):
        yield page
        assert complaints == []


def shown(page: Any, column: str) -> list[str]:
    """Return the cells of a column."""
    return page.locator(f"tbody tr:not(.detail) td.column-{column}").all_inner_texts()


@pytest.mark.parametrize("screen", sorted(SCREENS))
def test_the_page_loads_draws_and_fits(report: Path, screen: str) -> None:
    """No console message, no request, no horizontal scrolling, and no empty figure."""
    with opened(report, screen) as (page, complaints):
        assert figures_that_fit(page, screen) == sum(len(several) for several in SECTIONS.values())
        assert complaints == []


def figures_that_fit(page: Any, screen: str) -> int:
    """Return the number of figures, after checking that they and the page fit the screen."""
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= SCREENS[screen]["viewport"]["width"]
    boxes = [figure.bounding_box() for figure in page.locator("figure svg").all()]
    assert all(box["width"] > 250 and box["height"] > 150 for box in boxes)
    texts = page.eval_on_selector_all(
        "figure svg text",
        """texts => texts.filter(text => {
            const svg = text.closest("svg").getBoundingClientRect();
            const box = text.getBoundingClientRect();
            return box.left < svg.left - 1 || box.right > svg.right + 1;
        }).map(text => text.textContent)""",
    )
    assert texts == []
    return len(boxes)


@pytest.mark.parametrize("screen", sorted(SCREENS))
def test_evaluations_fit(evaluated: Path, screen: str) -> None:
    """With all tables of scores open."""
    with opened(evaluated, screen) as (page, complaints):
        for details in page.locator("#evaluations details").all():
            details.evaluate("each => { each.open = true; }")
        plain = sum(len(several) for several in SECTIONS.values())
        assert figures_that_fit(page, screen) == plain + 5
        assert page.locator("#evaluations td").first.is_visible()
        assert complaints == []


def test_search_finds_explanations(evaluated: Path) -> None:
    table = read_table(evaluated.parent / FEATURES).to_pylist()
    alive = [row for row in table if row["alive"]]
    with opened(evaluated, "light") as (page, complaints):
        page.fill("#search", "topic")
        topics = sum(row["explanation_kind"] == "topic" for row in alive)
        assert page.inner_text("#count") == f"{topics} of {len(alive)} features"
        assert set(shown(page, "kind")) == {"topic"}
        one = next(row for row in alive if row["explanation"])
        page.fill("#search", one["explanation"])
        assert shown(page, "explanation")[0] == one["explanation"]
        page.focus("#features tbody tr button")
        page.keyboard.press("Enter")
        detail = page.inner_text("tr.detail")
        assert "alert(1)" in detail  # shown, not executed
        score = float(f"{one['rule_score']:.3g}")
        assert f"rule {score} (by chance up to 0.625)" in detail
        page.fill("#search", "")
        page.click("th[data-column=explanation] button")
        assert shown(page, "explanation")[0].startswith("token is")
        assert complaints == []


def luminance(colour: str) -> float:
    """Return the luminance of "rgb(r, g, b)" as defined by WCAG."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("screen", "background"), [("light", 1.0), ("dark", 0.0)])
def test_text_has_contrast_in_light_and_dark_mode(
    report: Path, screen: str, background: float
) -> None:
    """WCAG requires a contrast of 4.5."""
    with opened(report, screen) as (page, _):
        style = "([where, name]) => getComputedStyle(document.querySelector(where))[name]"
        behind = luminance(page.evaluate(style, ["figure", "backgroundColor"]))
        assert behind == pytest.approx(background, abs=0.1)
        for where, name in (
            ("body", "color"),
            ("figcaption", "color"),
            (".chart text:not(.tick)", "fill"),
            (".chart .tick", "fill"),
            (".agrees, .disagrees", "color"),
            ("nav a", "color"),
        ):
            ahead = luminance(page.evaluate(style, [where, name]))
            low, high = sorted((ahead, behind))
            assert (high + 0.05) / (low + 0.05) >= 4.5, where


def test_search_finds_text_and_numbers(report: Path, page: Any) -> None:
    table = read_table(report.parent / FEATURES).to_pylist()
    alive = [row for row in table if row["alive"]]
    assert page.inner_text("#count") == f"{len(alive)} of {len(alive)} features"
    page.fill("#search", "1:7")
    assert shown(page, "feature") == ["1:7"]
    place = next(i for i, row in enumerate(table) if row["alive"] and i >= 60)
    page.fill("#search", f"BEFORE {2 * place + 1}")
    assert shown(page, "feature") == [f"{table[place]['seed']}:{table[place]['feature']}"]
    page.fill("#search", "no such text")
    assert page.inner_text("#count") == f"0 of {len(alive)} features"
    assert page.is_disabled("#next")
    page.fill("#search", "")
    page.select_option("#group", "unstable")
    unstable = sum(row["group"] == "unstable" for row in alive)
    assert page.inner_text("#count").startswith(f"{unstable} of")
    page.select_option("#seed", "2")
    assert all(name.startswith("2:") for name in shown(page, "feature"))


def test_headings_sort_in_both_directions(page: Any) -> None:
    head = page.locator("th[data-column=rate]")
    head.locator("button").click()
    down = [float(value) for value in shown(page, "rate")]
    assert down == sorted(down, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    up = [float(value) for value in shown(page, "rate")]
    assert up == sorted(up)
    assert up[0] < down[0]


def test_pages_and_details_work_by_keyboard(page: Any) -> None:
    first = shown(page, "feature")
    page.focus("#next")
    page.keyboard.press("Enter")
    second = shown(page, "feature")
    assert len(first) == 25
    assert not set(first) & set(second)
    page.focus("tbody tr button")
    page.keyboard.press("Enter")
    assert page.locator("tr.detail").count() == 1
    opened_one = page.inner_text("tr.detail")
    assert "Top contexts" in opened_one
    assert "alert(1)" in opened_one  # shown, not executed
    page.keyboard.press("Enter")
    assert page.locator("tr.detail").count() == 0


def test_partners_link_to_their_features(page: Any) -> None:
    page.locator("tbody tr button").first.click()
    link = page.locator("tr.detail li button").first
    name = link.inner_text()
    link.click()
    assert shown(page, "feature") == [name]
