"""Files of a finished SAE of which every rank has a share, without a rank that holds it whole."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from saefast.disk.streamed_tensors import Pieces, write_pieces
from saefast.sae import SAE
from saefast.storage import save_into
from saefast.train.finite_state import NO_RESULT, check_weights
from saefast.train.initial import Scales, folded
from saefast.train.ranks.share import Share, shallow_copy

PIECE = 4 << 20
"""Bytes of a piece of a matrix, of which the writing rank has a few in memory."""


def save_together(
    folder: Path, part: SAE, share: Share, scales: Scales, firing_rate: Tensor
) -> None:
    """Write the files of an SAE, with the bytes that `save_into` writes for the whole one.

    All ranks call this. The first one writes what the others send piece by piece. Raises a
    ValueError if a weight of this rank is NaN or infinite, before the file is complete.

    Args:
        folder: folder of the SAE, which may hold other files.
        part: this rank's share of the SAE, which takes scaled activations.
        share: the share of this rank.
        scales: scales of the activations.
        firing_rate: [m] firing rates of all latents.
    """
    matrices = {"W_dec": part.W_dec.detach(), "W_enc": part.W_enc.detach()}
    outline = shallow_copy(part)
    for name in ("W_enc", "W_dec"):
        sizes = (share.latents, part.d if name == "W_enc" else share.width)
        empty = torch.empty(sizes, dtype=matrices[name].dtype, device="meta")
        outline.register_parameter(name, nn.Parameter(empty))
    outline.b_enc = nn.Parameter(share.whole("b_enc", part.b_enc.detach()))
    outline = folded(outline, scales)
    outline.firing_rate = firing_rate
    there = {name: each for name, each in outline.state_dict().items() if not each.is_meta}
    check_weights(folder.name, there, NO_RESULT)
    if share.ranks.rank > 0:
        for name, matrix in matrices.items():  # in the order in which they are written
            for _ in _pieces(folder.name, name, matrix, share, scales):
                pass
        return

    def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
        each = {
            name: Pieces(
                tuple(tensor.shape),
                _pieces(folder.name, name, matrices[name], share, scales)
                if tensor.is_meta
                else [tensor.contiguous()],
            )
            for name, tensor in tensors.items()
        }
        write_pieces(path, each, part.W_dec.dtype)

    save_into(folder, outline, write)


def _pieces(label: str, name: str, part: Tensor, share: Share, scales: Scales) -> Iterator[Tensor]:
    """Send the pieces of a matrix as it is stored, W_enc as its transpose, to the first rank.

    Yields:
        The next rows of the stored matrix, on the first rank alone.
    """
    latents, width = share.latents, part.shape[1] if name == "W_enc" else share.width
    rows, columns = (width, latents) if name == "W_enc" else (latents, width)
    count = max(1, PIECE // (columns * part.itemsize))
    for start in range(0, rows, count):
        here = slice(start, min(start + count, rows))
        own = part[:, here].T if name == "W_enc" else part[here] * (scales.x / scales.target)
        check_weights(label, {name: own}, NO_RESULT)
        got = _sent_to_first(share, name, own)
        if got:
            yield _joined(share, name, got)


def _sent_to_first(share: Share, name: str, own: Tensor) -> list[Tensor]:
    """Send this rank's columns of some rows to the first rank; return those of all ranks there."""
    first, size = share.ranks.rank == 0, share.ranks.size
    counts = share.counts_of_rows() if name == "W_enc" else share.counts_of_columns()
    parts = [own.contiguous(), *[own.new_empty(0)] * (size - 1)]
    shapes = [(len(own), count) if first else (0,) for count in counts]
    got = share.ranks.all_to_all(parts, shapes)
    return got if first else []


def _joined(share: Share, name: str, columns: list[Tensor]) -> Tensor:
    """Return rows of which each rank has some columns."""
    if name == "W_enc":
        return torch.cat(columns, 1)
    whole = columns[0].new_empty(len(columns[0]), share.width)
    for rank, own in enumerate(columns):
        whole[:, share.columns_of(rank)] = own
    return whole
