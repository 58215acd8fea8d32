"""Samples of latents to steer with, and statistics of their firings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from saefast.activations import open_activations
from saefast.activations.one_pass import OnePass, count_rows
from saefast.activations.protocol import ActivationSource
from saefast.evaluation.steering.sampling import as_frequent, sampled
from saefast.lm.corpus import Texts
from saefast.lm.model import LanguageModel
from saefast.lm.patch import held_out_batches
from saefast.lm.sites import capture, find_site
from saefast.sae import SAE, code_of
from saefast.types import brief

_QUANTILE = 0.99
_CONTEXTS = 100  # contexts with the largest activations of a latent that are used


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Mean and norm of the activations at the site."""

    rows: int
    mean: Tensor
    """[d] float64 mean activation"""
    norm: float
    """mean length of an activation"""


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Sampled latents of one SAE, in order of their numbers."""

    sae: SAE
    numbers: Tensor
    """[f] int64 indices of the latents in the SAE"""
    norm: Tensor
    """[f] float64 length of the vector that an activation of 1 adds: the norm of the decoder row,
    times the typical scale of a row if the SAE normalises rows"""
    rate: Tensor
    """[f] float64 share of rows on which each latent fires"""
    mean: Tensor
    """[f] float64 mean activation on those rows"""
    high: Tensor
    """[f] float64 99 % quantile of the positive activations"""
    cosine: Tensor
    """[f] float64 cosine of encoder and decoder row"""
    difference: Tensor
    """[f, d] float64 mean activation at the site where each latent fires, minus the mean of all
    rows"""
    rival: Tensor
    """[f] int64 number of another latent that fires about as often"""
    stratum: Tensor
    """[f] int64 stratum of the sample"""
    weight: Tensor
    """[f] float64 number of latents of the stratum that each represents"""
    peaks: tuple[Tensor, ...]
    """for each latent, the tokens with its largest activation in up to 100 contexts; empty without
    tokens"""
    silent: int
    """number of latents of the SAE that never fire"""

    __repr__ = brief

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def directions(self) -> Tensor:
        """Decoder rows at length 1, [f, d] float64."""
        return self._unit_rows(self.numbers)

    @property
    def rivals(self) -> Tensor:
        """Decoder rows of the rivals at length 1, [f, d] float64."""
        return self._unit_rows(self.rival)

    def _unit_rows(self, latents: Tensor) -> Tensor:
        rows = self.sae.W_dec.detach().double().cpu()[latents]
        unit: Tensor = torch.nn.functional.normalize(rows, dim=1)
        return unit


class SiteRows:
    """Activations at the site with their tokens, read as often as needed.

    Args:
        model: language model, from `load_model`.
        site: site of the activations, as in `find_site`.
        activations: activations of the site; None: the model computes them from text.
        tokens: [rows] tokens of the activations; None: the tokens of the store, if it has them.
        positions: [rows] positions of the activations in their contexts; None: as for `tokens`.
        corpus: text to read; None: the held-out part of `builtin_corpus()`.
        rows: maximum number of rows to read.
        progress: show progress bars on stderr.
    """

    def __init__(
        self,
        model: LanguageModel,
        site: int | str,
        activations: ActivationSource | None,
        tokens: Tensor | None,
        positions: Tensor | None,
        corpus: Texts | None,
        rows: int,
        progress: bool,
    ) -> None:
        if activations is None:
            activations, tokens, positions = _captured(model, site, corpus, rows)
        source = open_activations(activations)
        self.one_pass = OnePass(
            source,
            rows=count_rows(source, rows, 2),
            beside={"tokens": tokens, "positions": positions},
            what="activations",
            progress=progress,
        )
        """pass over the activations; every iteration reads them again"""
        self.d: int = source.d
        total, norm = torch.zeros(self.d, dtype=torch.float64), 0.0
        for part in self.one_pass:
            x = part.x.double().cpu()
            total += x.sum(0)
            norm += float(x.norm(dim=1).sum())
        count = self.one_pass.rows
        self.scale = Scale(rows=count, mean=total / count, norm=norm / count)

    @property
    def has_tokens(self) -> bool:
        """Whether the tokens of the rows are known."""
        return "tokens" in self.one_pass.names

    def covariance_directions(self, count: int, seed: int) -> Tensor:
        """Return random directions [count, d] of length 1 with the covariance of the activations.

        Each direction is a sum of all centred activations with independent normal weights.
        """
        generator = torch.Generator().manual_seed(seed)
        sums = torch.zeros(count, self.d, dtype=torch.float64)
        for part in self.one_pass:
            centred = part.x.double().cpu() - self.scale.mean
            weights = torch.randn(count, len(centred), generator=generator, dtype=torch.float64)
            sums += weights @ centred
        unit: Tensor = torch.nn.functional.normalize(sums, dim=1)
        return unit

    def latents(self, sae: SAE, wanted: int, groups: Mapping[str, Tensor], seed: int) -> Latents:
        """Sample alive latents of an SAE, in equal numbers from every combination of groups.

        Within a combination, latents are taken at equal distances in the order of firing rate.

        Args:
            sae: SAE for the activations.
            wanted: number of latents; all alive ones, if they are fewer.
            groups: groups of latents {name: [m] bool}.
            seed: seed of the sample.

        Returns:
            The sampled latents with their scales.
        """
        fired = torch.zeros(sae.m, dtype=torch.float64)
        total = torch.zeros(sae.m, dtype=torch.float64)
        for _, feature, value in self._firings(sae):
            fired += torch.bincount(feature, minlength=sae.m)
            total += torch.bincount(feature, weights=value.double(), minlength=sae.m)
        alive = fired > 0
        if int(alive.sum()) < 2:
            raise ValueError(
                f"saes must have at least two latents that fire on the {self.scale.rows} rows, got "
                f"{int(alive.sum())}; give activations of the site that they were trained on"
            )
        generator = np.random.default_rng([seed, sae.m])
        label = torch.zeros(sae.m, dtype=torch.int64)
        for bit, mask in enumerate(groups.values()):
            label += mask.cpu().long() << bit
        numbers, stratum, weight = sampled(fired, label, wanted, generator)
        place = torch.full((sae.m,), -1, dtype=torch.int64)
        place[numbers] = torch.arange(len(numbers))
        kept = []
        for row, feature, value in self._firings(sae):
            mine = place[feature] >= 0
            kept.append((row[mine], place[feature[mine]], value[mine]))
        row, latent, value = (torch.cat(parts) for parts in zip(*kept, strict=True))
        each = [latent == number for number in range(len(numbers))]
        decoder = sae.W_dec.detach().double().cpu()[numbers]
        encoder = sae.W_enc.detach().double().cpu()[numbers]
        usual = 1.0 if sae.normalise == "none" else self.scale.norm / self.d**0.5
        return Latents(
            sae=sae,
            numbers=numbers,
            norm=decoder.norm(dim=1) * usual,
            rate=fired[numbers] / self.scale.rows,
            mean=(total / fired)[numbers],
            high=torch.stack([value[its].double().quantile(_QUANTILE) for its in each]),
            cosine=torch.nn.functional.cosine_similarity(encoder, decoder),
            difference=self._where_firing(row, latent, len(numbers)) - self.scale.mean,
            rival=as_frequent(fired, numbers, generator),
            stratum=stratum,
            weight=weight,
            peaks=tuple(self._peaks(row[its], value[its]) for its in each),
            silent=int((~alive).sum()),
        )

    def _where_firing(self, row: Tensor, latent: Tensor, count: int) -> Tensor:
        """Return the mean of the rows [p] on which each latent [p] fires, [count, d] float64."""
        sums = torch.zeros(count, self.d, dtype=torch.float64)
        for part in self.one_pass:
            here = torch.isin(row, part.numbers)
            place = torch.searchsorted(part.numbers, row[here])
            sums.index_add_(0, latent[here], part.x.double().cpu()[place])
        return sums / torch.bincount(latent, minlength=count)[:, None]

    def _firings(self, sae: SAE) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows, latents and activations [p] of all firings, batch by batch."""
        for part in self.one_pass:
            code = code_of(sae, part.x)
            values = code.values.detach().cpu()
            active = values > 0
            row = part.numbers[active.nonzero()[:, 0]]
            yield row, code.indices.cpu()[active], values[active].float()

    def _peaks(self, rows: Tensor, values: Tensor) -> Tensor:
        """Return the tokens with the largest activation in each of up to 100 contexts."""
        if not self.has_tokens:
            return torch.zeros(0, dtype=torch.int64)
        tokens, contexts = self._text
        order = values.argsort(descending=True, stable=True)
        found: dict[int, int] = {}
        for row in rows[order].tolist():
            found.setdefault(int(contexts[row]), int(tokens[row]))
            if len(found) == _CONTEXTS:
                break
        return torch.tensor(list(found.values()), dtype=torch.int64)

    @cached_property
    def _text(self) -> tuple[Tensor, Tensor]:
        """Token of each row, and index of its context.

        A context begins where positions do not rise; without positions each row is its own context.
        """
        tokens, positions = [], []
        for part in self.one_pass:
            tokens.append(part.beside["tokens"])
            positions.append(part.beside.get("positions", torch.zeros_like(tokens[-1])))
        position = torch.cat(positions)
        begins = torch.ones_like(position)
        begins[1:] = position[1:] <= position[:-1]
        return torch.cat(tokens), begins.cumsum(0)


def _captured(
    model: LanguageModel, site: int | str, corpus: Texts | None, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return activations [n, d] of text with their tokens and positions; BOS is left out."""
    found = find_site(model.model, site)
    parts = []
    for batch in held_out_batches(model, corpus, rows, 256, 8, True):
        (seen,) = capture(model.model, [found], batch.ids)
        kept = batch.kept
        activations = seen[kept.to(seen.device)].float().cpu()
        parts.append((activations, batch.ids[kept], kept.nonzero()[:, 1]))
    activations, tokens, positions = (torch.cat(part) for part in zip(*parts, strict=True))
    return activations, tokens, positions
