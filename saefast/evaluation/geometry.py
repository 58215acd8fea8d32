"""Cosines between the rows of an SAE's weights."""

from typing import NamedTuple

import torch
from torch import Tensor

from saefast.linalg import one_thread
from saefast.sae import SAE

_BLOCK = 1024


class Geometry(NamedTuple):
    """Cosines of each latent."""

    encoder_decoder: Tensor
    """[m] float64 cosine of the encoder and decoder row; NaN where a row is zero"""
    nearest: Tensor
    """[m] float64 largest cosine of the decoder row with another latent's"""


@torch.no_grad()
def geometry_of(sae: SAE) -> Geometry:
    """Compute the cosines of encoder and decoder rows, and of nearest decoder rows."""
    with one_thread():
        encoder, decoder = (
            rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            for rows in (sae.W_enc.float().cpu(), sae.W_dec.float().cpu())
        )
        products = (encoder * decoder).sum(1).double()
        nearest = torch.full((sae.m,), torch.nan, dtype=torch.float64)
        for first in range(0, sae.m, _BLOCK):
            block = decoder[first : first + _BLOCK] @ decoder.T
            itself = torch.arange(len(block))
            block[itself, first + itself] = -torch.inf
            block[block.isnan()] = -torch.inf
            nearest[first : first + _BLOCK] = block.amax(1).double()
    return Geometry(products, nearest)
