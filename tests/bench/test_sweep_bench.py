"""bench sweep: rows of a small sweep, and the model of many machines."""

import pytest
from helpers.small_sweep import InlineWorkers

from bench import sweep as bench_sweep
from bench import sweep_model
from bench.cases import Shape
from bench.sweep_model import CELLS, HARVEST, LATER, MACHINES, STREAMS, TRAINING, Costs, simulated
from saefast.sweep import pool

FREE = Costs(start=0, task=0, driver=0, table=0, table_per_cell=0)
WAYS = ("ray", "share")


def hours(machines: int, way: str, **costs: float) -> float:
    return simulated(machines, way, FREE._replace(**costs))["hours"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("machines", MACHINES)
def test_no_schedule_is_faster_than_its_work(way: str, machines: int) -> None:
    found = simulated(machines, way, FREE)
    each = 1 + LATER
    longest = HARVEST + each * max(sweep_model._cells())
    assert found["hours"] * 3600 >= max(each * CELLS * TRAINING / machines, longest) - 2
    assert found["training_share"] == pytest.approx(
        CELLS * TRAINING / machines / found["hours"] / 3600, rel=1e-3
    )
    assert found["table_minutes"] == 0


def test_one_machine_does_all_work_in_turn() -> None:
    """On Ray with a machine, costs add up: harvests, trainings by stream, stages, a table."""
    costs = Costs(start=7, task=11, driver=0, table=100, table_per_cell=1)
    tasks = sweep_model.STORES + STREAMS + CELLS
    work = sweep_model.STORES * HARVEST + (1 + LATER) * CELLS * TRAINING
    expected = 7 + 11 * tasks + work + 100 + CELLS
    assert simulated(1, "ray", costs)["hours"] * 3600 == pytest.approx(expected, abs=2)


def test_shares_of_sixteen_machines_are_streams() -> None:
    own = CELLS // STREAMS
    expected = HARVEST + own * TRAINING * (1 + LATER)
    assert hours(STREAMS, "share") * 3600 == pytest.approx(expected, abs=2)
    more = hours(STREAMS, "share", start=60, task=6) * 3600
    assert more == pytest.approx(expected + 60 + 6 * (1 + own + 1), abs=2)


def test_tables_are_written_one_after_another() -> None:
    """Two of the drivers that end together write; the second table includes the others."""
    costs = FREE._replace(table=30)
    assert simulated(STREAMS, "share", costs)["table_minutes"] == 2 * 30 / 60
    assert simulated(STREAMS, "ray", costs)["table_minutes"] == 0.5
    assert sweep_model._with_tables([1, 50, 99], 30) == 129
    assert sweep_model._with_tables([1, 2, 3, 32], 30) == 91  # the last begins at 61
    assert sweep_model._with_tables([1, 2, 3, 4], 30) == 61


def test_a_slow_driver_limits_many_machines() -> None:
    slow = hours(1000, "ray", driver=60)
    trainings = STREAMS * -(-1000 // STREAMS)
    assert slow * 3600 > 60 * (sweep_model.STORES + trainings + CELLS)
    assert hours(1000, "share", driver=60) == hours(1000, "share")


@pytest.mark.usefixtures("light")
def test_rows_have_the_parts_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_sweep, "_ROWS", 2000)
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: InlineWorkers())
    monkeypatch.setattr(bench_sweep, "LocalWorkers", lambda *_: InlineWorkers())
    rows = bench_sweep.race(Shape(24, 32, 4, 64), 3)
    one, two, parts, *models = rows
    assert [one["mode"], two["mode"], parts["mode"]] == ["1 process", "2 processes", "parts"]
    for processes, row in ((1, one), (2, two)):
        assert row["agrees"]
        assert row["cells"] == 8
        stages = row["harvest_ms"] + row["train_ms"] + row["later_ms"]
        assert row["harvest_ms"] > 0
        assert row["overhead_ms_per_cell"] * 8 == pytest.approx(
            processes * row["ms"] - stages, abs=9
        )
        assert row["not_training"] == pytest.approx(
            1 - row["train_ms"] / row["ms"] / processes, abs=1e-3
        )
    assert one["tasks"] == 1 + 1 + 8
    assert parts["table_per_cell_ms"] > 0
    table = parts["table_ms"] + 8 * parts["table_per_cell_ms"]
    spent = 10 * parts["task_ms"] + parts["start_ms"] + table
    assert spent == pytest.approx(8 * one["overhead_ms_per_cell"], abs=2)
    assert [(row["mode"], row["machines"]) for row in models] == [
        (way, machines) for way in WAYS for machines in MACHINES
    ]
