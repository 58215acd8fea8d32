"""FusedStep against the same training written with autograd."""

import itertools
import threading
import time
from typing import Any

import pytest
import torch
from helpers.host_waits import host_waits
from helpers.planted_batches import batches, train_plainly
from helpers.tolerance import assert_same_bits

from saefast import SAE, AuxK, FusedStep, Rules, topk_encode
from saefast.ops import encode_packed
from saefast.ops.cpu import native
from saefast.ops.screens import ENVIRONMENT
from saefast.train.auxk import (
    AuxGradients,
    DeadLatents,
    auxk_gradients,
    dead_latents,
    dense_gradients,
    sparse_gradients,
)
from saefast.train.optimizer import add_auxk


@pytest.mark.parametrize("unit_norm", [False, True])
def test_thirty_steps_equal_autograd_and_adam(level: str, unit_norm: bool) -> None:
    data = batches(30, 40, 16, torch.float64)
    fused, plain = (SAE(16, 96, k=5, seed=1, dtype=torch.float64) for _ in range(2))
    step = FusedStep(fused, lr=2e-3, rules=Rules(unit_norm=unit_norm))
    losses = [step(x).loss.item() for x in data]
    expected = train_plainly(plain, data, 2e-3, unit_norm)
    assert losses == pytest.approx(expected, rel=1e-7)
    assert losses[-1] < losses[0]
    for name, parameter in plain.named_parameters():
        actual = dict(fused.named_parameters())[name]
        torch.testing.assert_close(actual, parameter, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_training_gives_the_same_bits_for_any_number_of_threads(precision: str) -> None:
    data = batches(5, 300, 24, torch.float32)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        sae = SAE(24, 400, k=6, seed=1)
        step = FusedStep(sae, lr=1e-3, precision=precision)
        losses = [step(x).loss.item() for x in data]
        results.append(([p.detach().clone() for p in sae.parameters()], losses))
    for parameters, losses in results[1:]:
        assert losses == results[0][1]
        for actual, expected in zip(parameters, results[0][0], strict=True):
            assert_same_bits(actual, expected)


def test_weights_changed_from_outside_are_packed_again() -> None:
    data = batches(2, 50, 24, torch.float32)
    touched, fresh = SAE(24, 200, k=4, seed=1), SAE(24, 200, k=4, seed=1)
    step = FusedStep(touched, lr=0.0)
    step(data[0])
    other = SAE(24, 200, k=4, seed=2)
    touched.load_state_dict(other.state_dict())
    fresh.load_state_dict(other.state_dict())
    assert_same_bits(step(data[1]).code.indices, fresh.encode(data[1]).indices)


def test_the_update_packs_for_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "native-float32")
    packed: list[None] = []
    pack = encode_packed.PackedWeight.of

    def counted(*arguments: Any) -> Any:
        packed.append(None)
        return pack(*arguments)

    monkeypatch.setattr(encode_packed.PackedWeight, "of", counted)
    step = FusedStep(SAE(24, 200, k=4, seed=1), lr=1e-3)
    for x in batches(5, 50, 24, torch.float32):
        step(x)
    assert len(packed) == 1


def test_the_instruction_set_may_change_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own layout of the packed encoder."""
    monkeypatch.setenv(ENVIRONMENT, "native-float32")
    before, usable = native.level(), native.usable_levels()
    data = batches(len(usable), 50, 24, torch.float32)
    results = []
    for levels in (usable[:1] * len(usable), usable):
        sae = SAE(24, 200, k=4, seed=1)
        step = FusedStep(sae, lr=1e-3)
        for name, x in zip(levels, data, strict=True):
            native.use_level(name)
            step(x)
        results.append(sae.W_enc.detach().clone())
    native.use_level(before)
    assert_same_bits(results[0], results[1])


def test_state_is_updated_in_place() -> None:
    sae = SAE(8, 32, k=2, seed=0)
    where = sae.W_enc.data_ptr()
    result = FusedStep(sae, lr=1e-2)(torch.randn(20, 8))
    assert sae.W_enc.data_ptr() == where
    assert sae.W_enc.requires_grad
    assert sae.W_enc.grad is None
    assert (result.code.values >= 0).all()
    assert result.fired.sum() == (result.code.values > 0).sum()


def test_latents_of_abstopk_fire_in_both_directions() -> None:
    sae = SAE(8, 32, k=3, seed=0, variant="abstopk")
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    x[0] = 0.0  # all of its pre-activations are zero, so nothing fires
    step = FusedStep(sae, lr=1e-2)
    values, indices = step(x).code
    fired = torch.zeros(32, dtype=torch.int64)
    fired.index_add_(0, indices[1:].flatten(), torch.ones(19 * 3, dtype=torch.int64))
    assert (values < 0).sum() > 10
    assert (values[0] == 0).all()
    assert_same_bits(step.idle, torch.where(fired > 0, 0, 20))


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.alone
def test_other_python_threads_run_during_a_kernel() -> None:
    """No gap between the ticks of another thread is close to the duration of the call."""
    torch.set_num_threads(1)
    x, weight = torch.randn(3000, 128), torch.randn(30_000, 128)
    topk_encode(x[:1], weight, k=8)
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    ticker = threading.Thread(target=tick)
    ticker.start()
    begin = time.perf_counter()
    topk_encode(x, weight, k=8)
    end = time.perf_counter()
    stop.set()
    ticker.join()
    times = [begin, *(t for t in ticks if begin < t < end), end]
    assert max(b - a for a, b in itertools.pairwise(times)) < 0.6 * (end - begin)


def test_rows_with_fewer_than_k_positive_values() -> None:
    """Values that are not positive neither reconstruct nor get gradients."""
    data = batches(10, 30, 16, torch.float64)
    fused, plain = (SAE(16, 24, k=20, seed=1, dtype=torch.float64) for _ in range(2))
    step = FusedStep(fused, lr=2e-3)
    losses = [step(x).loss.item() for x in data]
    assert losses == pytest.approx(train_plainly(plain, data, 2e-3, True), rel=1e-7)


def test_idle_latents_are_counted_and_revived() -> None:
    """AuxK against autograd on its formula, at the step at which latents become dead."""
    data = batches(3, 30, 16, torch.float64)
    sae, plain = (SAE(16, 200, k=2, seed=1, dtype=torch.float64) for _ in range(2))
    settings = AuxK(k=4, dead_after=60)
    step = FusedStep(sae, lr=1e-3, rules=Rules(unit_norm=False), auxk=settings)
    without = FusedStep(plain, lr=1e-3, rules=Rules(unit_norm=False))
    for x in data[:2]:
        assert step(x).auxk.item() == 0.0
        without(x)
    for mine, its in zip(sae.parameters(), plain.parameters(), strict=True):
        assert_same_bits(mine.detach(), its.detach())
    dead = (step.idle >= 60).nonzero()[:, 0][: 200 // 8]
    assert len(dead) > 10
    x = data[2]
    with torch.no_grad():
        error = x - plain(x)
    scores = (x - plain.b_dec) @ plain.W_enc[dead].T + plain.b_enc[dead]
    values, indices = scores.topk(4)
    missed = torch.zeros_like(scores).scatter(1, indices, values.relu()) @ plain.W_dec[dead] - error
    loss = missed.square().sum() / (error - error.mean(0)).square().sum() / 32
    result = step(x)
    assert result.auxk.item() == pytest.approx(loss.item(), rel=1e-9)
    expected = torch.autograd.grad(loss, [plain.W_enc, plain.b_enc, plain.W_dec])
    with torch.no_grad():
        got = auxk_gradients(
            x - plain.b_dec,
            error,
            plain.W_enc,
            plain.b_enc,
            plain.W_dec,
            DeadLatents(dead, torch.tensor([len(dead)])),
            settings,
        )
    for actual, wanted in zip(got[2:], expected, strict=True):
        torch.testing.assert_close(actual, wanted[dead])
    # The step applied them: dead latents have moved, although no reconstruction used them.
    without(x)
    idle = dead[(result.fired == 0)[dead]]
    assert (sae.W_dec[idle] != plain.W_dec[idle]).any(1).float().mean() > 0.5


@pytest.mark.parametrize("normalised", [True, False])
def test_auxk_changes_nothing_while_no_latent_is_dead(normalised: bool) -> None:
    auxk = AuxK(k=4, dead_after=1000, normalised=normalised)
    steps = [FusedStep(SAE(16, 40, k=2, seed=1), auxk=settings) for settings in (auxk, None)]
    for x in batches(3, 30, 16, torch.float32):
        results = [step(x) for step in steps]
        assert results[0].auxk is not None
        assert_same_bits(results[0].auxk, torch.zeros(()))
    for with_auxk, without in zip(*(step.state_dict().values() for step in steps), strict=True):
        assert_same_bits(with_auxk, without)


@pytest.mark.parametrize("chosen", ["positive", "signed", "absolute"])
@pytest.mark.parametrize("dead", [3, 10])
def test_auxk_without_normalisation_scales_with_the_dead(dead: int, chosen: str) -> None:
    """As in SAELens, fewer dead latents than k weigh less; against autograd on the formula."""
    settings = AuxK(k=4, coefficient=0.25, normalised=False, signed=chosen == "signed")
    sae = SAE(16, 40, k=2, seed=1, dtype=torch.float64)
    x, error = batches(2, 30, 16, torch.float64)
    latents = torch.arange(5, 5 + dead)
    encoder, shift, decoder = (
        weight.detach()[latents].requires_grad_() for weight in (sae.W_enc, sae.b_enc, sae.W_dec)
    )
    scores = x @ encoder.T + shift
    indices = (scores.abs() if chosen == "absolute" else scores).topk(min(4, dead)).indices
    values = scores.gather(1, indices)
    assert (values < 0).any()
    values = values.relu() if chosen == "positive" else values
    missed = error - torch.zeros_like(scores).scatter(1, indices, values) @ decoder
    loss = 0.25 * min(dead / 4, 1) * missed.square().sum(1).mean()
    expected = torch.autograd.grad(loss, [encoder, shift, decoder])
    with torch.no_grad():
        listed = DeadLatents(latents, torch.tensor([dead]))
        operands = (x, error, sae.W_enc, sae.b_enc, sae.W_dec, listed, settings)
        found = auxk_gradients(*operands, absolute=chosen == "absolute")
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-9)
    for actual, wanted in zip(found[2:], expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_auxk_by_absolute_value_is_the_same_densely() -> None:
    """Places without a dead latent are masked as on a GPU; scores of both signs tie."""
    random = torch.Generator().manual_seed(0)
    shapes = [(30, 6), (9, 6), (9,), (9, 6), (30, 6)]
    inputs, encoder, shift, decoder, error = (
        torch.randint(-2, 3, shape, generator=random).double() for shape in shapes
    )
    shift[7:] = -torch.inf
    operands = (inputs, encoder, shift, decoder, error, torch.tensor(0.5, dtype=torch.float64))
    settings = AuxK(k=3)
    dense = dense_gradients(*operands, settings, absolute=True)
    sparse = sparse_gradients(*operands, settings, absolute=True)
    plain = sparse_gradients(*operands, settings)
    assert not torch.equal(sparse[0], plain[0])
    for actual, expected in zip(dense, sparse, strict=True):
        torch.testing.assert_close(actual, expected)


def test_auxk_takes_half_the_width_or_an_eighth_of_the_latents() -> None:
    assert [AuxK().actives(d) for d in (1, 2, 7, 16)] == [1, 1, 3, 8]
    assert AuxK(k=3).actives(16) == 3
    idle = torch.tensor([9, 1, 5, 9, 4, 9, 9, 5] * 2)

    def listed(idle: torch.Tensor, **settings: int) -> list[int]:
        dead = dead_latents(idle, AuxK(**settings))
        assert dead.number.tolist() == [len(dead.latents)]
        found: list[int] = dead.latents.tolist()
        return found

    assert listed(idle, dead_after=5) == [0, 2]
    assert listed(idle, dead_after=5, capacity=3) == [0, 2, 3]
    assert listed(idle, dead_after=9, capacity=50) == [0, 3, 5, 6, 8, 11, 13, 14]
    assert listed(idle[:3], dead_after=5) == [0]
    assert listed(idle, dead_after=10) == []


def test_places_without_a_dead_latent_add_nothing_to_stored_gradients() -> None:
    """Their rows are not initialised on a GPU; a sum that reads them would be NaN."""
    sae = SAE(6, 9, k=2, seed=1, dtype=torch.float64)
    start = {name: torch.randn_like(p.detach()) for name, p in sae.named_parameters()}
    latents = torch.tensor([2, 7, 9, 9, 9])
    w_enc, w_dec = (torch.full((5, 6), torch.nan, dtype=torch.float64) for _ in range(2))
    b_enc = torch.full((5,), torch.nan, dtype=torch.float64)
    for part in (w_enc, w_dec, b_enc):
        part[:2] = torch.randn_like(part[:2])
    found = {name: gradient.clone() for name, gradient in start.items()}
    loss = torch.zeros(())
    with torch.no_grad(), host_waits() as waits:
        add_auxk(found, AuxGradients(loss, latents, w_enc, b_enc, w_dec), sae)
    assert waits == []
    for name, more in (("W_enc", w_enc), ("b_enc", b_enc), ("W_dec", w_dec)):
        expected = start[name].clone()
        expected[latents[:2]] += more[:2]
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)
    expected = start["b_dec"] - b_enc[:2] @ sae.W_enc.detach()[latents[:2]]
    torch.testing.assert_close(found["b_dec"], expected)
