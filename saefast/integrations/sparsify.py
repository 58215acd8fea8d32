"""Replacements of sparsify's encoder and decoder by saefast's fused ops.

    import saefast.integrations.sparsify
    saefast.integrations.sparsify.enable()

Call `enable()` before training, and `disable()` to revert. Every existing and future `SparseCoder`
uses what is enabled at that moment; files stay the same. Two gradients differ from sparsify's own,
which are wrong: a selected latent whose activation is zero gets none, and the losses of dead
latents (AuxK) and of more latents (Multi-TopK) reach the encoder, too.
"""

from typing import Any

from sparsify import fused_encoder as _encoders
from sparsify import sparse_coder as _coders
from sparsify import utils as _decoders
from sparsify.fused_encoder import EncoderOutput
from torch import Tensor

from saefast.integrations.pre_activations import DTYPES, PreActivations
from saefast.ops.sparse_decode import sparse_decode

_own_encoder, _own_decoder = _encoders.fused_encoder, _decoders.decoder_impl


def enable() -> None:
    """Make sparsify encode and decode with saefast from now on."""
    _swap(fused_encoder, decode)


def disable() -> None:
    """Restore sparsify's own encoder and decoder."""
    _swap(_own_encoder, _own_decoder)


def _swap(encoder: Any, decoder: Any) -> None:
    for module in (_encoders, _coders):  # names are bound where they are imported
        module.fused_encoder = encoder
    for module in (_decoders, _coders):
        module.decoder_impl = decoder


def fused_encoder(
    input: Tensor, weight: Tensor, bias: Tensor | None, k: int, activation: str
) -> EncoderOutput:
    """Replace sparsify's `fused_encoder`, with pre-activations that are computed when read.

    Args:
        input: [n, d] inputs.
        weight: [m, d] encoder.
        bias: [m] biases, or None.
        k: number of latents to select in each row.
        activation: sparsify's name of the activation; others than "topk" use sparsify's encoder.

    Returns:
        Values [n, k] and latents [n, k] of the code, and pre-activations [n, m].
    """
    if activation != "topk" or weight.dtype not in DTYPES:
        return _own_encoder(input, weight, bias, k, activation)
    pre_acts = PreActivations(input, weight, bias, rectified=True)
    return EncoderOutput(*pre_acts.largest(k), pre_acts)


def decode(top_indices: Tensor, top_acts: Tensor, W_dec: Tensor) -> Tensor:
    """Replace sparsify's `decoder_impl`.

    Args:
        top_indices: [n, k] latents of the code.
        top_acts: [n, k] their values.
        W_dec: [d, m] decoder, transposed.

    Returns:
        [n, d] reconstruction.
    """
    if W_dec.dtype not in DTYPES:
        return _own_decoder(top_indices, top_acts, W_dec)  # type: ignore[no-any-return]
    return sparse_decode(top_acts, top_indices, W_dec.mT)
