"""Absorption of single words: parts of a probe's reading due to latents that are not main ones."""

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
"""Minimum cosine of a latent and the probe for full absorption"""
ABSORBING = 0.1
"""Minimum cosine of a latent and the probe for partial absorption"""
SHARE = 0.4
"""Minimum share of the probe's reading that absorbing latents contribute"""
ABSORBERS = 3
"""Maximum number of latents that count as absorbing one word"""


class AbsorbedWords(NamedTuple):
    """Absorption of each of n words."""

    fraction: Tensor
    """[n] float64 in [0, 1]: contribution of absorbing latents, as a share of it and the main
    latents' contribution; 0 where absorbing latents contribute less than `SHARE` of the reading,
    where main latents contribute all of it, or where it is not positive"""
    full: Tensor
    """[n] bool: no main latent fires, and one other latent contributes at least `SHARE`"""
    reading: Tensor
    """[n] float64 projection of the row on the probe's direction"""
    main: Tensor
    """[n] float64 contribution of the main latents to it"""
    absorbers: Tensor
    """[n, 3] int64 absorbing latents with the largest contributions, padded with -1"""
    contributions: Tensor
    """[n, 3] float64 their contributions, padded with 0"""

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
        code: code of the words' rows.
        rows: [n, d] activations at the words.
        W_dec: [m, d] rows of the decoder.
        probe: [d] direction that separates the class from others, of any length but zero.
        main: main latents of the class.
        centre: [d] vector subtracted from rows before the reading, such as their mean, which no
            latent explains; None: zero, as published.

    Returns:
        Shares of absorption [words], with the contributions that they are computed from.
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
    # An activation below zero adds the opposite of the decoder row.
    along = cosine[indices] * values.sign()
    of_main = is_main[indices] & (values != 0)
    main_contribution = torch.where(of_main, contributions, 0.0).sum(1)
    largest, place = contributions.max(dim=1)
    top_cosine = along.gather(1, place[:, None])[:, 0]
    full = (
        ~(of_main & (values.abs() >= SILENT)).any(1)
        & (top_cosine >= ALIGNED)
        & (reading > 0)
        & (largest >= SHARE * reading)
    )

    may = ~is_main[indices] & (along >= ABSORBING) & (contributions > 0)
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
    """Return <row, direction>, [n] float64, summed in an order independent of threads."""
    with one_thread():
        return (rows @ direction.to(rows)).double()
