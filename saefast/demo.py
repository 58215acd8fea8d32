"""The demonstration: a planted world, a small SAE, and how much of the truth it found."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from saefast.sae import SAE
from saefast.step import FusedStep
from saefast.storage import save_sae
from saefast.synthetic import PlantedWorld

FOUND_AT = 0.95
"""A true feature counts as found when a decoder row has at least this cosine with it."""


@dataclass(frozen=True)
class DemoResult:
    """How well the SAE of the demonstration did."""

    best_cosine: Tensor
    chance_cosine: Tensor
    explained: float
    tokens: int
    written: tuple[Path, ...]

    @property
    def found(self) -> int:
        """True features with a decoder row close to them."""
        return int((self.best_cosine >= FOUND_AT).sum())

    def summary(self) -> dict[str, float | int | list[str]]:
        """The figures, for a machine."""
        return {
            "features": len(self.best_cosine),
            "found": self.found,
            "found_by_chance": int((self.chance_cosine >= FOUND_AT).sum()),
            "mean_best_cosine": round(float(self.best_cosine.mean()), 4),
            "mean_best_cosine_by_chance": round(float(self.chance_cosine.mean()), 4),
            "explained_variance": round(self.explained, 4),
            "tokens": self.tokens,
            "written": [str(path) for path in self.written],
        }

    def sentence(self) -> str:
        """The figures, for a reader."""
        return (
            f"recovered {self.found} of {len(self.best_cosine)} true features (cosine >= "
            f"{FOUND_AT}; random directions of the same number: "
            f"{int((self.chance_cosine >= FOUND_AT).sum())})\n"
            f"mean best cosine {self.best_cosine.mean():.3f} (random directions "
            f"{self.chance_cosine.mean():.3f}), explained variance {self.explained:.3f} after "
            f"{self.tokens:,} rows"
        )


def run_demo(
    *,
    out: Path | None,
    d: int,
    features: int,
    k: int,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    progress: bool,
) -> DemoResult:
    """Train on a planted world and compare the decoder with the truth."""
    from tqdm import trange

    world = PlantedWorld.create(features, d, active=k, seed=seed)
    sae = SAE(d, 2 * features, k=k, seed=seed + 1)
    chance_cosine = world.best_cosine(sae.W_dec)
    step = FusedStep(sae, lr=lr)
    for number in trange(steps, desc="training", unit="step", disable=not progress):
        step.lr = lr * min(1.0, 2 * (1 - number / steps))
        step(world.sample(batch_size, number))
    held_out = world.sample(4096, steps)
    with torch.no_grad():
        error = (sae(held_out) - held_out).square().sum()
    explained = 1 - float(error / (held_out - held_out.mean(0)).square().sum())
    best_cosine = world.best_cosine(sae.W_dec)
    written = () if out is None else _write(out, sae, best_cosine)
    return DemoResult(best_cosine, chance_cosine, explained, steps * batch_size, written)


def _write(out: Path, sae: SAE, best_cosine: Tensor) -> tuple[Path, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = save_sae(sae, out / "sae")
    table = pa.table(
        {
            "feature": range(len(best_cosine)),
            "best_cosine": best_cosine.numpy(),
            "found": (best_cosine >= FOUND_AT).numpy(),
        }
    )
    path = out / "features.parquet"
    temporary = path.with_suffix(".parquet.part")
    pq.write_table(table, temporary)
    temporary.replace(path)
    return folder, path
