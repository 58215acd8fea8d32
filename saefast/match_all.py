"""Every pair of many dictionaries, matched."""

from collections.abc import Sequence
from itertools import permutations
from typing import Any

from tqdm import tqdm

from saefast.dictionary import Features, as_dictionaries
from saefast.match import match_features
from saefast.types import Matches


def match_all(
    dictionaries: Sequence[Features], *, progress: bool = True, **options: Any
) -> dict[tuple[int, int], Matches]:
    """Match every dictionary with every other: [s, t] are the partners of s's features among t's.

    Args:
        dictionaries: of different seeds, of one width.
        progress: show a progress bar on stderr.
        options: those of `match_features`.
    """
    each = as_dictionaries(dictionaries, 2)
    pairs = list(permutations(range(len(each)), 2))
    return {
        (s, t): match_features(each[s], each[t], **options)
        for s, t in tqdm(pairs, desc="matching", unit="pair", disable=not progress)
    }
