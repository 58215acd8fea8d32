"""Sparse codes in place of SAELens's dense encode and decode.

`fused.py` builds passes from them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saefast.integrations.pre_activations import DTYPES, PreActivations, precision_at
from saefast.ops.batch_topk import SLACK, batch_topk
from saefast.ops.encode_gradients import encode_gradients
from saefast.ops.sparse_decode import sparse_decode
from saefast.ops.threshold_encode import all_above, threshold_encode
from saefast.ops.topk_encode import topk_encode
from saefast.types import SparseCode, ThresholdCode

_SMALLEST_ENCODER = 2**17  # number of weights from which on sparse codes are faster on one core
_FIRST_FULLEST = 64  # first guess of the number of latents of a row above a threshold


class Code(NamedTuple):
    """Active latents of rows, padded with values of zero."""

    weights: Tensor
    """[n, k] factors of the decoder's rows"""
    acts: Tensor
    """[n, k] activations as SAELens defines them

    With `rescale_acts_by_decoder_norm` these are `weights` times the norms of the decoder's rows.
    """
    indices: Tensor
    """[n, k] int64, indices of the latents"""
    steps: Tensor | None = None
    """[n, k] for JumpReLU: 1 where active, with the gradient that SAELens gives to a step"""

    def dense(self, m: int) -> Tensor:
        """Return the activations as a dense tensor [n, m]."""
        acts = self.acts.new_zeros(len(self.acts), m)
        return acts.scatter_add_(1, self.indices, self.acts)

    def coo(self, m: int) -> Tensor:
        """Return the activations as a sparse tensor [n, m] without explicit zeros."""
        rows, places = torch.nonzero(self.acts.detach(), as_tuple=True)
        at = torch.stack([rows, self.indices[rows, places]])
        shape = (len(self.acts), m)
        return torch.sparse_coo_tensor(at, self.acts[rows, places], shape, check_invariants=False)


def fusible(sae: Any) -> bool:
    """Return whether no hook reads the dense matrices, and the ops support the dtype."""
    hooks = (sae.hook_sae_acts_pre, sae.hook_sae_acts_post)
    hooked = any(hook._forward_hooks or hook._backward_hooks for hook in hooks)
    return sae.W_enc.dtype in DTYPES and not hooked and not torch.compiler.is_compiling()


def worthwhile(sae: Any, x: Tensor) -> bool:
    """Return whether sparse codes of x [..., d] are computed faster than dense matrices."""
    return sae.W_enc.numel() >= _SMALLEST_ENCODER or x.device.type != "cpu"


def lay_out(sae: Any) -> None:
    """Keep W_enc [d, m] in memory as [m, d], the way the ops read it and write its gradient.

    Files and state dicts hold it as SAELens does.
    """
    if not sae.W_enc.T.is_contiguous():
        with torch.inference_mode(sae.W_enc.is_inference()):  # otherwise they could not be trained
            sae.W_enc.data = sae.W_enc.data.T.contiguous().T
    if contiguous_encoder not in sae._state_dict_hooks.values():
        sae.register_state_dict_post_hook(contiguous_encoder)


def contiguous_encoder(sae: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Make a state dict's W_enc contiguous, as safetensors requires."""
    state[f"{prefix}W_enc"] = state[f"{prefix}W_enc"].contiguous()


def norms_of(sae: Any) -> Tensor | None:
    """Return the norms [m] by which activations are rescaled, or None if they are not."""
    rescaled = getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)
    return sae.W_dec.norm(dim=-1) if rescaled else None


def pre_activations(sae: Any, inputs: Tensor, norms: Tensor | None) -> PreActivations:
    """Return SAELens's `hidden_pre` for encoder inputs [n, d]."""
    return PreActivations(inputs, sae.W_enc.T, sae.b_enc, norms, rectified=False)


def topk_code(
    sae: Any,
    inputs: Tensor,
    norms: Tensor | None,
    encode: Callable[..., SparseCode] = topk_encode,
    *,
    absolute: bool = False,
) -> Code:
    """Return the k largest values of each row of inputs [n, d], where positive.

    `encode` is `topk_encode` or an equivalent with a packed encoder. With `absolute`, the values
    are those that are largest in absolute value, with their sign.
    """
    scale = None if norms is None else norms.detach()
    values, indices = encode(
        inputs,
        sae.W_enc.T,
        sae.b_enc,
        k=sae.cfg.k,
        scale=scale,
        precision=precision_at(inputs),
        absolute=absolute,
    )
    values = values if absolute else values.relu()
    return _code(unscaled(values, indices, scale), indices, norms)


def batch_topk_code(sae: Any, inputs: Tensor, norms: Tensor | None, guess: "Guess") -> Code:
    """Return the int(k * n) largest values of the batch [n, d], where positive."""
    weight, bias = sae.W_enc.T, sae.b_enc
    scale = None if norms is None else norms.detach()
    with torch.no_grad():
        scaled = weight if scale is None else weight * scale[:, None]
        found = batch_topk(
            inputs,
            scaled,
            bias if scale is None else bias * scale,
            min(math.ceil(sae.cfg.k), len(weight)),
            guess=guess.threshold,
            width=guess.width,
            precision=precision_at(inputs),
        )
        values, indices = found.code
        values = _largest(values, int(sae.cfg.k * len(inputs)))
        guess.learn(values)
        values = unscaled(values, indices, scale)
    chosen = _Chosen.apply(inputs, weight, bias, values, indices)  # type: ignore[no-untyped-call]
    return _code(chosen.relu(), indices, norms)


class Guess:
    """Bounds for the next batch from the last one; they affect the time only."""

    threshold: float | None = None
    width: int | None = None

    def learn(self, values: Tensor) -> None:
        """Update the bounds from the values [n, w] of a batch."""
        positive = values > 0
        if bool(positive.any()):
            self.threshold = SLACK * float(values[positive].amin())
            self.width = 2 * int(positive.sum(1).amax())


def largest_among(
    hidden_pre: PreActivations, among: Tensor, k: int, *, absolute: bool = False
) -> SparseCode:
    """Return the k largest pre-activations among latents [m] bool, as factors of decoder rows.

    With `absolute`, they are ranked by their absolute value.
    """
    x, weight, bias, norms = hidden_pre.operands
    scale = None if norms is None else norms.detach()  # cancels, as in `_code`
    dead = PreActivations(x, weight, bias, scale, rectified=False, among=among)
    found = dead.largest(k, absolute=absolute)
    return SparseCode(unscaled(*found, scale), found.indices)


def threshold_code(sae: Any, inputs: Tensor, encode: Callable[..., ThresholdCode]) -> Code:
    """Return the values that are positive and above the latent's threshold.

    `encode` as in `above`.
    """
    threshold = sae.threshold.detach().clamp(min=0)
    threshold = threshold.to(torch.promote_types(threshold.dtype, torch.float32))
    found = above(sae, inputs, threshold, Room(len(threshold)), encode=encode)
    assert found is not None
    return _code(found.values, found.indices, None)


class Room:
    """Size of the fullest row of the last batch, a guess for the next; it affects the time only."""

    def __init__(self, latents: int) -> None:
        self._latents, self.fullest = latents, min(_FIRST_FULLEST, latents)

    @property
    def width(self) -> int:
        """Width to reserve for rows of the next batch."""
        return min(max(1, 2 * self.fullest), self._latents)


def above(
    sae: Any,
    inputs: Tensor,
    threshold: Tensor,
    room: Room,
    most: float = math.inf,
    encode: Callable[..., ThresholdCode] = threshold_encode,
) -> ThresholdCode | None:
    """Return the pre-activations of inputs [n, d] above a threshold [m].

    The code is as wide as the fullest row; None if that has more than `most` latents. `encode` is
    `threshold_encode` or an equivalent with a packed encoder.
    """

    def encode_in(width: int) -> ThresholdCode:
        return encode(
            inputs,
            sae.W_enc.T,
            sae.b_enc,
            threshold=threshold,
            width=width,
            precision=precision_at(inputs),
        )

    found = all_above(encode_in, room.width, len(threshold), most)
    room.fullest = int(found.counts.amax()) if len(inputs) else 0
    return None if room.fullest > most else found


def decoded(sae: Any, weights: Tensor, indices: Tensor) -> Tensor:
    """Return the weighted sums of the decoder's rows, [n, d], without b_dec."""
    return sparse_decode(weights, indices, sae.W_dec)


def reconstruction(sae: Any, code: Code, lead: torch.Size) -> Tensor:
    """Return the result of SAELens's `decode` for the code of rows [*lead, d]."""
    rows = decoded(sae, code.weights, code.indices) + sae.b_dec
    out = sae.hook_sae_recons(rows.view(*lead, rows.shape[-1]))
    out = sae.run_time_activation_norm_fn_out(out)
    return sae.reshape_fn_out(out, sae.d_head)  # type: ignore[no-any-return]


def unscaled(values: Tensor, indices: Tensor, scale: Tensor | None) -> Tensor:
    """Return values [n, k] divided by the scale [m] that was applied for their selection."""
    if scale is None:
        return values
    chosen = scale[indices]
    return torch.where(chosen > 0, values / chosen, 0.0)


def _code(weights: Tensor, indices: Tensor, norms: Tensor | None) -> Code:
    # Norms select latents but cancel in the reconstruction, so no gradient reaches them from it;
    # gradients of activations do reach them.
    return Code(weights, weights if norms is None else weights * norms[indices], indices)


def _largest(values: Tensor, wanted: int) -> Tensor:
    """Return the `wanted` largest of all positive values, with zeros in place of the others."""
    if int((values > 0).sum()) <= wanted:
        return values
    flat = values.flatten()
    kept = flat.topk(wanted).indices
    return torch.zeros_like(flat).index_copy_(0, kept, flat[kept]).view_as(values)


class _Chosen(torch.autograd.Function):
    """Scores of latents that were selected without autograd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, indices: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, indices)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, indices = ctx.saved_tensors
        needed = (*ctx.needs_input_grad[:3], False)
        return (*encode_gradients(grad, indices, x, weight, bias, None, needed)[:3], None, None)
