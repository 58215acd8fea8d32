"""Strategies for Hypothesis: shapes, data with exact arithmetic, and difficult data."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from saefast import SAE
from saefast.ops.cpu import native

FLOATS = (torch.float32, torch.float64, torch.bfloat16)
dtypes = st.sampled_from(FLOATS)
seeds = st.integers(0, 2**31 - 1)


class Shape(NamedTuple):
    """Numbers of rows, width, latents and active latents."""

    n: int
    d: int
    m: int
    k: int


@st.composite
def shapes(draw: st.DrawFn, most_latents: int = 300) -> Shape:
    """Draw sizes around the widths of tiles and vectors, with empty batches, k = 1 and k = m."""
    n = draw(st.one_of(st.integers(0, 9), st.sampled_from([95, 96, 97, 130])))
    d = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 129])))
    m = draw(
        st.one_of(st.integers(1, most_latents), st.sampled_from([15, 16, 17, 63, 64, 65, 128]))
    )
    k = draw(st.one_of(st.just(1), st.just(m), st.integers(1, m)))
    return Shape(n, d, m, k)


def native_products() -> list[str]:
    """Return the products that the native engine can screen with at the active instruction set."""
    return ["float32", "bfloat16", *(["int16"] if native.has_int16_products() else [])]


def generator(seed: int) -> torch.Generator:
    """Return torch's generator from a drawn seed."""
    return torch.Generator().manual_seed(seed)


def small_integers(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Draw integers from -3 to 3: products and sums are exact, and ties are frequent."""
    return torch.randint(-3, 4, shape, generator=generator(seed)).to(dtype)


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Draw Gaussian values."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def uneven(shape: tuple[int, int], seed: int, dtype: torch.dtype) -> Tensor:
    """Draw rows whose norms span nine orders of magnitude; one in eight is zero."""
    rows = normal(shape, seed, torch.float64)
    powers = torch.randint(-15, 16, (shape[0], 1), generator=generator(seed + 1))
    alive = torch.rand(shape[0], 1, generator=generator(seed + 2)) > 1 / 8
    return (rows * 2.0**powers * alive).to(dtype)


def as_laid_out(tensor: Tensor, layout: str) -> Tensor:
    """Return the same values in memory that is contiguous, transposed, offset or with gaps."""
    if layout == "transposed":
        return tensor.T.contiguous().T
    if layout == "offset":
        padded = torch.full((tensor.numel() + 3,), torch.nan, dtype=tensor.dtype)
        padded[3:] = tensor.flatten()
        return padded[3:].view(tensor.shape)
    if layout == "gaps":
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan, dtype=tensor.dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    return tensor


layouts = st.sampled_from(["contiguous", "transposed", "offset", "gaps"])


def random_sae(m: int, d: int, seed: int, variant: str = "topk", k: int = 3) -> SAE:
    """Make an SAE without tied weights and unit norms, with a latent that never fires."""
    sae = SAE(d, m, k=min(k, m), variant=variant, seed=seed)
    random = generator(seed + 1)
    with torch.no_grad():
        for values in sae.parameters():
            values.copy_(torch.randn(values.shape, generator=random) / 2)
        # A large bias of either sign makes a latent of abstopk fire.
        sae.b_enc[m // 2] = -torch.inf if variant == "abstopk" else -1000.0
        if variant == "jumprelu":
            sae.jump_threshold.abs_()
    return sae
