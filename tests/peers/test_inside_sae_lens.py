"""SAELens trains, saves and encodes the same with saefast inside."""

import copy
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sae_lens
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

import saefast
from saefast.integrations import sae_lens as inside
from saefast.integrations import sae_lens_codes

D, M, K, N = 24, 96, 6, 50
TIGHT = {"rtol": 1e-5, "atol": 1e-6}
VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {"k": K},
    "batchtopk": {"k": 5.5, "topk_threshold_lr": 0.2},
    "matryoshka_batchtopk": {"k": K, "matryoshka_widths": [20, 50, M]},
}
each_variant = pytest.mark.parametrize("variant", list(VARIANTS))
each_rescaling = pytest.mark.parametrize("rescale", [True, False])


def _sae(variant: str, **settings: Any) -> TrainingSAE:
    sae_class, config_class = get_sae_training_class(variant)
    chosen = copy.deepcopy(VARIANTS[variant.removeprefix("saefast_")]) | settings
    torch.manual_seed(0)
    sae = sae_class(config_class(d_in=D, d_sae=M, **chosen))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return sae


def _pair(variant: str, **settings: Any) -> tuple[TrainingSAE, TrainingSAE]:
    return _sae(variant, **settings), _sae(f"saefast_{variant}", **settings)


def _batches(steps: int) -> Tensor:
    return torch.randn(steps, N, D, generator=torch.Generator().manual_seed(1))


def _input(x: Tensor, dead: Tensor | None = None) -> TrainStepInput:
    return TrainStepInput(
        sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
    )


def _dead(latents: int) -> Tensor:
    """So many of all, here and there."""
    return 7 * torch.arange(M) % M < latents


def _trainer(sae: TrainingSAE, batches: Iterator[Tensor], **settings: Any) -> SAETrainer:
    config: dict[str, Any] = {
        "n_checkpoints": 0,
        "checkpoint_path": None,
        "save_final_checkpoint": False,
        "total_training_samples": 10 * N,
        "device": "cpu",
        "autocast": False,
        "lr": 1e-3,
        "lr_end": 1e-4,
        "lr_scheduler_name": "constant",
        "lr_warm_up_steps": 3,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "lr_decay_steps": 0,
        "n_restart_cycles": 1,
        "train_batch_size_samples": N,
        "dead_feature_window": 2,
        "feature_sampling_window": 2000,
        "logger": LoggingConfig(log_to_wandb=False),
    }
    return SAETrainer(SAETrainerConfig(**config | settings), sae, batches)


def _gradients(sae: TrainingSAE, output: TrainStepOutput) -> dict[str, Tensor]:
    sae.zero_grad()
    output.loss.backward()
    return {name: parameter.grad for name, parameter in sae.named_parameters()}


def _assert_same_output(ours: TrainStepOutput, own: TrainStepOutput) -> None:
    assert ours.losses.keys() == own.losses.keys()
    for name in own.losses:
        torch.testing.assert_close(ours.losses[name], own.losses[name], **TIGHT)
    torch.testing.assert_close(ours.loss, own.loss, **TIGHT)
    torch.testing.assert_close(ours.sae_out, own.sae_out, **TIGHT)
    torch.testing.assert_close(ours.feature_acts.to_dense(), own.feature_acts.to_dense(), **TIGHT)
    assert ours.sae_in is own.sae_in


@each_variant
@each_rescaling
@pytest.mark.parametrize("dead_latents", [0, 5, 40])
def test_losses_activations_and_gradients_agree(
    variant: str, rescale: bool, dead_latents: int
) -> None:
    alone, with_saefast = _pair(variant, rescale_acts_by_decoder_norm=rescale)
    step_input = _input(_batches(1)[0], _dead(dead_latents))
    own = alone.training_forward_pass(step_input)
    ours = with_saefast.training_forward_pass(step_input)
    _assert_same_output(ours, own)
    assert (ours.losses["auxiliary_reconstruction_loss"] > 0) == (dead_latents > 0)
    assert type(ours.feature_acts) is Tensor
    assert not ours.feature_acts.is_sparse
    expected = _gradients(alone, own)
    for name, gradient in _gradients(with_saefast, ours).items():
        torch.testing.assert_close(gradient, expected[name], **TIGHT)


@each_variant
def test_saelens_trainer_trains_step_by_step_as_without(variant: str) -> None:
    trainers = [_trainer(sae, iter(())) for sae in _pair(variant)]
    dead = []
    for x in _batches(12):
        own, ours = (trainer.step(x) for trainer in trainers)
        torch.testing.assert_close(ours.loss, own.loss, **TIGHT)
        for name, theirs in trainers[0].sae.named_parameters():
            mine = trainers[1].sae.get_parameter(name)
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        dead.append(int(trainers[0].dead_neurons.sum()))
        for count in ("act_freq_scores", "n_forward_passes_since_fired"):
            assert torch.equal(getattr(trainers[1], count), getattr(trainers[0], count))
    assert max(dead) > 0, "the loss of dead latents was active"
    if variant != "topk":
        torch.testing.assert_close(
            trainers[1].sae.topk_threshold, trainers[0].sae.topk_threshold, **TIGHT
        )


@each_variant
def test_sparse_activations_give_the_same_training(variant: str) -> None:
    dense = _sae(f"saefast_{variant}")
    sparse = _sae(f"saefast_{variant}", use_sparse_activations=True)
    trainers = [_trainer(sae, iter(())) for sae in (dense, sparse)]
    for x in _batches(6):
        outputs = [trainer.step(x) for trainer in trainers]
        assert outputs[1].feature_acts.is_sparse
        _assert_same_output(outputs[1], outputs[0])
        assert torch.equal(trainers[0].act_freq_scores, trainers[1].act_freq_scores)
        for log in (
            trainer.build_train_step_log_dict(out, N)
            for trainer, out in zip(trainers, outputs, strict=True)
        ):
            assert log["metrics/l0"] > 0
    for mine, theirs in zip(dense.parameters(), sparse.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@each_rescaling
def test_rows_with_fewer_positives_than_k(rescale: bool) -> None:
    alone, with_saefast = _pair("topk", rescale_acts_by_decoder_norm=rescale)
    with torch.no_grad():
        for sae in (alone, with_saefast):
            sae.b_enc -= 0.7
    step_input = _input(_batches(1)[0], _dead(40))
    own = alone.training_forward_pass(step_input)
    active = (own.feature_acts > 0).sum(1)
    assert (active < K).any()
    assert (active == K).any()
    ours = with_saefast.training_forward_pass(step_input)
    _assert_same_output(ours, own)
    expected = _gradients(alone, own)
    for name, gradient in _gradients(with_saefast, ours).items():
        torch.testing.assert_close(gradient, expected[name], **TIGHT)


@each_variant
def test_activations_are_differentiable_as_without(variant: str) -> None:
    """A loss of one's own on what comes out, decoder norms among what it depends on."""
    step_input, gradients = _input(_batches(1)[0]), []
    for sae in _pair(variant):
        output = sae.training_forward_pass(step_input)
        loss = output.feature_acts.square().sum() + output.hidden_pre.tanh().sum()
        (loss + output.sae_out.abs().sum()).backward()
        gradients.append({name: value.grad for name, value in sae.named_parameters()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-4, atol=1e-5)


@each_variant
def test_public_methods_agree(variant: str) -> None:
    x = torch.randn(3, 7, D)
    alone, with_saefast = _pair(variant)
    for sae in (alone, with_saefast):
        sae.eval()
    own_acts, own_pre = alone.encode_with_hidden_pre(x)
    acts, pre = with_saefast.encode_with_hidden_pre(x)
    torch.testing.assert_close(acts, own_acts, **TIGHT)
    assert pre.shape == own_pre.shape
    torch.testing.assert_close(pre + 0, own_pre, **TIGHT)
    torch.testing.assert_close(with_saefast.encode(x), alone.encode(x), **TIGHT)
    torch.testing.assert_close(with_saefast.decode(acts), alone.decode(own_acts), **TIGHT)
    torch.testing.assert_close(with_saefast(x), alone(x), **TIGHT)
    torch.testing.assert_close(with_saefast(x), with_saefast.decode(acts), **TIGHT)


def test_aux_loss_of_given_pre_activations() -> None:
    """As SAELens's own tests call it, with a matrix that no encoder made."""
    alone, with_saefast = _pair("topk")
    arguments = {
        "sae_in": torch.randn(N, D),
        "sae_out": torch.randn(N, D),
        "hidden_pre": torch.randn(N, M),
    }
    for dead in (None, torch.zeros(M, dtype=torch.bool), torch.rand(M) < 0.3):
        expected = alone.calculate_topk_aux_loss(**arguments, dead_neuron_mask=dead)
        found = with_saefast.calculate_topk_aux_loss(**arguments, dead_neuron_mask=dead)
        torch.testing.assert_close(found, expected)


def test_aux_loss_refuses_normalised_activations_as_saelens_does() -> None:
    for sae in _pair("topk", normalize_activations="layer_norm"):
        with pytest.raises(ValueError, match="normalize_activations"):
            sae.training_forward_pass(_input(_batches(1)[0], _dead(5)))


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_normalised_activations(normalisation: str) -> None:
    alone, with_saefast = _pair("topk", normalize_activations=normalisation)
    step_input = _input(3 * _batches(1)[0] + 1)
    own = alone.training_forward_pass(step_input)
    _assert_same_output(with_saefast.training_forward_pass(step_input), own)


def test_without_subtracting_b_dec() -> None:
    alone, with_saefast = _pair("topk", apply_b_dec_to_input=False)
    step_input = _input(_batches(1)[0])
    own = alone.training_forward_pass(step_input)
    _assert_same_output(with_saefast.training_forward_pass(step_input), own)


@each_variant
def test_hooks_on_dense_tensors_are_called_and_obeyed(variant: str) -> None:
    seen: dict[str, Tensor] = {}

    def doubled(tensor: Tensor, hook: Any) -> Tensor:
        seen[hook.name] = tensor
        return 2 * tensor

    x, outputs = _batches(1)[0], []
    names = ("hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons")
    for sae in _pair(variant):
        for name in names:
            seen.clear()
            outputs.append(sae.run_with_hooks(x, fwd_hooks=[(name, doubled)]))
            assert seen[name].shape == (N, M if "acts" in name else D)
        outputs.append(sae(x))
    own, ours = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
    for mine, theirs in zip(ours, own, strict=True):
        torch.testing.assert_close(mine, theirs, **TIGHT)
    assert not torch.equal(own[0], own[-1])


def test_cache_of_all_hooks() -> None:
    alone, with_saefast = _pair("topk")
    x = _batches(1)[0]
    own, own_cache = alone.run_with_cache(x)
    ours, cache = with_saefast.run_with_cache(x)
    torch.testing.assert_close(ours, own, **TIGHT)
    assert cache.keys() == own_cache.keys()
    for name in own_cache:
        torch.testing.assert_close(cache[name], own_cache[name], **TIGHT)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes(dtype: str) -> None:
    alone, with_saefast = _pair("topk", dtype=dtype)
    x = _batches(1)[0].to(alone.dtype)
    own = alone.training_forward_pass(_input(x))
    ours = with_saefast.training_forward_pass(_input(x))
    assert ours.sae_out.dtype == own.sae_out.dtype == alone.dtype
    assert ours.feature_acts.dtype == own.feature_acts.dtype
    tolerance = 1e-10 if dtype == "float64" else 3e-2
    torch.testing.assert_close(ours.loss, own.loss, rtol=tolerance, atol=0)


def test_moving_to_another_dtype_keeps_the_layout() -> None:
    sae = _sae("saefast_topk")
    sae.training_forward_pass(_input(_batches(1)[0]))
    sae.to(dtype=torch.float64)
    assert sae.dtype == torch.float64
    assert sae.cfg.dtype == "float64"
    assert sae.W_enc.T.is_contiguous()
    sae.training_forward_pass(_input(_batches(1)[0].double())).loss.backward()
    assert sae.W_enc.grad.stride() == sae.W_enc.stride(), "so Adam runs over both alike"


def test_autocast_rounds_products_to_bfloat16_and_trains() -> None:
    alone, with_saefast = _pair("topk")
    trainers = [_trainer(sae, iter(()), autocast=True) for sae in (alone, with_saefast)]
    for x in _batches(4):
        own, ours = (trainer.step(x) for trainer in trainers)
        torch.testing.assert_close(ours.loss, own.loss, rtol=2e-2, atol=0)
    exact = _sae("saefast_topk").training_forward_pass(_input(_batches(1)[0])).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = _sae("saefast_topk").training_forward_pass(_input(_batches(1)[0])).loss
    assert exact != rounded


@each_variant
def test_inference_files_are_those_of_saelens(variant: str, tmp_path: Path) -> None:
    x, files = _batches(1)[0], []
    for sae in _pair(variant):
        _trainer(sae, iter(())).step(x)
        folder = tmp_path / sae.cfg.architecture()
        sae.save_inference_model(folder)
        files.append((json.loads((folder / "cfg.json").read_text()), folder))
    (own, own_folder), (ours, folder) = files
    for config in (own, ours):
        for name in ("training_architecture", "training_architecture_details"):
            del config["metadata"][name]
    assert ours == own
    tensors, expected = (load_file(at / "sae_weights.safetensors") for at in (folder, own_folder))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    loaded = SAE.load_from_disk(folder)
    assert type(loaded) is type(SAE.load_from_disk(own_folder))


def test_saefast_reads_what_was_trained(tmp_path: Path) -> None:
    sae, x = _sae("saefast_topk", rescale_acts_by_decoder_norm=False), _batches(1)[0]
    _trainer(sae, iter(())).step(x)
    sae.save_inference_model(tmp_path)
    torch.testing.assert_close(saefast.load_sae(tmp_path)(x), sae(x), **TIGHT)


@each_variant
def test_training_goes_on_from_saelens_checkpoint(variant: str, tmp_path: Path) -> None:
    """By SAELens's own saving and loading, as if it had not been interrupted."""
    batches = _batches(8)
    whole = _trainer(_sae(f"saefast_{variant}"), iter(()))
    for number, x in enumerate(batches):
        if number == 4:
            whole.save_checkpoint("middle", tmp_path)
        whole.step(x)
    loaded = TrainingSAE.load_from_disk(tmp_path / "middle")
    assert loaded.cfg.architecture() == f"saefast_{variant}"
    resumed = _trainer(loaded, iter(()))
    resumed.load_trainer_state(tmp_path / "middle")
    for x in batches[4:]:
        resumed.step(x)
    for mine, theirs in zip(resumed.sae.parameters(), whole.sae.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    other = _sae(f"saefast_{variant}")
    other.load_weights_from_checkpoint(tmp_path / "middle")


def test_fit_runs_and_folds(tmp_path: Path) -> None:
    """The whole loop of SAELens, with scaling of activations and a final checkpoint."""
    ends = []
    for sae in _pair("batchtopk", normalize_activations="expected_average_only_in"):
        settings = {"checkpoint_path": str(tmp_path), "save_final_checkpoint": True}
        batches = _batches(1)[0]
        endless = iter(lambda batches=batches: batches, None)
        trainer = _trainer(sae, endless, n_batches_for_norm_estimate=2, **settings)
        ends.append(trainer.fit())
    for name, theirs in ends[0].named_parameters():
        torch.testing.assert_close(ends[1].get_parameter(name), theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ends[1].topk_threshold, ends[0].topk_threshold, **TIGHT)
    assert ends[1].cfg.metadata.l0 == ends[0].cfg.metadata.l0


@each_variant
def test_configs_are_those_of_saelens(variant: str) -> None:
    alone, with_saefast = (get_sae_training_class(f"{who}{variant}")[1] for who in ("", "saefast_"))
    assert issubclass(with_saefast, alone)
    settings = copy.deepcopy(VARIANTS[variant])
    own, ours = (kind(d_in=D, d_sae=M, **settings).to_dict() for kind in (alone, with_saefast))
    assert ours.pop("architecture") == f"saefast_{own.pop('architecture')}"
    assert ours.pop("metadata")["training_architecture"] == f"saefast_{variant}"
    own.pop("metadata")
    assert ours == own
    config = with_saefast(d_in=D, d_sae=M, **settings)
    again = sae_lens.TrainingSAEConfig.from_dict(config.to_dict())
    assert type(again) is with_saefast
    assert again.get_inference_sae_cfg_dict()["architecture"] in ("topk", "jumprelu")


# SAELens imports its runner in __init__, and runpy warns of running a module twice.
@pytest.mark.filterwarnings("ignore:'sae_lens.llm_sae_training_runner' found:RuntimeWarning")
def test_command_line_knows_the_architectures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("saefast.integrations.sae_lens_cli", run_name="__main__")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for variant in VARIANTS:
        assert f"saefast_{variant}" in shown


def test_state_dicts_are_saelens_own() -> None:
    alone, with_saefast = _pair("topk")
    with_saefast.training_forward_pass(_input(_batches(1)[0]))
    own, ours = alone.state_dict(), with_saefast.state_dict()
    assert list(ours) == list(own)
    for name, tensor in ours.items():
        assert tensor.is_contiguous(), "safetensors refuses anything else"
        assert tensor.shape == own[name].shape
    alone.load_state_dict(ours)
    with_saefast.load_state_dict(own)
    assert with_saefast.W_enc.T.is_contiguous()


def test_state_dict_can_be_saved_without_saelens(tmp_path: Path) -> None:
    sae = _sae("saefast_topk")
    sae.training_forward_pass(_input(_batches(1)[0]))
    save_file(sae.state_dict(), tmp_path / "weights.safetensors")


@each_variant
def test_weights_drawn_anew_are_those_of_the_seed(variant: str) -> None:
    """Random numbers fill a tensor as it lies in memory, which is as in SAELens before a step."""
    alone, with_saefast = _pair(variant)
    for sae in (alone, with_saefast):
        torch.manual_seed(5)
        torch.nn.init.uniform_(sae.W_enc)
        sae.W_dec.data = torch.rand_like(sae.W_dec)
    assert torch.equal(with_saefast.W_enc, alone.W_enc)
    assert torch.equal(with_saefast.W_dec, alone.W_dec)


@each_variant
def test_a_pass_in_inference_mode_leaves_weights_that_can_be_trained(variant: str) -> None:
    sae, step_input = _sae(f"saefast_{variant}"), _input(_batches(1)[0])
    with torch.inference_mode():
        sae.training_forward_pass(step_input)
    sae.training_forward_pass(step_input).loss.backward()
    assert sae.W_enc.grad.abs().sum() > 0


@each_variant
def test_copies(variant: str) -> None:
    sae, x = _sae(f"saefast_{variant}"), _batches(1)[0]
    sae.training_forward_pass(_input(x))
    other = copy.deepcopy(sae)
    assert torch.equal(other(x), sae(x))
    assert other.state_dict()["W_enc"].is_contiguous()
    assert other.W_enc.T.is_contiguous()


def test_hidden_pre_is_not_computed_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from saefast.integrations.pre_activations import PreActivations

    def read(_: PreActivations) -> Tensor:
        raise AssertionError("the dense matrix was made")

    monkeypatch.setattr(PreActivations, "dense", read)
    trainer = _trainer(_sae("saefast_topk"), iter(()), dead_feature_window=0)
    trainer.n_forward_passes_since_fired += 5
    assert trainer.step(_batches(1)[0]).losses["auxiliary_reconstruction_loss"] > 0


def test_float_k_keeps_as_many_as_saelens() -> None:
    for k in (0.3, 1.0, 5.5, 7.99):
        own, ours = (sae.encode(_batches(1)[0]) for sae in _pair("batchtopk", k=k))
        assert int((ours > 0).sum()) == int((own > 0).sum()) == int(k * N)
        torch.testing.assert_close(ours, own, **TIGHT)


def test_guesses_of_thresholds_do_not_decide() -> None:
    """After batches of very different size, as after none."""
    sae, x = _sae("saefast_batchtopk"), _batches(1)[0]
    fresh = sae.encode(x)
    for scale in (100.0, 1.0, 0.01, 1.0):
        sae.encode(scale * x)
        assert torch.equal(sae.encode(x), fresh)


@pytest.mark.parametrize("use", [False, True])
def test_matryoshka_aux_loss_of_its_own(use: bool) -> None:
    alone, with_saefast = _pair("matryoshka_batchtopk", use_matryoshka_aux_loss=use)
    step_input = _input(_batches(1)[0], torch.arange(M) % 3 == 0)
    own = alone.training_forward_pass(step_input)
    ours = with_saefast.training_forward_pass(step_input)
    _assert_same_output(ours, own)
    expected = _gradients(alone, own)
    for name, gradient in _gradients(with_saefast, ours).items():
        torch.testing.assert_close(gradient, expected[name], **TIGHT)


def _inference(kind: str, tmp_path: Path, **settings: Any) -> tuple[SAE, SAE]:
    _sae(kind, **settings).save_inference_model(tmp_path)
    return SAE.load_from_disk(tmp_path), inside.accelerate(SAE.load_from_disk(tmp_path))


@pytest.fixture
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerated SAEs use sparse codes for the few rows of a test, too."""
    monkeypatch.setattr(sae_lens_codes, "_FEWEST_ROWS", 0)
    monkeypatch.setattr(sae_lens_codes, "_SMALLEST_ENCODER", 0)


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_accelerated_saes_agree(kind: str, tmp_path: Path) -> None:
    own, ours = _inference(kind, tmp_path)
    with torch.no_grad():
        if kind == "batchtopk":
            for sae in (own, ours):
                sae.threshold.copy_(torch.linspace(-0.5, 2.0, M))
    assert isinstance(ours, type(own))
    for x in (_batches(1)[0], torch.randn(3, 7, D), torch.randn(D), torch.randn(0, D)):
        torch.testing.assert_close(ours.encode(x), own.encode(x), **TIGHT)
        torch.testing.assert_close(ours(x), own(x), **TIGHT)
    dense = 100 * _batches(1)[0]
    torch.testing.assert_close(ours(dense), own(dense), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("however_small")
def test_accelerated_sae_that_rescales(tmp_path: Path) -> None:
    config = sae_lens.TopKSAEConfig(d_in=D, d_sae=M, k=K, rescale_acts_by_decoder_norm=True)
    own = sae_lens.TopKSAE(config)
    with torch.no_grad():
        own.W_dec.mul_(torch.linspace(0.2, 3.0, M)[:, None])
    ours, x = inside.accelerate(copy.deepcopy(own)), _batches(1)[0]
    torch.testing.assert_close(ours.encode(x), own.encode(x), **TIGHT)
    torch.testing.assert_close(ours(x), own(x), **TIGHT)


@pytest.mark.usefixtures("however_small")
def test_accelerated_sae_keeps_files_hooks_and_gradients(tmp_path: Path) -> None:
    own, ours = _inference("topk", tmp_path / "one")
    x = _batches(1)[0].requires_grad_()
    for sae in (own, ours):
        sae(x).square().sum().backward()
    for name, theirs in own.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, theirs.grad, **TIGHT)
    _, own_cache = own.run_with_cache(x)
    _, cache = ours.run_with_cache(x)
    for name in own_cache:
        torch.testing.assert_close(cache[name], own_cache[name], **TIGHT)
    ours.save_model(tmp_path / "two")
    first, second = (tmp_path / name / "sae_weights.safetensors" for name in ("one", "two"))
    tensors = load_file(second)
    for name, tensor in load_file(first).items():
        assert torch.equal(tensors[name], tensor)
    assert inside.accelerate(ours) is ours


@pytest.mark.usefixtures("however_small")
def test_accelerated_sae_with_an_error_term(tmp_path: Path) -> None:
    _, ours = _inference("topk", tmp_path)
    with pytest.warns(DeprecationWarning, match="use_error_term"):
        ours.use_error_term = True
    x = _batches(1)[0]
    torch.testing.assert_close(ours(x), x, **TIGHT)


@pytest.mark.parametrize(
    ("rows", "d_in", "d_sae", "ops"),
    [(32, 128, 1024, 1), (31, 128, 1024, 0), (32, 128, 1023, 0)],
)
@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_little_work_stays_saelens_own(
    kind: str, rows: int, d_in: int, d_sae: int, ops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae_class, config_class = sae_lens.registry.get_sae_class(kind)
    own = sae_class(config_class(d_in=d_in, d_sae=d_sae))
    ours = inside.accelerate(sae_class(config_class(d_in=d_in, d_sae=d_sae)))
    ours.load_state_dict(own.state_dict())
    name = {"topk": "topk_code", "jumprelu": "threshold_code"}[kind]
    sparse_codes = mock.Mock(wraps=getattr(sae_lens_codes, name))
    monkeypatch.setattr(sae_lens_codes, name, sparse_codes)
    x = torch.randn(rows, d_in)
    for method in ("encode", "forward"):
        sparse_codes.reset_mock()
        given, expected = getattr(ours, method)(x), getattr(own, method)(x)
        assert sparse_codes.call_count == ops
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("made_in_inference_mode", [True, False])
def test_accelerated_in_inference_mode(made_in_inference_mode: bool) -> None:
    with torch.inference_mode(made_in_inference_mode):
        own = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=D, d_sae=M, k=K))
        ours = copy.deepcopy(own)
    with torch.inference_mode():
        inside.accelerate(ours)
        x = _batches(1)[0]
        torch.testing.assert_close(ours(x), own(x), **TIGHT)
    assert ours.W_enc.is_inference() is made_in_inference_mode


def test_accelerate_refuses_what_it_does_not_know() -> None:
    config = sae_lens.StandardSAEConfig(d_in=D, d_sae=M)
    with pytest.raises(TypeError, match="TopKSAE"):
        inside.accelerate(sae_lens.StandardSAE(config))


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("kind", ["saefast_topk", "saefast_batchtopk", "accelerated"])
def test_folding_decoder_norms_changes_nothing(kind: str) -> None:
    if kind == "accelerated":
        config = sae_lens.TopKSAEConfig(d_in=D, d_sae=M, k=K, rescale_acts_by_decoder_norm=True)
        sae = inside.accelerate(sae_lens.TopKSAE(config))
        with torch.no_grad():
            sae.W_dec.mul_(torch.linspace(0.2, 3.0, M)[:, None])
    else:
        sae = _sae(kind)
    x = _batches(1)[0]
    before = sae.encode(x), sae(x)
    sae.fold_W_dec_norm()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(M))
    torch.testing.assert_close(sae.encode(x), before[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(x), before[1], rtol=1e-4, atol=1e-5)


def test_folding_norms_is_refused_where_saelens_refuses_it() -> None:
    with pytest.raises(NotImplementedError, match="W_dec_norm"):
        _sae("saefast_topk", rescale_acts_by_decoder_norm=False).fold_W_dec_norm()


@pytest.mark.usefixtures("however_small")
def test_saved_threshold_is_that_of_training(tmp_path: Path) -> None:
    """After many passes over one batch, what BatchTopK keeps of it is what JumpReLU keeps."""
    sae, x = _sae("saefast_batchtopk"), _batches(1)[0]
    for _ in range(60):
        output = sae.training_forward_pass(_input(x))
    assert output.metrics["topk_threshold"] is sae.topk_threshold
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    expected = torch.full((M,), float(sae.topk_threshold))
    torch.testing.assert_close(loaded.threshold.data, expected)
    torch.testing.assert_close(loaded.encode(x), sae.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inside.accelerate(loaded)(x), sae(x), rtol=1e-4, atol=1e-4)
