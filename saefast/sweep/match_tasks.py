"""Tasks of a matching of many dictionaries: tiles of pairs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saefast.match.all_pairs import stored_pairs
from saefast.match.features import Matching
from saefast.storage import load_dictionaries
from saefast.train.planning.memory import PROCESS_BYTES
from saefast.unit_rows import UnitRows

MATCH_TILE = "match tile"
_SIDES = (4, 2, 1)
"""Numbers of dictionaries on a side of a tile, each of which divides the larger ones"""
_TILES_OF_WORKER = 4
"""Minimum number of tiles for each worker, unless there are too few pairs"""

PairNumbers = tuple[int, int]
"""Indices of the two dictionaries of a pair, the smaller one first"""


@dataclass(frozen=True)
class MatchTile:
    """Pairs of a few dictionaries, each of which is read once for all of them."""

    kind: str
    """`MATCH_TILE`"""
    out: str
    """folder of the results"""
    paths: tuple[tuple[int, str], ...]
    """number and path of each dictionary"""
    pairs: tuple[PairNumbers, ...]
    """pairs of these dictionaries"""
    options: dict[str, Any]
    """options of `match_features`"""
    dictionary_bytes: int
    """bytes of the rows of all dictionaries"""

    @property
    def label(self) -> str:
        """Name of the task for messages."""
        (s, t), (u, v) = self.pairs[0], self.pairs[-1]
        return f"the matching of pairs {s}-{t} to {u}-{v}"

    @property
    def memory(self) -> int:
        """Bytes of memory of the process that performs it."""
        return PROCESS_BYTES + self.dictionary_bytes + int(self.how.memory * 1e9)

    @property
    def how(self) -> Matching:
        """The validated options."""
        return Matching(**self.options)

    def to_dict(self) -> dict[str, Any]:
        """Return the task as a dict that JSON can represent, for `match_tile_from`."""
        return asdict(self)

    def perform(self) -> None:
        """Match the pairs that are not in the folder yet, and write them."""
        how = self.how
        sides = {}
        for number, path in self.paths:
            (dictionary,) = load_dictionaries(path, encoder=how.side != "decoder")
            sides[number] = UnitRows.of(dictionary, how.side, path)
        for _ in stored_pairs(Path(self.out), sides, self.pairs, how, lambda _: None):
            pass


def match_tile_from(record: dict[str, Any]) -> MatchTile:
    """Restore a task from the result of `MatchTile.to_dict`."""
    lists = {name: tuple(map(tuple, record[name])) for name in ("paths", "pairs")}
    return MatchTile(**(record | lists))


def tiles_of(
    pairs: Iterable[PairNumbers],
    workers: int,
    fits: Callable[[Sequence[PairNumbers]], bool] = lambda _: True,
) -> list[list[PairNumbers]]:
    """Group pairs into tiles, as large as they may be while all workers are busy.

    Args:
        pairs: the pairs.
        workers: number of workers.
        fits: function that returns whether a tile fits into memory. Single pairs may not.

    Returns:
        The tiles, those with most pairs first.
    """
    for side in _SIDES:
        found: dict[PairNumbers, list[PairNumbers]] = {}
        for s, t in pairs:
            found.setdefault((s // side, t // side), []).append((s, t))
        if len(found) >= _TILES_OF_WORKER * workers and all(map(fits, found.values())):
            break
    return sorted(found.values(), key=lambda tile: -len(tile))


def pairs_of_share(pairs: Iterable[PairNumbers], share: tuple[int, int]) -> list[PairNumbers]:
    """Return the pairs of one of several shares, which hold similar numbers of pairs.

    Args:
        pairs: all pairs.
        share: number of the share, starting at 1, and number of shares.
    """
    number, of = share
    shares: list[list[PairNumbers]] = [[] for _ in range(of)]
    for tile in tiles_of(pairs, of):
        min(shares, key=len).extend(tile)
    return sorted(shares[number - 1])
