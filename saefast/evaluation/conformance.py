"""SCR and TPP as SAEBench defines them, for comparison with published numbers.

Neither should rank SAEs. The audit arXiv:2605.18229 found that TPP falls with longer training, and
that SCR at large counts of latents is negatively correlated with the share of a planted ground
truth that an SAE recovers. saefast computes them for conformance only; no other evaluation uses
them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.evaluation.scores import TRAINED, Evaluation, Score
from saefast.linalg import one_thread
from saefast.ops.latent_sum import latent_sum
from saefast.ops.sparse_decode import sparse_decode
from saefast.sae import SAE, as_saes
from saefast.types import SparseCode

COUNTS = (2, 5, 10, 20, 50, 100, 500)
"""Default numbers of ablated latents"""
WARNING = (
    "TPP falls with longer training and SCR can correlate negatively with the truth of planted "
    "SAEs (audit arXiv:2605.18229): do not rank SAEs by them"
)

_LEAST_GAP = 1e-3
"""Difference of accuracies below which SCR is 0"""


class Probe(NamedTuple):
    """A linear probe on the mean activation of a text."""

    weight: Tensor
    """[d]"""
    bias: float

    def accuracy(self, means: Tensor, labels: Tensor) -> float:
        """Return the share of texts with means [n, d] that it classifies as labelled [n] bool."""
        with one_thread():
            found = means @ self.weight.to(means) + self.bias > 0
        return float((found == labels).double().mean())


class Labelled(NamedTuple):
    """Activations of texts of two classes."""

    texts: Tensor
    """[n, length, d] activations; rows of zeros are padding"""
    labels: Tensor
    """[n] bool"""


class TextCode(NamedTuple):
    """Codes of the tokens of each text, concatenated along the text."""

    code: SparseCode
    """[n, length * width] code; zeros at padding"""
    weights: Tensor
    """[n, length * width] weights of the decoder rows in the reconstruction of the tokens"""
    means: Tensor
    """[n, d] mean activation"""
    tokens: Tensor
    """[n] number of tokens"""


@torch.no_grad()
def encode_texts(sae: SAE, texts: Tensor) -> TextCode:
    """Encode texts [n, length, d], in which rows of zeros are padding."""
    checks.floating("texts", texts, "[n, length, d]")
    checks.size("texts", texts, 2, sae.d, "the width of the SAE")
    n, length = texts.shape[:2]
    there = (texts != 0).any(2)
    tokens = there.sum(1).clamp(min=1)
    rows = texts[there].to(sae.W_enc)
    code = sae.encode(rows)
    weights = sae.contributions(code, rows).values
    places = there.to(rows.device)

    def along_texts(entries: Tensor) -> Tensor:
        padded = entries.new_zeros(n, length, entries.shape[1])
        padded[places] = entries
        return padded.reshape(n, length * entries.shape[1])

    flat = SparseCode(along_texts(code.values), along_texts(code.indices))
    return TextCode(flat, along_texts(weights), texts.sum(1) / tokens[:, None], tokens)


@torch.no_grad()
def latent_effects(
    sae: SAE, probe: Probe, texts: TextCode, labels: Tensor, *, absolute: bool
) -> Tensor:
    """Estimate the effect of each latent on a probe.

    The effect is the difference of a latent's mean activation between both classes of text times
    the dot product of its decoder row and the probe.

    Args:
        sae: SAE of the latents.
        probe: probe on mean activations.
        texts: codes of the training texts.
        labels: [n] bool.
        absolute: take the absolute value of the product, as SCR does; otherwise differences below
            zero count as zero, as in TPP.

    Returns:
        [m] effects.
    """
    n = len(texts.tokens)
    values = texts.code.values / texts.tokens.to(texts.code.values)[:, None]
    weight = torch.stack([labels / labels.sum(), ~labels / (~labels).sum()], 1).to(values)
    means = latent_sum(values, texts.code.indices, weight.reshape(n, 2), sae.m)
    difference = means[:, 0] - means[:, 1]
    with one_thread():
        aligned = sae.W_dec @ probe.weight.to(sae.W_dec)
    effects: Tensor = (difference if absolute else difference.clamp(min=0)) * aligned
    return effects.abs() if absolute else effects


def largest_effects(effects: Tensor, count: int) -> Tensor:
    """Return the mask [m] of the latents with the largest effects; zero effects are left out."""
    mask = torch.zeros_like(effects, dtype=torch.bool)
    there = int((effects != 0).sum())
    candidates = torch.where(effects != 0, effects, -torch.inf)
    mask[candidates.topk(min(count, there)).indices] = True
    return mask


@torch.no_grad()
def ablated_means(sae: SAE, texts: TextCode, mask: Tensor) -> Tensor:
    """Return the mean activations [n, d] of texts without the latents of a mask [m].

    The reconstruction error of the SAE is kept.
    """
    indices = texts.code.indices
    removed = torch.where(mask.to(indices.device)[indices], texts.weights, 0.0)
    total = sparse_decode(removed, indices, sae.W_dec)
    return texts.means - (total / texts.tokens.to(total)[:, None]).to(texts.means)


def tpp_score(clean: Tensor, ablated: Tensor) -> Tensor:
    """Compute target probe perturbation of each class, [classes] float64.

    Args:
        clean: [classes] accuracy of each class's probe.
        ablated: [classes, classes] accuracy of each class's probe (column) where the latents of a
            class (row) are ablated.

    Returns:
        [classes] float64, scores.
    """
    drop = clean[None] - ablated
    own = drop.diagonal()
    return own - (drop.sum(1) - own) / (len(clean) - 1)


def scr_score(clean: float, biased: float, changed: float) -> float:
    """Compute spurious correlation removal.

    Args:
        clean: accuracy of a probe trained without the correlation.
        biased: accuracy of a probe trained with the correlation.
        changed: accuracy of the latter probe where latents are ablated.

    Returns:
        The score: 0 without an effect, 1 if the accuracy is restored.
    """
    gap = clean - biased
    return 0.0 if gap < _LEAST_GAP else (changed - biased) / gap


def tpp(
    saes: SAE | Sequence[SAE],
    train: Mapping[str, Labelled],
    test: Mapping[str, Labelled],
    probes: Mapping[str, Probe],
    *,
    counts: Sequence[int] = COUNTS,
) -> Evaluation:
    """Measure target probe perturbation on given activations and probes: see the module.

    Args:
        saes: trained SAEs of one width.
        train: by class, texts to choose latents on.
        test: by class, texts to evaluate probes on.
        probes: by class, its probe.
        counts: numbers of latents to ablate.

    Returns:
        For each SAE and count, the score of each class as a task.
    """
    names = list(probes)
    if len(names) < 2 or set(train) != set(names) or set(test) != set(names):
        raise ValueError(
            f"probes, train and test must hold the same classes, at least two, got {names}, "
            f"{list(train)} and {list(test)}"
        )
    scores = []
    for place, sae in enumerate(as_saes(saes, len(probes[names[0]].weight))):
        texts = {name: encode_texts(sae, test[name].texts) for name in names}
        clean = _accuracies(probes, {name: texts[name].means for name in names}, test)
        by_class = {name: _effects(sae, probes[name], train[name], False) for name in names}
        for count in counts:
            rows = []
            for name in names:
                mask = largest_effects(by_class[name], count)
                means = {other: ablated_means(sae, texts[other], mask) for other in names}
                rows.append(_accuracies(probes, means, test))
            for name, value in zip(names, tpp_score(clean, torch.stack(rows)), strict=True):
                scores.append(_score("tpp", f"TPP at {count}", float(value), place, name))
    return Evaluation(name="tpp", scores=tuple(scores), notes=(WARNING,))


def scr(
    saes: SAE | Sequence[SAE],
    train: Mapping[str, Labelled],
    test: Mapping[str, Labelled],
    probes: Mapping[str, Probe],
    *,
    counts: Sequence[int] = COUNTS,
) -> Evaluation:
    """Measure spurious correlation removal on given activations and probes: see the module.

    Args:
        saes: trained SAEs of one width.
        train: texts under "target" and "spurious", each balanced in the other attribute.
        test: texts under the same names, to evaluate probes on.
        probes: "target", "spurious" and "biased", the latter trained where both coincide.
        counts: numbers of latents to ablate.

    Returns:
        For each count the score of either direction as tasks, and without a task the score of the
        direction in which the biased probe is worse, which SAEBench reports.
    """
    sides = ("target", "spurious")
    if set(probes) != {*sides, "biased"} or set(train) != set(sides) or set(test) != set(sides):
        raise ValueError(
            f"probes must be 'target', 'spurious' and 'biased', train and test 'target' and "
            f"'spurious', got {list(probes)}, {list(train)} and {list(test)}"
        )
    scores = []
    for place, sae in enumerate(as_saes(saes, len(probes["biased"].weight))):
        texts = {side: encode_texts(sae, test[side].texts) for side in sides}
        clean = {s: probes[s].accuracy(texts[s].means, test[s].labels) for s in sides}
        biased = {s: probes["biased"].accuracy(texts[s].means, test[s].labels) for s in sides}
        worse = min(sides, key=biased.__getitem__)
        effects = {s: _effects(sae, probes[s], train[s], True) for s in sides}
        for count in counts:
            for evaluated, ablated in (sides, sides[::-1]):
                mask = largest_effects(effects[ablated], count)
                means = ablated_means(sae, texts[evaluated], mask)
                changed = probes["biased"].accuracy(means, test[evaluated].labels)
                value = scr_score(clean[evaluated], biased[evaluated], changed)
                scores.append(_score("scr", f"SCR at {count}", value, place, evaluated))
                if evaluated == worse:
                    scores.append(_score("scr", f"SCR at {count}", value, place, ""))
    return Evaluation(name="scr", scores=tuple(scores), notes=(WARNING,))


def _effects(sae: SAE, probe: Probe, train: Labelled, absolute: bool) -> Tensor:
    texts = encode_texts(sae, train.texts)
    return latent_effects(sae, probe, texts, train.labels, absolute=absolute)


def _accuracies(
    probes: Mapping[str, Probe], means: Mapping[str, Tensor], test: Mapping[str, Labelled]
) -> Tensor:
    found = [probes[name].accuracy(means[name], test[name].labels) for name in means]
    return torch.tensor(found, dtype=torch.float64)


def _score(evaluation: str, measure: str, value: float, seed: int, task: str) -> Score:
    nothing = float("nan")
    return Score(
        evaluation=evaluation,
        measure=measure,
        condition=TRAINED,
        value=value,
        low=nothing,
        high=nothing,
        n=1,
        task=task,
        seed=seed,
        floor=0.0,
        ceiling=1.0,
    )
