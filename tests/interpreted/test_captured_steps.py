"""Steps on the GPU path without waits of the host, and recorded and replayed steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.host_waits import host_waits
from helpers.strategies import generator
from helpers.tape_graph import TapeGraph
from helpers.tolerance import assert_same_bits

from saefast import SAE, FusedStep, Penalty, Rules
from saefast.train.objectives import (
    BatchTopK,
    Current,
    Custom,
    Gated,
    JumpReLU,
    Matryoshka,
    ReLU,
    TopK,
)

PENALTIES = Penalty("encoder", "fro", 0.01), Penalty("decoder", "mean_abs", 0.01)
K_PER_ROW = {
    "topk": lambda sae: TopK(),
    "topk by norm": lambda sae: TopK(),
    "abstopk": lambda sae: TopK(absolute=True),
    "abstopk by norm": lambda sae: TopK(absolute=True),
}
OBJECTIVES = {
    **K_PER_ROW,
    "batchtopk": BatchTopK,
    "matryoshka": lambda sae: Matryoshka(sae, (0.1, 0.3)),
    "relu": lambda sae: ReLU(0.3),
    "jumprelu": lambda sae: JumpReLU(2.0, 0.4),
}
WAITS = {name: int(name not in K_PER_ROW) for name in OBJECTIVES}
ROWS = torch.randn(3, 8, generator=generator(0))
# Batches are similar, so that the threshold of one is a good guess for the next.
DATA = [ROWS + 0.05 * torch.randn(3, 8, generator=generator(1 + number)) for number in range(4)]


def small(name: str, d_out: int | None = None) -> SAE:
    """Make an SAE away from its initial weights, in which few latents of a row are active."""
    variant, by_norm = name.split()[0], name.endswith("by norm")
    sae = SAE(8, 20, variant=variant, k=3, seed=1, d_out=d_out, by_norm=by_norm)
    for number, parameter in enumerate(sae.parameters()):
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator(number))
    if name in ("relu", "jumprelu"):
        sae.b_enc.data -= 2.0
    if name == "jumprelu":
        sae.jump_threshold.data.abs_()
    return sae


def step_of(name: str, **settings: Any) -> FusedStep:
    """Make a step on the fused path that knows that codes are sparse."""
    sae = small(name)
    step = FusedStep(sae, lr=1e-3, objective=OBJECTIVES[name](sae), **settings)
    step.now = Current(3)
    step._dense.fill_(False)
    step._was_dense = False
    return step


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_waits_at_most_once(name: str) -> None:
    """TopK never; variants without a bound on active latents for the report of the encode."""
    step = step_of(name, rules=Rules(unit_norm=False, penalties=PENALTIES))
    for number, x in enumerate(DATA[:3]):
        with host_waits() as waits:
            assert step(x).path == "fused"
        if number:  # the first step has no guess
            assert waits == ["tolist in train.step._complete"] * WAITS[name]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_replays_equal_steps(name: str) -> None:
    """They have the same bits while the learning rate and the pressure change."""
    graphs: list[TapeGraph] = []
    eager, captured = step_of(name), step_of(name)
    replay = captured.capture(DATA[0], graph=made(graphs))
    for number, x in enumerate(DATA):
        for step in (eager, captured):
            step.lr = 1e-3 * (number + 1)
            step.now = Current(3, 0.1 * number)
        assert_same_result(eager(x), replay(x))
        assert_same_state(eager, captured)
    # The first step compiles the kernels; if k is not a bound, it also determines the room.
    assert [graph.replays for graph in graphs] == [len(DATA) - 1 - WAITS[name]] * (1 + WAITS[name])


@pytest.mark.parametrize("name", ["topk", "relu"])
def test_a_changed_k_is_recorded_again(name: str) -> None:
    """The step at which k changes is taken without a recording."""
    graphs: list[TapeGraph] = []
    eager, captured = step_of(name), step_of(name)
    replay = captured.capture(DATA[0], graph=made(graphs))
    for k, x in zip((3, 3, 3, 2, 2), (*DATA, DATA[0]), strict=True):
        eager.now = captured.now = Current(k)
        assert_same_result(eager(x), replay(x))
        assert_same_state(eager, captured)
    before, after = [2 - WAITS[name]] * (1 + WAITS[name]), [1] * (1 + WAITS[name])
    assert [graph.replays for graph in graphs] == before + after


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka", "relu", "jumprelu"])
def test_an_encode_without_room_is_repeated_and_recorded_again(name: str) -> None:
    """Little and much room give the same bits."""
    graphs: list[TapeGraph] = []
    eager, captured = step_of(name), step_of(name)
    for step in (eager, captured):
        step(DATA[0])
    replay = captured.capture(DATA[0], graph=made(graphs))
    captured.objective._places.places = 1
    captured._compiled = captured._settings(len(DATA[0]))
    for x in DATA[1:]:
        assert_same_result(eager(x), replay(x))
        assert_same_state(eager, captured)
        assert captured.objective.room == 32
    assert [graph.replays for graph in graphs] == [1, 0, 2, 2]


@pytest.mark.parametrize("name", ["batchtopk", "relu"])
def test_a_step_repeats_an_encode_without_room(name: str) -> None:
    few, many = step_of(name), step_of(name)
    for x in DATA[:2]:
        few.objective._places.places = 1
        assert_same_result(few(x), many(x))
        assert few.objective.room > 1
    assert_same_state(few, many)


def test_dense_codes_leave_the_recording_and_sparse_ones_return() -> None:
    graphs: list[TapeGraph] = []
    step = step_of("relu")
    replay = step.capture(DATA[0], graph=made(graphs))
    paths = []
    for bias in (None, None, 2.0, None, -3.0, None, None):
        if bias is not None:
            step.sae.b_enc.data.fill_(bias)  # the encoder's weights are packed, this weight is not
        paths.append(replay(DATA[0]).path)
    assert paths == ["fused"] * 3 + ["autograd"] * 2 + ["fused"] * 2
    # The encode after a dense step reports dense codes.
    assert [graph.replays for graph in graphs] == [2, 1, 1, 1]


def test_weights_changed_from_outside_are_packed_again() -> None:
    graphs: list[TapeGraph] = []
    eager, captured = step_of("topk"), step_of("topk")
    replay = captured.capture(DATA[0], graph=made(graphs))
    for number, x in enumerate(DATA):
        if number == 2:
            for step in (eager, captured):
                with torch.no_grad():
                    step.sae.W_enc.mul_(-1.5)
        assert_same_result(eager(x), replay(x))
        assert_same_state(eager, captured)
    assert [graph.replays for graph in graphs] == [1, 1]


def test_targets_are_recorded() -> None:
    eager, captured = (FusedStep(small("topk", d_out=5)) for _ in range(2))
    targets = [x[:, :5] * 2 for x in DATA]
    replay = captured.capture(DATA[0], targets[0], graph=TapeGraph)
    for x, target in zip(DATA[:3], targets[:3], strict=True):
        assert_same_result(eager(x, target), replay(x, target))
    assert_same_state(eager, captured)
    with pytest.raises(TypeError, match="target must be a tensor, as in capture"):
        replay(DATA[0])
    with pytest.raises(ValueError, match="target must have shape"):
        replay(DATA[0], targets[0][1:])


def test_steps_that_cannot_be_recorded_are_refused() -> None:
    def refused(step: FusedStep, x: torch.Tensor, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            step.capture(x, graph=TapeGraph)

    sae = small("topk")
    own = FusedStep(sae, objective=Custom(lambda sae, x, target: (sae(x) - target).square().sum()))
    refused(own, DATA[0], "records fused steps, but Custom is trained by autograd")
    gated = FusedStep(sae, objective=Gated(1.0))
    refused(gated, DATA[0], "records fused steps, but Gated is trained by autograd")
    wide = FusedStep(small("topk").double())
    served = "serve float32 and k up to 1024, got torch.float64 and 3"
    refused(wide, DATA[0].double(), served)


def made(graphs: list[TapeGraph]) -> Callable[[Any], TapeGraph]:
    """Return a factory that keeps the objects it made."""

    def make_one(beside: object) -> TapeGraph:
        graphs.append(TapeGraph())
        return graphs[-1]

    return make_one


def assert_same_result(actual: Any, expected: Any) -> None:
    assert actual.path == expected.path
    for name in ("loss", "squares", "fired"):
        assert_same_bits(getattr(actual, name), getattr(expected, name))


def assert_same_state(one: FusedStep, other: FusedStep) -> None:
    for name, value in one.state_dict().items():
        assert_same_bits(other.state_dict()[name], value)
