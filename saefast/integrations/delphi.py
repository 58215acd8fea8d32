"""A `saefast.SAE` as delphi expects sparsify's sparse coders, to cache its latents.

    encode = functools.partial(delphi.sparse_coders.load_sparsify.sae_dense_latents,
                               sae=DelphiSae(saefast.load_sae(path)))
    LatentCache(model, {"layers.3": encode}, ...)

delphi itself is not imported.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saefast.integrations.pre_activations import PreActivations
from saefast.sae import SAE
from saefast.types import SparseCode


class EncoderOutput(NamedTuple):
    """What sparsify's `encode` returns."""

    top_acts: Tensor
    """[n, w]"""
    top_indices: Tensor
    """[n, w] no latent twice in a row, so that they can be written into a dense matrix"""
    pre_acts: Tensor
    """[n, m] computed when it is read"""


class DelphiConfig(NamedTuple):
    """What delphi reads of a coder's config."""

    k: int
    num_latents: int
    activation: str
    transcode: bool
    skip_connection: bool = False


class DelphiSae(nn.Module):
    """encode, num_latents, cfg, device, dtype.

    Args:
        sae: any SAE; a transcoder takes what goes into the layer, as sparsify's do.
    """

    def __init__(self, sae: SAE) -> None:
        super().__init__()
        self.sae, self.num_latents, self.d_in = sae, sae.m, sae.d
        self.cfg = DelphiConfig(sae.k, sae.m, sae.variant, sae.transcodes)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.sae.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.sae.W_enc.dtype

    def encode(self, x: Tensor) -> EncoderOutput:
        """The active latents of x [n, d]."""
        x = x.to(self.dtype)
        code = _without_repeats(self.sae.encode(x), self.sae.m)
        inputs = self.sae.inputs(x)
        pre_acts = PreActivations(inputs, self.sae.W_enc, self.sae.b_enc, rectified=True)
        return EncoderOutput(*code, pre_acts)

    def decode(self, top_acts: Tensor, top_indices: Tensor) -> Tensor:
        """The reconstruction of a code."""
        return self.sae.decode(SparseCode(top_acts, top_indices))

    def forward(self, x: Tensor) -> Any:
        """The reconstruction of x [..., d]."""
        return self.sae(x)


def _without_repeats(code: SparseCode, m: int) -> SparseCode:
    """Zeros that fill up a row name latents that the row does not have, each another one."""
    values, indices = code
    n, width = indices.shape
    filling = values <= 0
    if not bool(filling.any()):
        return code
    # A row has at most `width` active latents, so as many of twice that number are not active; or
    # all latents are looked at, and those not active are enough for what is left of the row.
    among = min(2 * width, m)
    taken = torch.zeros(n, among, dtype=torch.bool, device=indices.device)
    active = ~filling & (indices < among)
    rows = torch.arange(n, device=indices.device)[:, None].expand_as(indices)
    taken[rows[active], indices[active]] = True
    free = taken.to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    place = filling.cumsum(1) - 1  # the how many-th that fills up
    return SparseCode(values, torch.where(filling, free.gather(1, place.clamp(min=0)), indices))
