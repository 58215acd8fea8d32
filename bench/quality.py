"""quality: explained variance of every trainer after the same data, tokens, k and learning rates.

All start from the same weights and see the same batches in the same order. Otherwise each has its
own defaults. The measures are the variance explained on held-out rows, and the share of latents
that fire on none of them.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import saefast
from bench import activations, peers, record
from bench.cases import Shape, Weights
from bench.peers import Training
from saefast.activations import TensorActivations
from saefast.progress import tracked
from saefast.synthetic import PlantedWorld
from saefast.train.config import TrainConfig
from saefast.train.initial import Sample, Scales, begin
from saefast.train.seed_trainer import lr_at
from saefast.train.settings import AuxK

_PLANTED, _REAL = Shape(128, 2048, 16, 1024), Shape(576, 4096, 32, 2048)
SHAPES = (_PLANTED, _REAL)
_HELD_OUT = 16_384
_TOKENS = {_PLANTED: 1_500_000, _REAL: 400_000}
_LR = 1e-3
_STORE = Path("build/bench/smollm2-prose-layer-15")


def race(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each trainer and variant, for `rounds` seeds but at most three."""
    rows = _planted(shape) if shape == _PLANTED else activations.rows(_STORE, _HELD_OUT)
    rows *= shape.d**0.5 / rows.norm(dim=1).mean()
    train, held_out = rows[:-_HELD_OUT], rows[-_HELD_OUT:]
    found = []
    for variant in ("topk", "batchtopk"):
        for seed in range(min(rounds, 3)):
            for rival, training in _trainings(shape, variant, seed, train):
                seconds = _train(training, shape, variant, train)
                row: dict[str, Any] = {"case": "quality", "shape": shape._asdict()}
                row |= {
                    "rival": rival,
                    "mode": variant,
                    "seed": seed,
                    "data": "planted" if shape == _PLANTED else "SmolLM2",
                    "tokens": _TOKENS[shape],
                }
                row |= _judged(training, held_out)
                found.append(row | {"seconds": round(seconds, 1), "commit": record.commit()})
    return found


def _planted(shape: Shape) -> Tensor:
    """Return sums of k out of eight times as many directions as there are dimensions."""
    world = PlantedWorld.create(8 * shape.d, shape.d, active=shape.k)
    return torch.cat([world.sample(10_000, batch) for batch in range(22)])


def _config(shape: Shape, variant: str, seed: int) -> TrainConfig:
    return TrainConfig(
        latents=shape.m,
        k=shape.k,
        variant=variant,
        seeds=(seed,),
        tokens=_TOKENS[shape],
        batch_size=shape.n,
        lr=_LR,
        b_dec="zeros",
        activation_scaling="none",
        auxk=AuxK(dead_after=10_000_000),  # no latent is dead in runs this short
    )


def _trainings(
    shape: Shape, variant: str, seed: int, rows: Tensor
) -> Iterator[tuple[str, Training]]:
    config = _config(shape, variant, seed)
    sae = begin(config, seed, Sample(rows[:1], None), Scales(1.0, 1.0))
    weights = Weights(*(p.detach() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)))
    yield "saefast", _ours(config, rows)
    make = peers.trainings if variant == "topk" else peers.batch_topk_trainings
    yield from make(shape, weights, _LR)


def _ours(config: TrainConfig, rows: Tensor) -> Training:
    """Return train_saes as a training whose only step is the whole run."""
    trained: list[saefast.SAE] = []

    def run(_: Tensor) -> None:
        trained.extend(saefast.train_saes(TensorActivations(rows), config, progress=False))

    return Training(
        lambda x: trained[0](x), run, None, lambda x: trained[0].encode(x).to_dense(config.latents)
    )


def _train(training: Training, shape: Shape, variant: str, rows: Tensor) -> float:
    """Return the seconds of all steps."""
    config = _config(shape, variant, 0)
    before = time.perf_counter()
    if training.optimiser is None:
        training.step(rows)
        return time.perf_counter() - before
    stream = TensorActivations(rows).batches(shape.n, seed=0)
    for number in tracked(range(config.steps), f"quality {variant}", unit="steps", progress=True):
        for group in training.optimiser.param_groups:
            group["lr"] = lr_at(config, number)
        training.step(next(stream).x)
    return time.perf_counter() - before


@torch.no_grad()
def _judged(training: Training, held_out: Tensor) -> dict[str, Any]:
    code: Callable[[Tensor], Tensor] | None = training.dense_code
    assert code is not None
    squares, active, fired = 0.0, 0, torch.zeros(0)
    for x in held_out.split(1024):
        squares += float((training.reconstruct(x) - x).double().square().sum())
        positive = code(x) > 0
        active += int(positive.sum())
        fired = positive.any(0) if not len(fired) else fired | positive.any(0)
    spread = float((held_out - held_out.mean(0)).double().square().sum())
    return {
        "explained_variance": round(1 - squares / spread, 5),
        "dead_share": round(1 - float(fired.double().mean()), 5),
        "l0": round(active / len(held_out), 2),
    }
