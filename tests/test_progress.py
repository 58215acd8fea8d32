"""Progress bars on a simulated terminal and clock, and lines without a terminal."""

import io
import re
from types import SimpleNamespace

import pytest
import torch
import tqdm.std

import saefast
from saefast import TrainConfig, progress
from saefast.progress import ProgressBar, tracked


class Clock:
    """A clock set by tests."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    """A stderr that is a terminal or a file."""

    terminal = True

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    monkeypatch.setattr(tqdm.std, "time", clock)
    return clock


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=screen))
    # No thread of tqdm, which uses its own clock.
    monkeypatch.setattr(tqdm.std.tqdm, "monitor_interval", 0)
    return screen


def test_a_terminal_gets_a_bar_after_two_seconds(clock: Clock, screen: Screen) -> None:
    with ProgressBar("counting", total=50_000, unit="rows", progress=True) as bar:
        bar.status("loss 1")
        clock.now += 1.9
        bar.update(10_000)
        assert screen.getvalue() == ""
        clock.now += 0.2
        bar.update(10_000)
        assert "counting:  40%" in screen.getvalue()
        assert re.search(r"20\.0k/50\.0k \[.* rows/s, loss 1\]", screen.getvalue())


def test_short_work_shows_nothing(clock: Clock, screen: Screen) -> None:
    for screen.terminal in (True, False):
        for _ in tracked(range(100), "counting", unit="items", progress=True):
            clock.now += 0.015
        assert screen.getvalue() == ""


def test_nothing_is_shown_without_progress(clock: Clock, screen: Screen) -> None:
    for screen.terminal in (True, False):
        for _ in tracked(range(10), "counting", unit="items", progress=False):
            clock.now += 1000
        assert screen.getvalue() == ""


def test_small_totals_are_counted_in_whole_numbers(clock: Clock, screen: Screen) -> None:
    for _ in tracked(range(3), "counting", unit="items", progress=True):
        clock.now += 3
    assert "3/3 [00:09<00:00, 0.33 items/s]" in screen.getvalue().replace("  ", " ")


def test_a_bar_without_a_total_counts(clock: Clock, screen: Screen) -> None:
    with ProgressBar("counting", total=None, unit="rows", progress=True) as bar:
        clock.now += 4
        bar.update(12)
    assert "counting: 12.0 rows [00:04, 3.00 rows/s]" in screen.getvalue()


def test_a_file_gets_a_line_per_minute(clock: Clock, screen: Screen) -> None:
    screen.terminal = False
    with ProgressBar("counting", total=4000, unit="rows", progress=True, done=1000) as bar:
        for number in range(200):  # 200 seconds, ten rows each
            clock.now += 1
            bar.status(f"loss {number}")
            bar.update(10)
    assert screen.getvalue().splitlines() == [
        "counting: 1,600 of 4,000 rows (40%), 10/s, 0:01:00, 0:04:00 left; loss 59",
        "counting: 2,200 of 4,000 rows (55%), 10/s, 0:02:00, 0:03:00 left; loss 119",
        "counting: 2,800 of 4,000 rows (70%), 10/s, 0:03:00, 0:02:00 left; loss 179",
    ]


def test_a_line_without_a_total_has_no_share(clock: Clock, screen: Screen) -> None:
    screen.terminal = False
    with ProgressBar("counting", total=None, unit="rows", progress=True) as bar:
        clock.now += 61
        bar.update(122)
    assert screen.getvalue() == "counting: 122 rows, 2/s, 0:01:01\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_training_shows_the_mean_over_its_saes(
    clock: Clock, screen: Screen, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    screen.terminal = terminal
    reports: list[dict[str, float]] = []

    class Log:
        def write(self, label: str, step: int, values: dict[str, float]) -> None:
            reports.append(values)
            clock.now += 40

        def close(self) -> None:
            pass

    x = torch.randn(640, 8, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(latents=16, k=2, seeds=(0, 1), tokens=640, batch_size=64)
    monkeypatch.setattr("saefast.train.train.loggers", lambda *_: [Log()])
    saefast.train_saes(x, config, log_every=4)
    loss, explained = (
        (reports[0][name] + reports[1][name]) / 2 for name in ("loss", "explained_variance")
    )
    assert reports[0]["loss"] != reports[1]["loss"]
    assert f"mean loss {loss:.4g} EV {explained:.3f} " in screen.getvalue()
    assert "training 2 SAEs: " in screen.getvalue()
