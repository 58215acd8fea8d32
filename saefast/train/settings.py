"""Settings of a training step: frozen dataclasses without dependencies on the trainer."""

from dataclasses import dataclass

from saefast import checks
from saefast.ops.topk_encode import PRECISIONS

SIDES = ("encoder", "decoder")
NORMS = ("fro", "fro_squared", "mean_abs")
STEP_PRECISIONS = (*PRECISIONS, "bf16_weights")
ROUNDED_VARIANTS = ("topk", "abstopk", "batchtopk", "matryoshka")
"""Variants that can be trained with a rounded decoder: their codes are always sparse."""
BANDWIDTH = 0.05
"""Default bandwidth of JumpReLU; see `TrainConfig.bandwidth`."""
GROUP_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""Default group shares of Matryoshka; see `TrainConfig.group_shares`."""

_MOST_IDLE = 10_000_000
"""Tokens without firing after which a latent is dead in a long run, as in Gao et al. 2024."""


@dataclass(frozen=True)
class Penalty:
    """Penalty on the weights of one side: `weight` times a norm of W_enc or W_dec."""

    side: str
    """encoder or decoder"""
    norm: str
    """fro: root of the sum of squares; fro_squared: sum of squares; mean_abs: mean absolute
    value"""
    weight: float
    """factor of the norm"""

    def __post_init__(self) -> None:
        checks.one_of("side", self.side, SIDES)
        checks.one_of("norm", self.norm, NORMS)
        checks.at_least("weight", self.weight, 0)


@dataclass(frozen=True)
class Rules:
    """Rules of the weight updates of a training step."""

    betas: tuple[float, float] = (0.9, 0.999)
    """decay rates of Adam's moments, as in `torch.optim.Adam`"""
    eps: float = 1e-8
    """term that Adam adds to the root of the second moment"""
    unit_norm: bool = True
    """whether decoder rows are normalised to norm one after every step"""
    remove_parallel: bool = True
    """whether, with `unit_norm`, the component of their gradient along them is removed first"""
    clip: float | None = None
    """maximum norm of the whole gradient, to which a longer one is scaled down; None: no limit"""
    penalties: tuple[Penalty, ...] = ()
    """penalties on the weights of a side"""
    frozen: str | None = None
    """side ("encoder" or "decoder") whose weights are not trained; biases always are. None: none"""
    tether: float | None = None
    """minimum cosine of a decoder row to its initial direction; requires `unit_norm`. None: no
    limit"""

    def __post_init__(self) -> None:
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise TypeError(f"betas must be two numbers, such as (0.9, 0.999), got {self.betas!r}")
        penalties = self.penalties
        listed = isinstance(penalties, tuple | list)
        if not listed or not all(isinstance(each, Penalty) for each in penalties):
            raise TypeError(f"penalties must be a tuple of saefast.Penalty, got {penalties!r}")
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
                raise ValueError("tether needs unit_norm=True, since it rotates rows of norm one")


@dataclass(frozen=True)
class AuxK:
    """Settings of the auxiliary loss for dead latents.

    Defaults are as in Gao et al. 2024, except `dead_after`.
    """

    k: int | None = None
    """number of dead latents that explain each token; None: half the width of the activations"""
    coefficient: float = 1 / 32
    """weight of the auxiliary loss in the total loss"""
    dead_after: int | None = None
    """tokens without firing after which a latent is dead; None: a tenth of the tokens of the run,
    at most 10 million"""
    capacity: int | None = None
    """maximum number of dead latents that take part in a step, lowest index first; None: an eighth
    of all latents. On a GPU memory is allocated for that many; time depends on the number of dead
    latents"""
    normalised: bool = True
    """whether to divide by the variance of the error over the batch; otherwise the loss is summed
    over the width, averaged over tokens, and scaled down while fewer than k latents are dead, as in
    SAELens"""
    signed: bool = False
    """whether negative activations are kept, as in SAELens; abstopk always keeps them, and selects
    latents by absolute value"""

    def __post_init__(self) -> None:
        for name in ("k", "dead_after", "capacity"):
            value = getattr(self, name)
            if value is not None:
                checks.whole(name, value, 1)
        checks.at_least("coefficient", self.coefficient, 0)

    def idle_limit(self, tokens: int | None = None) -> int:
        """Return the number of tokens without firing after which a latent is dead.

        Args:
            tokens: number of tokens of the run, which determines the default of `dead_after`.
                None: unknown, as for a `FusedStep` outside of a run; the default is 10 million.

        Returns:
            The number of tokens.
        """
        if self.dead_after is not None:
            return self.dead_after
        return _MOST_IDLE if tokens is None else min(_MOST_IDLE, max(tokens // 10, 1))

    def actives(self, d: int) -> int:
        """Return the number of dead latents that explain a token.

        Args:
            d: width of the activations.

        Returns:
            `k`, or half of the width if it is None.
        """
        return max(d // 2, 1) if self.k is None else self.k
