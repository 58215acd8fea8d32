"""Adapter of `saefast.SAE` to the interface that delphi expects of sparsify's sparse coders.

With it delphi caches the latents of an SAE::

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
    """Result of `encode`, with the fields of sparsify's."""

    top_acts: Tensor
    """[n, w] values of the latents in `top_indices`"""
    top_indices: Tensor
    """[n, w] int64, distinct within a row, so that it can be scattered into a dense matrix"""
    pre_acts: Tensor
    """[n, m] pre-activations, rectified but for abstopk, computed when they are read"""


class DelphiConfig(NamedTuple):
    """Fields of a coder's config that delphi reads."""

    k: int
    """number of active latents per row"""
    num_latents: int
    """number of latents"""
    activation: str
    """variant of the SAE"""
    transcode: bool
    """whether it reconstructs another site than it encodes"""
    skip_connection: bool
    """whether a linear map of the input is added to the reconstruction"""


class DelphiSae(nn.Module):
    """Wrapper of an SAE with encode, decode, num_latents, d_in, cfg, device and dtype.

    Args:
        sae: any SAE; a transcoder takes the input of its layer, as sparsify's do.
    """

    def __init__(self, sae: SAE) -> None:
        super().__init__()
        self.sae, self.num_latents, self.d_in = sae, sae.m, sae.d
        self.cfg = DelphiConfig(sae.k, sae.m, sae.variant, sae.transcodes, sae.skip)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.sae.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.sae.W_enc.dtype

    def encode(self, x: Tensor) -> EncoderOutput:
        """Return the active latents of each row.

        Args:
            x: [n, d] rows.
        """
        x = x.to(self.dtype)
        code = _without_repeats(self.sae.encode(x), self.sae.m)
        inputs = self.sae.inputs(x)
        rectified = self.sae.variant != "abstopk"
        pre_acts = PreActivations(inputs, self.sae.W_enc, self.sae.b_enc, rectified=rectified)
        return EncoderOutput(*code, pre_acts)

    def decode(self, top_acts: Tensor, top_indices: Tensor) -> Tensor:
        """Return the reconstruction [n, d_out] of a code.

        Args:
            top_acts: [n, w] values.
            top_indices: [n, w] int64 latents.
        """
        return self.sae.decode(SparseCode(top_acts, top_indices))

    def forward(self, x: Tensor) -> Any:
        """Return the reconstruction of rows.

        Args:
            x: [..., d] rows.
        """
        return self.sae(x)


def _without_repeats(code: SparseCode, m: int) -> SparseCode:
    """Give the zeros that pad a row distinct latents that the row does not hold yet."""
    values, indices = code
    n, width = indices.shape
    filling = values == 0
    if not bool(filling.any()):
        return code
    # A row has at most `width` active latents, so among twice as many, at least `width` are
    # inactive. If m is smaller, all latents are considered, and the inactive ones suffice for the
    # rest of the row.
    among = min(2 * width, m)
    taken = torch.zeros(n, among, dtype=torch.bool, device=indices.device)
    active = ~filling & (indices < among)
    rows = torch.arange(n, device=indices.device)[:, None].expand_as(indices)
    taken[rows[active], indices[active]] = True
    free = taken.to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    place = filling.cumsum(1) - 1  # position among the padding of the row
    return SparseCode(values, torch.where(filling, free.gather(1, place.clamp(min=0)), indices))
