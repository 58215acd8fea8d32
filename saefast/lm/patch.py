"""Effect on a language model of replacing activations by an SAE's reconstructions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saefast import checks
from saefast.disk.tables import table_of
from saefast.lm.builtin_corpus import or_builtin
from saefast.lm.corpus import Texts
from saefast.lm.losses import (
    Estimate,
    Losses,
    counted,
    estimate,
    left_out,
    log_probabilities,
    losses,
)
from saefast.lm.model import LanguageModel, check_context, check_model
from saefast.lm.packing import Packing, TokenBatch
from saefast.lm.sites import Site, capture, find_site
from saefast.lm.suffix import Suffix
from saefast.progress import ProgressBar
from saefast.sae import SAE
from saefast.types import SparseCode, brief

if TYPE_CHECKING:
    import pyarrow as pa

Replacements = Callable[[Tensor], Iterator[tuple[str, Tensor]]]
"""Function of activations [n, d] that yields replacements [n, d], each with a name."""


@dataclass(frozen=True, kw_only=True)
class PatchEffect:
    """Effect of one replacement, in nats per token, with standard errors over contexts."""

    ce: Estimate
    """cross entropy of the next token"""
    ce_increase: Estimate
    """increase of the cross entropy over the unmodified model"""
    kl: Estimate
    """KL(unmodified || replaced)"""
    ce_score: Estimate
    """(CE_zero - CE) / (CE_zero - CE_unmodified): 1 as unmodified, 0 as with zeros"""
    kl_score: Estimate
    """(KL_zero - KL) / KL_zero"""
    ce_score_mean: Estimate
    """(CE_mean - CE) / (CE_mean - CE_unmodified): 0 as with the mean activation"""
    kl_score_mean: Estimate
    """(KL_mean - KL) / KL_mean"""


@dataclass(frozen=True, kw_only=True)
class Patching:
    """Effects of all replacements of `evaluate_patched`."""

    clean: PatchEffect
    """the unmodified model"""
    zero: PatchEffect
    """zeros in place of the activations"""
    mean: PatchEffect
    """mean activation in place of each activation"""
    full: PatchEffect
    """reconstructions in place of the activations"""
    keep: dict[str, PatchEffect] = field(default_factory=dict)
    """reconstructions from the latents of a group only"""
    drop: dict[str, PatchEffect] = field(default_factory=dict)
    """reconstructions from all latents except those of a group"""
    contexts: int = 0
    """number of contexts measured"""
    predictions: int = 0
    """number of tokens predicted in them"""

    __repr__ = brief

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each replacement, and a column for each error."""
        whole = ("clean", "zero", "mean", "full")
        effects = [(name, None, getattr(self, name)) for name in whole]
        for name in ("keep", "drop"):
            effects += [(name, group, effect) for group, effect in getattr(self, name).items()]
        return table_of(
            [
                {
                    "replacement": name,
                    "group": group,
                    **{key: its.value for key, its in vars(effect).items()},
                    **{f"{key}_error": its.error for key, its in vars(effect).items()},
                }
                for name, group, effect in effects
            ]
        )


def evaluate_patched(
    model: LanguageModel,
    site: int | str,
    sae: SAE,
    groups: Mapping[str, Tensor] | None = None,
    *,
    corpus: Texts | None = None,
    tokens: int = 16384,
    context: int = 256,
    batch_size: int = 4,
    drop_bos: bool = True,
    mean: Tensor | None = None,
    progress: bool = True,
) -> Patching:
    """Measure how a model predicts with reconstructions in place of activations.

    All variants are evaluated in one pass over the text. The layers before the site run once for a
    batch, those after it once for each variant.

    Args:
        model: model from `load_model`.
        site: site as in `harvest`.
        sae: SAE trained on the activations of that site.
        groups: groups of latents, {name: [m] bool}, such as one entry of `Stability.groups()`; each
            is kept alone, and dropped alone. Codes are computed by the whole SAE.
        corpus: text to read; None: the part of `builtin_corpus()` that is held out.
        tokens: approximate number of tokens; whole batches are read.
        context: number of tokens in a context.
        batch_size: number of contexts in a forward pass. Logits take 4 * batch_size * context *
            vocabulary bytes, about four times.
        drop_bos: leave first positions and BOS unchanged in every variant, zeros included, as
            `harvest` leaves them out: the SAE was not trained on them, and the model needs them as
            attention sinks.
        mean: [d] mean activation; None: the mean over the same text, at the cost of another pass.
        progress: show a progress bar on stderr.

    Returns:
        Effect of every replacement.
    """
    check_model(model)
    found = find_site(model.model, site)
    chosen = dict(groups or {})
    check_sae(sae, chosen)
    batches = held_out_batches(model, corpus, tokens, context, batch_size, drop_bos)
    if mean is None:
        mean = _mean(model, found, batches)
    checks.floating("mean", mean, "[d]")
    checks.size("mean", mean, 0, sae.d, "the width of the SAE")
    average = mean

    def replacements(x: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "zero", torch.zeros_like(x)
        yield "mean", average.to(x).expand_as(x)
        rows = x.to(sae.W_dec)
        code = sae.encode(rows)
        yield "full", sae.decode(code, rows)
        for name, mask in chosen.items():
            kept = torch.where(mask.to(rows.device)[code.indices], code.values, 0.0)
            yield f"keep {name}", sae.decode(SparseCode(kept, code.indices), rows)
            yield f"drop {name}", sae.decode(SparseCode(code.values - kept, code.indices), rows)

    by_name = patched_losses(model, found, replacements, batches, progress)
    predictions = torch.cat([counted(batch).sum(1) for batch in batches])
    effects = _effects(by_name, predictions)
    return Patching(
        **{name: effects[name] for name in ("clean", "zero", "mean", "full")},
        keep={name: effects[f"keep {name}"] for name in chosen},
        drop={name: effects[f"drop {name}"] for name in chosen},
        contexts=len(predictions),
        predictions=int(predictions.sum()),
    )


def patched_losses(
    model: LanguageModel,
    site: Site,
    replacements: Replacements,
    batches: list[TokenBatch],
    progress: bool = True,
) -> dict[str, Losses]:
    """Return the losses of every replacement, and "clean", those of the unmodified model."""
    parts: dict[str, list[Losses]] = {}
    rest = Suffix(model.model, site)
    predictions = sum(int(counted(batch).sum()) for batch in batches)
    with ProgressBar("patch", total=predictions, unit="tokens", progress=progress) as bar:
        for batch in batches:
            activations, clean = rest.begin(batch.ids)
            kept = batch.kept.to(activations.device)
            truth = log_probabilities(clean)
            parts.setdefault("clean", []).append(losses(clean, truth, batch))
            del clean  # as large as everything else together
            with torch.no_grad():
                for name, rows in replacements(activations[kept]):
                    logits = rest.logits(put(activations, kept, rows))
                    parts.setdefault(name, []).append(losses(logits, truth, batch))
            bar.update(int(counted(batch).sum()))
    return {name: Losses.joined(several) for name, several in parts.items()}


def put(activations: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    """Return the activations [contexts, length, d] with other rows where `kept` is true."""
    return activations.masked_scatter(kept[:, :, None], rows.to(activations))


def held_out_batches(
    model: LanguageModel,
    corpus: Texts | None,
    tokens: int,
    context: int,
    batch_size: int,
    drop_bos: bool,
) -> list[TokenBatch]:
    """Return batches of text for evaluation, of about that many tokens."""
    checks.whole("tokens", tokens, 1)
    packing = Packing(context, batch_size, drop_bos)
    check_context(model, context)
    batches: list[TokenBatch] = []
    for batch in packing.batches(or_builtin(corpus, held_out=True), model.tokenizer):
        batches.append(batch)
        tokens -= int(batch.real.sum())
        if tokens <= 0:
            break
    if not any(bool(counted(batch).any()) for batch in batches):
        raise ValueError(
            "corpus must hold a text of at least two tokens, since the first one is not predicted"
        )
    return batches


def _mean(model: LanguageModel, site: Site, batches: list[TokenBatch]) -> Tensor:
    total, rows = torch.zeros(()), 0
    for batch in batches:
        (seen,) = capture(model.model, [site], batch.ids)
        kept = seen[batch.kept.to(seen.device)].double()
        total, rows = total.to(seen.device) + kept.sum(0), rows + len(kept)
    return (total / rows).float()


def check_sae(sae: SAE, groups: Mapping[str, Tensor] | None = None) -> None:
    """Raise unless the SAE reconstructs its input and the groups are masks of its latents."""
    if not isinstance(sae, SAE):
        raise TypeError(f"sae must be a saefast.SAE, got {type(sae).__name__}")
    if sae.transcodes:
        raise ValueError(
            "sae must reconstruct its input, got a transcoder, whose output belongs to another site"
        )
    for name, mask in (groups or {}).items():
        checks.mask(f"groups[{name!r}]", mask, sae.m)


def _effects(found: Mapping[str, Losses], predictions: Tensor) -> dict[str, PatchEffect]:
    n = left_out(predictions.double())
    ce = {name: left_out(losses.ce) / n for name, losses in found.items()}
    kl = {name: left_out(losses.kl) / n for name, losses in found.items()}
    return {
        name: PatchEffect(
            ce=estimate(ce[name]),
            ce_increase=estimate(ce[name] - ce["clean"]),
            kl=estimate(kl[name]),
            ce_score=estimate((ce["zero"] - ce[name]) / (ce["zero"] - ce["clean"])),
            kl_score=estimate((kl["zero"] - kl[name]) / kl["zero"]),
            ce_score_mean=estimate((ce["mean"] - ce[name]) / (ce["mean"] - ce["clean"])),
            kl_score_mean=estimate((kl["mean"] - kl[name]) / kl["mean"]),
        )
        for name in found
    }
