"""train_saes: the same bits in company and after a kill, and what it says when things go wrong."""

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerance import assert_same_bits
from torch import Tensor

from saefast import (
    SAE,
    AuxK,
    Penalty,
    Rules,
    TrainConfig,
    atomic,
    load_sae,
    reference,
    train_saes,
    training,
)
from saefast.activations import StoreWriter, TensorActivations
from saefast.sae import VARIANTS
from saefast.synthetic import PlantedWorld
from saefast.trainee import Trainee

WORLD = PlantedWorld.create(64, 16, active=3)
ROWS = WORLD.sample(1500, 0) + 0.5


def config(**changes: Any) -> TrainConfig:
    """A small run that touches everything: epochs, AuxK, schedules."""
    settings: dict[str, Any] = {
        "latents": 96,
        "k": 4,
        "tokens": 4000,
        "batch_size": 128,
        "lr": 2e-3,
        "auxk": AuxK(k=6, dead_after=200),
        "k_start": 8,
        "k_anneal": 0.3,
    }
    return TrainConfig(**(settings | changes))


def train(configuration: Any, **arguments: Any) -> list[SAE]:
    """Silently, on the small rows."""
    return train_saes(
        arguments.pop("rows", ROWS), configuration, progress=False, log_every=7, **arguments
    )


def assert_same_sae(actual: SAE, expected: SAE) -> None:
    for name, value in expected.state_dict().items():
        assert_same_bits(actual.state_dict()[name], value)


@pytest.mark.usefixtures("torch_threads")
def test_company_and_threads_change_no_bit() -> None:
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


def test_the_order_of_the_data_has_a_seed_of_its_own() -> None:
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


def files_of(out: Path) -> dict[str, bytes]:
    """What must not depend on whether a run was broken off: all but times."""
    kept = {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "metrics.jsonl"
    }
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in ("seconds", "tokens_per_second", "input_wait"):
            del line[name]
    kept["metrics.jsonl"] = json.dumps(lines).encode()
    return kept


LONGER = config(seeds=(0, 3), tokens=12_000)
_CHILD = """
import sys
sys.path.insert(0, {tests!r})
import test_train
test_train.train(
    test_train.LONGER, rows={store!r}, out={out!r}, resume=True, checkpoint_minutes=0
)
"""


def test_a_run_killed_anywhere_ends_with_the_same_bytes(tmp_path: Path) -> None:
    store, unbroken, broken = (tmp_path / name for name in ("store", "unbroken", "broken"))
    with StoreWriter(store, 16, dtype=torch.float32, rows_per_shard=400) as writer:
        writer.append(ROWS)
    train(LONGER, rows=store, out=unbroken, checkpoint_minutes=0)
    script = _CHILD.format(tests=str(Path(__file__).parent), store=str(store), out=str(broken))
    chance = random.Random(int.from_bytes(os.urandom(4)))
    for target in sorted(chance.sample(range(LONGER.steps - 40), 4)):
        child = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
        while checkpoint_of(broken) < target:
            assert child.poll() is None
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))  # somewhere in a step, or in a checkpoint
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert files_of(broken) == files_of(unbroken)


_KILLED_WHILE_WRITING = """
import os, pathlib, signal, sys
import safetensors.torch
sys.path.insert(0, {tests!r})
import test_train
save_file = safetensors.torch.save_file
def killed(tensors, path, metadata):
    if path.name.startswith({victim!r}):
        pathlib.Path(path.parent, ".tmpAbC123").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save_file(tensors, path, metadata)
safetensors.torch.save_file = killed
test_train.train(test_train.config(), out={out!r}, checkpoint_minutes=0)
"""


@pytest.mark.parametrize("victim", ["step-9.", "sae_weights."])
def test_a_file_half_written_is_cleared_away(victim: str, tmp_path: Path) -> None:
    train(config(), out=tmp_path / "unbroken")
    out = tmp_path / "broken"
    script = _KILLED_WHILE_WRITING.format(
        tests=str(Path(__file__).parent), victim=victim, out=str(out)
    )
    child = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert child.returncode == -signal.SIGKILL
    assert list(out.rglob(".tmp*"))
    train(config(), out=out, resume=True)
    assert files_of(out) == files_of(tmp_path / "unbroken")


def checkpoint_of(out: Path) -> int:
    """The step that a resume would begin at; -1 where there is no run."""
    if not (out / "run.json").exists():
        return -1
    return int(json.loads((out / "run.json").read_text())["checkpoint"])


def test_ctrl_c_ends_after_a_whole_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(config(seeds=(0, 1)), out=tmp_path / "whole")
    step = Trainee.train

    def interrupted(trainee: Trainee, number: int, batch: Any) -> None:
        if number == 12 and trainee.seed == 0:
            os.kill(os.getpid(), signal.SIGINT)
        step(trainee, number, batch)

    monkeypatch.setattr(Trainee, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config(seeds=(0, 1)), out=tmp_path / "part")
    monkeypatch.undo()
    assert checkpoint_of(tmp_path / "part") == 13
    for _ in range(2):  # the second finds it finished
        resumed = train(config(seeds=(0, 1)), out=tmp_path / "part", resume=True)
        for actual, expected in zip(resumed, whole, strict=True):
            assert_same_sae(actual, expected)


def test_what_is_written_loads(tmp_path: Path) -> None:
    trained = train(config(seeds=(0, 7)), out=tmp_path / "run", keep_training=False)
    for seed, sae in zip((0, 7), trained, strict=True):
        assert_same_sae(load_sae(tmp_path / f"run/seed-{seed}"), sae)
        assert not (tmp_path / f"run/seed-{seed}/training").exists()
    from safetensors.torch import load_file

    sparsity = load_file(tmp_path / "run/seed-0/sparsity.safetensors")["sparsity"]
    rates = 10 ** sparsity.double()
    assert sparsity.shape == (96,)
    assert float(rates.sum()) == pytest.approx(4.0, abs=0.05)  # k latents on every row


def test_metrics_are_what_they_say(tmp_path: Path) -> None:
    plain = config(lr=0.0, auxk=None, k_start=None, tokens=1408)
    sae = train(plain, out=tmp_path)[0]
    last = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][-1]
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


def refused() -> dict[str, tuple[dict[str, Any], str]]:
    """Changes to a run that is resumed, and what is said of them."""
    return {
        "lr": ({"configuration": config(lr=1e-3)}, "lr was 0.002, is 0.001 now"),
        "rules": ({"configuration": config(rules=Rules(clip=2.0))}, "rules.clip was 1.0, is 2.0"),
        "data": ({"rows": ROWS + 1}, "data.fingerprint was"),
    }


@pytest.mark.parametrize("name", refused())
def test_a_changed_run_is_not_resumed(name: str, tmp_path: Path) -> None:
    train(config(), out=tmp_path)
    changes, complaint = refused()[name]
    with pytest.raises(ValueError, match=complaint):
        train(changes.pop("configuration", config()), out=tmp_path, resume=True, **changes)


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(config(tokens=128), out=tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        train(config(tokens=128), out=tmp_path)


def test_nan_in_the_data_is_located() -> None:
    rows = ROWS.clone()
    rows[777, 3] = float("nan")
    with pytest.raises(ValueError, match=r"activations hold NaN or infinity: .*777"):
        train(config(), rows=rows)


def test_nan_far_into_the_data_names_the_step() -> None:
    long = torch.cat([ROWS] * 10)
    later = next(itertools.islice(TensorActivations(long).batches(128, seed=0), 90, None))
    long[int(later.rows[5]), 3] = float("inf")
    with pytest.raises(ValueError, match=rf"step 90 cannot be taken: .*row {later.rows[5]}$"):
        train(config(tokens=128 * 100), rows=long)


def test_divergence_names_step_and_sae() -> None:
    wild = config(seeds=(4,), lr=1e30, rules=Rules(unit_norm=False), lr_warmup=0.0)
    with pytest.raises(ValueError, match=r"training of seed-4 (diverged|stopped).* step \d"):
        train(wild)


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config(), out=tmp_path / "whole")[0]
    written = atomic._replace

    def full(path: Path, part: Path, write: Callable[[Path], object]) -> None:
        def fail(part: Path) -> None:
            write(part)
            part.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        written(path, part, fail if path.name == "step-9.safetensors" else write)

    monkeypatch.setattr(atomic, "_replace", full)
    with pytest.raises(OSError, match=r"checkpoint of step 9 .*No space.*step 8 is intact"):
        train(config(), out=tmp_path / "run", checkpoint_minutes=0)
    monkeypatch.undo()
    assert not list((tmp_path / "run").rglob("*.part"))
    assert json.loads((tmp_path / "run/run.json").read_text())["checkpoint"] == 8
    assert_same_sae(train(config(), out=tmp_path / "run", resume=True)[0], whole)


def test_silence_without_progress(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train(config(tokens=512), out=tmp_path / "a")
    assert capfd.readouterr() == ("", "")
    train_saes(ROWS, config(tokens=512), out=tmp_path / "b")
    shown = capfd.readouterr()
    assert shown.out == ""
    for word in ("training 1 SAE", "tok/s", "EV", "L0", "dead", "loss"):
        assert word in shown.err


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_sides_stay(tied: bool) -> None:
    start = train(config(lr=0.0, tied=tied, rules=Rules(unit_norm=False)))[0]
    assert torch.equal(start.W_enc, start.W_dec) == tied
    reference.normalise_rows(start.W_dec.data)
    for side, weight in (("encoder", "W_enc"), ("decoder", "W_dec")):
        trained = train(config(tied=tied, rules=Rules(frozen=side)))[0]
        other = "W_dec" if weight == "W_enc" else "W_enc"
        assert_same_bits(getattr(trained, weight), getattr(start, weight))
        assert not torch.equal(getattr(trained, other), getattr(start, other))


def test_a_tether_holds() -> None:
    start = train(config(lr=0.0))[0]
    held = train(config(lr=3e-2, rules=Rules(tether=0.8)))[0]
    free = train(config(lr=3e-2))[0]
    cosines = (start.W_dec * held.W_dec).sum(1)
    assert cosines.min() >= 0.8 - 1e-6
    assert (cosines < 0.8 + 1e-5).any()
    assert (start.W_dec * free.W_dec).sum(1).min() < 0.7
    torch.testing.assert_close(held.W_dec.norm(dim=1), torch.ones(96), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["fro", "fro_squared", "mean_abs"])
def test_penalties_shrink_their_side(norm: str) -> None:
    loose = Rules(unit_norm=False)
    weight = {"fro": 10.0, "fro_squared": 0.3, "mean_abs": 100.0}[norm]
    plain = train(config(rules=loose, lr=1e-2))[0]
    for side, name in (("encoder", "W_enc"), ("decoder", "W_dec")):
        rules = Rules(unit_norm=False, penalties=(Penalty(side, norm, weight),))
        shrunk = train(config(rules=rules, lr=1e-2))[0]
        assert getattr(shrunk, name).norm() < 0.8 * getattr(plain, name).norm()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_trained_stored_and_resumed(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(variant=variant, seeds=(0, 1), sparsity=1.0)
    whole = train(chosen, out=tmp_path / "whole")
    for seed, sae in zip((0, 1), whole, strict=True):
        assert_same_sae(load_sae(tmp_path / f"whole/seed-{seed}"), sae)
    step = Trainee.train

    def broken(trainee: Trainee, number: int, batch: Any) -> None:
        if number == 17:
            raise RuntimeError("the power is gone")
        step(trainee, number, batch)

    monkeypatch.setattr(Trainee, "train", broken)
    with pytest.raises(RuntimeError, match="the power is gone"):
        train(chosen, out=tmp_path / "part", checkpoint_minutes=0)
    monkeypatch.undo()
    assert checkpoint_of(tmp_path / "part") == 17
    for actual, expected in zip(
        train(chosen, out=tmp_path / "part", resume=True), whole, strict=True
    ):
        assert_same_sae(actual, expected)
    first, last = metrics_of(tmp_path / "whole")[0], metrics_of(tmp_path / "whole")[-1]
    assert last["fvu"] < first["fvu"]
    # What was trained on scaled rows takes them as they come.
    untrained = train(config(variant=variant, lr=0.0, k_start=None))[0]
    error = ((whole[0](ROWS) - ROWS) ** 2).sum()
    assert error < 0.9 * ((untrained(ROWS) - ROWS) ** 2).sum()


def test_transcoders_learn_another_target() -> None:
    mix = torch.randn(16, 24, generator=torch.Generator().manual_seed(2))
    pairs = TensorActivations(ROWS, 50 * ROWS @ mix)
    trained = train(config(tokens=40_000, k_start=None), rows=pairs)[0]
    assert (trained.d, trained.d_out, trained.transcodes) == (16, 24, True)
    target = 50 * ROWS @ mix
    left = ((trained(ROWS) - target) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    assert left < 0.5


def test_a_loss_of_ones_own_is_trained(tmp_path: Path) -> None:
    def squared(sae: SAE, x: Tensor, target: Tensor) -> Tensor:
        return (sae(x) - target).square().sum(1).mean()

    train(config(loss=squared, auxk=None, k_start=None), out=tmp_path / "own")
    train(config(auxk=None, k_start=None), out=tmp_path / "usual")
    own, usual = (metrics_of(tmp_path / name) for name in ("own", "usual"))
    assert {line["path"] for line in own} == {"autograd"}
    assert {line["path"] for line in usual} == {"fused"}
    facts = json.loads((tmp_path / "own/run.json").read_text())
    assert "squared" in facts["configs"][0]["loss"]
    for mine, theirs in zip(own, usual, strict=True):
        assert mine["fvu"] == pytest.approx(theirs["fvu"], rel=1e-3)


def metrics_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_two_saes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two SAEs would be called seed-0"):
        train([config(), config(lr=1e-3)])
    with pytest.raises(ValueError, match="batch_size must be the same"):
        train([config(), config(batch_size=64, name="b")])


def test_a_run_that_begins_with_given_saes_goes_on_from_them(tmp_path: Path) -> None:
    """Without learning they come back as they were; what the scales take they give back."""
    given = train(config(seeds=(4, 5), tokens=1000))
    before = [{name: value.clone() for name, value in sae.state_dict().items()} for sae in given]
    still = config(lr=0.0, auxk=None, seeds=(0, 1), k_start=None)
    for sae, back in zip(given, train(still, initial=given), strict=True):
        for name, value in sae.state_dict().items():
            torch.testing.assert_close(back.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    tuned = train(config(seeds=(0, 1), k_start=None), initial=given)
    for sae, state, better in zip(given, before, tuned, strict=True):
        for name, value in sae.state_dict().items():
            assert_same_bits(value, state[name])
        error, less = (((each(ROWS) - ROWS) ** 2).sum() for each in (sae, better))
        assert less < 0.9 * error


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_be_gone_on_with(variant: str) -> None:
    chosen = config(variant=variant, sparsity=1.0, k_start=None)
    given = train(chosen)[0]
    still = train(config(variant=variant, lr=0.0, k_start=None, auxk=None), initial=given)[0]
    for name, value in given.state_dict().items():
        if name != "batch_threshold":  # estimated anew from the batches
            torch.testing.assert_close(still.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_a_run_is_resumed_only_with_what_it_began_with(tmp_path: Path) -> None:
    given, other = train(config(seeds=(4, 5), tokens=1000))
    short = config(tokens=2000)
    whole = train(short, initial=given, out=tmp_path / "whole")[0]
    facts = json.loads((tmp_path / "whole/run.json").read_text())
    assert facts["initial"][0].startswith("sha256:")
    for initial in (other, None):
        with pytest.raises(ValueError, match=r"cannot be resumed, for initial\[0\] was 'sha256"):
            train(short, initial=initial, out=tmp_path / "whole", resume=True)
    step = Trainee.train

    def broken(trainee: Trainee, number: int, batch: Any) -> None:
        if number == 9:
            raise RuntimeError("the power is gone")
        step(trainee, number, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainee, "train", broken)
        with pytest.raises(RuntimeError, match="the power is gone"):
            train(short, initial=given, out=tmp_path / "part", checkpoint_minutes=0)
    resumed = train(short, initial=given, out=tmp_path / "part", resume=True)[0]
    assert_same_sae(resumed, whole)
    train(short, out=tmp_path / "drawn")
    with pytest.raises(ValueError, match=r"initial\[0\] was None"):
        train(short, initial=given, out=tmp_path / "drawn", resume=True)


def test_what_a_run_cannot_begin_with() -> None:
    for initial, kind, words in (
        (SAE(16, 95, k=4), ValueError, "initial must have latents=96, .*, got 95"),
        (SAE(15, 96, k=4), ValueError, "initial must have d=16"),
        (SAE(16, 96, k=4, variant="relu"), ValueError, "initial must have variant='topk'"),
        (SAE(16, 96, k=4, d_out=16), ValueError, "initial must have transcodes=False"),
        ([SAE(16, 96, k=4)] * 2, ValueError, "initial must be one for each SAE of the run, 1"),
        (["sae"], TypeError, r"initial\[0\] must be a saefast.SAE, got str"),
    ):
        with pytest.raises(kind, match=words):
            train(config(), initial=initial)
    long = SAE(16, 96, k=4)
    long.W_dec.data *= 2
    with pytest.raises(ValueError, match="initial must have decoder rows of norm 1"):
        train(config(), initial=long)
    train(config(rules=Rules(unit_norm=False), tokens=128), initial=long)


@pytest.mark.parametrize(("worth", "expected"), [(2.0 * 64 * 48 * 16, 2), (2.1 * 64 * 48 * 16, 1)])
def test_small_steps_take_one_thread(worth, expected, monkeypatch):
    """So small that threads would wait longer than they compute; afterwards all is as it was."""
    seen = []
    real = Trainee.train

    def watched(*arguments: Any) -> None:
        seen.append(torch.get_num_threads())
        real(*arguments)

    monkeypatch.setattr(Trainee, "train", watched)
    monkeypatch.setattr(training, "_WORTH_THREADS", worth)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_saes(torch.randn(256, 16), config(latents=48, batch_size=64), progress=False)
        assert set(seen) == {expected}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
