"""Effect of single features of an SAE on a language model's loss, by patching and to first order.

Both are relative to the full reconstruction: the effect of feature i is the increase of a loss, in
nats per token over all tokens, if x_hat - z_i d_i takes the place of x_hat.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.lm.corpus import Texts
from saefast.lm.losses import (
    Losses,
    counted,
    gradients,
    left_out,
    log_probabilities,
    losses,
    with_error,
)
from saefast.lm.model import LanguageModel, check_model
from saefast.lm.packing import TokenBatch
from saefast.lm.patch import check_sae, held_out_batches, put
from saefast.lm.sites import find_site
from saefast.lm.suffix import Suffix
from saefast.ops.gather_dots import gather_dots
from saefast.progress import tracked
from saefast.sae import SAE


class Marginal(NamedTuple):
    """Effects of leaving out single features, with standard errors over contexts."""

    features: Tensor
    """[f] int64, indices of the features"""
    ce: Tensor
    """[f] float64, increase of the cross entropy in nats per token"""
    ce_error: Tensor
    """[f] float64, standard error of `ce`"""
    kl: Tensor
    """[f] float64, increase of KL(unmodified || reconstructed) in nats per token"""
    kl_error: Tensor
    """[f] float64, standard error of `kl`"""
    fired: Tensor
    """[f] int64, number of tokens on which the feature fires.

    If 0, its effects are unknown and 0.
    """


def marginal_effects(
    model: LanguageModel,
    site: int | str,
    sae: SAE,
    features: Tensor,
    *,
    corpus: Texts | None = None,
    tokens: int = 16384,
    context: int = 256,
    batch_size: int = 4,
    drop_bos: bool = True,
    progress: bool = True,
) -> Marginal:
    """Leave out one feature after another, by patching; only contexts where it fires are run.

    Args:
        model: model from `load_model`.
        site: site as in `harvest`.
        sae: SAE trained on the activations of that site.
        features: [f] int64, a sample: each costs up to one pass of the layers after the site.
        corpus: see `evaluate_patched`.
        tokens: see `evaluate_patched`.
        context: see `evaluate_patched`.
        batch_size: see `evaluate_patched`.
        drop_bos: see `evaluate_patched`.
        progress: show a progress bar on stderr.

    Returns:
        Effect of each of the f features.
    """
    check_model(model)
    found = find_site(model.model, site)
    check_sae(sae)
    checks.indices("features", features, "[f]")
    if len(features) and not 0 <= int(features.min()) <= int(features.max()) < sae.m:
        raise ValueError(f"features must be in [0, {sae.m}), the latents of the SAE")
    batches = held_out_batches(model, corpus, tokens, context, batch_size, drop_bos)
    rest = Suffix(model.model, found)
    fired = torch.zeros(len(features), dtype=torch.int64)
    parts: list[Losses] = []
    for batch in tracked(batches, "marginal effects", unit="batches", progress=progress):
        parts.append(_without_each(rest, sae, features, batch, fired))
    return _marginal(features, parts, batches, fired)


def first_order_effects(
    model: LanguageModel,
    site: int | str,
    sae: SAE,
    *,
    corpus: Texts | None = None,
    tokens: int = 16384,
    context: int = 256,
    batch_size: int = 4,
    drop_bos: bool = True,
    progress: bool = True,
) -> Marginal:
    """Compute the derivative of the losses along the absence of each feature, for all at once.

    It is E[dL/dx_hat . (-z_i d_i)], from one forward pass and a backward pass for each loss, and
    the limit of `marginal_effects` for features with small effects.

    Args:
        model: model from `load_model`.
        site: site as in `harvest`.
        sae: SAE trained on the activations of that site.
        corpus: see `evaluate_patched`.
        tokens: see `evaluate_patched`.
        context: see `evaluate_patched`.
        batch_size: see `evaluate_patched`.
        drop_bos: see `evaluate_patched`.
        progress: show a progress bar on stderr.

    Returns:
        Effect of each of the m latents.
    """
    check_model(model)
    found = find_site(model.model, site)
    check_sae(sae)
    batches = held_out_batches(model, corpus, tokens, context, batch_size, drop_bos)
    rest = Suffix(model.model, found)
    fired = torch.zeros(sae.m, dtype=torch.int64)
    parts: list[Losses] = []
    for batch in tracked(batches, "first order", unit="batches", progress=progress):
        parts.append(_slopes(rest, sae, batch, fired))
    return _marginal(torch.arange(sae.m), parts, batches, fired)


@torch.no_grad()
def _without_each(
    rest: Suffix, sae: SAE, features: Tensor, batch: TokenBatch, fired: Tensor
) -> Losses:
    """Return the increase of a batch's sums by each absence, [contexts, f]; counts in `fired`."""
    activations, clean = rest.begin(batch.ids)
    truth = log_probabilities(clean)
    kept = batch.kept.to(activations.device)
    x = activations[kept].to(sae.W_dec.dtype)
    own = sae.encode(x)
    code = sae.contributions(own, x)
    # In the dtype of the SAE: half precision may not resolve an absence in the sum.
    full = put(activations.to(x.dtype), kept, sae.decode(own, x))
    base = losses(rest.logits(full), truth, batch)
    strengths = full.new_zeros(len(features), *kept.shape)
    for number, feature in enumerate(features.to(x.device)):
        z = torch.where(code.indices == feature, code.values, 0.0).sum(1)
        strengths[number, kept] = z
        fired[number] += int((z != 0).sum())
    added = Losses(*(torch.zeros(len(truth), len(features), dtype=torch.float64) for _ in base))
    pairs = (strengths != 0).any(2).nonzero()
    for first in range(0, len(pairs), len(truth)):
        number, context = pairs[first : first + len(truth)].T
        directions = sae.W_dec[features.to(x.device)[number]]
        without = full[context] - strengths[number, context][:, :, None] * directions[:, None]
        here = TokenBatch(*(part[context.cpu()] for part in batch))
        now = losses(rest.logits(without, context), truth[context], here)
        for into, loss, before in zip(added, now, base, strict=True):
            into[context.cpu(), number.cpu()] = loss - before[context.cpu()]
    return added


def _slopes(rest: Suffix, sae: SAE, batch: TokenBatch, fired: Tensor) -> Losses:
    """Return the derivatives of a batch's sums, [contexts, m]; counts in `fired`."""
    activations, clean = rest.begin(batch.ids)
    truth = log_probabilities(clean)
    kept = batch.kept.to(activations.device)
    with torch.no_grad():
        x = activations[kept].to(sae.W_dec.dtype)
        own = sae.encode(x)
        code, reconstruction = sae.contributions(own, x), sae.decode(own, x)
    fired += torch.bincount(code.indices[code.values != 0].cpu(), minlength=sae.m)
    reconstruction.requires_grad_()
    logits = rest.logits(put(activations, kept, reconstruction))
    context = kept.nonzero()[:, :1].expand_as(code.indices)
    slopes = []
    for by_logits in gradients(logits, truth, batch):
        (slope,) = torch.autograd.grad(logits, reconstruction, by_logits, retain_graph=True)
        along = -code.values * gather_dots(slope, sae.W_dec.detach(), code.indices)
        sums = torch.zeros(len(truth), sae.m, dtype=torch.float64, device=along.device)
        sums.index_put_((context, code.indices), along.double(), accumulate=True)
        slopes.append(sums.cpu())
    return Losses(*slopes)


def _marginal(
    features: Tensor, parts: list[Losses], batches: list[TokenBatch], fired: Tensor
) -> Marginal:
    joined = Losses.joined(parts)
    n = left_out(torch.cat([counted(batch).sum(1) for batch in batches]).double())[:, None]
    (ce, ce_error), (kl, kl_error) = (with_error(left_out(sums) / n) for sums in joined)
    return Marginal(features, ce, ce_error, kl, kl_error, fired)
