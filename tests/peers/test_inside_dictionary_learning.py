"""dictionary_learning trains, logs and saves the same with saefast inside."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary
from torch import Tensor, nn

from saefast.integrations.dictionary_learning import SaefastBatchTopKTrainer, SaefastTopKTrainer

D, M, K, N = 24, 96, 6, 50
TRAINERS = {
    "TopK": (TopKTrainer, SaefastTopKTrainer),
    "BatchTopK": (BatchTopKTrainer, SaefastBatchTopKTrainer),
}
each_variant = pytest.mark.parametrize("variant", list(TRAINERS))
LOSS = {"rtol": 1e-5, "atol": 1e-6}
WEIGHTS = {"rtol": 1e-4, "atol": 1e-5}


def _settings(**changed: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "steps": 100,
        "activation_dim": D,
        "dict_size": M,
        "k": K,
        "layer": 3,
        "lm_name": "none",
        "warmup_steps": 3,
        "decay_start": 8,
        "threshold_start_step": 2,
        "threshold_beta": 0.8,
        "device": "cpu",
        "seed": 0,
        "lr": 1e-3,
    }
    return usual | changed


def _pair(variant: str, **changed: Any) -> tuple[Any, Any]:
    return tuple(trainer(**_settings(**changed)) for trainer in TRAINERS[variant])


def _batches(steps: int) -> Tensor:
    return 0.3 + torch.randn(steps, N, D, generator=torch.Generator().manual_seed(1))


def _assert_same(ours: Any, own: Any) -> None:
    assert ours.ae.state_dict().keys() == own.ae.state_dict().keys()
    for name, theirs in own.ae.state_dict().items():
        torch.testing.assert_close(ours.ae.state_dict()[name], theirs, **WEIGHTS)


def _with_dead_latents(trainers: tuple[Any, Any]) -> None:
    for trainer in trainers:
        trainer.dead_feature_threshold = 3 * N - 1
        trainer.ae.encoder.bias.data[:30] = -2.5


@each_variant
@pytest.mark.parametrize("auxk_alpha", [1 / 32, 1.0, 0.0])
def test_every_step_equals_one_without_saefast(variant: str, auxk_alpha: float) -> None:
    own, ours = _pair(variant, auxk_alpha=auxk_alpha)
    _with_dead_latents((own, ours))
    dead, losses = [], []
    for step, x in enumerate(_batches(14)):
        losses.append(own.update(step, x.clone()))
        assert ours.update(step, x.clone()) == pytest.approx(losses[-1], rel=1e-5)
        _assert_same(ours, own)
        assert torch.equal(ours.num_tokens_since_fired, own.num_tokens_since_fired)
        if auxk_alpha:
            assert ours.get_logging_parameters().keys() == own.get_logging_parameters().keys()
            for name, value in own.get_logging_parameters().items():
                assert float(ours.get_logging_parameters()[name]) == pytest.approx(
                    float(torch.as_tensor(value).detach()), rel=1e-4
                )
            dead.append(own.dead_features)
    if auxk_alpha:
        assert dead[0] == 0
        assert dead[-1] >= 29
    assert losses[-1] < losses[0]
    assert own.ae.threshold > 0


@each_variant
def test_dead_latents_learn(variant: str) -> None:
    """Without AuxK those weights would not move."""
    _, ours = _pair(variant, auxk_alpha=1.0)
    _with_dead_latents((ours, ours))
    before = None
    for step, x in enumerate(_batches(10)):
        ours.update(step, x)
        if step == 1:
            before = ours.ae.encoder.bias[:30].clone()
    assert before is not None
    assert ((ours.ae.encoder.bias[:30] - before).abs() > 1e-4).any()


def test_rows_with_fewer_positives_than_k() -> None:
    """Losses and weights agree; a latent that only filled up a row has not fired."""
    own, ours = _pair("TopK", auxk_alpha=0.0)
    for trainer in (own, ours):
        trainer.ae.encoder.bias.data -= 1.7
    sparse_rows = 0
    for step, x in enumerate(_batches(6)):
        active = (own.ae.encode(x) > 0).sum(1)
        assert (active == K).any()
        sparse_rows += int((active < K).sum())
        assert ours.update(step, x) == pytest.approx(own.update(step, x), rel=1e-5)
        _assert_same(ours, own)
    assert sparse_rows > N
    assert (ours.num_tokens_since_fired >= own.num_tokens_since_fired).all()
    assert (ours.num_tokens_since_fired > own.num_tokens_since_fired).any()


@each_variant
def test_logged_losses_agree(variant: str) -> None:
    own, ours = _pair(variant)
    for step, x in enumerate(_batches(4)):
        logged = [trainer.loss(x, step=step, logging=True) for trainer in (own, ours)]
        assert logged[0]._fields == logged[1]._fields
        torch.testing.assert_close(logged[1].x_hat, logged[0].x_hat, **LOSS)
        torch.testing.assert_close(logged[1].f, logged[0].f, **LOSS)
        assert logged[1].losses == pytest.approx(logged[0].losses, rel=1e-5)
        own.update(step, x)
        ours.update(step, x)
        assert torch.equal(ours.num_tokens_since_fired, own.num_tokens_since_fired)


@each_variant
def test_train_sae_writes_the_same_files(variant: str, tmp_path: Path) -> None:
    """The whole loop, with normalised activations and a checkpoint in between."""
    for trainer, folder in zip(TRAINERS[variant], ("own", "ours"), strict=True):
        trainSAE(
            data=iter(list(_batches(120))),
            trainer_configs=[{"trainer": trainer} | _settings(steps=12)],
            steps=12,
            save_dir=str(tmp_path / folder),
            save_steps=[5],
            normalize_activations=True,
            device="cpu",
        )
    own, ours = (tmp_path / name / "trainer_0" for name in ("own", "ours"))
    files = {str(file.relative_to(own)) for file in own.rglob("*") if file.is_file()}
    assert files == {str(file.relative_to(ours)) for file in ours.rglob("*") if file.is_file()}
    assert files == {"ae.pt", "config.json", "checkpoints/ae_5.pt"}
    for name in ("ae.pt", "checkpoints/ae_5.pt"):
        expected = torch.load(own / name, weights_only=True)
        found = torch.load(ours / name, weights_only=True)
        assert list(found) == list(expected)
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, **WEIGHTS)
    configs = [json.loads((at / "config.json").read_text())["trainer"] for at in (own, ours)]
    assert configs[0].pop("trainer_class") == f"{variant}Trainer"
    assert configs[1].pop("trainer_class") == f"Saefast{variant}Trainer"
    assert configs[1] == configs[0]
    loaded, _ = load_dictionary(str(ours), "cpu")
    assert type(loaded) is (AutoEncoderTopK if variant == "TopK" else BatchTopKSAE)
    other, _ = load_dictionary(str(own), "cpu")
    x = _batches(1)[0]
    torch.testing.assert_close(loaded(x), other(x), rtol=1e-3, atol=1e-4)


@each_variant
def test_the_autoencoder_is_trained_in_place(variant: str) -> None:
    _, trainer = _pair(variant)
    batches = _batches(3)
    encoder, decoder = trainer.ae.encoder.weight, trainer.ae.decoder.weight
    trainer.update(1, batches[0])
    assert trainer.ae.encoder.weight is encoder
    assert trainer.ae.decoder.weight is decoder
    assert decoder.shape == (D, M)
    torch.testing.assert_close(decoder.norm(dim=0), torch.ones(M))
    other = copy.deepcopy(trainer.ae.state_dict())
    trainer.update(2, batches[1])
    assert not torch.equal(trainer.ae.encoder.weight, other["encoder.weight"])


def test_weights_loaded_between_steps_are_trained() -> None:
    """The encoder was packed in the previous step."""
    own, ours = _pair("TopK")
    others = nn.Module.state_dict(TopKTrainer(**_settings(seed=7)).ae)
    for step, x in enumerate(_batches(5)):
        if step == 3:
            for trainer in (own, ours):
                trainer.ae.load_state_dict(others)
        assert ours.update(step, x) == pytest.approx(own.update(step, x), rel=1e-5)
    _assert_same(ours, own)


def test_biases_scaled_between_steps_are_trained() -> None:
    own, ours = _pair("BatchTopK")
    for step, x in enumerate(_batches(5)):
        if step == 3:
            for trainer in (own, ours):
                trainer.ae.scale_biases(2.0)
        assert ours.update(step, x) == pytest.approx(own.update(step, x), rel=1e-5)
    _assert_same(ours, own)


def test_replaced_weights_raise() -> None:
    _, trainer = _pair("TopK")
    trainer.update(1, _batches(1)[0])
    trainer.ae.decoder.weight.data = trainer.ae.decoder.weight.data.clone()
    with pytest.raises(RuntimeError, match="replaced or moved"):
        trainer.update(2, _batches(1)[0])


def test_a_dictionary_of_another_class_raises() -> None:
    with pytest.raises(TypeError, match="dict_class must be a AutoEncoderTopK"):
        SaefastTopKTrainer(**_settings(dict_class=BatchTopKSAE))


@each_variant
def test_batches_of_another_dtype_are_trained_on(variant: str) -> None:
    _, trainer = _pair(variant)
    assert trainer.update(1, _batches(1)[0].bfloat16()) > 0


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "exact"), (torch.bfloat16, "bf16")]
)
def test_precision_follows_autocast(dtype: torch.dtype, precision: str) -> None:
    """dictionary_learning enables autocast with float32 as well, which is exact."""
    before = torch.get_autocast_dtype("cpu")
    _, trainer = _pair("TopK")
    try:  # torch.autocast refuses float32 on a CPU
        torch.set_autocast_dtype("cpu", dtype)
        torch.set_autocast_enabled("cpu", True)
        trainer.update(1, _batches(1)[0])
    finally:
        torch.set_autocast_enabled("cpu", False)
        torch.set_autocast_dtype("cpu", before)
    assert trainer.fused.precision == precision


@each_variant
def test_learning_rate_follows_the_trainers_schedule(variant: str) -> None:
    own, ours = _pair(variant, steps=20)
    for step, x in enumerate(_batches(12)):
        for trainer in (own, ours):
            trainer.update(step, x)
        rates = [trainer.optimizer.param_groups[0]["lr"] for trainer in (own, ours)]
        assert rates[0] == rates[1]
    assert rates[0] < 1e-3


@each_variant
def test_same_bits_for_any_number_of_threads(variant: str, torch_threads: Iterator[None]) -> None:
    ends = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        _, trainer = _pair(variant)
        _with_dead_latents((trainer, trainer))
        for step, x in enumerate(_batches(6), start=1):  # step 0 has dictionary_learning's median
            trainer.update(step, x)
        ends.append(trainer.ae.state_dict())
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name])


def test_several_trainers_in_one_run(tmp_path: Path) -> None:
    configs = [{"trainer": SaefastTopKTrainer} | _settings(seed=seed) for seed in (0, 1)]
    configs += [{"trainer": TopKTrainer} | _settings()]
    trainSAE(iter(list(_batches(6))), configs, 5, save_dir=str(tmp_path), device="cpu")
    weights = [
        torch.load(tmp_path / f"trainer_{i}" / "ae.pt", weights_only=True)["encoder.weight"]
        for i in range(3)
    ]
    assert not torch.equal(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2], **WEIGHTS)
