"""Memory of a rank that trains SAEs."""

from typing import NamedTuple

import torch

from saefast.ops.cpu import native
from saefast.ops.latent_pass import MOST_STORED
from saefast.ops.screens import screen_at
from saefast.train.config import TrainConfig
from saefast.train.planning.exchanges import CountedRanks, usual_codes
from saefast.train.ranks.finished import PIECE
from saefast.train.ranks.share import LATENTS_PER_TASK, Share

PROCESS_BYTES = 600_000_000
"""Bytes of a process that has imported all packages and reads rows"""
_FLOAT, _LONG = 4, 8
_BATCHES = 14
"""Batches in memory: those that are read ahead, with their copies while they are scaled, and those
of the step."""
_RESIDUALS = 6
"""Arrays with a row for each row of the batch and this rank's columns."""
_CODES = 6
"""Copies of the code and of its gradients, with the lists from which it is merged."""


class RankMemory(NamedTuple):
    """Bytes of memory of a rank, apart from those of the process itself."""

    state: int
    """weights, moments of Adam, packed encoder and counters of the rank's share of the SAEs"""
    step: int
    """largest memory of a step beside the state: batches, codes, residuals and exchanges"""
    end: int
    """largest memory beside both at the end, for copies of the SAE, or pieces of a shared one"""

    @property
    def peak(self) -> int:
        """Largest memory during a training, by which the process has grown at its end."""
        return self.state + self.step + self.end


def rank_memory(
    config: TrainConfig, d: int, rank: int, ranks: int, *, d_out: int | None = None
) -> RankMemory:
    """Return the memory of a rank on a CPU for one SAE in float32, trained into a folder.

    Args:
        config: settings of the training.
        d: width of the rows.
        rank: number of the rank.
        ranks: number of ranks that train the SAE together; 1: the rank trains it alone.
        d_out: width of the reconstructed rows; None: d.

    Returns:
        The memory. Batches are counted for this SAE, though all SAEs of a rank share them.
    """
    width, latents, n = d if d_out is None else d_out, config.latents, config.batch_size
    share = Share(CountedRanks(rank, ranks), latents, width)
    rows, columns = share.rows.stop - share.rows.start, share.counts_of_columns()[rank]
    parameters = rows * (d + 1) + latents * columns + width
    state = 3 * _FLOAT * parameters + _packed(config.precision, rows, d) + 2 * _LONG * latents
    listed = usual_codes(config, ranks).width
    exchanged = 0
    if ranks > 1:
        tasks = -(-rows // LATENTS_PER_TASK)
        exchanged = 2 * _FLOAT * (tasks * d + n * listed) + 4 * _LONG * latents
    kept = 0
    if config.rules.clip is not None and ranks == 1:
        gradients = _FLOAT * latents * (d + width + 1)
        kept = gradients if gradients <= MOST_STORED else 0
    step = (
        _FLOAT * n * (_BATCHES * (d if width == d else d + width) + _RESIDUALS * columns)
        + (_FLOAT + _LONG) * n * listed * _CODES
        + exchanged
        + kept
    )
    weights = _FLOAT * (latents * (d + width + 1) + width)
    # The result, and one side turned for its file.
    end = weights * 3 // 2
    if ranks > 1:  # a piece that is sent, received, joined and summed
        end = 4 * PIECE
        if config.by_norm:  # gathered: both sides, and what the last exchange sent and received
            end = weights * 7 // 2
    return RankMemory(state, step, end)


def _packed(precision: str, rows: int, d: int) -> int:
    """Return the bytes of a packed encoder with these rows."""
    screen = screen_at("bf16" if precision == "bf16_weights" else precision)
    if screen.engine == "torch":
        return 0
    units: int = native.panel_units(screen.product, d, rows)
    return torch.int32.itemsize * units + 2 * _FLOAT * rows
