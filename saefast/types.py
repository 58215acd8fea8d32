"""Immutable records that functions pass to one another, and how they print."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

_FEW = 6
"""Entries of a sequence or mapping that are printed one by one."""


def brief(result: Any) -> str:
    """Format a named tuple or dataclass on one line: sizes in place of tensors, no None fields.

    A class uses it as its `__repr__`.
    """
    if dataclasses.is_dataclass(result):
        names = [each.name for each in dataclasses.fields(result) if each.repr]
    else:
        names = list(result._fields)
    values = ((name, getattr(result, name)) for name in names)
    told = ", ".join(f"{name}={_told(value)}" for name, value in values if value is not None)
    return f"{type(result).__name__}({told})"


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.ndim == 0 and not value.is_meta:
            return _told(value.item())
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        if len(value) > _FEW:
            return f"<{len(value)} entries>"
        return f"{{{', '.join(f'{key!r}: {_told(its)}' for key, its in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str) and not _is_record(value):
        if value and _is_record(value[0]):
            return f"<{len(value)} {type(value[0]).__name__}>"
        each = [_told(its) for its in value[:_FEW]]
        if len(value) > 1 and len(set(each)) == 1:
            return f"{len(value)} x {each[0]}"
        return f"[{', '.join(each)}{', ...' * (len(value) > _FEW)}]"
    return repr(value)


def _is_record(value: Any) -> bool:
    return hasattr(value, "_fields") or dataclasses.is_dataclass(value)


class SparseCode(NamedTuple):
    """The active latents of n rows.

    Within a row values descend, and equal values stand in order of their index. Where rows have
    different numbers of active latents, values and indices of zero fill up the shorter ones.
    """

    values: Tensor
    """[n, k]"""
    indices: Tensor
    """[n, k] int64"""

    def __repr__(self) -> str:
        return brief(self)

    def to_dense(self, latents: int) -> Tensor:
        """The code as an [n, latents] matrix."""
        dense = self.values.new_zeros(self.values.shape[0], latents)
        # Added, not written: what fills up a row are zeros that name latent 0, perhaps again.
        return dense.scatter_add(1, self.indices, self.values)


class Decay(NamedTuple):
    """What the gradients of W_enc and W_dec get besides the data's."""

    shrink_enc: Tensor | None = None
    """[m] what multiple of its own row each latent's gradient gets"""
    shrink_dec: Tensor | None = None
    sign: Tensor | None = None
    """[2] what multiple of the weights' signs the gradients of W_enc and W_dec get"""


NO_DECAY = Decay()


class ThresholdCode(NamedTuple):
    """The latents of n rows that are above a threshold, as many of them as there was room for.

    A row with fewer than `width` ends in values and indices of zero.
    """

    values: Tensor
    """[n, width]"""
    indices: Tensor
    """[n, width] int64"""
    counts: Tensor
    """[n] int64 how many latents are active, which may be more than `width`"""

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True)
class Dictionary:
    """The features of one SAE, row by row: what is matched, scored and pooled."""

    W_dec: Tensor
    """[m, d]"""
    W_enc: Tensor | None = None
    """[m, d]"""
    b_enc: Tensor | None = None
    """[m]"""
    b_dec: Tensor | None = None
    """[d]"""
    firing_rate: Tensor | None = None
    """[m] on which share of tokens each feature fires"""

    __repr__ = brief

    @property
    def m(self) -> int:
        """How many features there are, dead ones too."""
        return len(self.W_dec)

    @property
    def alive(self) -> Tensor:
        """[m] bool: which have a direction on each known side, and fire as far as is known."""
        # Not any(), which would write [m, d] of bools.
        alive: Tensor = vector_norm(self.W_dec, inf, dim=1) > 0
        if self.W_enc is not None:
            alive &= vector_norm(self.W_enc, inf, dim=1) > 0
        if self.firing_rate is not None:
            alive &= self.firing_rate > 0
        return alive


class Matches(NamedTuple):
    """The features of one dictionary among those of another; the last six if one to one."""

    partner: Tensor
    """[m] int64 which row of the other, -1 for none"""
    similarity: Tensor
    """[m] to the partner, 0 where there is none"""
    mutual: Tensor
    """[m] bool whether each of the pair is the other's nearest"""
    value: float | None = None
    """the sum of the similarities, of what they have above the floor if there is one"""
    upper_bound: float | None = None
    """no one-to-one matching has a greater value, of all pairs"""
    certified: bool | None = None
    """whether the value is within 1e-10 a feature of the bound, and so the greatest there is"""
    rounds: int | None = None
    """how often it was solved and compared with the pairs left out"""
    row_price: Tensor | None = None
    """[m] float64; with `column_price` it sums to at least the similarity of any pair. That is the
    proof. 0 for rows of zeros"""
    column_price: Tensor | None = None
    """[m2] float64: the price of being wanted, 0 for those that are free"""

    def __repr__(self) -> str:
        return brief(self)


CURVE = tuple(i / 50 for i in range(1, 51))
"""The thresholds of curves, unless others are asked for"""


class StabilityRule(NamedTuple):
    """What counted as the same feature in another dictionary."""

    threshold: float | str
    """the least similarity, or "null" where chance decided it"""
    match: str
    """one of `stability.MATCHES`"""
    side: str
    """one of `dictionary.SIDES`"""
    absolute: bool
    """whether opposite directions are alike"""
    same_partner: bool
    """whether both sides had to find the same feature"""
    confidence: float
    """of the intervals"""
    width: int
    """of the dictionaries, d: together with their sizes it says what chance finds"""


@dataclass(frozen=True)
class Stability:
    """Which features of several dictionaries come back in the others.

    A tensor for each dictionary, a value for each of its m features. Dead features count nowhere:
    they have 0 everywhere and are nobody's partner.
    """

    score: tuple[Tensor, ...]
    """[m] float64: the share of the other dictionaries in which the feature has a match"""
    support: tuple[Tensor, ...]
    """[m] int64: in how many dictionaries it is, its own included; 0 for dead features"""
    low: tuple[Tensor, ...]
    """[m] float64: the probability that one more dictionary has it is at least this"""
    high: tuple[Tensor, ...]
    """[m] float64: and at most this, with `rule.confidence`: Jeffreys' interval"""
    soft: tuple[Tensor, ...]
    """[m] float64: the mean of its similarities in the others: a score without a threshold"""
    alive: tuple[Tensor, ...]
    """[m] bool"""
    similarity: tuple[Tensor, ...]
    """[m, s] to its partner in each dictionary, which `thresholds` are for; 0 where it has none"""
    partner: tuple[Tensor, ...]
    """[m, s] int64 which feature of each dictionary that is, -1 for none and for its own"""
    hit: tuple[Tensor, ...]
    """[m, s] bool: in which other dictionaries it is: where similarity reaches `thresholds`"""
    thresholds: Tensor
    """[s] float64: how similar a match must be to a feature of each dictionary"""
    chance: Tensor
    """[s] float64: the probability that a random direction is that similar to a feature of each"""
    rule: StabilityRule
    """what counted as a match"""

    __repr__ = brief

    def stable(self, cut: float = 0.8) -> tuple[Tensor, ...]:
        """[m] bool for each dictionary: the features alive with a score of at least `cut`."""
        return tuple(
            (score >= cut) & alive for score, alive in zip(self.score, self.alive, strict=True)
        )

    def unstable(self, cut: float = 0.2) -> tuple[Tensor, ...]:
        """[m] bool for each dictionary: the features alive with a score of at most `cut`."""
        return tuple(
            (score <= cut) & alive for score, alive in zip(self.score, self.alive, strict=True)
        )

    def groups(self, stable: float = 0.8, unstable: float = 0.2) -> list[dict[str, Tensor]]:
        """For each dictionary {"stable": mask, "unstable": mask}, as `feature_function` wants."""
        if not 0 <= unstable < stable <= 1:
            raise ValueError(
                f"stable must be a share above unstable, {unstable}, and at most 1, got {stable}"
            )
        each = zip(self.stable(stable), self.unstable(unstable), strict=True)
        return [{"stable": its, "unstable": others} for its, others in each]

    @property
    def dead(self) -> tuple[int, ...]:
        """How many features of each dictionary are dead."""
        return tuple(int((~alive).sum()) for alive in self.alive)

    def mean(self) -> float:
        """The mean score of all features alive; NaN if there are none."""
        scores = [score[alive] for score, alive in zip(self.score, self.alive, strict=True)]
        return float(torch.cat(scores).mean())

    def to_table(self, seeds: Sequence[int] | None = None) -> Any:
        """A row for each dictionary and feature, as a pyarrow.Table that any dataframe reads.

        Args:
            seeds: what the dictionaries are called, in columns too: partner_7 is who the partner in
                that of seed 7 is, similarity_7 how similar; empty where there is none. None
                numbers them from 0.
        """
        import pyarrow

        names = range(len(self.score)) if seeds is None else list(seeds)
        if len(set(names)) != len(self.score):
            raise ValueError(f"seeds must name {len(self.score)} dictionaries, got {seeds}")
        sizes = [len(score) for score in self.score]
        columns = {
            "seed": torch.tensor(names).repeat_interleave(torch.tensor(sizes)),
            "feature": torch.cat([torch.arange(size) for size in sizes]),
            "alive": torch.cat(self.alive),
            "stability": torch.cat(self.score),
            "low": torch.cat(self.low),
            "high": torch.cat(self.high),
            "support": torch.cat(self.support),
            "soft": torch.cat(self.soft),
        }
        table = {name: pyarrow.array(values.numpy()) for name, values in columns.items()}
        partner, similarity = torch.cat(self.partner), torch.cat(self.similarity)
        for t, name in enumerate(names):
            nobody = (partner[:, t] < 0).numpy()
            for column, values in (("partner", partner), ("similarity", similarity)):
                table[f"{column}_{name}"] = pyarrow.array(values[:, t].numpy(), mask=nobody)
        return pyarrow.table(table)
