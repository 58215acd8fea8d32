"""Settings of a training run: frozen dataclasses that hold every default in one place."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from saefast import checks
from saefast.sae import K_PER_ROW, SAE, VARIANTS
from saefast.train.settings import (
    BANDWIDTH,
    GROUP_SHARES,
    ROUNDED_VARIANTS,
    STEP_PRECISIONS,
    AuxK,
    Rules,
)

DIRECTIONS = ("iso", "cov")
BIASES = ("zeros", "mean", "geometric_median")
SCALINGS = ("none", "root_d")
DECAYS = ("none", "linear", "cosine")

SHARED = ("batch_size", "tokens", "data_seed", "activation_scaling")
"""Settings that must be equal for all SAEs trained on one stream."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training of one or more SAEs, which differ in the seed only."""

    latents: int
    """number of latents of each SAE"""
    k: int = 32
    """number of active latents per token"""
    variant: str = "topk"
    """topk, abstopk, batchtopk, relu, jumprelu, gated or matryoshka"""
    seeds: tuple[int, ...] = (0,)
    """seeds of the initial directions; one SAE is trained for each"""
    tokens: int = 10_000_000
    """number of rows to train on; if it exceeds the rows of the activations, they are repeated"""
    batch_size: int = 4096
    """rows per step"""
    lr: float | None = None
    """largest learning rate; None: 2e-4 / sqrt(latents / 16384), as in Gao et al. 2024"""
    data_seed: int = 0
    """seed of the order of the activations, which is the same for every SAE"""
    name: str = ""
    """prefix of the folders of this config's SAEs, as in NAME-seed-0"""

    lr_warmup: float = 0.01
    """share of the run in which the learning rate rises from zero"""
    lr_decay: str = "linear"
    """shape of the final decay of the learning rate to zero: none, linear or cosine"""
    lr_decay_share: float = 0.2
    """share of the run in which the learning rate decays"""
    k_start: int | None = None
    """number of active latents per token at the beginning; None: k"""
    k_anneal: float = 0.0
    """share of the run in which the number of active latents goes from k_start to k"""

    rules: Rules = field(default_factory=lambda: Rules(clip=1.0))
    """rules of the weight updates. Gradients are clipped by default: language models have a few
    tokens with norms a hundred times those of the others, which would dominate the update"""
    auxk: AuxK | None = field(default_factory=AuxK)
    """settings of the auxiliary loss that revives dead latents; None disables it"""
    by_norm: bool = False
    """whether topk and abstopk rank latents by activation times the norm of their decoder row"""
    sparsity: float | None = None
    """weight of the sparsity penalty of relu, jumprelu and gated; None: the variant's default"""
    sparsity_warmup: float = 0.05
    """share of the run in which that weight rises from zero"""
    bandwidth: float = BANDWIDTH
    """for jumprelu: width of the kernel that smooths the step function in the gradient of the
    thresholds"""
    group_shares: tuple[float, ...] = GROUP_SHARES
    """for matryoshka: share of the latents in each nested group; the last group has the rest"""
    loss: Callable[[SAE, Tensor, Tensor], Tensor] | None = None
    """custom loss(sae, x, target) -> scalar that replaces the variant's and is differentiated by
    autograd; None: the variant's loss. A loss of batchtopk or matryoshka has to set
    `sae.batch_threshold`, above which the SAE encodes: it is estimated by the variant's loss only,
    and is zero initially"""
    precision: str = "exact"
    """exact; bf16: latents are selected by products of operands rounded to bfloat16; bf16_weights:
    the decoder is rounded as well when it is multiplied. Trained weights are float32 in any case"""

    tied: bool = True
    """whether the encoder is initialised as the decoder; otherwise with directions of its own"""
    directions: str = "iso"
    """distribution of the initial directions: iso, uniform on the sphere; cov, with the covariance
    of the activations"""
    decoder_norm: float = 1.0
    """initial norm of decoder rows if the rules do not keep it at one"""
    b_dec: str = "mean"
    """initial decoder bias: zeros, mean or geometric_median of the first rows"""
    activation_scaling: str = "root_d"
    """none, or root_d: activations are multiplied by one factor that makes their mean norm the
    square root of the width. The factor is folded into the trained SAE, which takes unscaled
    activations"""

    def __post_init__(self) -> None:
        whole = ("latents", "k", "tokens", "batch_size", "data_seed")
        for name in whole:
            checks.whole(name, getattr(self, name))
        for name in ("latents", "tokens", "batch_size"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("data_seed", self.data_seed, 0)
        if self.k > self.latents:
            raise ValueError(
                f"k must be at most latents, got k={self.k} and latents={self.latents}; pass a "
                f"smaller k (the default is {TrainConfig.k})"
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
                raise ValueError(f"{name} must be a share of the run, from 0 to 1, got {share}")
        checks.at_least("decoder_norm", self.decoder_norm, 0)
        checks.at_least("bandwidth", self.bandwidth, 0)
        if self.bandwidth == 0:
            raise ValueError("bandwidth must be above 0: the thresholds would have no gradient")
        if self.sparsity is not None:
            checks.at_least("sparsity", self.sparsity, 0)
        if not isinstance(self.group_shares, tuple | list):
            raise TypeError(f"group_shares must be a tuple of shares, got {self.group_shares!r}")
        if self.loss is not None and not callable(self.loss):
            raise TypeError(f"loss must be callable or None, got {self.loss!r}")
        for share in self.group_shares:
            checks.at_least("group_shares", share, 0)
        if self.by_norm and self.variant not in K_PER_ROW:
            raise ValueError(
                f"by_norm must be False unless variant is one of {', '.join(K_PER_ROW)}, got "
                f"{self.variant!r}"
            )
        for name, choices in (
            ("lr_decay", DECAYS),
            ("precision", STEP_PRECISIONS),
            ("directions", DIRECTIONS),
            ("b_dec", BIASES),
            ("activation_scaling", SCALINGS),
        ):
            checks.one_of(name, getattr(self, name), choices)
        fused = self.loss is None and self.variant in ROUNDED_VARIANTS
        if self.precision == "bf16_weights" and not fused:
            raise ValueError(
                f"precision='bf16_weights' needs variant {' or '.join(ROUNDED_VARIANTS)} and no "
                f"loss, got {self.variant}{' with a loss' * (self.loss is not None)}"
            )
        if not is_folder_name(self.name):
            raise ValueError(
                f"name must be a valid part of a folder's name, without '/' and a leading '.', got "
                f"{self.name!r}"
            )

    @property
    def steps(self) -> int:
        """Number of steps: of batches that cover `tokens`, rounded up."""
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
        """Return the name of the folder of one SAE.

        Args:
            seed: seed of the SAE.

        Returns:
            NAME-seed-SEED, or seed-SEED for a config without a name.
        """
        return label_of(self.name, seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict for JSON, with a custom loss replaced by its name."""
        name = None if self.loss is None else _name_of(self.loss)
        return {**dataclasses.asdict(dataclasses.replace(self, loss=None)), "loss": name}


def _name_of(function: Callable[..., Any]) -> str:
    """Return a name that is the same in another process, unlike addresses in memory."""
    name: str = getattr(function, "__qualname__", repr(function))
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", name)


def is_folder_name(name: str) -> bool:
    """Return whether a name of a config is a valid part of a folder's name, or empty."""
    return "/" not in name and not name.startswith(".")


def label_of(name: str, seed: int) -> str:
    """Return the name of the folder of one SAE of a config with this name."""
    return f"{name}-seed-{seed}" if name else f"seed-{seed}"


def check_shared(configs: Sequence[TrainConfig]) -> None:
    """Raise unless the configs can be trained on one stream and write to distinct folders."""
    check_one_stream(configs)
    labels = labels_of(configs)
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(
            f"names of SAEs must differ, got {twice[0]} twice; give their configs different names"
        )


def check_one_stream(configs: Sequence[TrainConfig]) -> None:
    """Raise unless the configs can be trained on one stream."""
    for config in configs:
        if not isinstance(config, TrainConfig):
            raise TypeError(
                f"config must be a saefast.TrainConfig or a sequence of them, got "
                f"{type(config).__name__}"
            )
    if not configs:
        raise ValueError("config must hold at least one TrainConfig, got an empty sequence")
    for name in SHARED:
        values = {getattr(config, name) for config in configs}
        if len(values) > 1:
            raise ValueError(
                f"{name} must be the same in all configs, since they train on one stream of "
                f"batches, got {', '.join(map(repr, sorted(values)))}"
            )


def labels_of(configs: Sequence[TrainConfig]) -> list[str]:
    """Return the names of the folders of all SAEs, in the order of configs and seeds."""
    return [config.label(seed) for config in configs for seed in config.seeds]


def _check_seeds(seeds: tuple[int, ...]) -> None:
    if not isinstance(seeds, tuple) or not seeds:
        raise TypeError(
            f"seeds must be a tuple with at least one int, such as (0, 1, 2), got {seeds!r}"
        )
    for seed in seeds:
        checks.whole("seeds", seed)
        checks.between("seeds", seed, -(2**63), 2**64 - 1, "seeds of a torch.Generator")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, got {seeds}")
