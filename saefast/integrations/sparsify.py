"""sparsify with saefast inside: its encoder and decoder, swapped for the fused ops.

    import saefast.integrations.sparsify
    saefast.integrations.sparsify.enable()

before training, and `disable()` to go back. Whatever was or will be made of `SparseCoder` uses
what is enabled at that moment; files stay the same. Two gradients differ from sparsify's own,
because there they are wrong: a selected latent whose activation is zero gets none, and the losses
of dead latents (AuxK) and of more latents (Multi-TopK) reach the encoder, too.
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
    """Let sparsify encode and decode with saefast, from now on."""
    _swap(fused_encoder, decode)


def disable() -> None:
    """Let sparsify do it by itself again."""
    _swap(_own_encoder, _own_decoder)


def _swap(encoder: Any, decoder: Any) -> None:
    for module in (_encoders, _coders):  # names are bound where they are imported
        module.fused_encoder = encoder
    for module in (_decoders, _coders):
        module.decoder_impl = decoder


def fused_encoder(
    input: Tensor, weight: Tensor, bias: Tensor | None, k: int, activation: str
) -> EncoderOutput:
    """What sparsify's `fused_encoder` does, with pre-activations that wait until they are read."""
    if activation != "topk" or weight.dtype not in DTYPES:
        return _own_encoder(input, weight, bias, k, activation)
    pre_acts = PreActivations(input, weight, bias, rectified=True)
    return EncoderOutput(*pre_acts.largest(k), pre_acts)


def decode(top_indices: Tensor, top_acts: Tensor, W_dec: Tensor) -> Tensor:
    """What sparsify's `decoder_impl` does; W_dec is [d, m]."""
    if W_dec.dtype not in DTYPES:
        return _own_decoder(top_indices, top_acts, W_dec)  # type: ignore[no-any-return]
    return sparse_decode(top_acts, top_indices, W_dec.mT)
