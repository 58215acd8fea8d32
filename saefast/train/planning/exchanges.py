"""Bytes and calls of the exchanges of a training step, counted without weights or rows.

The methods of `Share` are called on tensors of the device "meta", which have shapes and no data, so
that their bytes are computed by the code that a training runs.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from saefast.train.config import TrainConfig
from saefast.train.objectives.batchtopk import group_ends
from saefast.train.ranks.group import Shape
from saefast.train.ranks.merge import merged_largest
from saefast.train.ranks.share import LATENTS_PER_TASK, Share
from saefast.types import SparseCode

_VALUE, _INDEX = 4, 4
"""Bytes of a value and of the index of a latent in an exchanged code."""


class Exchange(NamedTuple):
    """Bytes that a rank receives from others, and collectives that it calls."""

    received: int
    """bytes"""
    calls: int
    """number of collectives"""


class Search(NamedTuple):
    """An encode of the latents above a threshold."""

    listed: tuple[int, ...]
    """length of the longest list of a row on each rank"""
    width: int
    """length of the longest merged list"""


class Codes(NamedTuple):
    """Lengths of the lists that the ranks exchange in a step."""

    ranked: tuple[int, ...]
    """latents kept per row by each encode that keeps a fixed number"""
    searches: tuple[Search, ...]
    """encodes that keep the latents above a threshold"""
    width: int
    """width of the code that is decoded"""


class CountedRanks:
    """A rank whose collectives count bytes instead of moving them; see `Ranks`."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.received = self.calls = 0

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Ranks`."""
        self.calls += 1
        self.received += parts[0].itemsize * sum(
            prod(shape) for sender, shape in enumerate(shapes) if sender != self.rank
        )
        return [parts[0].new_empty(tuple(shape)) for shape in shapes]

    def all_gather(self, part: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
        """See `Ranks`."""
        return self.all_to_all([part] * self.size, shapes)

    def fail(self, error: BaseException) -> None:
        """See `Ranks`; there is no other rank to inform."""


def usual_codes(config: TrainConfig, ranks: int) -> Codes:
    """Return the lengths of lists that a step of a variant has, or is assumed to have.

    Those of topk and abstopk are fixed. Those of other variants depend on the rows: it is assumed
    that k latents are active on average, twice as many on the longest row, and that every rank has
    an equal share of them.
    """
    if config.variant in ("topk", "abstopk"):
        return Codes((config.k,), (), config.k)
    longest = min(2 * config.k, config.latents)
    return Codes((), (Search((-(-longest // ranks),) * ranks, longest),), longest)


def step_exchanges(
    config: TrainConfig,
    d: int,
    rank: int,
    ranks: int,
    *,
    d_out: int | None = None,
    codes: Codes | None = None,
    dead: Sequence[int] | None = None,
) -> dict[str, Exchange]:
    """Count the exchanges of a training step of one SAE by its parts.

    Steps of relu and jumprelu with dense codes, which gather all weights, are not counted.

    Args:
        config: settings of the training.
        d: width of the rows.
        rank: the rank that receives.
        ranks: number of ranks that train the SAE together.
        d_out: width of the reconstructed rows; None: d.
        codes: lengths of the lists of this step; None: `usual_codes`.
        dead: number of dead latents of each rank that take part in AuxK; None: no latent is dead.

    Returns:
        The exchange of each part: codes, products, norms, auxk, penalties, clip, gradients and
        signals. Parts without an exchange have zeros.
    """
    codes = usual_codes(config, ranks) if codes is None else codes
    counted = _Step(config, d if d_out is None else d_out, d, CountedRanks(rank, ranks))
    counted.codes(codes)
    listed = [0] * ranks if dead is None or config.auxk is None else list(dead)
    counted.auxk(listed)
    counted.update(sum(listed))
    return counted.parts


class _Step:
    """Exchanges of a step in the order in which `Learner` and its parts make them."""

    def __init__(self, config: TrainConfig, width: int, d: int, ranks: CountedRanks) -> None:
        self._config, self._d, self._n, self._ranks = config, d, config.batch_size, ranks
        self._share = Share(ranks, config.latents, width)
        self._columns = self._share.counts_of_columns()[ranks.rank]
        self._rows = self._share.counts_of_rows()[ranks.rank]
        names = "codes products norms auxk penalties clip gradients signals"
        self.parts = dict.fromkeys(names.split(), Exchange(0, 0))

    def codes(self, codes: Codes) -> None:
        """Count the encode and the products of errors with decoder rows."""
        config, share, n = self._config, self._share, self._n
        if config.by_norm and config.variant in ("topk", "abstopk"):
            share.added(_floats(share.latents))
            self._count("norms")
        for k in codes.ranked:
            self._merged(k, share.counts_of_rows())
        for search in codes.searches:
            self._searched(search)
        self._count("codes")
        if config.variant == "matryoshka":
            groups = len(group_ends(share.latents, config.group_shares))
            share.joined_columns(_floats(groups, self._columns))
            share.added(_floats(n, codes.width))
        else:
            share.added(_floats(n, codes.width + 1))
        if config.variant == "jumprelu":
            share.added(_floats(n, codes.width))  # for the gradient of the thresholds
        self._count("products")
        if config.variant == "relu":
            share.added(_floats(share.latents))
            self._count("norms")

    def auxk(self, dead: list[int]) -> None:
        """Count the auxiliary loss."""
        settings, share, count = self._config.auxk, self._share, sum(dead)
        if settings is None or count == 0:
            return
        column_sums = _floats(self._columns)
        if settings.normalised:
            share.joined_columns(column_sums)
        k = min(settings.actives(share.width), count)
        self._merged(k, dead)
        share.added(_floats(self._n, k))
        share.joined_columns(column_sums)
        self._count("auxk")

    def update(self, dead: int) -> None:
        """Count the pass over the latents, of which AuxK revives `dead`."""
        config, rules, share = self._config, self._config.rules, self._share
        for penalty in rules.penalties:
            if penalty.norm == "fro" and penalty.side == "decoder":
                share.added(_floats(share.latents))
            elif penalty.norm == "fro":
                share.joined_rows(_floats(self._rows))
        self._count("penalties")
        share.joined_columns(_floats(self._columns))  # the gradient of b_dec
        self._count("gradients")
        decoder = rules.frozen != "decoder"
        if decoder and rules.unit_norm and rules.remove_parallel:
            if config.precision == "bf16_weights" or self._decays():
                share.added(_floats(share.latents))
                self._count("penalties")
            elif dead > 0:
                share.added(_floats(dead))
                self._count("auxk")
        if rules.clip is not None:
            if decoder:
                share.added(_floats(share.latents))
            self._pass_over_rows()
            share.joined_rows(_floats(self._rows).double())
            self._count("clip")
        if decoder and rules.unit_norm:
            share.added(_floats(share.latents))
            self._count("norms")
        self._pass_over_rows()
        self._count("gradients")
        # Whether a rank was interrupted, and whether a checkpoint is due.
        self._ranks.all_gather(_bytes(2), [(2,)] * self._ranks.size)
        self._count("signals")

    def _decays(self) -> bool:
        """Return whether a penalty changes the gradient of the decoder."""
        return self._config.variant == "relu" or any(
            penalty.side == "decoder" and (penalty.norm == "fro" or penalty.weight > 0)
            for penalty in self._config.rules.penalties
        )

    def _merged(self, k: int, counts: list[int]) -> None:
        mine = min(k, counts[self._ranks.rank])
        values = _floats(self._n, mine)
        merged_largest(self._share, SparseCode(values, values.long()), k, counts)

    def _searched(self, search: Search) -> None:
        """Count `merged_above`, whose sizes depend on data."""
        share, ranks, each = self._share, self._ranks, _VALUE + _INDEX
        ranks.all_gather(_floats(self._n, 1).long(), [(self._n, 1)] * ranks.size)
        mine = share.lengths(self._n)[ranks.rank]
        ranks.all_to_all([_bytes(0)], [(mine, width * each) for width in search.listed])
        share.collected(_bytes(mine, search.width * each), self._n)

    def _pass_over_rows(self) -> None:
        """Count the gradient of the inputs, summed over groups of latents."""
        share, mine = self._share, self._share.lengths(self._d)[self._ranks.rank]
        tasks = [-(-count // LATENTS_PER_TASK) for count in share.counts_of_rows()]
        self._ranks.all_to_all([_floats(0)], [(count, mine) for count in tasks])
        share.collected(_floats(mine), self._d)

    def _count(self, name: str) -> None:
        """Add the bytes received since the last call to a part."""
        before, ranks = self.parts[name], self._ranks
        self.parts[name] = Exchange(before.received + ranks.received, before.calls + ranks.calls)
        ranks.received = ranks.calls = 0


def _floats(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _bytes(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, device="meta")
