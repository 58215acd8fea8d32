"""How much of what a probe reads in a word other latents carry than the class's own."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import checks
from saefast.linalg import one_thread
from saefast.types import SparseCode, brief

SILENT = 1e-8
"""Activation below which a latent does not fire"""
ALIGNED = 0.025
"""Least cosine with the probe of the latent that absorbs a word whole"""
ABSORBING = 0.1
"""Least cosine with the probe of a latent that absorbs a part of a word"""
SHARE = 0.4
"""Least share of the probe's reading that absorbing latents contribute"""
ABSORBERS = 3
"""Most latents that count as absorbing one word"""


class AbsorbedWords(NamedTuple):
    """Absorption of each of n words."""

    fraction: Tensor
    """[n] float64 in [0, 1]: what absorbing latents contribute, as a share of that and of what the
    main latents contribute; 0 where they contribute too little"""
    full: Tensor
    """[n] bool: no main latent fires, and one other latent carries most of the reading"""
    reading: Tensor
    """[n] float64 the row's projection on the probe's direction"""
    main: Tensor
    """[n] float64 contribution of the main latents to it"""
    absorbers: Tensor
    """[n, 3] int64 latents that may absorb and contribute most; -1 fills up"""
    contributions: Tensor
    """[n, 3] float64 theirs; 0 fills up"""

    def __repr__(self) -> str:
        return brief(self)


@torch.no_grad()
def absorbed_words(
    code: SparseCode,
    rows: Tensor,
    W_dec: Tensor,
    probe: Tensor,
    main: Sequence[int],
    *,
    centre: Tensor | None = None,
) -> AbsorbedWords:
    """Measure absorption word by word, for words of one class.

    Latent j contributes z_j <d_j, p> to the reading <h, p>, where p is the probe's unit direction.
    A row d_j may have any norm: z_j * c with d_j / c is the same latent.

    Args:
        code: of the words' rows.
        rows: [n, d] activations at the words.
        W_dec: [m, d] rows of the decoder.
        probe: [d] direction that tells the class from others, of any length but zero.
        main: latents that stand for the class.
        centre: [d] what is taken from rows before the probe reads them, such as their mean, which
            no latent explains; None: nothing, as published.
    """
    checks.floating("rows", rows, "[n, d]")
    checks.floating("W_dec", W_dec, "[m, d]")
    checks.size("rows", rows, 1, W_dec.shape[1], "the width of W_dec")
    checks.shape("probe", probe, (W_dec.shape[1],))
    values, indices = code.values.double(), code.indices
    direction = (probe / torch.linalg.vector_norm(probe.double())).to(W_dec.device, torch.float64)
    if not bool(direction.isfinite().all()):
        raise ValueError("probe must be finite and not zero, to have a direction")
    reading = _projected(rows.to(W_dec.device), direction)
    if centre is not None:
        reading = reading - float(_projected(centre.to(W_dec.device)[None], direction))
    aligned = _projected(W_dec, direction)
    norms = torch.linalg.vector_norm(W_dec, dim=1).double()
    cosine = torch.where(norms > 0, aligned / norms, 0.0)
    is_main = torch.zeros(len(W_dec), dtype=torch.bool, device=W_dec.device)
    is_main[torch.as_tensor(main, dtype=torch.int64, device=W_dec.device)] = True

    contributions = values * aligned[indices]
    of_main = is_main[indices] & (values > 0)
    main_contribution = torch.where(of_main, contributions, 0.0).sum(1)
    largest, place = contributions.max(dim=1)
    top_cosine = cosine[indices.gather(1, place[:, None])[:, 0]]
    full = (
        ~(of_main & (values >= SILENT)).any(1)
        & (top_cosine >= ALIGNED)
        & (reading > 0)
        & (largest >= SHARE * reading)
    )

    may = (values > 0) & ~is_main[indices] & (cosine[indices] >= ABSORBING) & (contributions > 0)
    absorbing = torch.where(may, contributions, 0.0)
    top = absorbing.topk(min(ABSORBERS, absorbing.shape[1]), dim=1)
    absorbed = top.values.sum(1)
    unaccounted = torch.minimum(absorbed, reading - main_contribution)
    part = unaccounted / (unaccounted + main_contribution)
    fraction = torch.where(main_contribution <= 0, 1.0, part)
    counts = (reading > 0) & (main_contribution < reading) & (absorbed >= SHARE * reading)
    missing = (0, ABSORBERS - top.values.shape[1])
    latents = torch.where(top.values > 0, indices.gather(1, top.indices), -1)
    return AbsorbedWords(
        fraction=torch.where(counts, fraction, 0.0),
        full=full,
        reading=reading,
        main=main_contribution,
        absorbers=torch.nn.functional.pad(latents, missing, value=-1),
        contributions=torch.nn.functional.pad(top.values, missing),
    )


def _projected(rows: Tensor, direction: Tensor) -> Tensor:
    """[n] float64 <row, direction>, in an order of summation that threads do not change."""
    with one_thread():
        return (rows @ direction.to(rows)).double()
