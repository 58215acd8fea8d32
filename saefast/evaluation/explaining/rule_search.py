"""Search for the best rule of each latent, with counts of all pairs by sparse products."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from saefast.evaluation.explaining.contexts import Integers, TokenText
from saefast.evaluation.explaining.firings import Firings
from saefast.evaluation.explaining.predicates import FAMILIES, FamilyKind
from saefast.evaluation.explaining.rule_reader import MOST_PARTS, Rule

LEAST_GAIN = 0.01
"""Minimum gain of F1 that justifies one more predicate, or a less simple family"""

_FEWEST_ROWS = 3  # of the explaining half, on which a predicate must hold

Floats = NDArray[np.float64]


class FoundRules(NamedTuple):
    """Best rule of each latent, with its counts on the rows of the scoring half."""

    rules: tuple[Rule | None, ...]
    """[m] rules, None without one"""
    hits: Integers
    """[m] number of rows where the rule holds and the latent fires"""
    held: Integers
    """[m] number of rows where the rule holds"""
    fired: Integers
    """[m] number of rows where the latent fires"""
    rows: int
    """number of rows of the scoring half"""

    @property
    def precision(self) -> Floats:
        """Share of the latent's firings among rows where the rule holds, [m]."""
        return _share(self.hits, self.held)

    @property
    def recall(self) -> Floats:
        """Share of rows where the rule holds among the latent's firings, [m]."""
        return _share(self.hits, self.fired)

    @property
    def balanced_accuracy(self) -> Floats:
        """Mean of recall and the share of silent rows where the rule does not hold, [m]."""
        false = _share(self.held - self.hits, self.rows - self.fired)
        return (self.recall + 1 - false) / 2


class RuleSearch:
    """Search over the predicates of all families on one text.

    Args:
        text: text whose explaining rows choose the rules and whose scoring rows evaluate them.
    """

    def __init__(self, text: TokenText) -> None:
        self._explaining = text.explaining
        self._incidences = {name: _Incidence(kind, text) for name, kind in FAMILIES.items()}

    def best(self, firings: Firings) -> FoundRules:
        """Return the best rule of each latent."""
        m = firings.m
        here = self._explaining[firings.row]
        known = _Entries(firings.latent[here].astype(np.int64), firings.row[here], m)
        other = _Entries(firings.latent[~here].astype(np.int64), firings.row[~here], m)
        score, parts = np.zeros(m), np.full((m, MOST_PARTS), -1)
        family = np.full(m, -1)
        for number, incidence in enumerate(self._incidences.values()):
            its_score, its_parts = incidence.choose(known)
            better = its_score > score + np.where(family >= 0, LEAST_GAIN, 0.0)
            score[better], parts[better], family[better] = (
                its_score[better],
                its_parts[better],
                number,
            )
        rules: list[Rule | None] = [None] * m
        hits, held = np.zeros(m, dtype=np.int64), np.zeros(m, dtype=np.int64)
        for number, (name, incidence) in enumerate(self._incidences.items()):
            latents = np.flatnonzero(family == number)
            counted = incidence.count(latents, parts[latents], incidence.counts(other), False)
            hits[latents], held[latents] = counted
            for latent, its in zip(latents.tolist(), parts[latents].tolist(), strict=True):
                rules[latent] = Rule(name, incidence.arguments(its))
        rows = int((~self._explaining).sum())
        return FoundRules(tuple(rules), hits, held, other.fired, rows)


class _Entries:
    """Firings on a set of rows, sorted by latent."""

    def __init__(self, latent: Integers, row: NDArray[np.int32], m: int) -> None:
        self.latent, self.row, self.m = latent, row, m
        self.fired = np.bincount(latent, minlength=m)


class _Counts(NamedTuple):
    """Numbers of rows by latent and value of an attribute, or by latent and predicate."""

    key: Integers
    """latent * size + value, ascending"""
    rows: Integers


class _Incidence:
    """Considered predicates of one family."""

    def __init__(self, kind: FamilyKind, text: TokenText) -> None:
        family = kind.build(text)
        self._union, self._size = kind.union, family.values
        self._attribute = family.attribute
        halves = (text.explaining, ~text.explaining)
        self._rows = {
            half: np.bincount(family.attribute[rows], minlength=family.values)
            for half, rows in zip((True, False), halves, strict=True)
        }
        rows = self._rows[True][family.value]
        support = np.bincount(family.predicate, rows, len(family.arguments)).astype(np.int64)
        values = np.bincount(family.predicate, rows > 0, len(family.arguments))
        most = kind.largest * text.explaining.sum()
        kept = (support >= _FEWEST_ROWS) & (values >= kind.fewest) & (support <= most)
        number = np.cumsum(kept) - 1
        worth = kept[family.predicate]
        self._value, self._predicate = family.value[worth], number[family.predicate[worth]]
        self._support = support[kept]
        self._names = [name for name, its in zip(family.arguments, kept, strict=True) if its]
        self._starts = np.searchsorted(self._predicate, np.arange(len(self._names) + 1))
        # If every value has at most one predicate, predicates are disjoint and their counts add.
        self._disjoint = len(np.unique(self._value)) == len(self._value)

    def arguments(self, parts: list[int]) -> tuple[str, ...]:
        """Return the arguments of predicates; -1 stands for none."""
        return tuple(self._names[part] for part in parts if part >= 0)

    def counts(self, entries: _Entries) -> _Counts:
        """Count the firings of each latent on rows of each value."""
        key = entries.latent * self._size + self._attribute[entries.row]
        return _Counts(*np.unique(key, return_counts=True))

    def choose(self, entries: _Entries) -> tuple[Floats, Integers]:
        """Return the F1 [m] of each latent's best rule, and its predicates [m, 5]; -1 for none."""
        counts = self.counts(entries)
        latent, predicate, hits = self._pairs(counts, entries.m)
        score = np.zeros(entries.m)
        parts = np.full((entries.m, MOST_PARTS), -1)
        if len(latent) == 0:
            return score, parts
        support = self._support[predicate]
        best = _LargestOf(latent)
        free = np.ones(len(latent), dtype=bool)
        had_hits, had_held = np.zeros(entries.m), np.zeros(entries.m)
        for turn in range(MOST_PARTS if self._union else 1):
            sums: tuple[NDArray[Any], NDArray[Any]] = hits, support
            if self._disjoint:
                sums = had_hits[latent] + hits, had_held[latent] + support
            trial = np.where(free, _f1(*sums, entries.fired[latent]), -1.0)
            winner = best(trial)
            winner = winner[trial[winner] > 0]
            free[winner] = False
            its, trial_parts = latent[winner], parts[latent[winner]]
            trial_parts[:, turn] = predicate[winner]
            if self._disjoint or turn == 0:
                its_hits, its_held = (each[winner] for each in sums)
            else:
                its_hits, its_held = self.count(its, trial_parts, counts, True)
            gained = _f1(its_hits, its_held, entries.fired[its])
            accepted = gained > score[its] + (LEAST_GAIN if turn else 0.0)
            its = its[accepted]
            score[its], parts[its] = gained[accepted], trial_parts[accepted]
            had_hits[its], had_held[its] = its_hits[accepted], its_held[accepted]
            if len(its) == 0:
                break
        return score, parts

    def count(
        self, latents: Integers, parts: Integers, counts: _Counts, explaining: bool
    ) -> tuple[Integers, Integers]:
        """Count the rows of one half on which rules hold: where the latents fire, and in all.

        Args:
            latents: [rules] latent of each rule, ascending.
            parts: [rules, 5] predicates of each rule, -1 for none.
            counts: firings of the half by latent and value.
            explaining: whether the half is the explaining one.

        Returns:
            Numbers of rows [rules] where the rule holds: among those on which the latent fires, and
            in all.
        """
        rule, place = (parts >= 0).nonzero()
        predicate = parts[rule, place]
        length = np.diff(self._starts)[predicate]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        value = self._value[np.repeat(self._starts[predicate], length) + within]
        covered = np.repeat(rule, length) * self._size + value
        covered.sort()  # np.unique hashes, which is several times slower
        covered = covered[np.flatnonzero(np.diff(covered, prepend=-1))]
        rule, value = covered // self._size, covered % self._size
        held = np.bincount(rule, self._rows[explaining][value], len(latents))
        key = latents[rule] * self._size + value
        at = np.minimum(np.searchsorted(counts.key, key), max(len(counts.key) - 1, 0))
        found = counts.rows[at] * (counts.key[at] == key) if len(counts.key) else 0 * key
        hits = np.bincount(rule, found, len(latents))
        return hits.astype(np.int64), held.astype(np.int64)

    def _pairs(self, counts: _Counts, m: int) -> tuple[Integers, Integers, Integers]:
        """Return latents, predicates and the numbers of rows of each pair, sorted by latent."""
        if len(self._names) == 0 or len(counts.key) == 0:
            none = np.zeros(0, dtype=np.int64)
            return none, none, none
        latent, value = counts.key // self._size, counts.key % self._size
        if self._disjoint:
            predicate_of = np.full(self._size, -1)
            predicate_of[self._value] = self._predicate
            predicate = predicate_of[value]
            there = predicate >= 0
            if len(np.unique(self._predicate)) == len(self._predicate):
                return latent[there], predicate[there], counts.rows[there]
        fires = _sparse(latent, value, counts.rows, (m, self._size))
        holds = _sparse(
            self._value, self._predicate, np.ones(len(self._value)), (self._size, len(self._names))
        )
        with warnings.catch_warnings():
            # The product of COO tensors uses CSR, for which torch warns that it is in beta.
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            both = torch.sparse.mm(fires, holds).coalesce()
        rows, columns = both.indices().numpy()
        # Counts are below 2^24, so float32 represents them exactly.
        return rows, columns, both.values().numpy().astype(np.int64)


class _LargestOf:
    """Locator of the largest score of each latent, the first among equal ones."""

    def __init__(self, latent: Integers) -> None:
        self._begins = np.flatnonzero(np.diff(latent, prepend=-1))
        self._lengths = np.diff(self._begins, append=len(latent))

    def __call__(self, score: Floats) -> Integers:
        largest = np.maximum.reduceat(score, self._begins)
        reached = np.flatnonzero(score == np.repeat(largest, self._lengths))
        return reached[np.searchsorted(reached, self._begins)]


def _sparse(
    rows: Integers, columns: Integers, values: NDArray[np.generic], shape: tuple[int, int]
) -> torch.Tensor:
    places = torch.from_numpy(np.stack([rows, columns]))
    numbers = torch.from_numpy(values.astype(np.float32))
    return torch.sparse_coo_tensor(places, numbers, shape, check_invariants=False)


def _f1(hits: NDArray[Any], held: NDArray[Any], fired: Integers) -> Floats:
    score: Floats = 2 * hits / (held + fired)
    return score


def _share(part: Integers, whole: Integers) -> Floats:
    """Return the share, NaN where the whole is 0."""
    share: Floats = np.full(len(part), np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share
