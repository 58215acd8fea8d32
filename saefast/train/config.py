"""What a training run is asked for: plain frozen data, every default in one place."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from saefast import checks
from saefast.sae import SAE, VARIANTS
from saefast.train.settings import BANDWIDTH, GROUP_SHARES, STEP_PRECISIONS, AuxK, Rules

DIRECTIONS = ("iso", "cov")
BIASES = ("zeros", "mean", "geometric_median")
SCALINGS = ("none", "root_d")
DECAYS = ("none", "linear", "cosine")

SHARED = ("batch_size", "tokens", "data_seed", "activation_scaling")
"""What all SAEs that are trained on one stream have in common."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training; SAEs of one config differ in nothing but the seed."""

    latents: int
    """features of each SAE"""
    k: int = 32
    """active latents per token"""
    variant: str = "topk"
    """topk, batchtopk, relu, jumprelu, gated or matryoshka"""
    seeds: tuple[int, ...] = (0,)
    """one SAE for each: the seed of its first directions"""
    tokens: int = 10_000_000
    """how many rows to train on; more than there are means more epochs"""
    batch_size: int = 4096
    """rows per step"""
    lr: float | None = None
    """largest learning rate; None: 2e-4 / sqrt(latents / 16384), as in Gao et al. 2024"""
    data_seed: int = 0
    """of the order of the activations, the same for every SAE"""
    name: str = ""
    """sets this config's folders apart from another's: NAME-seed-0"""

    lr_warmup: float = 0.01
    """share of the run in which the learning rate rises from zero"""
    lr_decay: str = "linear"
    """how it falls to zero in the end: none, linear or cosine"""
    lr_decay_share: float = 0.2
    """share of the run in which it falls"""
    k_start: int | None = None
    """active latents at the beginning; None: as many as later"""
    k_anneal: float = 0.0
    """share of the run in which their number goes to k"""

    rules: Rules = field(default_factory=lambda: Rules(clip=1.0))
    """how weights may move; clipped, or a few tokens a hundred times as long as the others, which
    language models have, decide on the size of all steps"""
    auxk: AuxK | None = field(default_factory=AuxK)
    """what revives dead latents; None: nothing"""
    by_norm: bool = False
    """whether topk chooses latents by their activation times the norm of their decoder row"""
    sparsity: float | None = None
    """weight of the sparsity penalty of relu, jumprelu and gated; None: the variant's usual one"""
    sparsity_warmup: float = 0.05
    """share of the run in which that weight rises from zero"""
    bandwidth: float = BANDWIDTH
    """of jumprelu: how wide the step is smeared out that its thresholds learn from"""
    group_shares: tuple[float, ...] = GROUP_SHARES
    """of matryoshka: how many of the latents the nested groups add, the last one the rest"""
    loss: Callable[[SAE, Tensor, Tensor], Tensor] | None = None
    """instead of the variant's: loss(sae, x, target) -> a scalar, which autograd differentiates"""
    precision: str = "exact"
    """exact; bf16: latents are chosen by products of rounded operands; bf16_weights: besides, the
    decoder is rounded where it is multiplied. The weights that learn are float32 in any case"""

    tied: bool = True
    """the encoder starts as the decoder; otherwise with directions of its own"""
    directions: str = "iso"
    """first directions: iso, uniform on the sphere; cov, with the covariance of the activations"""
    decoder_norm: float = 1.0
    """first norm of decoder rows where the rules do not keep it at one"""
    b_dec: str = "mean"
    """first decoder bias: zeros, mean or geometric_median of the first rows"""
    activation_scaling: str = "root_d"
    """root_d: multiplied by one number, so that their mean norm is the root of the width. The SAE
    that comes out takes activations as they are"""

    def __post_init__(self) -> None:
        whole = ("latents", "k", "tokens", "batch_size", "data_seed")
        for name in whole:
            checks.whole(name, getattr(self, name))
        for name in ("latents", "tokens", "batch_size"):
            checks.at_least(name, getattr(self, name), 1)
        if self.k > self.latents:
            raise ValueError(
                f"k must be at most latents, got k={self.k} and latents={self.latents}; pass a "
                f"smaller k, which is {TrainConfig.k} unless given"
            )
        checks.at_least("k", self.k, 1)
        checks.one_of("variant", self.variant, VARIANTS)
        _check_seeds(self.seeds)
        for name, value, kind in (("rules", self.rules, Rules), ("auxk", self.auxk, AuxK)):
            if not isinstance(value, kind) and not (name == "auxk" and value is None):
                raise TypeError(
                    f"{name} must be a saefast.{kind.__name__}, such as {kind.__name__}()"
                    f"{' or None' * (name == 'auxk')}, got {type(value).__name__}"
                )
        if self.lr is not None:
            checks.at_least("lr", self.lr, 0)
        if self.k_start is not None:
            checks.whole("k_start", self.k_start)
            checks.between("k_start", self.k_start, 1, self.latents, "the number of latents")
        for name in ("lr_warmup", "lr_decay_share", "k_anneal", "sparsity_warmup"):
            share = getattr(self, name)
            checks.at_least(name, share, 0)
            if share > 1:
                raise ValueError(f"{name} is a share of the run, from 0 to 1, got {share}")
        checks.at_least("decoder_norm", self.decoder_norm, 0)
        checks.at_least("bandwidth", self.bandwidth, 0)
        if self.sparsity is not None:
            checks.at_least("sparsity", self.sparsity, 0)
        for share in self.group_shares:
            checks.at_least("group_shares", share, 0)
        if self.by_norm and self.variant != "topk":
            raise ValueError(f"by_norm is for variant 'topk', got {self.variant!r}")
        for name, choices in (
            ("lr_decay", DECAYS),
            ("precision", STEP_PRECISIONS),
            ("directions", DIRECTIONS),
            ("b_dec", BIASES),
            ("activation_scaling", SCALINGS),
        ):
            checks.one_of(name, getattr(self, name), choices)
        if "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name becomes part of a folder's name, got {self.name!r}")

    @property
    def steps(self) -> int:
        """How many batches make up `tokens`; the last one may go beyond."""
        return -(-self.tokens // self.batch_size)

    @property
    def largest_lr(self) -> float:
        """The learning rate between warm-up and decay."""
        return 2e-4 / (self.latents / 16384) ** 0.5 if self.lr is None else self.lr

    def resolved(self) -> "TrainConfig":
        """Return the config with `auxk.dead_after` as a number."""
        if self.auxk is None:
            return self
        auxk = dataclasses.replace(self.auxk, dead_after=self.auxk.idle_limit(self.tokens))
        return dataclasses.replace(self, auxk=auxk)

    def label(self, seed: int) -> str:
        """The folder of one SAE."""
        return f"{self.name}-seed-{seed}" if self.name else f"seed-{seed}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a loss of the user's is told by its name."""
        name = None if self.loss is None else getattr(self.loss, "__qualname__", repr(self.loss))
        return {**dataclasses.asdict(dataclasses.replace(self, loss=None)), "loss": name}


def check_shared(configs: Sequence[TrainConfig]) -> None:
    """The configs can be trained on one stream, each into folders of its own."""
    for config in configs:
        if not isinstance(config, TrainConfig):
            raise TypeError(
                f"config must be a saefast.TrainConfig or several, got {type(config).__name__}"
            )
    if not configs:
        raise ValueError("config must name at least one SAE, got an empty sequence")
    for name in SHARED:
        values = {getattr(config, name) for config in configs}
        if len(values) > 1:
            raise ValueError(
                f"{name} must be the same in all configs, since they train on one stream of "
                f"batches, got {', '.join(map(repr, sorted(values)))}"
            )
    labels = labels_of(configs)
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"two SAEs would be called {twice[0]}; give their configs another name")


def labels_of(configs: Sequence[TrainConfig]) -> list[str]:
    """The folder of every SAE, in order."""
    return [config.label(seed) for config in configs for seed in config.seeds]


def _check_seeds(seeds: tuple[int, ...]) -> None:
    if not isinstance(seeds, tuple) or not seeds:
        raise TypeError(
            f"seeds must be a tuple with at least one int, such as (0, 1, 2), got {seeds!r}"
        )
    for seed in seeds:
        checks.whole("seeds", seed)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, got {seeds}")
