"""Small messages between ranks, and agreement on common decisions."""

import json
from typing import Any

import torch
from torch import Tensor

from saefast.train.ranks.group import Ranks


def said(ranks: Ranks, word: Any) -> list[Any]:
    """Return the message of each rank: values that JSON can hold."""
    text = torch.frombuffer(bytearray(json.dumps(word).encode()), dtype=torch.uint8)
    size = torch.tensor([len(text)], device="cpu")
    sizes = [int(length) for length in ranks.all_gather(size, [(1,)] * ranks.size)]
    texts = ranks.all_gather(text, [(length,) for length in sizes])
    return [json.loads(bytes(each.tolist())) for each in texts]


def wait_for_all(ranks: Ranks) -> None:
    """Return once every rank has called this."""
    ranks.all_gather(torch.zeros(1, dtype=torch.uint8, device="cpu"), [(1,)] * ranks.size)


def any_of(ranks: Ranks, *flags: bool) -> list[bool]:
    """Return, for each flag, whether it is set on any rank."""
    mine = torch.tensor(flags, dtype=torch.uint8, device="cpu")
    each = ranks.all_gather(mine, [tuple(mine.shape)] * ranks.size)
    return [bool(flag) for flag in torch.stack(each).amax(0)]


def check_agreement(ranks: Ranks, what: str, mine: Any) -> None:
    """Raise a ValueError unless all ranks have the same value."""
    values = said(ranks, mine)
    for rank, value in enumerate(values):
        if value != values[0]:
            raise ValueError(
                f"all ranks must have the same {what}, but rank {rank} has other ones than rank 0; "
                f"start all with the same arguments, on a file system that all share"
            )


def sent_by(ranks: Ranks, sender: int, tensor: Tensor) -> Tensor:
    """Return the tensor of rank `sender` on every rank; those of others give shape and dtype."""
    part = tensor if ranks.rank == sender else tensor.new_empty(0)
    shapes = [tuple(tensor.shape) if rank == sender else (0,) for rank in range(ranks.size)]
    return ranks.all_gather(part, shapes)[sender]


def bytes_sent_by(ranks: Ranks, sender: int, data: bytes) -> bytes:
    """Return the bytes of rank `sender` on every rank; those of others are ignored."""
    size = int(sent_by(ranks, sender, torch.tensor([len(data)], device="cpu")))
    message = torch.empty(size, dtype=torch.uint8, device="cpu")
    if ranks.rank == sender:
        message = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return sent_by(ranks, sender, message).numpy().tobytes()
