"""Gradient, Adam and unit norm of every latent in one pass over its rows; no gradient is stored."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .by_latent import ByLatent, sort_by_latent
from .device import LAUNCH, interpreting
from .latent_sum import entry_blocks, partial_sums, sum_of_latent
from .round_rows import DROPPED_BITS, length_of, rounded_to, square_of

_TOGETHER = 16
"""Latents of one program, which sums their shares of the inputs' gradient."""


@triton.jit
def adam(weight, first, second, gradient, step_size, root, beta1, beta2, eps):
    """torch.optim.Adam with its corrections inside step_size and root."""
    first += (1.0 - beta1) * (gradient - first)
    second = beta2 * second + (1.0 - beta2) * gradient * gradient
    denominator = tl.sqrt(second) / root + eps
    return weight - step_size * (first / denominator), first, second


@triton.jit
def update_biases(
    values,
    value_grads,
    entries,
    start,
    bias,
    first,
    second,
    slots,
    extra_bias,
    extra_along,
    rates,
    bias_grads,
    along,
    fired,
    beta1,
    beta2,
    eps,
    EXTRA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One latent's scalars: its bias's gradient and Adam, its decoder's gradient along its row, and
    on how many tokens it fired."""
    latent = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(start + latent), tl.load(start + latent + 1)
    gradients = tl.zeros((BLOCK,), tl.float32)
    products = tl.zeros((BLOCK,), tl.float32)
    active = tl.zeros((BLOCK,), tl.int32)
    for e in range(begin, end, BLOCK):
        place = e + tl.arange(0, BLOCK)
        entry = tl.load(entries + place, place < end, other=0)
        value = tl.load(values + entry, place < end, other=0.0)
        gradient = tl.load(value_grads + entry, place < end, other=0.0)
        gradients += gradient
        products += value * gradient
        active += (value > 0).to(tl.int32)
    # row . gradient of the row = sum of value * (row . residual) = sum of value * value_grad.
    gradient = tl.sum(gradients)
    parallel = tl.sum(products)
    if EXTRA:
        slot = tl.load(slots + latent)
        gradient += tl.load(extra_bias + slot, slot >= 0, other=0.0)
        parallel += tl.load(extra_along + slot, slot >= 0, other=0.0)
    updated, mean, square = adam(
        tl.load(bias + latent),
        tl.load(first + latent),
        tl.load(second + latent),
        gradient,
        tl.load(rates).to(tl.float32),
        tl.load(rates + 1).to(tl.float32),
        beta1,
        beta2,
        eps,
    )
    tl.store(bias + latent, updated)
    tl.store(first + latent, mean)
    tl.store(second + latent, square)
    tl.store(bias_grads + latent, gradient)
    tl.store(along + latent, parallel)
    tl.store(fired + latent, tl.sum(active).to(tl.int64))


@triton.jit
def update_rows(
    coefficients,
    entries,
    start,
    piece_start,
    rows,
    partial,
    slots,
    extra,
    scalars,
    rates,
    weight,
    first,
    second,
    inputs_share,
    units,
    norm,
    lost,
    latents,
    d,
    padded,
    k,
    beta1,
    beta2,
    eps,
    EXTRA: tl.constexpr,
    ENCODER: tl.constexpr,
    UNIT_NORM: tl.constexpr,
    PACK: tl.constexpr,
    DROP: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    TOGETHER: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """TOGETHER latents' rows of one matrix.

    ENCODER: `scalars` are the biases' gradients; their sum times the rows as they were is added to
    `inputs_share` [programs, d]. Otherwise `scalars` are the gradients' parts along the rows, which
    UNIT_NORM removes. PACK: the new rows are rounded for the screen, as `round_rows` does it.
    """
    step_size, root = tl.load(rates).to(tl.float32), tl.load(rates + 1).to(tl.float32)
    group = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK_D)
    for latent in range(group * TOGETHER, tl.minimum((group + 1) * TOGETHER, latents)):
        scalar = tl.load(scalars + latent)
        if EXTRA:
            slot = tl.load(slots + latent)
        squares = tl.zeros((BLOCK_D,), tl.float32)
        lost_squares = tl.zeros((BLOCK_D,), tl.float32)
        row = tl.zeros((BLOCK_D,), tl.float32)
        for i in range(0, d, BLOCK_D):
            at = i + lane
            place = latent * d + at
            gradient = sum_of_latent(
                coefficients,
                entries,
                start,
                piece_start,
                rows,
                partial,
                latent,
                at,
                d,
                k,
                BLOCK_E,
                BLOCK_D,
            )
            if EXTRA:
                gradient += tl.load(
                    extra + slot * d + at, at < tl.where(slot >= 0, d, 0), other=0.0
                )
            old = tl.load(weight + place, at < d, other=0.0)
            if ENCODER:
                so_far = inputs_share + group * d + at
                tl.store(so_far, tl.load(so_far, at < d, other=0.0) + scalar * old, at < d)
            elif UNIT_NORM:
                gradient -= scalar * old
            row, mean, square = adam(
                old,
                tl.load(first + place, at < d, other=0.0),
                tl.load(second + place, at < d, other=0.0),
                gradient,
                step_size,
                root,
                beta1,
                beta2,
                eps,
            )
            row = tl.where(at < d, row, 0.0)
            tl.store(first + place, mean, at < d)
            tl.store(second + place, square, at < d)
            if PACK:
                kept = rounded_to(row, DROP)
                packed_at = units + latent * padded + at
                tl.store(packed_at, kept.to(units.dtype.element_ty), at < d)
                squares += square_of(row)
                lost_squares += square_of(row - kept)
            else:
                squares += row * row
            if not (UNIT_NORM and ONE_BLOCK):
                tl.store(weight + place, row, at < d)
        if PACK:
            tl.store(norm + latent, length_of(tl.sum(squares), d))
            tl.store(lost + latent, length_of(tl.sum(lost_squares), d))
        if UNIT_NORM:
            length = tl.sqrt_rn(tl.sum(squares))
            divisor = tl.where(length > 0.0, length, 1.0)
            if ONE_BLOCK:
                tl.store(weight + latent * d + lane, row / divisor, lane < d)
            else:
                for i in range(0, d, BLOCK_D):
                    place = latent * d + i + lane
                    row = tl.load(weight + place, i + lane < d, other=0.0)
                    tl.store(weight + place, row / divisor, i + lane < d)


class Extra(NamedTuple):
    """Gradients that come from elsewhere, for some latents."""

    slots: Tensor
    """[m] which row of the others belongs to a latent, -1 for none"""
    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    along: Tensor
    """each row of w_dec times the decoder's row"""

    @classmethod
    def of(
        cls, latents: Tensor, w_enc: Tensor, b_enc: Tensor, w_dec: Tensor, decoder: Tensor
    ) -> "Extra":
        """From latents [c], each at most once; those out of range have no slot."""
        m = decoder.shape[0]
        real = (latents >= 0) & (latents < m)
        at = torch.where(real, latents, m)
        slots = torch.full((m + 1,), -1, dtype=torch.int64, device=latents.device)
        slots.scatter_(0, at, torch.arange(latents.shape[0], device=latents.device))
        along = (w_dec * decoder[torch.where(real, latents, 0)]).sum(1)
        return cls(slots[:m], w_enc, b_enc, w_dec, along)


class Matrix(NamedTuple):
    """A weight and its moments, [m, d] or [m]."""

    weight: Tensor
    first: Tensor
    second: Tensor


def latent_update(
    indices: Tensor,
    values: Tensor,
    value_grads: Tensor,
    residual: Tensor,
    inputs: Tensor,
    w_enc: Matrix,
    b_enc: Matrix,
    w_dec: Matrix,
    packed: tuple[str, Tensor, Tensor, Tensor] | None,
    extra: Extra | None,
    rates: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    *,
    unit_norm: bool,
) -> tuple[Tensor, Tensor]:
    """`reference.latent_update` of checked, contiguous float32 tensors.

    `packed` is a product and the units, norm and lost of w_enc, see `RoundedRows`.
    """
    m, d = w_enc.weight.shape
    active = values > 0
    values = torch.where(active, values, 0.0)
    value_grads = torch.where(active, value_grads, 0.0)
    by_latent = sort_by_latent(indices, m)
    bias_grads, along = torch.empty_like(b_enc.weight), torch.empty_like(b_enc.weight)
    fired = torch.empty(m, dtype=torch.int64, device=values.device)
    some = values  # stands in for an argument that is not looked at
    update_biases[(m,)](
        values,
        value_grads,
        by_latent.entry,
        by_latent.start,
        *b_enc,
        extra.slots if extra else some,
        extra.b_enc if extra else some,
        extra.along if extra else some,
        rates,
        bias_grads,
        along,
        fired,
        beta1,
        beta2,
        eps,
        EXTRA=extra is not None,
        BLOCK=8 if interpreting() else 128,
        num_warps=1,
        **LAUNCH,
    )
    groups = triton.cdiv(m, _TOGETHER)
    shares = torch.zeros(groups, d, dtype=torch.float32, device=values.device)
    adam_settings = (beta1, beta2, eps)
    k = indices.shape[1]
    _update(
        w_dec,
        (values, by_latent, residual, k),
        (extra.slots, extra.w_dec) if extra else None,
        along,
        rates,
        adam_settings,
        unit_norm=unit_norm,
    )
    _update(
        w_enc,
        (value_grads, by_latent, inputs, k),
        (extra.slots, extra.w_enc) if extra else None,
        bias_grads,
        rates,
        adam_settings,
        shares=shares,
        packed=packed,
    )
    return shares.sum(0), fired


def _update(
    matrix: Matrix,
    gradient: tuple[Tensor, ByLatent, Tensor, int],
    extra: tuple[Tensor, Tensor] | None,
    scalars: Tensor,
    rates: Tensor,
    adam_settings: tuple[float, float, float],
    *,
    shares: Tensor | None = None,
    packed: tuple[str, Tensor, Tensor, Tensor] | None = None,
    unit_norm: bool = False,
) -> None:
    coefficients, by_latent, rows, k = gradient
    m, d = matrix.weight.shape
    partial = partial_sums(coefficients, by_latent, rows, k)
    block_e, block_d = entry_blocks(d)
    some = coefficients
    product, *arrays = packed or ("float32", some, some, some)
    update_rows[(triton.cdiv(m, _TOGETHER),)](
        coefficients,
        by_latent.entry,
        by_latent.start,
        by_latent.piece_start,
        rows,
        partial,
        *(extra or (some, some)),
        scalars,
        rates,
        *matrix,
        some if shares is None else shares,
        *arrays,
        m,
        d,
        arrays[0].shape[1] if packed else d,
        k,
        *adam_settings,
        EXTRA=extra is not None,
        ENCODER=shares is not None,
        UNIT_NORM=unit_norm,
        PACK=packed is not None,
        DROP=DROPPED_BITS[product],
        ONE_BLOCK=d <= block_d,
        TOGETHER=_TOGETHER,
        BLOCK_E=block_e,
        BLOCK_D=block_d,
        num_warps=4,
        **LAUNCH,
    )
