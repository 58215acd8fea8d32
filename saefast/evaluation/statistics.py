"""Firing statistics of the features of SAEs, in one pass over activations of any size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast import checks
from saefast.activations.one_pass import OnePass, PassRows
from saefast.activations.protocol import ActivationSource
from saefast.evaluation.largest import Largest
from saefast.evaluation.token_ties import modal_share, token_ties
from saefast.sae import SAE, as_saes, code_of
from saefast.types import SparseCode, brief

if TYPE_CHECKING:
    import pyarrow as pa

CONVENTIONS = {
    "firing_rate": "share of all rows on which a feature's activation is not zero",
    "activation": "absolute values: only those of abstopk may be negative",
    "mass": "sum of a feature's activations times the norm of its decoder row, as a share of the "
    "sum over all features",
    "density": "share of all rows with an activation in each bin; the first and last bin include "
    "smaller and larger values",
    "modal_share": "share of the most frequent token among the tokens of the largest activations",
    "token_entropy": "entropy in bits of the tokens of a sample of firings, by the plain formula, "
    "which is too low if the sample is small relative to the number of tokens",
    "token_auroc": "largest area under the ROC of 'the token is t' for 'the feature fires', over "
    "all t; exact if the sample holds all firings (sampled == fired), else estimated from it",
    "start_share": "share of the firings that are at position 0",
}

DENSITY_EDGES = 2.0 ** (torch.arange(-20, 29, dtype=torch.float64) / 2)
"""[bins + 1] edges of the bins of `density`: half octaves from 2^-10 to 2^14"""
_BINS = len(DENSITY_EDGES) - 1


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """Statistics of one SAE's features on the rows of one pass; see `CONVENTIONS`.

    Fields that need tokens or positions are None where none were given. A feature that never fires
    has zeros, and NaN for shares of its firings.
    """

    rows: int
    """number of rows read"""
    fired: Tensor
    """[m] int64 number of rows on which each feature fires"""
    mean: Tensor
    """[m] float64 mean activation over those rows"""
    largest: Tensor
    """[m] largest activation"""
    mass: Tensor
    """[m] float64 share of the activation mass; sums to 1"""
    density: Tensor
    """[m, 48] float64 share of rows by activation; bins between `DENSITY_EDGES`"""
    encoder_decoder_cosine: Tensor
    """[m] float64 cosine of the encoder and decoder row; NaN if one is zero or, in a transcoder,
    they differ in width"""
    top_values: Tensor
    """[m, top] float32 largest activations in descending order, padded with zeros"""
    top_rows: Tensor
    """[m, top] int64 rows of those activations, the first among equal ones; padded with -1"""
    top_tokens: Tensor | None
    """[m, top] int64 tokens of those rows"""
    modal_share: Tensor | None
    """[m] float64 share of the most frequent token among `top_tokens`"""
    token_entropy: Tensor | None
    """[m] float64 entropy in bits of the tokens of sampled firings"""
    token_auroc: Tensor | None
    """[m] float64 AUROC of the token that best predicts the firings: 0.5 if no token does, 1 if
    the feature fires exactly where one token occurs"""
    token: Tensor | None
    """[m] int64 token with that AUROC, -1 if there is none"""
    sampled: Tensor
    """[m] int64 number of sampled firings"""
    start_share: Tensor | None
    """[m] float64 share of the firings at position 0"""
    mean_position: Tensor | None
    """[m] float64 mean position of the firings"""

    __repr__ = brief

    @property
    def firing_rate(self) -> Tensor:
        """Share of rows on which each feature fires, [m] float64."""
        return self.fired.double() / self.rows

    @property
    def alive(self) -> Tensor:
        """Mask of the features that fire at all, [m] bool."""
        return self.fired > 0

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each feature and a column for each quantity."""
        import pyarrow as pa

        listed = self.top_rows >= 0
        table: dict[str, Any] = {
            "feature": np.arange(len(self.fired)),
            "fired": self.fired.numpy(),
            "firing_rate": self.firing_rate.numpy(),
            "mean": self.mean.numpy(),
            "largest": self.largest.numpy(),
            "mass": self.mass.numpy(),
            "encoder_decoder_cosine": self.encoder_decoder_cosine.numpy(),
        }
        if self.token is not None:
            table["token"] = self.token.numpy()
        for name in (
            *("modal_share", "token_entropy", "token_auroc"),
            *("sampled", "start_share", "mean_position"),
        ):
            values = getattr(self, name)
            if values is not None:
                table[name] = values.numpy()
        table["density"] = list(self.density.numpy())
        for name in ("top_values", "top_rows", "top_tokens"):
            values = getattr(self, name)
            if values is not None:
                table[name] = _ragged(values.numpy(), listed.sum(1).numpy())
        return pa.table(table)


@torch.no_grad()
def feature_statistics(
    saes: SAE | Sequence[SAE],
    activations: ActivationSource,
    *,
    tokens: Tensor | None = None,
    positions: Tensor | None = None,
    folded: Tensor | None = None,
    top: int = 100,
    sample: int = 128,
    seed: int = 0,
    rows: int | None = None,
    batch_size: int = 4096,
    progress: bool = True,
) -> list[FeatureStatistics]:
    """Compute statistics of the firings of the features of several SAEs, in one pass.

    Memory does not grow with the activations: beside a batch it is about
    20 * m * (1.5 * top + 1.5 * sample) bytes for each SAE.

    Args:
        saes: SAEs of different seeds, for the same activations.
        activations: rows [n, d]: any source that `saefast.activations.open_activations` accepts.
        tokens: [rows] token of each row; None: the store's "tokens", if it has them.
        positions: [rows] position of each row in its sequence, from 0; None: the store's
            "positions", if it has them.
        folded: [vocabulary] number that each token is counted as, see
            `saefast.evaluation.token_ties.folded_tokens`; None: its own.
        top: number of largest activations to keep for every feature.
        sample: number of firings to draw uniformly for every feature, for the statistics of its
            tokens.
        seed: seed of the draw, which depends only on it and the numbers of the rows.
        rows: number of rows after which to stop; required for an iterator.
        batch_size: number of rows encoded at once; affects only time and memory.
        progress: show a progress bar on stderr.

    Returns:
        One result for each SAE, in their order.
    """
    for name, count in (("top", top), ("sample", sample)):
        checks.whole(name, count)
        checks.at_least(name, count, 1)
    checks.whole("seed", seed)
    checks.at_least("seed", seed, 0)
    one_pass = OnePass(
        activations,
        batch_size=batch_size,
        rows=rows,
        beside={"tokens": tokens, "positions": positions},
        what="statistics",
        progress=progress,
    )
    saes = as_saes(saes, one_pass.source.d)
    sums = [_Sums(sae, top, sample, seed, one_pass.names) for sae in saes]
    token_counts = torch.zeros(0, dtype=torch.int64)
    for part in one_pass:
        if "tokens" in part.beside:
            token_counts = _added(token_counts, _checked(part.beside["tokens"], folded))
        for sae, its in zip(saes, sums, strict=True):
            its.add(code_of(sae, part.x), part)
    return [its.result(one_pass.rows, token_counts, folded) for its in sums]


class _Sums:
    """Running sums of the features of one SAE."""

    def __init__(self, sae: SAE, top: int, sample: int, seed: int, names: list[str]) -> None:
        self._sae, self._names, self._seed = sae, names, seed
        m = sae.m
        self._fired = torch.zeros(m, dtype=torch.int64)
        self._total = torch.zeros(m, dtype=torch.float64)
        self._largest = torch.zeros(m)
        self._density = torch.zeros(m * _BINS, dtype=torch.int64)
        self._at_start = torch.zeros(m, dtype=torch.int64)
        self._positions = torch.zeros(m, dtype=torch.int64)
        self._top, self._sample = Largest(m, top), Largest(m, sample)

    def add(self, code: SparseCode, part: PassRows) -> None:
        active = (code.values != 0).cpu()
        row = active.nonzero()[:, 0]
        feature, value = code.indices.cpu()[active], code.values.cpu()[active].abs()
        m = len(self._fired)
        self._fired += torch.bincount(feature, minlength=m)
        self._total += torch.bincount(feature, weights=value.double(), minlength=m)
        self._largest.scatter_reduce_(0, feature, value.float(), "amax")
        binned = feature * _BINS + _bin_of(value)
        self._density.index_add_(0, binned, torch.ones_like(binned))
        if "positions" in part.beside:
            position = part.beside["positions"][row]
            self._at_start += torch.bincount(feature[position == 0], minlength=m)
            self._positions.index_add_(0, feature, position)
        number = part.numbers[row]
        token = part.beside["tokens"][row] if "tokens" in part.beside else torch.full_like(row, -1)
        # Positive floats sort in the order of their bits as integers.
        self._top.add(feature, value.float().view(torch.int32), number, token)
        if "tokens" in part.beside:
            self._sample.add(feature, _priority(part.numbers, self._seed)[row], number, token)

    def result(self, rows: int, token_counts: Tensor, folded: Tensor | None) -> FeatureStatistics:
        fired, sae = self._fired.double(), self._sae
        weighted = self._total * sae.W_dec.detach().cpu().double().norm(dim=1)
        keys, top_rows, top_tokens = self._top.lists()
        top_values = keys.view(torch.float32).where(keys >= 0, 0.0)
        by_token: dict[str, Tensor | None] = dict.fromkeys(
            ("top_tokens", "modal_share", "token_entropy", "token_auroc", "token")
        )
        sampled = torch.zeros_like(self._fired)
        if "tokens" in self._names:
            _, _, drawn = self._sample.lists()
            sampled = (drawn >= 0).sum(1)
            ties = token_ties(_folded(drawn, folded), self._fired, rows, token_counts)
            by_token = {
                "top_tokens": top_tokens.long(),
                "modal_share": modal_share(_folded(top_tokens, folded)),
                "token_entropy": ties.entropy,
                "token_auroc": ties.auroc,
                "token": ties.token,
            }
        placed = "positions" in self._names
        return FeatureStatistics(
            rows=rows,
            fired=self._fired,
            mean=self._total / fired.clamp(min=1),
            largest=self._largest,
            mass=weighted / weighted.sum().clamp(min=torch.finfo(torch.float64).tiny),
            density=self._density.view(-1, _BINS) / rows,
            encoder_decoder_cosine=_cosines(sae),
            top_values=top_values,
            top_rows=top_rows,
            sampled=sampled,
            start_share=self._at_start / fired if placed else None,
            mean_position=self._positions / fired if placed else None,
            **by_token,
        )


def _bin_of(value: Tensor) -> Tensor:
    """Return the bin of each value: it begins at the last edge not above the value."""
    edge = torch.bucketize(value.double(), DENSITY_EDGES, right=True) - 1
    return edge.clamp(0, _BINS - 1)


def _priority(numbers: Tensor, seed: int) -> Tensor:
    """Hash the numbers of rows and the seed (SplitMix64) to pseudo-random int32, [n]."""
    start = (seed + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = numbers.numpy().astype(np.uint64) + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((z ^ (z >> np.uint64(31))) >> np.uint64(33)).astype(np.int32))


def _cosines(sae: SAE) -> Tensor:
    encoder, decoder = (rows.detach().cpu().double() for rows in (sae.W_enc, sae.W_dec))
    if encoder.shape != decoder.shape:
        return torch.full((sae.m,), torch.nan, dtype=torch.float64)
    cosines: Tensor = (encoder * decoder).sum(1) / (encoder.norm(dim=1) * decoder.norm(dim=1))
    return cosines


def _checked(tokens: Tensor, folded: Tensor | None) -> Tensor:
    """Validate the tokens of some rows and return them folded."""
    least, most = int(tokens.min()), int(tokens.max())
    limit = 2**31 if folded is None else len(folded)
    if least < 0 or most >= limit:
        raise ValueError(
            f"tokens must be from 0 to {limit - 1}, got {least if least < 0 else most}"
        )
    return _folded(tokens, folded)


def _folded(tokens: Tensor, folded: Tensor | None) -> Tensor:
    if folded is None:
        return tokens
    return folded[tokens.clamp(min=0).long()].where(tokens >= 0, -1)


def _added(counts: Tensor, tokens: Tensor) -> Tensor:
    """Return the counts of tokens with the tokens of further rows added."""
    more = torch.bincount(tokens, minlength=len(counts))
    more[: len(counts)] += counts
    return more


def _ragged(values: NDArray[Any], lengths: NDArray[Any]) -> list[NDArray[Any]]:
    return [row[:length] for row, length in zip(values, lengths, strict=True)]
