"""Batches with planted features, and plain training on them."""

import torch
from torch import Tensor

from saefast import SAE, reference
from saefast.synthetic import PlantedWorld


def batches(count: int, n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Return rows with structure that training can find."""
    world = PlantedWorld.create(3 * d, d, active=3, seed=5)
    return [world.sample(n, number).to(dtype) for number in range(count)]


def train_plainly(
    sae: SAE, data: list[Tensor], lr: float, unit_norm: bool, precision: str = "exact"
) -> list[float]:
    """Take the same steps with autograd and torch.optim.Adam, without rounding of gradients."""
    optimiser = torch.optim.Adam(sae.parameters(), lr)
    losses = []
    for x in data:
        inputs = x - sae.b_dec
        with torch.no_grad():
            rounded, indices = reference.topk_encode(
                inputs, sae.W_enc, sae.b_enc, k=sae.k, precision=precision
            )
        exact = reference.gather_dots(inputs, sae.W_enc, indices) + sae.b_enc[indices]
        values = exact + (rounded - exact).detach()
        out = reference.sparse_decode(values.relu(), indices, sae.W_dec, sae.b_dec)
        loss = ((out - x) ** 2).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        with torch.no_grad():
            if unit_norm:
                along = (sae.W_dec.grad * sae.W_dec).sum(1, keepdim=True)
                sae.W_dec.grad -= along * sae.W_dec
            optimiser.step()
            if unit_norm:
                sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        losses.append(loss.item())
    return losses
