"""Models of peers with random weights, and comparisons with them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import saefast

D, M, D_OUT, K = 24, 88, 40, 5


class Peer(NamedTuple):
    """Results of a peer: values [n, m] and reconstructions."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor], Tensor]


def rows(n: int = 50) -> Tensor:
    return 2 * torch.randn(n, D, generator=torch.Generator().manual_seed(7)) + 0.3


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw weights about as large as trained ones, and biases that are not negligible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            drawn = torch.randn(value.shape, generator=generator)
            if name in ("threshold", "log_threshold"):
                drawn = drawn.abs() / 2  # negative ones have a separate test
            value.copy_(drawn / value.shape[-1] ** 0.5 if value.ndim == 2 else drawn / 2)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Assert equality up to the rounding of sums of tens of float32 products in any order."""
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max()
    assert error <= 16 * torch.finfo(torch.float32).eps * expected.abs().max(), error
    assert expected.abs().max() > 0


def assert_agree(sae: saefast.SAE, peer: Peer, x: Tensor | None = None) -> None:
    x = rows() if x is None else x
    with torch.no_grad():
        code = sae.encode(x)
        expected = peer.encode(x)
        assert_close(code.to_dense(sae.m), expected)
        assert 0 < (expected != 0).float().mean() < 1
        if sae.normalise == "none":
            assert_close(sae.decode(code), peer.decode(expected))
        assert_close(sae(x), peer.forward(x))


def there_and_back(folder: Path, peer: Peer, load: Callable[[Path], Peer], name: str) -> None:
    """Load the peer's file, write it, and load it with the peer."""
    sae = saefast.load_sae(folder)
    assert_agree(sae, peer)
    again = saefast.save_sae(sae, folder.parent / "again", format=name)
    assert_agree(sae, load(again))
    assert_agree(saefast.load_sae(again), peer)
