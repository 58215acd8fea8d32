"""Training of one SAE by several ranks, with the bits of one process.

Each rank has the rows of W_enc of some latents, and of W_dec some columns of all latents. Ranks
exchange codes and partial sums. Collectives only move bytes: every sum is computed by saefast in
the order of one process.
"""

from saefast.train.ranks.group import ALONE, Ranks
from saefast.train.ranks.simulated import Simulated

__all__ = ["ALONE", "Ranks", "Simulated"]
