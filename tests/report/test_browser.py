"""Page and table of the report in a real Chromium; skipped where there is none."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import SCREENS, missing, opened
from helpers.large_run import SEEDS, large_run
from helpers.report_screen import alive, detail, label, search, shown

from saefast.disk.tables import add_columns, read_table
from saefast.report import write_report
from saefast.report.feature_rows import ROWS_OF_PIECE
from saefast.report.figures import SECTIONS
from saefast.run_folder import CONTEXTS, FEATURES

pytestmark = pytest.mark.skipif(
    missing(), reason="needs playwright (pip) and a Chromium (apt install chromium)"
)


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
    sizes = page.eval_on_selector_all(
        "figure svg text",
        """texts => texts.map(text => text.getScreenCTM().a
            ? parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a : 99)""",
    )
    assert min(sizes) > 9  # pixels
    return len(boxes)


@pytest.mark.parametrize("screen", sorted(SCREENS))
def test_evaluations_fit(evaluated: Path, screen: str) -> None:
    """All tables of scores are open."""
    with opened(evaluated, screen) as (page, complaints):
        for details in page.locator("#evaluations details").all():
            details.evaluate("each => { each.open = true; }")
        plain = sum(len(several) for several in SECTIONS.values())
        assert figures_that_fit(page, screen) == plain + 5
        assert page.locator("#evaluations td").first.is_visible()
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
        opened_row = detail(page)
        assert "alert(1)" in opened_row  # shown, not run
        score = float(f"{one['rule_score']:.3g}")
        assert f"rule {score} (by chance up to 0.625)" in opened_row
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


PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "\"><iframe src='javascript:alert(1)'>",
    "' onmouseover='alert(1)",
    "<a href='https://example.org'>x</a>",
    "<style>*{display:none}</style>",
    "<!--",
    "]]>",
    "<base href='https://example.org'>",
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
    "${alert(1)}{{7*7}}",
    "&lt;b&gt;&#x3c;",
    "\u202e\u2066\u2028\u2029\ufeff",
    "\x1b[31m\x07",
    "__proto__",
    "$&$1",
)
"""Texts of tokens that would run code, load something or change the page if they were markup."""


def test_payloads_in_texts_are_shown_and_do_nothing(report: Path, tmp_path: Path) -> None:
    """Payloads are in cells, contexts, search and details."""
    run = tmp_path / "run"
    shutil.copytree(report.parent, run)
    for name, columns in ((FEATURES, ["token_text"]), (CONTEXTS, ["before", "token", "after"])):
        count = read_table(run / name).num_rows
        texts = [PAYLOADS[i % len(PAYLOADS)] for i in range(count)]
        add_columns(run / name, dict.fromkeys(columns, texts))
    with opened(write_report(run)[0], "light") as (page, complaints):
        elements = page.locator("script, style, iframe, base, meta, img, a[href^=http]").count()
        for payload in PAYLOADS[:6]:
            search(page, payload)
            assert page.locator("tbody tr:not(.detail)").count() > 0
            if not page.is_visible("tr.detail"):
                page.focus("#features tbody tr button")
                page.keyboard.press("Enter")
                detail(page)
            assert payload in page.inner_text("#features tbody")
            page.locator("tbody tr").first.hover()
        after = page.locator("script, style, iframe, base, meta, img, a[href^=http]").count()
        assert after == elements
        assert page.locator("[onload], [onerror], [onmouseover], tbody svg, tbody img").count() == 0
        assert complaints == []


def luminance(colour: str) -> float:
    """Return the luminance of "rgb(r, g, b)" as defined by WCAG."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


_STYLE = "([where, name]) => getComputedStyle(document.querySelector(where))[name]"


@pytest.mark.parametrize(("screen", "background"), [("light", 1.0), ("dark", 0.0)])
def test_text_has_contrast_in_light_and_dark_mode(
    report: Path, screen: str, background: float
) -> None:
    """WCAG requires a contrast of 4.5."""
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
    """The screen may be dark; nothing is wider than the paper, and no heading is broken."""
    with opened(report, "dark") as (page, _):
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 700, "height": 1000})
        assert luminance(page.evaluate(_STYLE, ["body", "backgroundColor"])) > 0.9
        assert luminance(page.evaluate(_STYLE, [".chart .tick", "fill"])) < 0.2
        for hidden in ("nav", ".how", ".filters", ".pager"):
            assert not page.is_visible(hidden)
        assert page.evaluate("document.documentElement.scrollWidth") <= 700
        assert page.evaluate(_STYLE, ["figure", "breakInside"]) == "avoid"
        page.set_viewport_size({"width": 718, "height": 1000})  # a page of A4, with all columns
        heads = page.locator("#features thead button:visible").all()
        assert max(head.bounding_box()["height"] for head in heads) < 35  # one line
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


def test_tiny_numbers_have_an_exponent(page: Any) -> None:
    numbers = "[shown(0.0000184), shown(0.000525), shown(0)]"
    assert page.evaluate(numbers) == ["1.84e-5", "0.000525", "0"]


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
    page.focus("#features tbody tr button")
    page.keyboard.press("Enter")
    assert page.locator("tr.detail").count() == 1
    opened_one = detail(page)
    assert "Top contexts" in opened_one
    assert "alert(1)" in opened_one  # shown, not executed
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
    """The file is below 15 MB, and contexts are on the page in less than two seconds."""
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
