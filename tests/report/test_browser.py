"""The report as people use it, in a real Chromium; skipped where there is none."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import SCREENS, missing, opened
from helpers.evaluated_run import with_evaluations
from helpers.large_run import SEEDS, large_run
from helpers.tiny_run import with_language_model

from saefast.disk.tables import read_json, read_table
from saefast.report import findings_of, write_report
from saefast.report.feature_rows import ROWS_OF_PIECE
from saefast.report.figures import SECTIONS
from saefast.run_folder import FEATURES, STABILITY

pytestmark = pytest.mark.skipif(
    missing(), reason="needs playwright (pip) and a Chromium (apt install chromium)"
)


@pytest.fixture(scope="module")
def report(planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / ("long" * 20)
    return write_report(with_language_model(planted_run, out))[0]


@pytest.fixture(scope="module")
def evaluated(report: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the run with evaluations, in a folder whose name is markup."""
    run = tmp_path_factory.mktemp("evaluated") / "<b onclick=alert(1)> & run"
    shutil.copytree(report.parent, run)
    return write_report(with_evaluations(run))[0]


@pytest.fixture
def page(report: Path) -> Iterator[Any]:
    with opened(report, "light") as (page, complaints):
        yield page
        assert complaints == []


def alive(report: Path) -> list[dict]:
    """The features of a run that are shown."""
    return [row for row in read_table(report.parent / FEATURES).to_pylist() if row["alive"]]


def label(row: dict) -> str:
    return f"{row['seed']}:{row['feature']}"


def search(page: Any, words: str) -> None:
    """Fill in the field, and wait until contexts have been searched as well."""
    page.fill("#search", words)
    page.wait_for_selector("#features table:not([aria-busy])")


def shown(page: Any, column: str) -> list[str]:
    """The cells of a column."""
    return page.locator(f"tbody tr:not(.detail) td.column-{column}").all_inner_texts()


def detail(page: Any) -> str:
    """What an open row says, once it is unpacked."""
    page.wait_for_selector("tr.detail .note")
    return page.inner_text("tr.detail")


def tip(page: Any) -> str:
    return page.inner_text(".tip") if page.is_visible(".tip") else ""


@pytest.mark.parametrize("screen", sorted(SCREENS))
def test_it_loads_draws_and_fits(report: Path, screen: str) -> None:
    """No console message, no request, no scrolling sideways, every figure of some size."""
    with opened(report, screen) as (page, complaints):
        assert figures_that_fit(page, screen) == sum(len(several) for several in SECTIONS.values())
        assert complaints == []


def figures_that_fit(page: Any, screen: str) -> int:
    """How many figures there are; fails where they or the page do not fit the screen."""
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
def test_evaluations_fit_as_well(evaluated: Path, screen: str) -> None:
    """With all tables of scores open."""
    with opened(evaluated, screen) as (page, complaints):
        for details in page.locator("#evaluations details").all():
            details.evaluate("each => { each.open = true; }")
        plain = sum(len(several) for several in SECTIONS.values())
        assert figures_that_fit(page, screen) == plain + 5
        assert page.locator("#evaluations td").first.is_visible()
        assert complaints == []


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
    """Those of a shape, and those of every line at one place."""
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
    told = dict(line.split(": ") for line in lines[1:])
    assert set(told) == {"mean score", "stable", "unstable", "chance"}
    assert float(told["mean score"]) == pytest.approx(point["score"], rel=1e-3)
    assert float(told["unstable"]) == pytest.approx(point["unstable"], rel=1e-3)
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
    assert page.inner_text("#chosen span").startswith("From “In how many SAEs")
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


def test_search_finds_explanations(evaluated: Path) -> None:
    rows = alive(evaluated)
    with opened(evaluated, "light") as (page, complaints):
        search(page, "topic")
        topics = sum(row["explanation_kind"] == "topic" for row in rows)
        assert page.inner_text("#count") == f"{topics} of {len(rows)} features"
        assert set(shown(page, "kind")) == {"topic"}
        one = next(row for row in rows if row["explanation"])
        search(page, one["explanation"])
        assert shown(page, "explanation")[0] == one["explanation"]
        page.focus("#features tbody tr button")
        page.keyboard.press("Enter")
        told = detail(page)
        assert "alert(1)" in told  # shown, not run
        score = float(f"{one['rule_score']:.3g}")
        assert f"rule {score} (by chance up to 0.625)" in told
        search(page, "")
        page.click("th[data-column=explanation] button")
        assert shown(page, "explanation")[0].startswith("token is")
        assert complaints == []


def test_texts_from_data_are_never_markup(evaluated: Path) -> None:
    """Tokens, explanations, notes and the name of the run: shown as they are, and nothing runs."""
    with opened(evaluated, "light") as (page, complaints):
        for name in ("#fig-explanations-steering circle", "#fig-stability-histogram rect.f.s0"):
            page.locator(name).last.hover()
            page.locator(name).last.click()
        page.wait_for_selector("tr.detail .note, tbody tr mark")
        assert "<b onclick=alert(1)>" in page.inner_text("h1")
        assert page.locator("b, [onclick]").count() == 0
        pieces = -(-len(alive(evaluated)) // ROWS_OF_PIECE)
        assert page.locator("script").count() == 2 + pieces
        assert complaints == []


def luminance(colour: str) -> float:
    """Of "rgb(r, g, b)", as WCAG has it."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


_STYLE = "([where, name]) => getComputedStyle(document.querySelector(where))[name]"


@pytest.mark.parametrize(("screen", "background"), [("light", 1.0), ("dark", 0.0)])
def test_words_can_be_read_in_light_and_in_dark(
    report: Path, screen: str, background: float
) -> None:
    """A contrast of 4.5, which WCAG asks for."""
    with opened(report, screen) as (page, _):
        behind = luminance(page.evaluate(_STYLE, ["figure", "backgroundColor"]))
        assert behind == pytest.approx(background, abs=0.1)
        page.hover("#fig-membership path")
        for where, name, below in (
            ("body", "color", behind),
            ("figcaption", "color", behind),
            (".chart text:not(.tick)", "fill", behind),
            (".chart .tick", "fill", behind),
            (".agrees, .disagrees", "color", behind),
            (".verdict.mixed", "color", behind),
            ("nav a", "color", behind),
            (".tip", "color", luminance(page.evaluate(_STYLE, [".tip", "backgroundColor"]))),
        ):
            ahead = luminance(page.evaluate(_STYLE, [where, name]))
            low, high = sorted((ahead, below))
            assert (high + 0.05) / (low + 0.05) >= 4.5, where


def test_on_paper_it_is_light_and_without_controls(report: Path) -> None:
    """Also from a dark screen; no figure or tile is wider than the paper."""
    with opened(report, "dark") as (page, _):
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 700, "height": 1000})
        assert luminance(page.evaluate(_STYLE, ["body", "backgroundColor"])) > 0.9
        assert luminance(page.evaluate(_STYLE, [".chart .tick", "fill"])) < 0.2
        for hidden in ("nav", ".filters", ".pager"):
            assert not page.is_visible(hidden)
        assert page.evaluate("document.documentElement.scrollWidth") <= 700
        assert page.evaluate(_STYLE, ["figure", "breakInside"]) == "avoid"
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_search_finds_texts_and_numbers(report: Path, page: Any) -> None:
    table = read_table(report.parent / FEATURES).to_pylist()
    living = [row for row in table if row["alive"]]
    assert page.inner_text("#count") == f"{len(living)} of {len(living)} features"
    search(page, "1:7")
    assert shown(page, "feature") == ["1:7"]
    place = next(i for i, row in enumerate(table) if row["alive"] and i >= 60)
    search(page, f"BEFORE {2 * place + 1}")
    assert shown(page, "feature") == [label(table[place])]
    search(page, "no such text")
    assert page.inner_text("#count") == f"0 of {len(living)} features"
    assert page.is_disabled("#next")
    search(page, "")
    page.select_option("#group", "unstable")
    unstable = sum(row["group"] == "unstable" for row in living)
    assert page.inner_text("#count").startswith(f"{unstable} of")
    page.select_option("#seed", "2")
    assert all(name.startswith("2:") for name in shown(page, "feature"))


def test_headings_sort_both_ways(page: Any) -> None:
    head = page.locator("th[data-column=rate]")
    head.locator("button").click()
    down = [float(value) for value in shown(page, "rate")]
    assert down == sorted(down, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    up = [float(value) for value in shown(page, "rate")]
    assert up == sorted(up)
    assert up[0] < down[0]


def test_pages_turn_and_a_keyboard_is_enough(page: Any) -> None:
    first = shown(page, "feature")
    page.focus("#next")
    page.keyboard.press("Enter")
    second = shown(page, "feature")
    assert len(first) == 25
    assert not set(first) & set(second)
    page.focus("#features tbody tr button")
    page.keyboard.press("Enter")
    assert page.locator("tr.detail").count() == 1
    opened_one = detail(page)
    assert "Top contexts" in opened_one
    assert "alert(1)" in opened_one  # shown, not run
    page.keyboard.press("Enter")
    assert page.locator("tr.detail").count() == 0


def test_partners_lead_to_their_features(page: Any) -> None:
    page.locator("#features tbody tr button").first.click()
    link = page.locator("tr.detail li button").first
    name = link.inner_text()
    link.click()
    assert shown(page, "feature") == [name]
    assert page.locator("tr.detail").count() == 1


def test_contexts_are_unpacked_when_they_are_shown(tmp_path: Path) -> None:
    """At first those of the rows on the page, all of them for a search."""
    latents = 2 * ROWS_OF_PIECE // SEEDS + 1
    report = write_report(large_run(tmp_path, latents))[0]
    with opened(report, "light") as (page, complaints):
        page.wait_for_selector("#features tbody mark")
        assert page.evaluate("unpackedPieces") == 2
        page.select_option("#seed", "3")
        page.wait_for_selector("#features td:has-text('3:0') ~ td mark")
        assert page.evaluate("unpackedPieces") == 3
        search(page, "import")
        assert page.evaluate("unpackedPieces") == 4
        rows = page.inner_text("#count")
        assert rows.endswith(f" of {SEEDS * latents} features")
        assert complaints == []


_NOTE_WHEN_CONTEXTS_ARE_SHOWN = """
    new MutationObserver((changes, observer) => {
        if (!document.querySelector("#features tbody mark")) return;
        window.shownAfter = performance.now() / 1000;
        observer.disconnect();
    }).observe(document, { childList: true, subtree: true });
"""


@pytest.mark.alone
def test_four_saes_of_16384_latents_open_at_once(tmp_path: Path) -> None:
    """Below 15 MB, and in less than two seconds until contexts are on the page."""
    report = write_report(large_run(tmp_path, 16_384))[0]
    assert report.stat().st_size < 15e6
    with opened(report, "light") as (page, complaints):
        page.add_init_script(_NOTE_WHEN_CONTEXTS_ARE_SHOWN)
        times = []
        for _ in range(3):
            page.goto(report.resolve().as_uri())
            page.wait_for_selector("#features tbody mark")
            times.append(page.evaluate("shownAfter"))
        assert min(times) < 2
        assert complaints == [report.resolve().as_uri()] * 3
