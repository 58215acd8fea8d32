"""What a training step is asked for: plain frozen data, below everything that acts by it."""

from dataclasses import dataclass

from saefast import checks
from saefast.ops.topk_encode import PRECISIONS

SIDES = ("encoder", "decoder")
NORMS = ("fro", "fro_squared", "mean_abs")
STEP_PRECISIONS = (*PRECISIONS, "bf16_weights")
BANDWIDTH = 0.05
"""Of JumpReLU; see `TrainConfig`"""
GROUP_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""Of Matryoshka; see `TrainConfig`"""

_MOST_IDLE = 10_000_000
"""Tokens without firing after which a latent is dead in a long training, as in Gao et al. 2024"""


@dataclass(frozen=True)
class Penalty:
    """A loss on all weights of one side: `weight` times a norm of W_enc or W_dec."""

    side: str
    """encoder or decoder"""
    norm: str
    """fro: the root of the sum of squares; fro_squared: that sum; mean_abs: the mean size"""
    weight: float

    def __post_init__(self) -> None:
        checks.one_of("side", self.side, SIDES)
        checks.one_of("norm", self.norm, NORMS)
        checks.at_least("weight", self.weight, 0)


@dataclass(frozen=True)
class Rules:
    """Settings of what a training step does with gradients."""

    betas: tuple[float, float] = (0.9, 0.999)
    """of Adam, with torch's meaning"""
    eps: float = 1e-8
    """what Adam adds to the root of the mean square"""
    unit_norm: bool = True
    """decoder rows have norm one after every step"""
    remove_parallel: bool = True
    """and the part of their gradient along them is removed before it"""
    clip: float | None = None
    """largest length of the whole gradient; a longer one is scaled down to it"""
    penalties: tuple[Penalty, ...] = ()
    """losses on the weights of a side: encoder or decoder; fro, fro_squared or mean_abs; weight"""
    frozen: str | None = None
    """the side whose vectors stay as they were drawn; biases always learn"""
    tether: float | None = None
    """smallest cosine of a decoder row to its first direction; needs unit_norm"""

    def __post_init__(self) -> None:
        for beta in self.betas:
            checks.at_least("betas", beta, 0, below=1)
        checks.at_least("eps", self.eps, 0)
        if self.clip is not None:
            checks.at_least("clip", self.clip, 0)
        if self.frozen is not None:
            checks.one_of("frozen", self.frozen, SIDES)
        if self.tether is not None:
            checks.at_least("tether", self.tether, -1, below=1)
            if not self.unit_norm:
                raise ValueError("tether needs unit_norm=True: it turns rows of norm one")


@dataclass(frozen=True)
class AuxK:
    """Settings of the auxiliary loss; defaults are those of Gao et al. 2024, but `dead_after`."""

    k: int | None = None
    """how many dead latents explain each token; None: half the width of the activations"""
    coefficient: float = 1 / 32
    """weight of the auxiliary loss beside the other"""
    dead_after: int | None = None
    """tokens without firing after which a latent is dead; None: a tenth of the training's tokens,
    10 million at most"""
    capacity: int | None = None
    """how many dead latents can take part in a step, lowest index first; None: an eighth of all.
    On a GPU memory is set aside for that many; time depends on how many are dead"""
    normalised: bool = True
    """divide by the variance of the error over the batch; otherwise sum over the width, average
    over tokens, and scale down while fewer than k latents are dead, as SAELens does"""
    signed: bool = False
    """let negative activations count, as in SAELens"""

    def __post_init__(self) -> None:
        for name in ("k", "dead_after", "capacity"):
            value = getattr(self, name)
            if value is not None:
                checks.whole(name, value, 1)
        checks.at_least("coefficient", self.coefficient, 0)

    def idle_limit(self, tokens: int | None = None) -> int:
        """Return the number of tokens without firing after which a latent is dead.

        Args:
            tokens: of the training, which the default of `dead_after` depends on; None: unknown,
                as in a `FusedStep` of its own, and the default is 10 million.
        """
        if self.dead_after is not None:
            return self.dead_after
        return _MOST_IDLE if tokens is None else min(_MOST_IDLE, max(tokens // 10, 1))

    def actives(self, d: int) -> int:
        """How many dead latents explain a token of width d."""
        return max(d // 2, 1) if self.k is None else self.k
