"""Findings follow the numbers, also where they disagree with published results."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.evaluated_run import with_evaluations
from helpers.report_page import page_of
from helpers.tiny_run import with_language_model
from scipy import stats

from saefast.disk.tables import add_columns, read_json, read_table, write_json, write_rows
from saefast.report import findings_of
from saefast.report.findings.finding import AGREES, DISAGREES, FAILS, HOLDS, UNCLEAR
from saefast.run_folder import EVALUATION, FEATURES, POOLING, STABILITY, SUBSPACES


@pytest.fixture
def run(planted_run: Path, tmp_path: Path) -> Path:
    """Return a run with every result."""
    return with_language_model(planted_run, tmp_path / planted_run.name)


def finding(run: Path, topic: str, number: int = 0) -> tuple[str, str]:
    found = [each for each in findings_of(run) if each.topic == topic]
    return found[number].text, found[number].verdict


def test_shares_of_stable_features_match_the_table(run: Path) -> None:
    rows = [row for row in read_table(run / FEATURES).to_pylist() if row["alive"]]
    stable = sum(row["group"] == "stable" for row in rows) / len(rows)
    unstable = sum(row["group"] == "unstable" for row in rows) / len(rows)
    text, _ = finding(run, "Stability")
    shown = [int(value) / 100 for value in re.findall(r"(\d+) %", text)]
    assert shown[0] == pytest.approx(stable, abs=0.0051)
    assert unstable == pytest.approx(
        float(re.search(r"([\d.]+) % unstable", text)[1]) / 100,
        abs=0.0051,  # type: ignore[index]
    )
    mean = np.mean([row["score"] for row in rows])
    assert f"the mean score is {mean:.2f}" in text


def holds(run: Path, topic: str, number: int = 0) -> str:
    return [each for each in findings_of(run) if each.topic == topic][number].holds


def set_groups(run: Path, step: float = 0.0, **keep: float) -> None:
    """Say that groups explain so much, each with its random sets of equal mass at 0.3 ± 0.01.

    Of the first SAE that much, of each further one `step` less.
    """
    evaluation = read_json(run / EVALUATION)
    for place, each in enumerate(evaluation["seeds"]):
        for line in each["groups"]:
            line["features"] = 5.0
            if line["control"] == "mass":
                line["keep"], line["keep_std"] = 0.3, 0.01
            elif line["control"] == "":
                line["keep"] = keep[line["group"]] - place * step
    write_json(run / EVALUATION, evaluation)


@pytest.mark.parametrize(
    ("keep", "verdicts", "words"),
    [
        ({"stable": 0.6, "unstable": 0.1}, [AGREES, AGREES, AGREES], ["more than", "less than"]),
        ({"stable": 0.2, "unstable": 0.5}, [DISAGREES] * 3, ["less than", "more than"]),
        (
            {"stable": 0.31, "unstable": 0.29},
            [AGREES, DISAGREES, DISAGREES],
            ["no different from", "no different from"],
        ),
    ],
)
def test_the_verdict_follows_the_numbers(
    run: Path, keep: dict[str, float], verdicts: list[str], words: list[str]
) -> None:
    """Stable features may contribute no more than random ones."""
    set_groups(run, **keep)
    text, verdict = finding(run, "Explained variance")
    controls = [finding(run, "Controls", number) for number in (0, 1)]
    assert [verdict, *(each[1] for each in controls)] == verdicts
    assert f"stable features alone {keep['stable']:.3f}" in text
    for (expected, _), word in zip(controls, words, strict=True):
        assert f"{word} random features with" in expected


def test_a_claim_beside_a_null_holds_in_every_sae_or_in_none(run: Path) -> None:
    """The random sets reach 0.32; the SAEs explain 0.34, 0.33, 0.32 and 0.31."""
    set_groups(run, stable=0.34, unstable=0.1, step=0.01)
    assert holds(run, "Controls") == UNCLEAR
    assert "in some SAEs, but not in all, different from" in finding(run, "Controls")[0]
    set_groups(run, stable=0.36, unstable=0.1, step=0.01)
    assert holds(run, "Controls") == HOLDS
    set_groups(run, stable=0.31, unstable=0.1, step=0.01)
    assert holds(run, "Controls") == FAILS


@pytest.mark.parametrize(
    ("lead", "verdict"), [(0.3, HOLDS), (0.1, UNCLEAR), (-0.1, UNCLEAR), (-0.3, FAILS)]
)
def test_a_difference_is_decided_by_its_interval_over_saes(
    run: Path, lead: float, verdict: str
) -> None:
    """The leads of four SAEs differ by 0.1: Student's interval reaches 0.21 to either side."""
    set_groups(run, stable=0.5, unstable=0.5 - lead)
    evaluation = read_json(run / EVALUATION)
    for place, each in enumerate(evaluation["seeds"]):
        own = next(
            line for line in each["groups"] if (line["group"], line["control"]) == ("stable", "")
        )
        own["keep"] += 0.1 * (place - 1.5)
    write_json(run / EVALUATION, evaluation)
    assert holds(run, "Explained variance") == verdict
    low, high = (
        float(value)
        for value in re.search(
            r"interval ([+-][\d.]+) to ([+-][\d.]+)",
            next(each for each in findings_of(run) if each.topic == "Explained variance").evidence,
        ).groups()  # type: ignore[union-attr]
    )
    ends = stats.t.interval(0.95, 3, lead, stats.sem([-0.15, -0.05, 0.05, 0.15]))
    assert (low, high) == pytest.approx(ends, abs=6e-4)


def test_every_claim_is_one_line_with_numbers_and_a_figure(run: Path) -> None:
    claims = [each for each in findings_of(with_evaluations(run)) if each.claim]
    assert len(claims) > 12
    drawn = page_of(run).ids
    for each in claims:
        assert each.holds in (HOLDS, FAILS, UNCLEAR)
        assert len(each.claim) <= 96
        assert each.claim[-1] != "."
        assert re.search(r"\d", each.evidence), each
        assert f"fig-{each.figure}" in drawn, each


def test_chance_alone_is_no_recurrence(run: Path) -> None:
    """Random directions are made to reach the threshold as often as features do."""
    assert holds(run, "Stability") == HOLDS
    record = read_json(run / STABILITY)
    record["chance"] = [0.999 for _ in record["chance"]]
    write_json(run / STABILITY, record)
    assert holds(run, "Stability") == FAILS


def test_a_tiny_chance_is_shown_as_a_bound(run: Path) -> None:
    record = read_json(run / STABILITY)
    record["chance"] = [7.5e-83 for _ in record["chance"]]
    write_json(run / STABILITY, record)
    assert "for random directions under 0.001." in finding(run, "Stability")[0]
    record["chance"] = [0.012 for _ in record["chance"]]
    write_json(run / STABILITY, record)
    assert "for random directions 0.012." in finding(run, "Stability")[0]


def test_subspaces_are_called_reproducible_only_beyond_every_null(run: Path) -> None:
    table = read_table(run / SUBSPACES / "nulls.parquet").to_pylist()

    def say(group: str, null: str, high: float) -> None:
        for row in table:
            if (row["group"], row["statistic"]) == (group, "overlap"):
                row["value"] = 0.8
                if row["null"] == null:
                    row["mean"], row["high"] = high - 0.1, None if null == "haar" else high

    for null in ("haar", "covariance", "subset"):
        say("unstable", null, 0.5)
    write_rows(run / SUBSPACES / "nulls.parquet", table)
    assert finding(run, "Subspaces")[1] == AGREES
    assert holds(run, "Subspaces") == HOLDS
    assert "overlap by 0.80" in finding(run, "Subspaces")[0]
    say("unstable", "subset", 0.9)
    write_rows(run / SUBSPACES / "nulls.parquet", table)
    text, verdict = finding(run, "Subspaces")
    assert verdict == "in part as published"
    assert "not beyond as many random features" in text
    assert holds(run, "Subspaces") == FAILS
    for null in ("haar", "covariance"):
        say("unstable", null, 0.95)
    write_rows(run / SUBSPACES / "nulls.parquet", table)
    assert finding(run, "Subspaces")[1] == DISAGREES


def test_overlaps_beyond_a_null_in_some_pairs_alone_decide_nothing(run: Path) -> None:
    table = read_table(run / SUBSPACES / "nulls.parquet").to_pylist()
    for row in table:
        if (row["group"], row["statistic"]) == ("unstable", "overlap"):
            one = (row["a"], row["b"], row["null"]) == (0, 1, "covariance")
            row["value"], row["mean"], row["high"] = 0.8, 0.4, 0.9 if one else 0.5
    write_rows(run / SUBSPACES / "nulls.parquet", table)
    assert finding(run, "Subspaces")[1] == UNCLEAR
    assert holds(run, "Subspaces") == UNCLEAR
    assert "not beyond directions with" in finding(run, "Subspaces")[0]


def test_pooling_that_does_not_beat_its_controls_is_reported(run: Path) -> None:
    record = read_json(run / POOLING)
    assert {row["method"] for row in record["methods"]} == {"pooled", "pruned", "scratch", "single"}
    record["beaten"] = {"pruned": False, "scratch": True, "single": True}
    write_json(run / POOLING, record)
    text, verdict = finding(run, "Pooling")
    assert text.startswith("Pooling does not beat pruned.")
    assert verdict == DISAGREES
    record["beaten"]["pruned"] = True
    write_json(run / POOLING, record)
    assert finding(run, "Pooling")[1] == AGREES
    pooled = next(row for row in record["methods"] if row["method"] == "pooled")
    assert f"{pooled['equal_explained_variance']:.3f}" in finding(run, "Pooling")[0]


def test_the_loss_of_the_language_model_is_reported(run: Path) -> None:
    text, verdict = finding(run, "Language model")
    assert "costs the model 2.50 nats, 3.00 with the reconstruction, 3.50 from stable" in text
    assert "7.25 from unstable" in text
    assert verdict == AGREES


@pytest.mark.parametrize(
    ("unstable", "verdict"), [(0.9, AGREES), (0.71, UNCLEAR), (0.69, UNCLEAR), (0.5, DISAGREES)]
)
def test_medians_that_hardly_differ_decide_nothing(
    run: Path, unstable: float, verdict: str
) -> None:
    groups = read_table(run / FEATURES)["group"].to_pylist()
    aurocs = [unstable if group == "unstable" else 0.7 for group in groups]
    add_columns(run / FEATURES, {"token_auroc": aurocs})
    assert finding(run, "Surface form")[1] == verdict


def test_an_effect_that_may_be_none_decides_nothing(run: Path) -> None:
    evaluation = read_json(run / EVALUATION)
    for value, expected, verdict in (
        (-1.0, "contributes less", AGREES),
        (1.0, "contributes more", DISAGREES),
        (0.1, "as far as is known", UNCLEAR),
    ):
        evaluation["regression"] = {
            "coefficient": {"group": value},
            "standard_error": {"group": 0.2},
            "features": 100,
        }
        write_json(run / EVALUATION, evaluation)
        text, given = finding(run, "At equal frequency")
        assert expected in text
        assert given == verdict


def test_missing_groups_are_not_an_error(run: Path) -> None:
    """No feature reaches the threshold: all features are unstable, none is stable."""
    table = read_table(run / FEATURES)
    alive = table["alive"].to_pylist()
    group = ["unstable" if known else "dead" for known in alive]
    add_columns(run / FEATURES, {"group": group})
    record = read_json(run / STABILITY)
    for each in record["seeds"]:
        each["stable"], each["unstable"] = 0, each["alive"]
    write_json(run / STABILITY, record)
    evaluation = read_json(run / EVALUATION)
    for each in evaluation["seeds"]:
        for line in each["groups"]:
            if line["group"] == "stable":
                line["features"] = 0.0
    write_json(run / EVALUATION, evaluation)
    assert "No feature is stable" in finding(run, "Explained variance")[0]
    assert "fig-keep-drop" in page_of(run).ids
