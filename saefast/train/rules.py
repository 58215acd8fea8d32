"""How weights may move: Adam's constants, what is held fixed, what pulls weights towards zero."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from saefast import checks
from saefast.ops.latent_sum import vector_sum
from saefast.sae import SAE
from saefast.types import NO_DECAY, Decay

SIDES = ("encoder", "decoder")
NORMS = ("fro", "fro_squared", "mean_abs")


@dataclass(frozen=True)
class Penalty:
    """A loss on all weights of one side: `weight` times a norm of W_enc or W_dec."""

    side: str
    """encoder or decoder"""
    norm: str
    """fro: the root of the sum of squares; fro_squared: that sum; mean_abs: the mean size"""
    weight: float

    def __post_init__(self) -> None:
        checks.one_of("side", self.side, SIDES)
        checks.one_of("norm", self.norm, NORMS)
        checks.at_least("weight", self.weight, 0)


@dataclass(frozen=True)
class Rules:
    """Settings of what a training step does with gradients."""

    betas: tuple[float, float] = (0.9, 0.999)
    """of Adam, with torch's meaning"""
    eps: float = 1e-8
    """what Adam adds to the root of the mean square"""
    unit_norm: bool = True
    """decoder rows have norm one after every step"""
    remove_parallel: bool = True
    """and the part of their gradient along them is removed before it"""
    clip: float | None = None
    """largest length of the whole gradient; a longer one is scaled down to it"""
    penalties: tuple[Penalty, ...] = ()
    """losses on the weights of a side: encoder or decoder; fro, fro_squared or mean_abs; weight"""
    frozen: str | None = None
    """the side whose vectors stay as they were drawn; biases always learn"""
    tether: float | None = None
    """smallest cosine of a decoder row to its first direction; needs unit_norm"""

    def __post_init__(self) -> None:
        for beta in self.betas:
            checks.at_least("betas", beta, 0, below=1)
        checks.at_least("eps", self.eps, 0)
        if self.clip is not None:
            checks.at_least("clip", self.clip, 0)
        if self.frozen is not None:
            checks.one_of("frozen", self.frozen, SIDES)
        if self.tether is not None:
            checks.at_least("tether", self.tether, -1, below=1)
            if not self.unit_norm:
                raise ValueError("tether needs unit_norm=True: it turns rows of norm one")

    def decay_of(self, sae: SAE) -> Decay:
        """The gradients of the penalties."""
        if not self.penalties:
            return NO_DECAY
        shrink: dict[str, float | Tensor] = dict.fromkeys(SIDES, 0.0)
        sign = dict.fromkeys(SIDES, 0.0)
        for penalty in self.penalties:
            weight = _side_of(sae, penalty.side)
            if penalty.norm == "mean_abs":
                sign[penalty.side] += penalty.weight / weight.numel()
            elif penalty.norm == "fro_squared":
                shrink[penalty.side] += 2 * penalty.weight
            else:
                length = _square_of(weight).sqrt()
                shrink[penalty.side] += torch.where(length > 0, penalty.weight / length, 0.0)
        encoder, decoder = (
            sae.b_enc.new_ones(sae.m) * shrink[side] if _is_set(shrink[side]) else None
            for side in SIDES
        )
        signs = None
        if any(sign.values()):  # filled on the device, where a captured step must find them
            ones = sae.b_enc.new_ones((), dtype=torch.float64)
            signs = torch.stack([ones * sign[side] for side in SIDES])
        return Decay(encoder, decoder, signs)

    def penalty_of(self, sae: SAE) -> Tensor:
        """The value of the penalties, float64 []."""
        total = torch.zeros((), dtype=torch.float64, device=sae.b_enc.device)
        for penalty in self.penalties:
            weight = _side_of(sae, penalty.side)
            if penalty.norm == "mean_abs":
                norm = vector_sum(torch.linalg.vector_norm(weight, 1, dim=1)) / weight.numel()
            else:
                norm = _square_of(weight)
                norm = norm.sqrt() if penalty.norm == "fro" else norm
            total += penalty.weight * norm
        return total


def clip_factor(
    clip: float, gradients: Iterable[Tensor], row_squares: Tensor | None = None
) -> Tensor:
    """What a gradient is multiplied by so that it is not longer than `clip`; float64 [].

    `row_squares` [m] are the squared lengths of parts of it, `gradients` the other parts.
    """
    squares = [] if row_squares is None else [vector_sum(row_squares)]
    squares += [_square_of(part.reshape(len(part), -1)) for part in gradients]
    return (clip / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1.0)


def tethered(directions: Tensor, anchors: Tensor, cosine: float) -> Tensor:
    """`directions`, turned back as far as needed for that cosine to `anchors`; rows of norm one."""
    along = (directions * anchors).sum(1, keepdim=True)
    across = directions - along * anchors
    length = across.norm(dim=1, keepdim=True)
    # A row opposite to its anchor has no direction across to keep: it goes back all the way.
    across = torch.where(length > 0, across / length, 0.0)
    turned = cosine * anchors + (1 - cosine**2) ** 0.5 * across
    turned = torch.where(length > 0, turned, anchors)
    return torch.where(along < cosine, turned, directions)


def _side_of(sae: SAE, side: str) -> Tensor:
    return sae.W_enc.detach() if side == "encoder" else sae.W_dec.detach()


def _is_set(multiple: float | Tensor) -> bool:
    return isinstance(multiple, Tensor) or multiple != 0


def _square_of(weight: Tensor) -> Tensor:
    return vector_sum(torch.linalg.vector_norm(weight, dim=1).double().square())
