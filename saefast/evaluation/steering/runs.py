"""Continuations of prompts along directions, compared with unsteered texts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saefast.evaluation.conditions import DIFFMEAN
from saefast.evaluation.steering.latents import Latents, SiteRows
from saefast.evaluation.steering.outcomes import Continuations, Member, Outcome
from saefast.evaluation.steering.scores import Sample
from saefast.lm.generation import Edit, Opening, added, sampling_noise
from saefast.lm.model import LanguageModel
from saefast.sae import SAE, code_of

STRENGTH_RULES = ("activation", "norm", "fixed", "clamp")
MISMATCHED = "mismatched"
CONTROLS = (MISMATCHED, "random", "covariance", "minus", DIFFMEAN)
LATENT = "latent"
"""Name of the direction of the latent itself; the others are `CONTROLS`"""

UNSTEERED = 2
"""Number of unsteered texts of each opener"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of sampling, and criteria of success."""

    rule: str
    tokens: int
    temperature: float
    top_p: float
    least_gain: float
    most_loss: float
    batch_size: int
    seed: int


class Items:
    """All latents to steer with, of every condition and SAE, concatenated.

    Args:
        parts: name of the condition, position of the SAE in it, and sampled latents of each SAE.
        rows: activations at the site.
        seed: seed of random directions.
    """

    def __init__(
        self, parts: Sequence[tuple[str, int, Latents]], rows: SiteRows, seed: int
    ) -> None:
        each = [latents for _, _, latents in parts]
        self.parts = parts
        self.members: list[Member] = [
            Member(latents.sae, number) for latents in each for number in latents.numbers.tolist()
        ]
        self.sample = Sample(
            condition=np.concatenate([np.full(len(its), name) for name, _, its in parts]),
            sae=np.concatenate([np.full(len(its), place) for _, place, its in parts]),
            latent=np.concatenate([its.numbers.numpy() for its in each]),
            stratum=np.concatenate(
                [its.stratum.numpy() + (place << 32) for place, its in enumerate(each)]
            ),
            weight=np.concatenate([its.weight.numpy() for its in each]),
        )
        self.norm, self.high, self.rate, self.mean, self.cosine = (
            torch.cat([getattr(its, name) for its in each])
            for name in ("norm", "high", "rate", "mean", "cosine")
        )
        """[items] float64, see `Latents`"""
        self.peaks = [tokens for its in each for tokens in its.peaks]
        latent = torch.cat([its.directions for its in each])
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(latent.shape, generator=generator, dtype=latent.dtype)
        self.directions: Mapping[str, Tensor] = {
            LATENT: latent,
            MISMATCHED: torch.cat([its.rivals for its in each]),
            "random": torch.nn.functional.normalize(random, dim=1),
            "covariance": rows.covariance_directions(len(latent), seed),
            "minus": -latent,
            DIFFMEAN: torch.nn.functional.normalize(
                torch.cat([its.difference for its in each]), dim=1
            ),
        }
        """by name, directions [items, d] float64 of length 1"""

    def __len__(self) -> int:
        return len(self.members)

    def levels(self, rule: str, strengths: Sequence[float], rows: SiteRows) -> Tensor:
        """Return the level of steering for each strength, [items, strengths] float64.

        The level is the length of the added vector or, where activations are clamped, the
        activation.

        Args:
            rule: one of `STRENGTH_RULES`.
            strengths: multiples of the rule's unit.
            rows: activations at the site.
        """
        unit = {
            "activation": self.high * self.norm,
            "norm": torch.full_like(self.norm, rows.scale.norm),
            "fixed": torch.ones_like(self.norm),
            "clamp": self.high,
        }[rule]
        return unit[:, None] * torch.tensor(strengths, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Steered sequences to write after a prompt."""

    item: Tensor
    """[n] int64 index of the item"""
    direction: Tensor
    """[n, d] direction of length 1"""
    level: Tensor
    """[n] level, see `Items.levels`"""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Texts compared with the unsteered text of the same prompt."""

    value: Mapping[str, Tensor]
    """by outcome, values [n] float64; NaN for latents for which it is not defined"""
    gain: Mapping[str, Tensor]
    """by outcome, differences [n] float64 of the value to the value of the unsteered text"""
    loss: Tensor
    """[n] float64 rise of the mean loss of a new token under the unmodified model, in nats"""
    bigrams: Tensor
    """[n] float64 share of distinct pairs of adjacent tokens"""

    def success(self, settings: Settings) -> Mapping[str, Tensor]:
        """Return by outcome whether the gain is sufficient and the text fluent, [n] float64."""
        fluent = self.loss < settings.most_loss
        return {
            name: ((gain >= settings.least_gain - 1e-9) & fluent)
            .double()
            .where(~gain.isnan(), gain)
            for name, gain in self.gain.items()
        }


@dataclass(frozen=True, kw_only=True)
class Written:
    """Texts written after one prompt."""

    steered: Compared
    """sequences [n] of the job"""
    unsteered: Compared
    """second unsteered text, compared for each of [items]"""
    divergence: Tensor
    """[n] float64 KL(unmodified || steered) of the first new token, in nats"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Model, prompts, latents, outcomes and settings of a run of steering."""

    model: LanguageModel
    site: int | str
    openers: Sequence[str]
    items: Items
    outcomes: Mapping[str, Outcome]
    settings: Settings

    def opening(self, number: int, sequences: int) -> Opening:
        """Return an opener whose forward passes are about evenly filled by given sequences."""
        passes = -(-sequences // self.settings.batch_size)
        rows = -(-sequences // passes)
        return Opening(self.model, self.site, self.openers[number], batch_size=rows)


def write(plan: Plan, number: int, job: Job, on_progress: Callable[[int], object]) -> Written:
    """Continue an opener along every direction of a job, and unsteered, with the same noise.

    Args:
        plan: model, prompts and settings.
        number: index of the opener, which determines the noise.
        job: sequences to write.
        on_progress: callback that gets the number of sequences finished since the last call.

    Returns:
        Outcomes of the steered and the unsteered sequences.
    """
    items, settings = plan.items, plan.settings
    n = len(job.item)
    opening = plan.opening(number, n + UNSTEERED)
    noise = [sampling_noise(settings.seed, number, k, settings.tokens) for k in range(UNSTEERED)]
    edit = _edit(job, items, settings.rule, opening.prompt.device)
    written = opening.sample(
        edit,
        torch.stack([*noise, *noise[:1] * n]),
        temperature=settings.temperature,
        top_p=settings.top_p,
        on_progress=on_progress,
    )
    texts = Continuations(opening, written.tokens, plan.model.tokenizer, written.activations)
    steered = torch.arange(n) + UNSTEERED
    everyone = torch.arange(len(items))
    return Written(
        steered=_compared(texts, steered, job.item, plan.outcomes),
        unsteered=_compared(texts, torch.ones_like(everyone), everyone, plan.outcomes),
        divergence=_divergence(opening, edit, n + UNSTEERED)[UNSTEERED:],
    )


def _edit(job: Job, items: Items, rule: str, device: torch.device) -> Edit:
    """Return the edit of all sequences, which leaves the first, unsteered ones unchanged."""
    direction = torch.cat(
        [job.direction.new_zeros(UNSTEERED, job.direction.shape[1]), job.direction]
    )
    level = torch.cat([job.level.new_zeros(UNSTEERED), job.level])
    if rule != "clamp":
        return added((level[:, None] * direction).float().to(device))
    item = torch.cat([job.item.new_zeros(UNSTEERED), job.item])
    return _clamped(item, direction.float().to(device), level.to(device), items)


def _clamped(item: Tensor, direction: Tensor, level: Tensor, items: Items) -> Edit:
    """Return an edit along the direction that would change the latent's activation to the level."""
    saes: dict[int, SAE] = {
        id(items.members[one].sae): items.members[one].sae for one in item.tolist()
    }
    of_sae = torch.tensor([list(saes).index(id(items.members[one].sae)) for one in item.tolist()])
    latent = torch.tensor([items.members[one].latent for one in item.tolist()])
    norm = items.norm[item].to(direction.device)
    of_sae, latent = of_sae.to(direction.device), latent.to(direction.device)

    def edit(rows: Tensor, sequences: Tensor) -> Tensor:
        now = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for place, sae in enumerate(saes.values()):
            # All rows are encoded, so that the result of a row does not depend on the others.
            code = code_of(sae, rows)
            mine = code.indices.to(rows.device) == latent[sequences][:, None]
            active = torch.where(mine, code.values.to(rows.device), 0.0).sum(1).double()
            now = torch.where(of_sae[sequences] == place, active, now)
        length = (level[sequences] - now) * norm[sequences]
        return rows + (length[:, None] * direction[sequences]).to(rows)

    return edit


def _compared(
    texts: Continuations, text: Tensor, item: Tensor, outcomes: Mapping[str, Outcome]
) -> Compared:
    value, gain = {}, {}
    for name, outcome in outcomes.items():
        known = outcome.known[item]
        value[name], gain[name] = (torch.full((len(item),), torch.nan).double() for _ in range(2))
        if bool(known.any()):
            found = outcome.compare(texts, text[known], item[known])
            value[name][known], gain[name][known] = found
    return Compared(
        value=value,
        gain=gain,
        loss=(texts.loss - texts.loss[0])[text],
        bigrams=texts.distinct_bigrams[text],
    )


def _divergence(opening: Opening, edit: Edit, sequences: int) -> Tensor:
    """Return KL(first sequence || each) of the first new token's distribution, [sequences]."""
    found, truth = [], None
    for _, logits in opening.next_logits(edit, sequences):
        predicted = logits.double().log_softmax(1)
        truth = predicted[:1] if truth is None else truth
        found.append((truth.exp() * (truth - predicted)).sum(1).cpu())
    return torch.cat(found)
