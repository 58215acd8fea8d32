"""The entries of a sparse code sorted by latent, with long runs cut into pieces of one length.

Everything has a size that is known beforehand, so that nothing waits for the GPU. A stable sort
and a fixed cut make every sum over a latent's tokens the same sum in every run.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PIECE = 512
"""Entries in a piece; latents with more are summed in two passes."""


class ByLatent(NamedTuple):
    """Entries in the order of their latents, and within a latent of their tokens."""

    entry: Tensor
    """[n k] int32 or int64: the position in the code"""
    start: Tensor
    """[m + 1] where the entries of each latent begin"""
    piece_start: Tensor
    """[m + 1] where the pieces of each latent begin; only latents that are cut have any"""
    piece_begin: Tensor
    """[pieces] where each piece begins and ends; those that there might have been are empty"""
    piece_end: Tensor


def sort_by_latent(indices: Tensor, latents: int, piece: int = PIECE) -> ByLatent:
    """Sort a code's [n, k] indices, all in [0, latents]; `latents` leaves an entry out."""
    flat = indices.flatten().int()
    ordered, entry = torch.sort(flat, stable=True)
    bounds = torch.arange(latents + 1, dtype=torch.int32, device=flat.device)
    start = torch.searchsorted(ordered, bounds)
    count = start[1:] - start[:-1]
    cut = torch.where(count > piece, (count + (piece - 1)) // piece, 0)
    piece_start = torch.nn.functional.pad(cut.cumsum(0), (1, 0))
    # A latent that is cut has more than `piece` entries and at most twice entries / piece pieces.
    number = torch.arange(2 * flat.numel() // piece, device=flat.device)
    latent = torch.searchsorted(piece_start, number, right=True).clamp(max=latents) - 1
    begin = start[latent] + (number - piece_start[latent]) * piece
    begin = torch.where(number < piece_start[-1], begin, start[-1])
    end = torch.minimum(begin + piece, start[latent + 1])
    return ByLatent(entry, start, piece_start, begin, end)
