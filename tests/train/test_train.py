"""train_saes: the same bits alone and with others, learning, metrics and errors."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tolerance import assert_same_bits
from helpers.training_runs import ROWS, assert_same_sae, config, metrics_of, steps_take, train
from safetensors.torch import load_file
from torch import Tensor

import saefast
from saefast import SAE, AuxK, Rules, load_sae, progress, train_saes
from saefast.activations import Prefetcher, TensorActivations
from saefast.synthetic import PlantedWorld
from saefast.train import loop as training
from saefast.train.seed_trainer import SeedTrainer


@pytest.mark.usefixtures("torch_threads")
def test_other_saes_and_threads_do_not_change_bits() -> None:
    alone = {seed: train(config(seeds=(seed,)))[0] for seed in (0, 1, 2)}
    torch.set_num_threads(1)
    other = config(seeds=(5,), name="other", rules=Rules(unit_norm=False, clip=1.0))
    together = train([config(seeds=(2, 0)), other, config(seeds=(1,), name="b")])
    assert_same_sae(together[0], alone[2])
    assert_same_sae(together[1], alone[0])
    assert_same_sae(together[3], alone[1])
    torch.set_num_threads(3)
    assert_same_sae(train([other])[0], together[2])
    assert not torch.equal(alone[0].W_dec, alone[1].W_dec)


def test_the_order_of_the_data_has_its_own_seed() -> None:
    first, second = (train(config(data_seed=seed))[0] for seed in (0, 1))
    assert not torch.equal(first.W_dec, second.W_dec)
    untrained = [train(config(data_seed=seed, lr=0.0))[0] for seed in (0, 1)]
    assert_same_bits(untrained[0].W_dec, untrained[1].W_dec)


def test_training_finds_the_planted_features() -> None:
    rows = PlantedWorld.create(48, 32, active=3).sample(40_000, 0)
    found = train(config(latents=96, k=3, k_start=None, tokens=400_000, batch_size=512), rows=rows)
    best = PlantedWorld.create(48, 32, active=3).best_cosine(found[0].W_dec)
    assert (best > 0.95).float().mean() > 0.9


def test_scaling_is_folded_into_the_sae() -> None:
    """Activations 128 times as large give the same SAE, with codes 128 times as large."""
    small, large = (train(config(), rows=ROWS * factor)[0] for factor in (1.0, 128.0))
    code, larger = small.encode(ROWS), large.encode(ROWS * 128)
    assert_same_bits(larger.indices, code.indices)
    torch.testing.assert_close(larger.values, code.values * 128, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(large(ROWS * 128), small(ROWS) * 128, rtol=1e-4, atol=1e-2)
    unscaled = train(config(activation_scaling="none"), rows=ROWS)[0]
    assert not torch.equal(unscaled.b_enc, small.b_enc)


def test_written_saes_can_be_loaded(tmp_path: Path) -> None:
    trained = train(config(seeds=(0, 7)), out=tmp_path / "run", keep_training=False)
    for seed, sae in zip((0, 7), trained, strict=True):
        assert_same_sae(load_sae(tmp_path / f"run/seed-{seed}"), sae)
        assert not (tmp_path / f"run/seed-{seed}/training").exists()
    again = train(config(seeds=(0, 7)), out=tmp_path / "run", resume=True)  # no training is needed
    for sae, expected in zip(again, trained, strict=True):
        assert_same_sae(sae, expected)
    assert json.loads((tmp_path / "run/run.json").read_text())["finished"]
    sparsity = load_file(tmp_path / "run/seed-0/sparsity.safetensors")["sparsity"]
    rates = 10 ** sparsity.double()
    assert sparsity.shape == (96,)
    assert float(rates.sum()) == pytest.approx(4.0, abs=0.05)  # k latents on every row


def test_metrics_equal_their_definitions(tmp_path: Path) -> None:
    plain = config(lr=0.0, auxk=None, k_start=None, tokens=1408)
    sae = train(plain, out=tmp_path)[0]
    last = metrics_of(tmp_path)[-1]
    assert last["step"] == 11
    assert last["tokens"] == 1408
    assert last["l0"] == pytest.approx(4.0)
    stream = TensorActivations(ROWS).batches(128, seed=0)
    seen = [next(stream).x for _ in range(11)][7:]
    errors = sum(float((sae(x).detach() - x).square().sum()) for x in seen)
    spread = sum(float((x - x.mean(0)).square().sum()) for x in seen)
    assert last["fvu"] == pytest.approx(errors / spread, rel=1e-4)
    assert last["explained_variance"] == pytest.approx(1 - errors / spread, rel=1e-4)
    assert last["mse"] == pytest.approx(errors / (4 * 128 * 16), rel=1e-4)


def test_latents_are_dead_after_a_tenth_of_the_training_unless_set(tmp_path: Path) -> None:
    """The training, run.json and the metric use the same number."""
    short = {"tokens": 4000, "seeds": (0, 1)}
    default = train(config(auxk=AuxK(k=6), **short), out=tmp_path / "default")
    number = train(config(auxk=AuxK(k=6, dead_after=400), **short), out=tmp_path / "number")
    for a, b in zip(default, number, strict=True):
        assert_same_sae(a, b)
    assert not torch.equal(default[0].W_dec, train(config(**short))[0].W_dec)  # after 200
    runs = [
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("default", "number")
    ]
    assert runs[0]["configs"] == runs[1]["configs"]
    assert runs[0]["configs"][0]["auxk"]["dead_after"] == 400
    dead = [
        [line["dead_share"] for line in metrics_of(tmp_path / run)] for run in ("default", "number")
    ]
    assert dead[0] == dead[1]
    # Without AuxK the metric uses the same default: after 3 steps no latent counts as dead, ...
    without = config(auxk=None, lr=0.0, k=1, k_start=None)
    train(without, out=tmp_path / "without", log_every=1)
    shares = [line["dead_share"] for line in metrics_of(tmp_path / "without")]
    assert shares[:3] == [0.0] * 3
    assert shares[3] > 0  # ... and after 4, with 128 rows, those that never fired


@pytest.mark.parametrize(
    ("tokens", "expected"), [(5, 1), (19, 1), (4000, 400), (200_000_000, 10_000_000)]
)
def test_the_default_of_dead_after_is_at_most_ten_million(tokens: int, expected: int) -> None:
    assert config(auxk=AuxK(), tokens=tokens).resolved().auxk == AuxK(dead_after=expected)
    assert AuxK().idle_limit(tokens) == expected
    assert AuxK().idle_limit() == 10_000_000
    assert AuxK(dead_after=7).idle_limit(tokens) == 7
    assert config(auxk=None).resolved() == config(auxk=None)


def test_speed_and_waiting_are_of_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = steps_take(0.5, monkeypatch)

    class Waiting(Prefetcher[Any]):
        wait_seconds = property(lambda _: 0.1 * clock.now + 0.01 * clock.now**2, lambda *_: None)

    monkeypatch.setattr(training, "Prefetcher", Waiting)
    train(config(tokens=128 * 16), out=tmp_path)
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == [7, 14, 16]
    assert [line["tokens"] for line in lines] == [896, 1792, 2048]
    assert [line["seconds"] for line in lines] == [3.5, 3.5, 1.0]
    assert [line["tokens_per_second"] for line in lines] == [256.0] * 3
    shares = [0.1 + 0.01 * (first + last) for first, last in ((0, 3.5), (3.5, 7), (7, 8))]
    assert [line["input_wait"] for line in lines] == pytest.approx(shares)


def test_equal_rows_have_no_explained_variance(tmp_path: Path) -> None:
    sae = train(config(), rows=torch.ones(300, 16), out=tmp_path)[0]
    assert metrics_of(tmp_path)[-1]["fvu"] is None
    torch.testing.assert_close(sae(torch.ones(1, 16)), torch.ones(1, 16), rtol=0, atol=0.05)


def test_trained_saes_have_firing_rates(tmp_path: Path) -> None:
    """Equal in memory and in files, so that dead latents are left out of scores."""
    saes = train(config(seeds=(0, 1), lr=3e-2), out=tmp_path / "run")
    loaded = saefast.load_dictionaries(tmp_path / "run")
    for sae, dictionary in zip(saes, loaded, strict=True):
        assert sae.firing_rate is not None
        torch.testing.assert_close(sae.firing_rate, dictionary.firing_rate, rtol=1e-4, atol=0)
        assert 0 < float((sae.firing_rate > 0).double().mean()) < 1
        assert "firing_rate" not in sae.state_dict()
    stability = saefast.score_stability(saes)
    for alive, sae in zip(stability.alive, saes, strict=True):
        assert torch.equal(alive, sae.firing_rate > 0)
    again = saefast.load_sae(saefast.save_sae(saes[0], tmp_path / "copy"))
    torch.testing.assert_close(again.firing_rate, saes[0].firing_rate, rtol=1e-4, atol=0)
    (further,) = train(config(tokens=128, k_start=None), initial=saes[0])
    assert not torch.equal(further.firing_rate, saes[0].firing_rate)
    saefast.FusedStep(saes[0])
    assert saes[0].firing_rate is None


def test_a_run_of_one_step_has_firing_rates(tmp_path: Path) -> None:
    train(config(tokens=128, k_start=None), out=tmp_path)
    sparsity = load_file(tmp_path / "seed-0/sparsity.safetensors")["sparsity"]
    assert float((10 ** sparsity.double()).sum()) == pytest.approx(4.0, abs=0.05)


def test_nan_in_the_data_is_located() -> None:
    rows = ROWS.clone()
    rows[777, 3] = float("nan")
    with pytest.raises(ValueError, match=r"activations hold NaN or infinity: .*777"):
        train(config(), rows=rows)


def test_nan_far_into_the_data_names_the_step() -> None:
    long = torch.cat([ROWS] * 10)
    later = next(itertools.islice(TensorActivations(long).batches(128, seed=0), 90, None))
    long[int(later.rows[5]), 3] = float("inf")
    with pytest.raises(ValueError, match=rf"step 90 failed: .*row {later.rows[5]};"):
        train(config(tokens=128 * 100), rows=long)


def test_divergence_names_step_and_sae() -> None:
    wild = config(seeds=(4,), lr=1e30, rules=Rules(unit_norm=False), lr_warmup=0.0)
    with pytest.raises(ValueError, match=r"training of seed-4 (diverged|stopped).* step \d"):
        train(wild)


def test_errors_of_a_step_name_step_and_sae() -> None:
    def unwilling(sae: SAE, x: Tensor, target: Tensor) -> Tensor:
        if sae.b_enc.any():  # it was zero before the first step
            raise ValueError("no more of this")
        return (sae(x) - target).square().sum()

    with pytest.raises(ValueError, match=r"seed-3 stopped at step 1, on .*: no more of this"):
        train(config(loss=unwilling, seeds=(3,)))


def test_a_loss_may_have_constant_gradients() -> None:
    """Autograd returns these as an expanded number, which cannot be modified in place."""
    sae = train(config(loss=lambda sae, x, target: sae.W_enc.sum() + sae.b_dec.sum()))[0]
    assert sae.W_enc.isfinite().all()


def test_rows_in_half_precision_are_used_exactly() -> None:
    rows, target = ROWS.bfloat16(), (ROWS * 3 - 1).bfloat16()
    found = train(config(), rows=TensorActivations(rows, target))[0]
    assert_same_sae(found, train(config(), rows=TensorActivations(rows.float(), target.float()))[0])


def test_nothing_is_printed_without_progress(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(tokens=512), out=tmp_path / "a")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setattr(progress, "DELAY", 0)
    train_saes(ROWS, config(tokens=512), out=tmp_path / "b")
    shown = capfd.readouterr()
    assert shown.out == ""
    for word in ("training 1 SAE:", "100%", "512/512", "rows/s", "EV", "L0", "dead", "loss"):
        assert word in shown.err


@pytest.mark.parametrize(("worth", "expected"), [(2.0 * 64 * 48 * 16, 2), (2.1 * 64 * 48 * 16, 1)])
def test_small_steps_use_one_thread(worth, expected, monkeypatch):
    """Threads would wait longer than they compute; their number is restored afterwards."""
    seen = []
    real = SeedTrainer.train

    def watched(*arguments: Any) -> None:
        seen.append(torch.get_num_threads())
        real(*arguments)

    monkeypatch.setattr(SeedTrainer, "train", watched)
    monkeypatch.setattr(training, "_WORTH_THREADS", worth)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_saes(torch.randn(256, 16), config(latents=48, batch_size=64), progress=False)
        assert set(seen) == {expected}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
