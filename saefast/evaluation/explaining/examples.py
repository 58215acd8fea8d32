"""Windows in which a latent fires or is silent, for explanations and for judges."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast.evaluation.explaining.contexts import Booleans, Integers, TokenText
from saefast.evaluation.explaining.firings import Firings
from saefast.evaluation.explaining.judges import Window
from saefast.evaluation.explaining.predicates import fold
from saefast.types import brief

SILENT_KINDS = ("random", "same token", "neighbour")
"""Kinds of silent windows: any; windows with the latent's most frequent token; windows in which a
latent with a similar decoder row fires"""

_TOP = 10
_SPREAD = 10  # one from each decile of strength
_FIRING = 20  # two from each decile
_SILENT = 7  # of each kind
_MARKED = 10
_MOST_NEIGHBOURS = 10
_DECILES = 10
MOST_WINDOWS = _FIRING + len(SILENT_KINDS) * _SILENT
"""Maximum number of scoring windows of a latent"""
MOST_MARKED = 2 * _MARKED
"""Maximum number of windows with marks, half of which are wrong"""
_EXAMPLES = 0xE8A3  # separates these random numbers from other uses of a seed


@dataclass(frozen=True, kw_only=True)
class ScoringWindows:
    """Windows of the scoring half for one latent."""

    firing: tuple[Window, ...]
    """up to 20 windows, two from each decile of strength"""
    silent: dict[str, tuple[Window, ...]]
    """up to 7 windows of each of `SILENT_KINDS`"""
    right_marks: tuple[Integers, ...]
    """positions of firing tokens in each of up to 10 firing windows"""
    wrong_marks: tuple[Integers, ...]
    """equally many positions of silent tokens in the same windows; both are empty where all tokens
    fire"""

    __repr__ = brief


class Examples:
    """Source of windows for the latents of one SAE; each latent has its own random numbers.

    Args:
        text: text of the encoded rows.
        firings: firings of the SAE on them.
        decoder: [m, d] decoder rows to find neighbours by; None: there are no neighbours.
        seed: seed of the choice of windows.
    """

    def __init__(
        self, text: TokenText, firings: Firings, decoder: Tensor | None, seed: int
    ) -> None:
        self._text, self._firings, self._seed = text, firings, seed
        self._usable = {half: _usable(text, half) for half in (True, False)}
        names: dict[str, int] = {}
        numbers = [names.setdefault(fold(each), len(names)) for each in text.strings]
        self._folded = np.array(numbers)[text.token]
        self._directions: Tensor | None = None
        if decoder is not None:
            self._directions = torch.nn.functional.normalize(decoder.detach().float().cpu(), dim=1)

    def explaining(self, latent: int) -> list[Window]:
        """Return the 10 strongest windows, then one from each decile of strength of the others."""
        windows, _ = self._by_strength(latent, True)
        spread = self._deciles(windows[_TOP:], _SPREAD, self._generator(latent, 0))
        return [self._window(number, latent) for number in [*windows[:_TOP].tolist(), *spread]]

    def scoring(self, latent: int) -> ScoringWindows:
        """Return windows of the scoring half in which the latent fires and is silent."""
        generator = self._generator(latent, 1)
        windows, fires = self._by_strength(latent, False)
        firing = [
            self._window(number, latent) for number in self._deciles(windows, _FIRING, generator)
        ]
        generator.shuffle(firing)
        silent = self._usable[False] & ~fires
        pools = (silent, silent & self._holding(latent), silent & self._neighbours(latent, silent))
        chosen: dict[str, tuple[Window, ...]] = {}
        for kind, pool in zip(SILENT_KINDS, pools, strict=True):
            places = np.flatnonzero(pool)
            drawn = generator.choice(places, min(_SILENT, len(places)), replace=False)
            chosen[kind] = tuple(self._window(int(number), latent) for number in np.sort(drawn))
        right, wrong = [], []
        for window in firing[:_MARKED]:
            marks = window.fires.nonzero()[0]
            others = (~window.fires).nonzero()[0]
            count = min(len(marks), len(others))
            right.append(np.sort(generator.choice(marks, count, replace=False)))
            wrong.append(np.sort(generator.choice(others, count, replace=False)))
        return ScoringWindows(
            firing=tuple(firing), silent=chosen, right_marks=tuple(right), wrong_marks=tuple(wrong)
        )

    def _generator(self, latent: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([_EXAMPLES, self._seed, latent, purpose])

    def _by_strength(self, latent: int, explaining: bool) -> tuple[Integers, Booleans]:
        """Return the windows of a half in which a latent fires, strongest first, and a mask.

        The mask [windows] marks the windows of the whole text in which it fires.
        """
        rows, values = self._firings.of(latent)
        window = self._text.window[rows]
        fires = np.zeros(len(self._text.full), dtype=bool)
        fires[window] = True
        strength = np.zeros(len(fires))
        np.maximum.at(strength, window, values)
        found = np.flatnonzero(fires & self._usable[explaining])
        return found[np.argsort(-strength[found], kind="stable")], fires

    def _deciles(self, windows: Integers, count: int, generator: np.random.Generator) -> list[int]:
        """Draw windows evenly from the deciles of a list, or return all of a shorter list."""
        if len(windows) <= count:
            return [int(number) for number in windows]
        drawn: list[int] = []
        for part in np.array_split(windows, _DECILES):
            drawn += generator.choice(part, min(count // _DECILES, len(part)), False).tolist()
        return drawn

    def _window(self, number: int, latent: int) -> Window:
        first, end = (int(row) for row in self._text.window_starts[number : number + 2])
        rows, values = self._firings.of(latent)
        span = slice(*np.searchsorted(rows, [first, end]))
        strength: NDArray[np.float32] = np.zeros(end - first, dtype=np.float32)
        strength[rows[span] - first] = values[span]
        return Window(self._text, first, end, strength)

    def _holding(self, latent: int) -> Booleans:
        """Return the mask [windows] of windows with the latent's most frequent token."""
        rows, _ = self._firings.of(latent)
        known = rows[self._text.explaining[rows]]
        holding = np.zeros(len(self._text.full), dtype=bool)
        if len(known):
            commonest = np.bincount(self._folded[known]).argmax()
            holding[self._text.window[self._folded == commonest]] = True
        return holding

    def _neighbours(self, latent: int, silent: Booleans) -> Booleans:
        """Return the mask [windows] of windows in which a latent with a similar row fires."""
        fires = np.zeros(len(silent), dtype=bool)
        if self._directions is None:
            return fires
        cosines = (self._directions @ self._directions[latent]).numpy().round(4)
        cosines[latent] = -np.inf
        cosines[self._firings.fired == 0] = -np.inf
        for other in np.argsort(-cosines, kind="stable")[:_MOST_NEIGHBOURS].tolist():
            if (fires & silent).sum() >= _SILENT or cosines[other] == -np.inf:
                break
            fires[self._text.window[self._firings.of(other)[0]]] = True
        return fires


def scorable(text: TokenText, firings: Firings) -> Booleans:
    """Return the mask [m] of latents that fire in windows of both halves.

    Args:
        text: text of the encoded rows.
        firings: firings on them.
    """
    window = text.window[firings.row]
    both: Booleans = np.ones(firings.m, dtype=bool)
    for half in (True, False):
        inside = _usable(text, half)[window]
        both &= np.bincount(firings.latent[inside], minlength=firings.m) > 0
    return both


def _usable(text: TokenText, explaining: bool) -> Booleans:
    """Return the mask [windows] of sufficiently long windows of a half."""
    usable: Booleans = text.full & (text.explaining[text.window_starts[:-1]] == explaining)
    return usable
