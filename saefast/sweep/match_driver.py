"""Matching of every pair of many dictionaries by several processes or machines."""

import dataclasses
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Unpack

from saefast.dictionary import Dictionary
from saefast.disk.lock import Claim
from saefast.formats.sae_folders import saes_at
from saefast.match.all_pairs import pair_file, refuse_pairs
from saefast.match.features import Matching, MatchOptions, pairs_bar
from saefast.storage import load_dictionaries
from saefast.sweep.match_tasks import (
    MATCH_TILE,
    MatchTile,
    PairNumbers,
    pairs_of_share,
    tiles_of,
)
from saefast.sweep.pool import check_on, check_share, open_workers, perform_all


def match_by_processes(
    *paths: str | Path,
    out: str | Path,
    processes: int | None = None,
    on: str = "local",
    share: tuple[int, int] | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Unpack[MatchOptions],
) -> list[Path]:
    """Write the files of `match_all` by several processes.

    A task is a tile of up to 4 x 4 pairs, whose dictionaries are loaded once. The files have the
    bytes of those of `match_all` with the same dictionaries and options, and either can resume the
    other: `match_all(load_dictionaries(...), out=out, resume=True)` returns finished pairs.

    Args:
        paths: SAEs or folders of SAEs, as for `load_dictionaries`; on Ray, paths that all nodes
            share.
        out: folder for the results, as for `match_all`.
        processes: number of worker processes, which divide the threads of the machine; None: one
            for each processor core. On Ray, the maximum number of concurrent tasks; None: as many
            as there is room for.
        on: "local", "ray" or "ray://HOST", as for `run_sweep`.
        share: number of a share of the pairs, starting at 1, and number of shares, for independent
            jobs that write to the same folder; None: all pairs.
        resume: whether to keep pairs in `out`, as for `match_all`.
        progress: whether to show a progress bar on stderr.
        options: options of `match_features`. `memory` holds for each process.

    Returns:
        Path of each pair's file, in the order of the pairs.

    Raises:
        RuntimeError: the same tile failed twice; finished pairs are kept.
        BlockingIOError: another call matches in `out`, unless both match shares.
    """
    check_on(on, processes)
    how = Matching(**options)
    encoder = how.side != "decoder"
    # Only widths and sizes are needed here: workers read the rows and verify them.
    dictionaries = load_dictionaries(*paths, encoder=encoder, verify=False)
    files = [str(path.resolve()) for given in paths for path in saes_at(Path(given))]
    check_widths(dictionaries, files)
    pairs = list(combinations(range(len(files)), 2))
    if share is not None:
        check_share(share)
        pairs = pairs_of_share(pairs, share)
    folder = Path(out)
    refuse_pairs(folder, pairs, resume)
    sizes = [_bytes(each) for each in dictionaries]
    work = {(s, t): dictionaries[s].m * dictionaries[t].m for s, t in pairs}

    def tile_of(tile: Sequence[PairNumbers]) -> MatchTile:
        numbers = sorted({number for pair in tile for number in pair})
        return MatchTile(
            MATCH_TILE,
            str(folder.resolve()),
            tuple((number, files[number]) for number in numbers),
            tuple(tile),
            dataclasses.asdict(how),
            sum(sizes[number] for number in numbers),
        )

    with (
        Claim(folder, shared=share is not None),
        pairs_bar(2 * sum(work.values()), progress) as bar,
    ):
        if pairs:
            with open_workers(on, processes, len(pairs)) as workers:
                most = workers.memory
                tiles = tiles_of(
                    pairs, workers.groups, lambda tile: most is None or tile_of(tile).memory <= most
                )
                perform_all(
                    map(tile_of, tiles),
                    workers,
                    lambda tile: bar.update(2 * sum(work[pair] for pair in tile.pairs)),
                )
    return [pair_file(folder, *pair) for pair in pairs]


def check_widths(dictionaries: Sequence[Dictionary], files: Sequence[str | Path]) -> None:
    """Raise a ValueError that names a file unless two or more dictionaries have one width.

    Args:
        dictionaries: the dictionaries.
        files: file or folder of each.
    """
    if len(files) < 2:
        raise ValueError(f"paths must hold at least 2 SAEs of different seeds, got {len(files)}")
    width = dictionaries[0].W_dec.shape[1]
    for file, each in zip(files, dictionaries, strict=True):
        if each.W_dec.shape[1] != width:
            raise ValueError(
                f"{file} must have the width of {files[0]}, {width}, got {each.W_dec.shape[1]}"
            )


def _bytes(dictionary: Dictionary) -> int:
    """Return the bytes of the rows of a dictionary."""
    sides = (dictionary.W_dec, dictionary.W_enc)
    return sum(side.numel() * side.element_size() for side in sides if side is not None)
