"""Plans follow from the cells, and write nothing."""

from pathlib import Path

import pytest
from helpers.small_sweep import InlineWorkers, small_sweep

from saefast.sweep import plan_sweep, pool, run_sweep, speeds

pytestmark = pytest.mark.usefixtures("light")

TWO = 'base = "base.toml"\n[grid]\n"train.k" = [2, 3]\n'


@pytest.fixture(autouse=True)
def steps_take_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "_trained", lambda rows, config, steps, device: 0.25 + steps)


def test_hours_follow_from_steps(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, TWO, train={"tokens": 12_800})
    found = plan_sweep(sweep, tmp_path / "out", processes=2)
    assert not (tmp_path / "out").exists()
    assert (found.cells, found.finished, found.saes) == (2, 0, 4)
    assert (found.stores, found.streams, found.workers) == (1, 1, 2)
    steps = 12_800 / 128
    assert found.train_hours == pytest.approx(4 * steps / 3600)
    one = found.each[0]
    assert one.seconds > 2 * steps
    assert found.hours == pytest.approx(
        found.harvest_hours + sum(each.seconds for each in found.each) / 2 / 3600
    )
    trained = plan_sweep(sweep, tmp_path / "out", processes=2, until="train")
    assert trained.later_hours == 0
    assert trained.hours == pytest.approx(trained.harvest_hours + 2 * steps / 3600)


def test_disk_matches_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = small_sweep(tmp_path, TWO, train={"latents": 512})
    out = tmp_path / "out"
    planned = plan_sweep(sweep, out, until="statistics").disk
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: InlineWorkers())
    run_sweep(sweep, out, until="statistics")
    taken = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert taken == pytest.approx(planned, rel=0.3)
    rest = plan_sweep(sweep, out, until="statistics")
    assert (rest.finished, rest.saes, rest.hours, rest.disk) == (2, 0, 0, 0)


def test_a_plan_covers_a_share_and_names_changed_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = small_sweep(tmp_path, TWO)
    out = tmp_path / "out"
    monkeypatch.setattr(pool, "LocalWorkers", lambda *_: InlineWorkers())
    run_sweep(sweep, out, until="harvest", share=(1, 2))
    other = small_sweep(tmp_path, TWO, train={"tokens": 4000})
    found = plan_sweep(other, out, until="train", share=(1, 2))
    assert (found.cells, len(found.changed)) == (1, 1)
    assert f"--remake is needed: {found.changed[0]}" in found.as_text()
