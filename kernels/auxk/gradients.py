"""Compute the auxiliary loss of dead latents and its gradients without waiting for the host.

Five products take four launches. Their tiles end at the number of dead latents, which is on the
device; if it is zero, programs only read it. All matrices are parts in whole tiles, see `parts`;
sums are float32 in a fixed order, without atomics.
"""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from ..device import (
    LAUNCH,
    capability,
    interpreting,
    power_of_two,
    processors,
    programs_at_once,
    thread_registers,
)
from ..parts import empty_parts, tile, whole_tiles
from .bounds import MISSED, SCORES, bounds
from .gradient_products import score_gradients, weight_gradients
from .keep_largest import keep_largest
from .operands import operands
from .score_products import miss_error, score_dead

TOGETHER = 16
"""height of a band of tiles, see `tile_corner`"""


class Tiling(NamedTuple):
    """How the loop of a product is compiled."""

    depth: int
    """elements of the depth per iteration"""
    warps: int
    """warps per block"""
    stages: int
    """stages of the software pipeline"""
    blocks: int
    """blocks per multiprocessor"""


ONE_PART = Tiling(64, 8, 2, 2)
"""the fastest on an H100; its 64 KiB of shared memory fit every GPU from sm_80 on"""
TWO_PARTS = {9: Tiling(64, 8, 3, 1), 10: Tiling(64, 8, 2, 1)}
"""tilings by the major number of a device's capability; the first is the fastest on an H100"""
TWO_PARTS_ELSEWHERE = Tiling(32, 8, 3, 1)
"""tiling of devices whose tensor cores take operands from registers, which would spill more"""
_INTERPRETED_TILING = Tiling(16, 4, 1, 1)


def tiling_for(tensor: Tensor, parts: int) -> Tiling:
    """Return the tiling of products of so many parts on the tensor's device."""
    if interpreting():
        return _INTERPRETED_TILING
    if parts == 1:
        return ONE_PART
    return TWO_PARTS.get(capability(tensor)[0], TWO_PARTS_ELSEWHERE)


class Gradients(NamedTuple):
    """The auxiliary loss and its gradients; rows beyond the dead latents are uninitialised."""

    loss: Tensor
    """[] value of the loss"""
    w_enc: Tensor
    """[c, d] gradients of encoder rows"""
    b_enc: Tensor
    """[c] gradients of biases"""
    w_dec: Tensor
    """[c, d_out] gradients of decoder rows"""


def auxk_gradients(
    inputs: Tensor,
    residual: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    w_dec: Tensor,
    latents: Tensor,
    count: Tensor,
    *,
    scale: float,
    k: int,
    coefficient: float,
    normalised: bool,
    signed: bool,
    absolute: bool,
    rounded: bool,
) -> Gradients:
    """Compute the loss and gradients that `saefast.train.auxk.auxk_gradients` defines, in float32.

    Args:
        inputs: [n, d] inputs of the encoder.
        residual: [n, d_out]; `scale` times it is the error to explain.
        w_enc: [m, d] encoder rows.
        b_enc: [m] encoder bias.
        w_dec: [m, d_out] decoder rows.
        latents: [c] int64, dead latents; the first `count` are read.
        count: [1] int32, number of dead latents.
        scale: factor of `residual`.
        k: number of dead latents that may be active on a token.
        coefficient: see `saefast.AuxK`, as the next two.
        normalised: whether the loss is divided by the variance of the error.
        signed: whether negative scores may be active.
        absolute: whether active latents are those with the largest absolute scores, of either sign.
        rounded: whether operands are rounded to bfloat16; otherwise products are as accurate as in
            float32, see `parts`.

    Returns:
        The loss, and gradients with a row for each entry of `latents`.
    """
    (n, d), d_out, capacity = inputs.shape, w_dec.shape[1], latents.shape[0]
    parts = 1 if rounded else 2
    tiling = tiling_for(inputs, parts)
    rows, places, width, width_out = map(whole_tiles, (n, capacity, d, d_out))
    down, blocks = rows // tile(), width_out // tile()
    programs = programs_at_once(inputs)
    resident = processors(inputs) * tiling.blocks
    options: dict[str, Any] = {
        "PARTS": parts,
        "TILE": tile(),
        "BLOCK_DEPTH": tiling.depth,
        "TOGETHER": TOGETHER,
        "LANES": power_of_two(programs),
        "num_warps": tiling.warps,
        "num_stages": tiling.stages,
        "maxnreg": thread_registers(8),
        **LAUNCH,
    }
    largest = bounds(inputs, residual, w_enc, w_dec, latents, count, scale=scale, parts=parts)
    x, encoder, decoder, bias, *moments = operands(
        inputs,
        residual,
        w_enc,
        b_enc,
        w_dec,
        latents,
        count,
        largest,
        scale=scale,
        normalised=normalised,
        parts=parts,
    )
    scores = inputs.new_empty(rows, places)
    score_dead[(resident,)](
        x,
        encoder,
        bias,
        count,
        largest,
        programs,
        scores,
        largest[SCORES.value],
        rows,
        places,
        width,
        SIGNED=signed or absolute,
        **options,
    )
    active = keep_largest(
        scores, count, largest, n, k, signed=signed or absolute, absolute=absolute, parts=parts
    )
    del scores
    # With rows that are not aligned `miss_error` spills registers, since each element has an
    # address of its own.
    aligned = residual if d_out % 16 == 0 else pad(residual, (0, -d_out % 16))
    missed = empty_parts(parts, n, d_out, inputs)
    squares = inputs.new_empty(down, width_out)
    miss_error[(resident,)](
        active,
        decoder,
        aligned,
        scale,
        count,
        largest,
        programs,
        missed,
        largest[MISSED.value],
        squares,
        k,
        n,
        rows,
        places,
        aligned.shape[1],
        width_out,
        **options,
    )
    gradient = empty_parts(parts, n, capacity, inputs)
    bias_sums = inputs.new_empty(down, places)
    totals = inputs.new_empty(2, blocks)
    score_gradients[(resident,)](
        missed,
        decoder,
        active,
        count,
        largest,
        programs,
        gradient,
        bias_sums,
        squares,
        *moments,
        totals,
        k,
        n,
        rows,
        places,
        d_out,
        width_out,
        NORMALISED=normalised,
        LINES=4 if interpreting() else 16,
        **options,
    )
    found = Gradients(
        inputs.new_empty(()),
        inputs.new_empty(capacity, d),
        inputs.new_empty(capacity),
        inputs.new_empty(capacity, d_out),
    )
    weight_gradients[(resident,)](
        x,
        active,
        missed,
        gradient,
        bias_sums,
        totals,
        count,
        largest,
        programs,
        *found,
        coefficient,
        k,
        n,
        rows,
        places,
        d,
        width,
        d_out,
        width_out,
        NORMALISED=normalised,
        BLOCKS=power_of_two(blocks),
        **options,
    )
    return found
