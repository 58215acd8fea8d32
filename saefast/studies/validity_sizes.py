"""Sizes of the study of validity."""

from dataclasses import dataclass

from saefast import checks
from saefast.sae import VARIANTS


@dataclass(frozen=True)
class ValiditySize:
    """Size of the world, SAEs to rank, and number of rows."""

    features: int
    d: int
    trees: int
    """number of families of features, whose roots are the classes of absorption"""
    latents: int
    widths: tuple[float, ...]
    """k of the SAEs, as shares of the true number of features per row"""
    tokens: tuple[int, ...]
    """numbers of rows on which SAEs of each width are trained"""
    variants: tuple[str, ...]
    checkpoints: tuple[int, ...]
    """numbers of rows seen at the checkpoints of one training"""
    batch_size: int
    lr: float
    rows: int
    """number of rows for the measures"""
    tasks: int
    """number of planted labels that are probed"""


SIZES = {
    "small": ValiditySize(
        features=48,
        d=24,
        trees=5,
        latents=48,
        widths=(0.5, 2.0),
        tokens=(2_048, 32_768),
        variants=("topk",),
        checkpoints=(1_024, 16_384),
        batch_size=256,
        lr=5e-3,
        rows=4_096,
        tasks=8,
    ),
    "quick": ValiditySize(
        features=128,
        d=32,
        trees=8,
        latents=128,
        widths=(0.5, 1.0, 2.0),
        tokens=(20_000, 200_000),
        variants=("topk", "batchtopk", "jumprelu", "matryoshka"),
        checkpoints=(8_192, 16_384, 32_768, 65_536, 131_072, 262_144),
        batch_size=512,
        lr=2e-3,
        rows=16_384,
        tasks=32,
    ),
    "full": ValiditySize(
        features=512,
        d=64,
        trees=24,
        latents=512,
        widths=(0.5, 1.0, 2.0),
        tokens=(60_000, 600_000),
        variants=("topk", "batchtopk", "jumprelu", "matryoshka"),
        checkpoints=(16_384, 32_768, 65_536, 131_072, 262_144, 524_288, 1_048_576),
        batch_size=1024,
        lr=2e-3,
        rows=32_768,
        tasks=64,
    ),
}
"""Sizes of the study.

"small" is for tests. "quick" has 24 SAEs; "full" has as many larger ones and takes about three
minutes of processor time.
"""


def chosen_size(size: str | ValiditySize) -> ValiditySize:
    """Return the size of a name in `SIZES`, or the given size if it is valid."""
    if isinstance(size, ValiditySize):
        for variant in size.variants:
            checks.one_of("size.variants", variant, VARIANTS)
        return size
    if not isinstance(size, str):
        raise TypeError(f"size must be a str or a ValiditySize, got {type(size).__name__}")
    checks.one_of("size", size, tuple(SIZES))
    return SIZES[size]
