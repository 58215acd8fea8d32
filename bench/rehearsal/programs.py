"""Programs of users and benchmarks on a GPU, at production sizes and at those of the checks."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple
from unittest import mock

import torch

from bench.cases import Shape, Weights
from bench.gpu import checks as gpu_checks
from bench.gpu import contests as gpu_contests
from bench.gpu.contest import Contest
from bench.rehearsal.pretended_gpu import DEVICE
from bench.shapes import GPU_SHAPES
from saefast import FusedStep, Penalty, Rules, TrainConfig
from saefast.match.engines import Encode
from saefast.ops.gpu_screens import CANDIDATES, ENVIRONMENT, SCREENS, untimed
from saefast.sae import SAE
from saefast.train.objectives import objective_of
from saefast.train.settings import STEP_PRECISIONS

ONE = Shape(64, 4096, 1, 1)
"""One row and one active latent, which Triton compiles as constants."""
ODD = Shape(1001, 16385, 33, 31)
"""Shape with no size divisible by 16."""
SMALL = GPU_SHAPES["C2"]
"""Only shape of the rehearsal in CI."""
VARIANTS = ("topk", "abstopk", "batchtopk", "matryoshka", "relu", "jumprelu")
"""Variants that the fused step trains."""


class Program(NamedTuple):
    """Function to run on a pretended GPU."""

    name: str
    run: Callable[[], object]


def small_programs() -> Iterator[Program]:
    """Yield a default training and an encode."""
    yield Program("train topk", partial(train, SMALL))
    yield Program("encode", partial(encode, SMALL))


def all_programs() -> Iterator[Program]:
    """Yield default trainings, checks, contests, and uses of trained SAEs."""
    timed = [shape for name, shape in GPU_SHAPES.items() if name != "decode"]
    for shape in (*timed, ONE, ODD):
        yield from trainings(shape)
        for rows in (1, 8, 2048):
            yield Program("encode and decode", partial(encode, shape._replace(n=rows)))
        yield Program("nearest features", partial(nearest, shape))
    for shape in gpu_checks.SHAPES:
        yield from checks(shape)
    for shape in GPU_SHAPES.values():
        yield from contests(shape)


def programs_at(shape: Shape) -> Iterator[Program]:
    """Yield all programs at one shape."""
    yield from trainings(shape)
    yield Program("encode and decode", partial(encode, shape))
    yield Program("nearest features", partial(nearest, shape))
    yield from checks(shape)
    yield from contests(shape)


def trainings(shape: Shape) -> Iterator[Program]:
    """Yield trainings of each variant in each precision, and of topk by each rule."""
    for variant, precision in product(VARIANTS, STEP_PRECISIONS):
        if precision == "bf16_weights" and variant in ("relu", "jumprelu"):
            continue
        # Any screen may be the fastest and serve an exact encode.
        screens = CANDIDATES if precision == "exact" and variant in ("topk", "batchtopk") else None
        yield Program(
            f"train {variant} {precision}",
            partial(train, shape, variant=variant, precision=precision, screens=screens),
        )
    named: dict[str, dict[str, Any]] = {
        "without clipping and AuxK": {"rules": Rules(), "auxk": None},
        "a frozen encoder": {"rules": Rules(clip=1.0, frozen="encoder")},
        "a frozen decoder": {"rules": Rules(clip=1.0, frozen="decoder")},
        "free norms": {"rules": Rules(clip=1.0, unit_norm=False)},
        "parallel gradients kept": {"rules": Rules(clip=1.0, remove_parallel=False)},
        "penalties": {"rules": Rules(penalties=_PENALTIES)},
        "a transcoder": {"d_out": 2 * shape.d},
    }
    for name, settings in named.items():
        yield Program(f"train {name}", partial(train, shape, **settings))


def checks(shape: Shape) -> Iterator[Program]:
    """Yield the checks of `bench gpu`."""
    for check in gpu_checks.CHECKS:
        yield Program(check.__name__, partial(_check, check, shape))


def contests(shape: Shape) -> Iterator[Program]:
    """Yield the contests of `bench gpu`, without the rivals."""
    for case in gpu_contests.CASES:
        yield Program(f"contest {case}", partial(_contest, case, shape))


_PENALTIES = (
    Penalty("encoder", "fro", 1e-3),
    Penalty("encoder", "mean_abs", 1e-3),
    Penalty("decoder", "fro_squared", 1e-3),
    Penalty("decoder", "mean_abs", 1e-3),
)


def train(
    shape: Shape,
    *,
    screens: Sequence[object] | None = None,
    d_out: int | None = None,
    variant: str = "topk",
    **settings: Any,
) -> None:
    """Run two default steps for each screen of the encode; by default only the likely one."""
    config = TrainConfig(
        latents=shape.m, k=shape.k, variant=variant, batch_size=shape.n, **settings
    )
    x = torch.empty(shape.n, shape.d, device=DEVICE)
    target = None if d_out is None else torch.empty(shape.n, d_out, device=DEVICE)
    for screen in screens or (untimed(exact=config.precision == "exact"),):
        with torch.device(DEVICE):  # avoids drawing initial weights
            sae = SAE(shape.d, shape.m, k=shape.k, variant=variant, d_out=d_out, device=DEVICE)
        step = FusedStep(
            sae,
            rules=config.rules,
            objective=objective_of(config, sae),
            precision=config.precision,
            auxk=config.auxk,
        )
        with mock.patch.dict(os.environ, {ENVIRONMENT: str(screen)}):
            step(x, target)
            step(x, target)


def encode(shape: Shape) -> None:
    """Encode and decode rows in both dtypes, with the fastest screen and with each."""
    for dtype, screen in product((torch.float32, torch.bfloat16), ("auto", *SCREENS)):
        with torch.device(DEVICE):
            sae = SAE(shape.d, shape.m, k=shape.k, dtype=dtype, device=DEVICE)
        x = torch.empty(shape.n, shape.d, dtype=dtype, device=DEVICE)
        with torch.no_grad(), mock.patch.dict(os.environ, {ENVIRONMENT: str(screen)}):
            sae.decode(sae.encode(x))


def _check(check: Callable[..., Iterator[object]], shape: Shape) -> None:
    for _ in check(shape, *_drawn(shape)):
        pass


def _contest(case: str, shape: Shape) -> None:
    with mock.patch("bench.gpu.contest.draw", lambda shape, device: _drawn(shape)):
        contest = Contest(shape, DEVICE)
        for contestant in gpu_contests.CASES[case](contest):
            if contestant.rival == "saefast":
                contestant.build()()


def _drawn(shape: Shape) -> tuple[torch.Tensor, Weights]:
    n, m, d = shape.n, shape.m, shape.d
    x, *weights = (torch.empty(size, device=DEVICE) for size in ((n, d), (m, d), m, (m, d), d))
    return x, Weights(*weights)


def nearest(shape: Shape) -> None:
    """Search the nearest features of another dictionary, as matchings do."""
    rows = torch.empty(2048, shape.d, dtype=torch.float64, device=DEVICE)
    block = torch.empty(shape.m, shape.d, dtype=torch.float64, device=DEVICE)
    price = torch.empty(shape.m, dtype=torch.float64, device=DEVICE)
    for absolute, prices, k in product((False, True), (None, price), (1, 16)):
        Encode(absolute).prepare(block, prices)(rows, k)
