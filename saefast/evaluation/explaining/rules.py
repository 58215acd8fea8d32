"""Executable rules as explanations of latents, found and scored without a language model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saefast import checks
from saefast.evaluation.explaining.contexts import Integers, TokenText
from saefast.evaluation.explaining.firings import Firings
from saefast.evaluation.explaining.predicates import UNCLEAR
from saefast.evaluation.explaining.rule_reader import Rule
from saefast.evaluation.explaining.rule_search import Floats, FoundRules, RuleSearch
from saefast.progress import ProgressBar
from saefast.types import brief

_NEIGHBOURS = 201  # scrambled latents of similar firing rate for each null
_FEWEST_SCRAMBLED = 600

CHANCE = 0.05
"""Share of scrambled latents whose rule exceeds the null"""


@dataclass(frozen=True, kw_only=True)
class FeatureRules:
    """Best rule of each latent of one SAE, with scores on the scoring half of the text.

    Scores are NaN where a latent does not fire in both halves of the text.
    """

    rules: tuple[Rule | None, ...]
    """[m] rules; None where no rule holds on any row on which the latent fires"""
    kinds: tuple[str, ...]
    """[m] one of `KINDS`; "unclear" where the rule does not exceed the null, "" for latents that do
    not fire"""
    precision: Floats
    """[m] share of the latent's firings among rows where the rule holds"""
    recall: Floats
    """[m] share of rows where the rule holds among the latent's firings"""
    balanced_accuracy: Floats
    """[m] mean of recall and the share of silent rows where the rule does not hold"""
    null: Floats
    """[m] 95 % quantile of the balanced accuracy of the best rules of scrambled latents with a
    similar number of firings"""
    fired: Integers
    """[m] number of rows of both halves on which each latent fires"""

    __repr__ = brief

    @property
    def texts(self) -> list[str]:
        """Rules in words, "" where there is none, [m]."""
        return ["" if rule is None else rule.text for rule in self.rules]


def find_rules(
    text: TokenText,
    firings: Firings | Sequence[Firings],
    *,
    seed: int = 0,
    progress: bool = True,
) -> list[FeatureRules]:
    """Find the rule that explains each latent best.

    All predicates are tried for all latents on the explaining half of the text, chosen by F1 and
    joined greedily. The rule is scored on the other half. The same search is run on scrambled
    latents, whose firings were moved within their contexts: their scores are the null, which
    accounts for the size of the search.

    Args:
        text: text of the encoded rows.
        firings: firings of one SAE or several, from `saefast.evaluation.explaining.firings`.
        seed: seed of the scrambled latents.
        progress: show a progress bar on stderr.

    Returns:
        One result for each SAE, in their order.
    """
    each = [firings] if isinstance(firings, Firings) else list(firings)
    for number, its in enumerate(each):
        if its.rows != text.rows:
            raise ValueError(
                f"firings[{number}] must be of the rows of text, {text.rows}, got {its.rows}"
            )
    checks.whole("seed", seed, 0)
    search = RuleSearch(text)
    results = []
    with ProgressBar("rules", total=2 * len(each), unit="searches", progress=progress) as bar:
        for its in each:
            found = search.best(its)
            bar.update()
            alive = int((its.fired > 0).sum())
            copies = -(-_FEWEST_SCRAMBLED // max(alive, 1))
            scrambled = search.best(its.scrambled(text.context_starts, seed, copies))
            results.append(_result(its, found, scrambled))
            bar.update()
    return results


def _result(firings: Firings, found: FoundRules, scrambled: FoundRules) -> FeatureRules:
    score = found.balanced_accuracy
    null = _null(found.fired, scrambled)
    fired = firings.fired
    kinds = tuple(
        "" if count == 0 else rule.kind if rule is not None and its > limit else UNCLEAR
        for rule, count, its, limit in zip(
            found.rules, fired.tolist(), score.tolist(), null.tolist(), strict=True
        )
    )
    return FeatureRules(
        rules=found.rules,
        kinds=kinds,
        precision=found.precision,
        recall=found.recall,
        balanced_accuracy=score,
        null=null,
        fired=fired,
    )


def _null(fired: Integers, scrambled: FoundRules) -> Floats:
    """Return the 95 % quantile [m] over scrambled latents that fire about as often when scored."""
    known = scrambled.fired > 0
    counts, scores = scrambled.fired[known], scrambled.balanced_accuracy[known]
    if len(scores) == 0:
        return np.full(len(fired), np.nan)
    order = np.argsort(counts, kind="stable")
    counts, scores = counts[order], scores[order]
    width = min(_NEIGHBOURS, len(scores))
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(scores, width), axis=1)
    limits = windows[:, int(np.ceil((1 - CHANCE) * width)) - 1]
    middle = (np.searchsorted(counts, fired, "left") + np.searchsorted(counts, fired, "right")) // 2
    null: Floats = limits[np.clip(middle - width // 2, 0, len(limits) - 1)]
    return null
