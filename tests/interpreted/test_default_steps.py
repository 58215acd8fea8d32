"""What a default training step asks of a GPU: how many kernels, which of them, and no waits.

A step on few rows takes as long as its kernels take to start, so their number is bounded here.
"""

import pytest
import torch
from launch_recorder import Launch, Recorder, recording
from test_step import batches

from saefast import SAE, FusedStep, TrainConfig

N, D, M, K = 4, 12, 96, 2
"""M: the columns are screened in two phases; where memory allows there are at most five."""

SECTIONS = {
    "encode": "packed_encoder.",
    "auxk": "auxk.",
    "update": "ops.latent_update.",
    "decode": "ops.decode_residual.",
}
"""Of the functions that led to a launch, what tells where it belongs; the rest are scalars."""

MOST = {
    "encode": 12,
    "decode": 2,
    "scalars": 8,
    "auxk": 8,
    "update": 32,
}
"""Kernels of each section of a TopK step, at most."""


def section_of(launch: Launch) -> str:
    """Where in a step a kernel belongs."""
    for section, function in SECTIONS.items():
        if any(where.startswith(function) for where in launch.where):
            return section
    return "scalars"


def default_step(variant: str) -> Recorder:
    """The second step of a training with all settings at their defaults."""
    config = TrainConfig(latents=M, k=K, variant=variant)
    sae = SAE(D, M, k=K, variant=variant, seed=0)
    step = FusedStep(
        sae,
        rules=config.rules,
        objective=config.objective(sae),
        precision=config.precision,
        auxk=config.auxk,
    )
    if variant in ("relu", "jumprelu"):  # so sparse that the fused path is taken
        with torch.no_grad():
            sae.b_enc.fill_(-1.0)
        step._dense.fill_(False)
    first, second = batches(2, N, D, torch.float32)
    step(first)
    with recording() as recorder:
        result = step(second)
    assert result.path == "fused"
    return recorder


@pytest.fixture(scope="module", params=["topk"])
def recorder(request: pytest.FixtureRequest) -> Recorder:
    """What the default step of a variant launched."""
    return default_step(request.param)


def test_kernels_are_few(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a sort seven are counted; the tables below are printed."""
    found = recorder.by_section(section_of)
    with capsys.disabled():
        print(f"\nkernels of a default TopK step: {recorder.total} {dict(found)}")
    assert found.keys() == MOST.keys()
    assert {name: count for name, count in found.items() if count > MOST[name]} == {}
