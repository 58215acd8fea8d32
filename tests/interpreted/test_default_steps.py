"""Work of a GPU in a default training step: kernels, waits and memory.

The time of a step on few rows is the time to start its kernels, so their number is bounded here.
"""

from typing import NamedTuple

import pytest
import torch
from helpers.host_waits import host_waits
from helpers.launch_recorder import Launch, Recorder, recording
from helpers.strategies import generator

from saefast import SAE, FusedStep, TrainConfig
from saefast.train.objectives import objective_of

N, D, M, K = 2, 16, 66, 2
"""Few latents, because each takes the interpreter time; but a top k screens them in two phases, and
a float for each weight is more than any list of N rows takes."""

SECTIONS = {
    "encode": "train.step._encode",
    "forward": "train.objectives.",
    "auxk": "train.auxk.",
    "update": "ops.latent_pass.",
}
"""Beginnings of the names of the functions that lead to a launch; the first that fits counts."""

STORED_GRADIENTS = {f"train.optimizer.{name}" for name in ("by_autograd", "add_auxk", "shaped")}

MOST = {
    "topk": {"encode": 13, "forward": 3, "auxk": 9, "update": 19, "rest": 4},
    "abstopk": {"encode": 27, "forward": 3, "auxk": 9, "update": 19, "rest": 4},
    "batchtopk": {"encode": 41, "forward": 16, "auxk": 9, "update": 19, "rest": 4},
    "matryoshka": {"encode": 41, "forward": 16, "auxk": 9, "update": 19, "rest": 4},
    "relu": {"encode": 20, "forward": 32, "auxk": 9, "update": 21, "rest": 12},
    "jumprelu": {"encode": 19, "forward": 46, "auxk": 9, "update": 19, "rest": 13},
}
"""Kernels of each section of a default step, at most. A sort counts as five: the
keys of few latents have two bytes.

The two sums over the pieces of long runs come on top where a batch has 256 active latents or more.
"""


class Seen(NamedTuple):
    """A recording of one default step on the GPU's path."""

    variant: str
    path: str
    recorder: Recorder
    waits: list[str]


def section_of(launch: Launch) -> str:
    """Return the section of a step to which a kernel belongs."""
    for section, beginning in SECTIONS.items():
        if any(where.startswith(beginning) for where in launch.where):
            return section
    return "rest"


def default_step(variant: str) -> Seen:
    """Take the second step of a training with all settings at their defaults."""
    config = TrainConfig(latents=M, k=K, variant=variant)
    sae = SAE(D, M, k=K, variant=variant, seed=0)
    step = FusedStep(
        sae,
        rules=config.rules,
        objective=objective_of(config, sae),
        precision=config.precision,
        auxk=config.auxk,
    )
    if variant in ("relu", "jumprelu"):  # so sparse that the fused path is taken
        with torch.no_grad():
            sae.b_enc.fill_(-1.0)
        step._dense.fill_(False)
    first = torch.randn(N, D, generator=generator(0))
    step(first)
    # Batches are similar, so that the threshold of the first one is a good guess.
    second = first + 0.05 * torch.randn(N, D, generator=generator(1))
    with host_waits() as waits, recording() as recorder:
        result = step(second)
    return Seen(variant, result.path, recorder, waits)


@pytest.fixture(scope="module", params=MOST)
def seen(request: pytest.FixtureRequest) -> Seen:
    """Record the default step of a variant."""
    return default_step(request.param)


def test_kernels_are_few(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    most, found = MOST[seen.variant], seen.recorder.by_section(section_of)
    with capsys.disabled():
        print(f"\nkernels of a default {seen.variant} step: {seen.recorder.total} {dict(found)}")
    assert found.keys() == most.keys()
    assert {name: count for name, count in found.items() if count > most[name]} == {}


def test_the_fused_path_serves_the_whole_step(seen: Seen) -> None:
    """Neither autograd nor the reference computes a part of the step."""
    assert seen.path == "fused"
    by_reference = [
        launch.name
        for launch in seen.recorder.launches
        if any(
            where.startswith("reference.") or where in STORED_GRADIENTS for where in launch.where
        )
    ]
    assert by_reference == []


def test_the_host_waits_only_for_the_report_of_the_encode(seen: Seen) -> None:
    """A step of TopK or AbsTopK does not wait at all: k bounds the active latents of a row."""
    expected = [] if seen.variant in ("topk", "abstopk") else ["tolist in train.step._complete"]
    assert seen.waits == expected
    assert seen.recorder.waits == []


def test_no_tensor_is_as_large_as_a_weight_gradient(seen: Seen) -> None:
    assert 0 < seen.recorder.largest < 4 * M * D
