"""Matching of every pair of many dictionaries, with results on disk that can be resumed."""

import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Unpack

from saefast.dictionary import Features, as_dictionaries
from saefast.disk.resume import refuse_existing
from saefast.match.features import Matching, MatchOptions, check_pair, match_both, pairs_bar
from saefast.match.neighbours import Report
from saefast.match.result import Matches
from saefast.match.saved import Both, Unfinished, read_pair, write_pair
from saefast.unit_rows import UnitRows

Pairs = dict[tuple[int, int], Matches]
"""Matches by pair: [s, t] holds the partners of dictionary s's features in dictionary t."""

_UNFINISHED = ".unfinished"


def match_all(
    dictionaries: Sequence[Features],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Unpack[MatchOptions],
) -> Pairs:
    """Match every dictionary with every other.

    Args:
        dictionaries: two or more dictionaries of one width and different seeds: tensors [m, d] such
            as `W_dec`, SAEs or `Dictionary` objects. Memory-mapped tensors are read by blocks.
        out: folder for the results, s-t.parquet for each pair s < t, written as soon as the pair is
            matched. None: nothing is written.
        resume: whether to keep pairs in `out` that were made with the same dictionaries and
            options, and match the others; an interrupted pair loses at most half a minute of work.
        progress: whether to show a progress bar on stderr.
        options: options of `match_features`.

    Returns:
        A dict in which [s, t] holds the matches of the features of dictionary s with those of
        dictionary t.
    """
    how = Matching(**options)
    each = as_dictionaries(dictionaries, 2)
    sides = [UnitRows.of(one, how.side, f"dictionaries[{s}]") for s, one in enumerate(each)]
    for s, side in enumerate(sides):
        check_pair("dictionaries[0]", sides[0], f"dictionaries[{s}]", side)
    folder = None if out is None else Path(out)
    pairs = list(combinations(range(len(sides)), 2))
    if folder is not None:
        refuse_pairs(folder, pairs, resume)
    found: Pairs = {}
    with pairs_bar(sum(work_of(sides[s], sides[t]) for s, t in pairs), progress) as bar:
        matched: Iterator[Both]
        if folder is None:
            matched = (match_both(sides[s], sides[t], how, bar.update) for s, t in pairs)
        else:
            matched = stored_pairs(folder, dict(enumerate(sides)), pairs, how, bar.update)
        for (s, t), both in zip(pairs, matched, strict=True):
            found[s, t], found[t, s] = both
    return found


def refuse_pairs(folder: Path, pairs: Iterable[tuple[int, int]], resume: bool) -> None:
    """Raise an error if the folder has files of these pairs and they are not to be resumed."""
    for pair in pairs:
        file = pair_file(folder, *pair)
        for path in (file, file.with_suffix(_UNFINISHED)):
            refuse_existing(path, resume)


def stored_pairs(
    folder: Path,
    sides: Mapping[int, UnitRows],
    pairs: Iterable[tuple[int, int]],
    how: Matching,
    report: Report,
) -> Iterator[Both]:
    """Read pairs from a folder, and match those that are not there and write them.

    Args:
        folder: folder of the results.
        sides: compared rows of the dictionaries of the pairs, by the index of the dictionary.
        pairs: indices of both dictionaries of each pair.
        how: options.
        report: function that is called with the work done since the last call, as in `work_of`.

    Yields:
        Matches of each pair.
    """
    about = _options(how)
    content = {number: _checksum(side) for number, side in sides.items()}
    for s, t in pairs:
        facts = about | {"content": [content[s], content[t]]}
        yield _kept(folder, (s, t), facts, sides[s], sides[t], how, report)


def _kept(
    folder: Path,
    names: tuple[int, int],
    facts: dict[str, Any],
    x: UnitRows,
    y: UnitRows,
    how: Matching,
    report: Report,
) -> Both:
    """Read a pair from the folder, or match it and write it there."""
    file = pair_file(folder, *names)
    both = read_pair(file, facts)
    # Memory determines the length of lists and the size of blocks.
    unfinished = Unfinished(file.with_suffix(_UNFINISHED), facts | {"memory": how.memory})
    if both is None:
        both = match_both(x, y, how, report, unfinished)
        write_pair(file, both, names, facts)
    else:
        report(work_of(x, y))
    unfinished.finish()
    return both


def pair_file(folder: Path, s: int, t: int) -> Path:
    """Return the path of a pair's file."""
    return folder / f"{s}-{t}.parquet"


def work_of(x: UnitRows, y: UnitRows) -> int:
    """Return the number of pairs of features, each counted from both sides."""
    return 2 * len(x) * len(y)


def _options(how: Matching) -> dict[str, Any]:
    """Return the options that determine a result."""
    settings = dataclasses.asdict(how)
    if not how.one_to_one:  # only one-to-one results depend on memory
        del settings["memory"]
    return settings


def _checksum(side: UnitRows) -> str:
    """Return a checksum of the compared rows, computed block by block."""
    value = 0
    for start in range(0, len(side), 65_536):
        rows = side.block(start, start + 65_536).cpu().contiguous()  # mapped encoders are strided
        value = zlib.crc32(rows.numpy().data, value)
    place = zlib.crc32(side.place.cpu().numpy().data)
    return f"{side.size}x{side.width}-{value:08x}-{place:08x}"
