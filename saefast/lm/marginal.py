"""What a language model loses with each single feature of an SAE: by patching, and to first order.

Both are against the full reconstruction: the effect of feature i is what its absence,
x_hat - z_i d_i in place of x_hat, adds to a loss, in nats a token over all tokens.
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
    """The effect of leaving out single features, with standard errors over contexts."""

    features: Tensor
    """[f] int64: which"""
    ce: Tensor
    """[f] float64"""
    ce_error: Tensor
    kl: Tensor
    """[f] of KL(undisturbed || reconstructed)"""
    kl_error: Tensor
    fired: Tensor
    """[f] int64: on how many tokens; 0 says that nothing is known, and the rest is 0"""


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
    """Leave out one feature after the other, by patching; only contexts in which it fires are run.

    Args:
        features: [f] int64, a sample: each costs up to one pass through the layers behind the site.

    The other arguments are those of `evaluate_patched`.
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
    """The derivative of the losses along the absence of each feature: all at once.

    E[dL/dx_hat . (-z_i d_i)], from one forward pass and one backward pass a loss. It is what
    `marginal_effects` tends to for features that say little; arguments are the same.
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
    """What each absence adds to the sums of a batch, [contexts, f]; counts in `fired`."""
    activations, clean = rest.begin(batch.ids)
    truth = log_probabilities(clean)
    kept = batch.kept.to(activations.device)
    x = activations[kept].to(sae.W_dec.dtype)
    code = sae.encode(x)
    # In the dtype of the SAE: an absence can be less than half precision resolves in the sum.
    full = put(activations.to(x.dtype), kept, sae.decode(code))
    base = losses(rest.logits(full), truth, batch)
    strengths = full.new_zeros(len(features), *kept.shape)
    for number, feature in enumerate(features.to(x.device)):
        z = torch.where(code.indices == feature, code.values, 0.0).sum(1)
        strengths[number, kept] = z
        fired[number] += int((z > 0).sum())
    added = Losses(*(torch.zeros(len(truth), len(features), dtype=torch.float64) for _ in base))
    pairs = (strengths > 0).any(2).nonzero()
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
    """The derivatives of the sums of a batch, [contexts, m]; counts in `fired`."""
    activations, clean = rest.begin(batch.ids)
    truth = log_probabilities(clean)
    kept = batch.kept.to(activations.device)
    with torch.no_grad():
        code = sae.encode(activations[kept].to(sae.W_dec.dtype))
        reconstruction = sae.decode(code)
    fired += torch.bincount(code.indices[code.values > 0].cpu(), minlength=sae.m)
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
