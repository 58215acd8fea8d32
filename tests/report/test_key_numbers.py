"""The numbers of the summary are those of the files, each beside its null."""

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_run import with_language_model
from scipy import stats

from saefast.disk.tables import read_json, read_table, write_json
from saefast.report.key_numbers import KeyNumber, key_numbers
from saefast.report.run_data import RunData
from saefast.run_folder import EVALUATION, FEATURES, STABILITY, SUBSPACES


@pytest.fixture
def run(planted_run: Path, tmp_path: Path) -> Path:
    return with_language_model(planted_run, tmp_path / planted_run.name)


def numbers(run: Path) -> dict[str, KeyNumber]:
    return {each.name: each for each in key_numbers(RunData(run))}


def test_the_share_of_stable_features_stands_beside_its_null(run: Path) -> None:
    rows = [row for row in read_table(run / FEATURES).to_pylist() if row["alive"]]
    shares = [
        np.mean([row["group"] == "stable" for row in rows if row["seed"] == seed])
        for seed in range(4)
    ]
    found = numbers(run)["Stable features"]
    low, high = stats.t.interval(0.95, 3, np.mean(shares), stats.sem(shares))
    assert found.value == pytest.approx((np.mean(shares), low, high))
    chance = float(np.mean(read_json(run / STABILITY)["chance"]))
    assert found.null.value == pytest.approx(stats.binom.sf(2, 3, chance))  # all three others
    assert found.in_words() == (
        f"95 % interval over SAEs {100 * low:.0f} % to {100 * high:.0f} %",
        "random directions: under 0.1 %",
    )


def test_stable_features_stand_beside_random_ones_of_their_mass(run: Path) -> None:
    seeds = read_json(run / EVALUATION)["seeds"]
    lines = {
        control: [
            line
            for each in seeds
            for line in each["groups"]
            if (line["group"], line["control"]) == ("stable", control)
        ]
        for control in ("", "mass")
    }
    found = numbers(run)["Explained by stable features"]
    assert found.value.value == pytest.approx(np.mean([line["keep"] for line in lines[""]]))
    random = np.mean([line["keep"] for line in lines["mass"]])
    spread = 2 * np.mean([line["keep_std"] for line in lines["mass"]])
    assert found.null == pytest.approx((random, random - spread, random + spread))


def test_subspaces_stand_beside_directions_of_the_datas_covariance(run: Path) -> None:
    rows = [
        row
        for row in read_table(run / SUBSPACES / "nulls.parquet").to_pylist()
        if (row["group"], row["statistic"], row["null"]) == ("unstable", "overlap", "covariance")
    ]
    found = numbers(run)["Overlap of unstable subspaces"]
    values = [row["value"] for row in rows]
    assert found.value == pytest.approx((np.mean(values), min(values), max(values)))
    assert found.null == pytest.approx(
        (
            np.mean([row["mean"] for row in rows]),
            min(row["low"] for row in rows),
            max(row["high"] for row in rows),
        )
    )


def test_the_recovered_loss_stands_beside_its_null(run: Path) -> None:
    found = numbers(run)["Loss recovered by stable features"]
    value, random = ((9.0 - ce) / 6.5 for ce in (3.5, 3.9))
    assert found.value == pytest.approx((value, value - 0.0196, value + 0.0196))
    assert found.null.value == pytest.approx(random)
    assert "its whole reconstruction recovers 0.92" in found.scope


def test_there_are_four_with_and_without_a_language_model(run: Path, planted_run: Path) -> None:
    first = ["Stable features", "Explained by stable features", "Overlap of unstable subspaces"]
    assert list(numbers(run)) == [*first, "Loss recovered by stable features"]
    assert list(numbers(planted_run)) == [*first, "Agreement of unstable features"]


def test_without_stable_features_others_take_their_place(run: Path) -> None:
    evaluation = read_json(run / EVALUATION)
    for each in evaluation["seeds"]:
        for line in each["groups"]:
            if line["group"] == "stable":
                line["features"] = 0.0
    evaluation["language_model"] = None
    write_json(run / EVALUATION, evaluation)
    assert list(numbers(run)) == [
        "Stable features",
        "Overlap of unstable subspaces",
        "Agreement of unstable features",
        "Explained variance",
    ]
