"""Show the progress of long computations on stderr: a bar on a terminal, else a line a minute."""

import sys
from collections.abc import Collection, Iterator
from datetime import timedelta
from time import monotonic
from typing import Any, Self, TypeVar

Item = TypeVar("Item")

DELAY = 2.0
"""Seconds before a bar appears."""
INTERVAL = 60.0
"""Seconds between two lines if stderr is not a terminal."""

# As in tqdm, except that rates below one per second are not inverted.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_COUNT = "{desc}: {n_fmt}{unit} [{elapsed}, {rate_noinv_fmt}{postfix}]"  # without a total
_SCALED = 10_000  # smallest total whose numbers are shown as 10.0k


def on_terminal() -> bool:
    """Return whether stderr is a terminal, which can draw bars."""
    return sys.stderr.isatty()


class ProgressBar:
    """Progress bar that appears once the work takes longer than `DELAY`.

    Args:
        what: name of the work.
        total: number of units to process; None if unknown.
        unit: name of the unit, in the plural.
        progress: whether to show anything.
        done: number of units that were processed earlier, such as before a resume.
    """

    def __init__(
        self, what: str, *, total: int | None, unit: str, progress: bool, done: int = 0
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._first = self._done = done
        self._status = ""
        self._lines = progress and not on_terminal()
        self._began = self._last = monotonic()
        self._bar: Any = None
        if progress and not self._lines:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=what,
                total=total,
                initial=done,
                unit=f" {unit}",
                unit_scale=total is None or total >= _SCALED,
                bar_format=_COUNT if total is None else _BAR,
                delay=DELAY,
                leave=None,
                file=sys.stderr,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def status(self, text: str) -> None:
        """Set the text shown beside the count from the next update on."""
        self._status = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def update(self, count: int = 1) -> None:
        """Add `count` to the number of processed units."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines and monotonic() - self._last >= INTERVAL:
            self._last = monotonic()
            print(self._line(self._last - self._began), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        line = f"{self._what}: {self._done:,}"
        if self._total:
            line += f" of {self._total:,} {self._unit} ({self._done / self._total:.0%})"
        else:
            line += f" {self._unit}"
        line += f", {(self._done - self._first) / seconds:.3g}/s, {_duration(seconds)}"
        if self._total and self._done > self._first:
            left = seconds * (self._total - self._done) / (self._done - self._first)
            line += f", {_duration(left)} left"
        return f"{line}; {self._status}" if self._status else line


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def tracked(items: Collection[Item], what: str, *, unit: str, progress: bool) -> Iterator[Item]:
    """Yield the items and show a `ProgressBar` over them."""
    with ProgressBar(what, total=len(items), unit=unit, progress=progress) as bar:
        for item in items:
            yield item
            bar.update()
