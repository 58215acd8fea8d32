"""Evaluations in the report: every number is from a row of scores, with its interval."""

import html
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from helpers.evaluated_run import (
    editing,
    explaining,
    probing,
    steering,
    with_evaluations,
    write_evaluations,
)
from helpers.report_page import page_of
from helpers.tiny_run import NASTY, with_language_model

from saefast.disk.tables import (
    add_columns,
    read_json,
    read_table,
    write_json,
    write_rows,
    write_table,
)
from saefast.evaluation.intervals import smallest_difference
from saefast.report import findings_of, write_report
from saefast.run_folder import EVALUATIONS, FEATURES, SCORES, STAGES

FIGURES = {
    *("evaluation-probe", "evaluation-explain", "evaluation-steer"),
    *("evaluation-groups-probe", "explanations-steering"),
}


@pytest.fixture
def plain(planted_run: Path, tmp_path: Path) -> Path:
    """Return a run without evaluations."""
    return with_language_model(planted_run, tmp_path / planted_run.name)


@pytest.fixture
def run(plain: Path) -> Path:
    return with_evaluations(plain)


def overall(run: Path, **wanted: str) -> list[dict]:
    """Return the rows of scores.parquet over all tasks and SAEs."""
    return [
        row
        for row in read_table(run / SCORES).to_pylist()
        if row["task"] == "" and row["seed"] is None
        and all(row[name] == value for name, value in wanted.items())
    ]  # fmt: skip


def drawn(run: Path, name: str) -> dict[str, ElementTree.Element]:
    """Return the marks of a figure that have a title, by title."""
    folder = run.parent / "figures"
    write_report(run, figures=folder)
    marks = ElementTree.parse(folder / f"{name}.svg").getroot().iter()
    return {str(mark[0].text): mark for mark in marks if len(mark) and mark.tag[-5:] != "}svg"}


def along(mark: ElementTree.Element) -> float:
    """Return the position of a mark on the x axis."""
    if mark.get("cx"):
        return float(mark.attrib["cx"])
    return float(re.match(r"M([\d.]+)", mark.attrib["d"])[1])  # type: ignore[index]


def test_figures_have_their_own_section(run: Path) -> None:
    page = page_of(run)
    assert "evaluations" in page.ids
    assert {name[4:] for name in page.ids if name.startswith(("fig-eval", "fig-expl"))} == FIGURES
    assert ("a", "href", "#evaluations") in page.attributes
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    row = overall(run, measure="auroc at 1", condition="trained", group="")[0]
    hover = (
        f"trained {row['value']:.3f} (95 % interval {row['low']:.3f} to {row['high']:.3f}, floor"
    )
    assert any(hover in str(label) for label in labels)


def test_marks_are_at_the_values_of_the_rows(run: Path) -> None:
    rows = overall(run, measure="auroc at 1", group="")
    rows = [row for row in rows if " - " not in row["condition"]]
    marks = drawn(run, "evaluation-probe")
    points = {hover.partition(": ")[0]: mark for hover, mark in marks.items() if mark.get("cx")}
    assert list(points) == [row["condition"] for row in reversed(rows)]
    floor, ceiling = (along(marks[f"{name} of trained: {value}"]) for name, value in
                      (("floor", "0.500"), ("ceiling", "0.950")))  # fmt: skip
    unit = (ceiling - floor) / (0.95 - 0.5)
    for row in rows:
        assert along(points[row["condition"]]) == pytest.approx(
            floor + unit * (row["value"] - 0.5), abs=0.15
        )
        rival = f"best trivial rival of {row['condition']}: {row['rival']} {row['rival_value']:.3f}"
        at = floor + unit * (row["rival_value"] - 0.5)
        assert along(marks[rival]) == pytest.approx(at, abs=0.15)
    svg = (run.parent / "figures" / "evaluation-probe.svg").read_text()
    ends = re.findall(r'"whisker" d="M([\d.]+) [\d.]+H([\d.]+)', svg)
    wanted = [[floor + unit * (row[end] - 0.5) for end in ("low", "high")] for row in rows[::-1]]
    assert np.array(ends, float) == pytest.approx(np.array(wanted), abs=0.15)


def test_groups_are_above_random_latents_of_equal_mass(run: Path) -> None:
    marks = drawn(run, "evaluation-groups-probe")
    points = [hover.partition(" (")[0] for hover, mark in marks.items() if mark.get("cx")]
    values = {row["group"]: f"{row['value']:.3f}" for row in overall(run, evaluation="probe")}
    assert points == [
        f"unstable, random: {values['unstable:mass']}",
        f"unstable: {values['unstable']}",
        f"stable, random: {values['stable:mass']}",
        f"stable: {values['stable']}",
    ]


def scatter(run: Path) -> list[str]:
    marks = drawn(run, "explanations-steering").items()
    return [hover for hover, mark in marks if mark.get("cx")]


def test_every_point_of_the_scatter_is_a_feature(run: Path) -> None:
    table = read_table(run / FEATURES).to_pylist()
    rows = [row for row in table if np.isfinite(row["steer_success"])]

    def expected(score: str, words: str) -> list[str]:
        return [
            f"{row['seed']}:{row['feature']} {row['group']}: {words} {row[score]:.3f}, success "
            f"{row['steer_success']:.3f}, in the direction of another feature 0.125"
            for row in rows
            if np.isfinite(row[score])
        ]

    # Half of the features have no specificity, so the score of the rule has more points.
    assert scatter(run) == expected("rule_score", "balanced accuracy of the rule")
    for row in table:
        row["rule_score"] = row["rule_score"] if np.isfinite(row["steer_specificity"]) else np.nan
    add_columns(run / FEATURES, {"rule_score": [row["rule_score"] for row in table]})
    words = "detection above the detection by another explanation"
    assert scatter(run) == expected("steer_specificity", words)


def test_without_detection_the_scatter_uses_rules(run: Path) -> None:
    table = read_table(run / FEATURES).drop(["steer_specificity"])
    write_table(run / FEATURES, table)
    points = drawn(run, "explanations-steering")
    known = np.isfinite(table["steer_success"].to_numpy()).sum()
    assert sum("balanced accuracy of the rule" in hover for hover in points) == known


def test_tables_have_all_overall_rows(run: Path) -> None:
    text = write_report(run)[0].read_text(encoding="utf-8")
    part = text.partition('<section id="evaluations">')[2].partition("</section>")[0]
    rows = re.findall("<tr><td>(.*?)</td></tr>", part)
    shown = [html.unescape(row).split("</td><td>") for row in rows]
    wanted = [row for name in ("probe", "explain", "steer")
              for row in overall(run, evaluation=name)]  # fmt: skip
    assert len(shown) == len(wanted) > 20
    for cells, row in zip(shown, wanted, strict=True):
        rival = f"{row['rival']} {row['rival_value']:.3f}" if row["rival"] else "-"
        floor, ceiling = (
            "-" if np.isnan(row[name]) else f"{row[name]:.3f}" for name in ("floor", "ceiling")
        )
        assert cells == [
            *(row["measure"], row["condition"], row["group"] or "all", f"{row['value']:.3f}"),
            f"{row['low']:.3f} to {row['high']:.3f}".replace("-0.000", "0.000"),
            *(floor, rival, ceiling, str(row["n"])),
        ]
    least = smallest_difference(0.001)
    assert f"smallest meaningful difference of two SAEs is {least:.3f}" in part


def test_explanations_and_notes_are_escaped(run: Path) -> None:
    page = page_of(run)
    assert sorted(page.scripts) == ["code", "details-0", "rows"]
    assert not any(tag == "b" for tag, _, _ in page.attributes)
    assert f"3 of 9 tasks were left out: {NASTY}" in "".join(page.text)
    alive = [row for row in read_table(run / FEATURES).to_pylist() if row["alive"]]
    rows = page.rows
    assert rows["explanation"] == [row["explanation"] for row in alive]
    assert rows["kind"] == [row["explanation_kind"] for row in alive]
    assert any(NASTY in str(each) for each in rows["explanation"])
    for name in ("detection", "steer_success"):
        wanted = [float(f"{row[name]:.3g}") if np.isfinite(row[name]) else None for row in alive]
        assert rows[name] == wanted
    assert ("th", "data-column", "explanation") in page.attributes
    assert ("th", "data-column", "kind") in page.attributes


def test_a_run_without_evaluations_has_an_unchanged_report(plain: Path) -> None:
    before = write_report(plain)[0].read_bytes()
    for words in (b'id="evaluations"', b'data-column="explanation"', b"2602.14111", b".scores"):
        assert words not in before
    features, stages = ((plain / name).read_bytes() for name in (FEATURES, STAGES))
    with_evaluations(plain)
    assert write_report(plain)[0].read_bytes() != before
    shutil.rmtree(plain / EVALUATIONS)
    (plain / FEATURES).write_bytes(features)
    (plain / STAGES).write_bytes(stages)
    assert write_report(plain)[0].read_bytes() == before


def test_an_outdated_evaluation_is_left_out(run: Path) -> None:
    stages = read_json(run / STAGES)
    del stages["probe"]
    write_json(run / STAGES, stages)
    page = page_of(run)
    assert "fig-evaluation-probe" not in page.ids
    assert "fig-evaluation-explain" in page.ids
    assert not [each for each in findings_of(run) if each.topic == "Probing"]


def test_a_wrong_table_raises(run: Path) -> None:
    write_rows(run / SCORES, [{"evaluation": "probe", "mean": 0.5}])
    with pytest.raises(
        ValueError, match=r"scores.parquet is not a table of scores.*saefast evaluate"
    ):
        write_report(run)


def found(run: Path, topic: str) -> list[tuple[str, str]]:
    return [(each.text, each.verdict) for each in findings_of(run) if each.topic == topic]


@pytest.mark.parametrize(
    ("leads", "verdict"),
    [
        ({"frozen_decoder": 0.01, "soft_frozen": -0.02}, "as published"),
        ({"frozen_decoder": 0.2, "soft_frozen": 0.1}, "not as published"),
        ({"frozen_decoder": 0.2, "soft_frozen": 0.01}, "in part as published"),
        ({"pca": 0.2, "untrained": 0.3}, ""),
    ],
)
@pytest.mark.parametrize("evaluation", [probing, explaining])
def test_the_lead_over_baselines_is_judged(plain: Path, evaluation, leads, verdict) -> None:
    each = evaluation(leads)
    write_evaluations(plain, each)
    text, given = found(plain, {"probe": "Probing", "explain": "Explaining"}[each.name])[0]
    assert given == verdict
    primary = overall(plain, measure=each.scores[0].measure, group="")
    rows = {row["condition"]: row for row in primary}
    for condition in ("frozen_decoder", "soft_frozen", "untrained"):
        if condition in leads:
            row = rows[f"trained - {condition}"]
            hover = f"to {condition} {row['value']:+.3f} (95 % interval {row['low']:.3f} to"
            assert hover in text
    own = rows["trained"]
    assert f"{own['value']:.3f} (95 % interval {own['low']:.3f} to {own['high']:.3f}, f" in text
    if verdict == "":
        assert "There is no baseline to compare with" in text


def test_saes_of_other_runs_are_reported_without_a_verdict(plain: Path) -> None:
    write_evaluations(plain, probing({"penalised": -0.05, "pca": 0.1}))
    text, verdict = found(plain, "Probing")[0]
    assert "to penalised -0.0" in text
    assert "to pca" not in text
    assert verdict == ""


def test_a_lead_within_the_noise_gives_no_verdict(plain: Path) -> None:
    """Differences below 1.96 * 2 ** 0.5 * noise are not significant: here 0.014 and 0.028."""
    leads = {"frozen_decoder": 0.05, "soft_frozen": 0.05}
    for noise, verdict in ((0.005, "not as published"), (0.01, "cannot tell")):
        write_evaluations(plain, probing(leads, noise))
        assert found(plain, "Probing")[0][1] == verdict


@pytest.mark.parametrize("value", [0.1, 0.025])
def test_an_interval_around_the_margin_gives_no_verdict(run: Path, value: float) -> None:
    rows = read_table(run / SCORES).to_pylist()
    for row in rows:
        if row["condition"] in ("trained - frozen_decoder", "trained - soft_frozen"):
            row["value"], row["low"], row["high"] = value, 0.02, 0.2
    write_rows(run / SCORES, rows)
    assert found(run, "Probing")[0][1] == "cannot tell"


@pytest.mark.parametrize(
    ("surface", "verdict"),
    [(0.1, "as published"), (0.02, "cannot tell"), (-0.1, "not as published")],
)
def test_surface_form_is_compared_at_equal_rate(plain: Path, surface, verdict) -> None:
    """The shares of all stable and all unstable latents do not matter."""
    write_evaluations(plain, explaining(surface=surface))
    text, given = found(plain, "Explaining")[1]
    assert given == verdict
    assert "unstable 0.400 (95 % interval 0.350 to 0.450), stable 0.300 (95 % interval" in text
    ends = f"95 % interval {surface - 0.05:.3f} to {surface + 0.05:.3f}"
    assert f"at equal firing rate the difference is {surface:+.3f} ({ends})" in text


@pytest.mark.parametrize(
    ("correlation", "verdict"),
    [(0.1, "as published"), (0.35, "cannot tell"), (0.6, "not as published")],
)
def test_explanations_predict_steering_weakly_or_not(plain: Path, correlation, verdict) -> None:
    write_evaluations(plain, steering(correlation))
    text, given = found(plain, "Steering")[1]
    assert given == verdict
    assert f"specificity {correlation:+.2f} (95 % interval {correlation - 0.1:.3f} to" in text
    ends = f"95 % interval {correlation - 0.1:.3f} to {correlation + 0.1:.3f}"
    held = f"detection {correlation:+.2f} ({ends}), stability -0.20 ({ends})."
    assert text.endswith(f"With the others of these held fixed: {held}")


@pytest.mark.parametrize(("lead", "verdict"), [(-0.02, "as published"), (0.02, "not as published")])
def test_a_baseline_edits_equally_well_or_worse(plain: Path, lead, verdict) -> None:
    write_evaluations(plain, editing(lead))
    assert found(plain, "Editing")[0][1] == verdict


def test_every_finding_has_an_interval(run: Path) -> None:
    topics = ("Probing", "Explaining", "Steering", "Editing", "Absorption")
    texts = [each.text for each in findings_of(run) if each.topic in topics]
    assert len(texts) == 6
    for text in texts:
        values = re.findall(r"(?<![\d.])[+-]?\d\.\d{3} \(", text)
        assert len(values) == text.count(" (95 % interval") or text.startswith("Rank correlation")
        assert "95 % interval" in text
