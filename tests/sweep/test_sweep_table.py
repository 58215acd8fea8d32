"""The table of a sweep: workers compute slow values, and waiting drivers do not repeat it."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.small_sweep import InlineWorkers, small_sweep

from saefast.sweep import SweepFolder, pool, run_sweep, sae_stability, write_results
from saefast.sweep import report as sweep_report
from saefast.sweep.report import write_table_and_report

pytestmark = pytest.mark.usefixtures("light")

TWO = 'base = "base.toml"\n[grid]\n"train.k" = [2, 3]\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """Return a sweep of two cells, up to stability."""
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: InlineWorkers())
    run_sweep(small_sweep(tmp_path, TWO), tmp_path / "out", until="stability")
    return SweepFolder(tmp_path / "out")


def test_intervals_are_computed_by_workers(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder.results.read_bytes()
    computed: list[int] = []
    compute = sae_stability._stability_of_sae

    def counted(data: object, place: int) -> object:
        computed.append(place)
        return compute(data, place)  # type: ignore[arg-type]

    monkeypatch.setattr(sae_stability, "_stability_of_sae", counted)
    write_results(folder)
    assert computed == []
    assert folder.results.read_bytes() == before
    first, second = folder.read().cells
    (folder.cell(first) / "sweep" / "intervals.json").unlink()
    kept = folder.intervals(second)
    assert kept is not None
    other = dataclasses.replace(kept, digest="other", saes=[])
    folder.write_intervals(second, other)
    write_results(folder)
    assert computed == [0, 1, 0, 1]
    assert folder.results.read_bytes() == before
    assert folder.intervals(second) == kept


@pytest.mark.parametrize("others", [0, 1, 2, 5])
def test_a_driver_that_waited_for_two_others_writes_no_table(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    written: list[int] = []
    write, lock = write_results, SweepFolder.writing

    def counted(of: SweepFolder) -> object:
        written.append(of.tables)
        return write(of)

    @contextmanager
    def after_others(self: SweepFolder) -> Iterator[None]:
        monkeypatch.setattr(SweepFolder, "writing", lock)
        for _ in range(others):
            write_table_and_report(self)
        with lock(self):
            yield

    monkeypatch.setattr(sweep_report, "write_results", counted)
    monkeypatch.setattr(SweepFolder, "writing", after_others)
    before = folder.tables
    assert before == 1  # by the fixture
    paths = write_table_and_report(folder)
    assert len(written) == others + (others < 2)
    assert folder.tables == before + len(written)
    assert all(path.is_file() for path in paths)


def test_the_null_of_an_sae_is_the_chance_of_a_match_in_the_others() -> None:
    data = SimpleNamespace(
        stability=SimpleNamespace(
            seeds=[SimpleNamespace(seed=seed, stable=1, unstable=1, alive=2) for seed in range(3)],
            chance=[0.5, 0.1, 0.3],
        ),
        features={
            "alive": np.ones(6, dtype=bool),
            "seed": np.arange(6) // 2,
            "score": np.array([0.0, 1.0] * 3),
        },
    )
    nulls = [
        sae_stability._stability_of_sae(data, place)["stability_null"]  # type: ignore[arg-type]
        for place in range(3)
    ]
    assert nulls == pytest.approx([0.2, 0.4, 0.3])
