"""Share of an SAE that a rank has, and the exchanges that depend on the shares."""

import copy

import torch
from torch import Tensor, nn

from saefast.ops.partial_sums import halved, most_ranks
from saefast.sae import SAE
from saefast.train.ranks.group import Ranks

LATENTS_PER_TASK = 64
"""Number of latents whose shares of a gradient are summed first, as in csrc/latent_update.h."""
_KINDS = {"W_enc": "rows", "b_enc": "rows", "W_dec": "columns"}


def kind_of(name: str) -> str:
    """Return how a parameter or one of its moments is divided: rows, columns or everywhere."""
    return _KINDS.get(name.split(".")[0], "everywhere")


class Share:
    """The rows of W_enc and the columns of W_dec that this rank has.

    Rank r has the entries of W_enc and b_enc of a range of latents, which consists of whole groups
    of 64, and of W_dec the columns i with i % R == r of all latents. All other state is on all
    ranks.

    Args:
        ranks: the ranks, at least two.
        latents: number of latents of the SAE.
        width: number of columns of W_dec.
    """

    def __init__(self, ranks: Ranks, latents: int, width: int) -> None:
        self.ranks, self.latents, self.width = ranks, latents, width
        self.rows, self.columns = self.rows_of(ranks.rank), self.columns_of(ranks.rank)

    def rows_of(self, rank: int) -> slice:
        """Return the latents whose rows of W_enc a rank has."""
        tasks = self.cut(-(-self.latents // LATENTS_PER_TASK), rank)
        start, stop = (
            min(end * LATENTS_PER_TASK, self.latents) for end in (tasks.start, tasks.stop)
        )
        return slice(start, stop)

    def columns_of(self, rank: int) -> slice:
        """Return the columns of W_dec that a rank has."""
        return slice(rank, None, self.ranks.size)

    def cut(self, count: int, rank: int) -> slice:
        """Return the range of `count` things that a rank computes for all."""
        size = self.ranks.size
        return slice(count * rank // size, count * (rank + 1) // size)

    def lengths(self, count: int) -> list[int]:
        """Return the length of each rank's `cut`."""
        cuts = (self.cut(count, rank) for rank in range(self.ranks.size))
        return [cut.stop - cut.start for cut in cuts]

    def counts_of_rows(self) -> list[int]:
        """Return the number of latents whose rows of W_enc each rank has."""
        each = (self.rows_of(rank) for rank in range(self.ranks.size))
        return [rows.stop - rows.start for rows in each]

    def counts_of_columns(self) -> list[int]:
        """Return the number of columns of W_dec that each rank has."""
        size = self.ranks.size
        return [len(range(rank, self.width, size)) for rank in range(size)]

    def of(self, name: str, whole: Tensor) -> Tensor:
        """Return this rank's share of a parameter or of one of its moments, without a copy."""
        kind = kind_of(name)
        if kind == "rows":
            return whole[self.rows]
        return whole[:, self.columns] if kind == "columns" else whole

    def whole(self, name: str, part: Tensor) -> Tensor:
        """Return the whole of which every rank has the share `of`."""
        kind = kind_of(name)
        if kind == "rows":
            return self.joined_rows(part)
        return self.joined_columns(part) if kind == "columns" else part

    def joined_rows(self, part: Tensor) -> Tensor:
        """Return [m, ...] from the [rows, ...] of every rank."""
        shapes = [(rows, *part.shape[1:]) for rows in self.counts_of_rows()]
        return torch.cat(self.ranks.all_gather(part.contiguous(), shapes))

    def joined_columns(self, part: Tensor) -> Tensor:
        """Return [..., width] from the [..., columns] of every rank."""
        shapes = [(*part.shape[:-1], columns) for columns in self.counts_of_columns()]
        parts = self.ranks.all_gather(part.contiguous(), shapes)
        whole = part.new_empty(*part.shape[:-1], self.width)
        for rank, of_rank in enumerate(parts):
            whole[..., self.columns_of(rank)] = of_rank
        return whole

    def added(self, partial: Tensor) -> Tensor:
        """Return the sum over ranks of partial sums [n, ...], as one process computes it.

        Each rank adds the parts of some rows and sends the sums to all.
        """
        summed = halved(self.scattered(partial))
        return self.collected(summed, len(partial))

    def scattered(self, rows: Tensor) -> list[Tensor]:
        """Send each rank its cut of rows [n, ...]; return this rank's cut of every rank's rows."""
        count, rank = len(rows), self.ranks.rank
        mine = self.lengths(count)[rank]
        parts = [rows[self.cut(count, other)].contiguous() for other in range(self.ranks.size)]
        return self.ranks.all_to_all(parts, [(mine, *rows.shape[1:])] * self.ranks.size)

    def collected(self, cut: Tensor, count: int) -> Tensor:
        """Return rows [count, ...] of which every rank has computed its `cut`."""
        shapes = [(length, *cut.shape[1:]) for length in self.lengths(count)]
        return torch.cat(self.ranks.all_gather(cut.contiguous(), shapes))


def shared(sae: SAE, share: Share) -> SAE:
    """Return an SAE of the same size whose parameters hold this rank's share only.

    Only a step that knows the share can encode or decode with it.
    """
    part = shallow_copy(sae)
    for name, whole in sae.named_parameters():
        own = share.of(name, whole.detach()).clone(memory_format=torch.contiguous_format)
        part.register_parameter(name, nn.Parameter(own))
    return part


def gathered(part: SAE, share: Share) -> SAE:
    """Return the whole SAE of which every rank has the part `shared`, on every rank."""
    whole = shallow_copy(part)
    for name, own in part.named_parameters():
        whole.register_parameter(name, nn.Parameter(share.whole(name, own.detach()).clone()))
    return whole


def shallow_copy(sae: SAE) -> SAE:
    """Return an SAE with the same parameters, which can be replaced, and copied buffers."""
    part = copy.copy(sae)
    part._parameters = dict(sae._parameters)
    part._buffers = {
        name: None if buffer is None else buffer.clone() for name, buffer in sae._buffers.items()
    }
    return part


def check_split(sae: SAE, ranks: Ranks) -> None:
    """Raise a ValueError if ranks cannot divide an SAE."""
    most, dtype = most_ranks(sae.W_dec.dtype), str(sae.W_dec.dtype).removeprefix("torch.")
    if ranks.size & (ranks.size - 1) or ranks.size > most:
        raise ValueError(
            f"the number of ranks of an SAE in {dtype} must be a power of two up to {most}, since "
            f"sums over the width have {most} lanes, got {ranks.size}"
        )
    if sae.d_out < ranks.size:
        raise ValueError(
            f"the number of ranks must be at most the width {sae.d_out}, got {ranks.size}"
        )
    if sae.W_enc.device.type != "cpu":
        raise ValueError(f"ranks must train on CPUs, got an SAE on {sae.W_enc.device}")
