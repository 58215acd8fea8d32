"""SAELens trains, saves and encodes the same with saefast inside."""

import copy
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
from lens_training import (
    TIGHT,
    VARIANTS,
    D,
    K,
    M,
    N,
    assert_same_output,
    batches_of,
    dead_among,
    each_rescaling,
    each_variant,
    gradients_of,
    made,
    pair,
    step_of,
    trainer_of,
)
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import get_sae_training_class
from safetensors.torch import load_file, save_file
from torch import Tensor

import saefast


@each_variant
@each_rescaling
@pytest.mark.parametrize("dead_latents", [0, 5, 40])
def test_losses_activations_and_gradients_agree(
    variant: str, rescale: bool, dead_latents: int
) -> None:
    alone, with_saefast = pair(variant, rescale_acts_by_decoder_norm=rescale)
    step_input = step_of(batches_of(1)[0], dead_among(dead_latents))
    own = alone.training_forward_pass(step_input)
    ours = with_saefast.training_forward_pass(step_input)
    assert_same_output(ours, own)
    assert (ours.losses["auxiliary_reconstruction_loss"] > 0) == (dead_latents > 0)
    assert type(ours.feature_acts) is Tensor
    assert not ours.feature_acts.is_sparse
    expected = gradients_of(alone, own)
    for name, gradient in gradients_of(with_saefast, ours).items():
        torch.testing.assert_close(gradient, expected[name], **TIGHT)


@each_variant
def test_saelens_trainer_trains_step_by_step_as_without(variant: str) -> None:
    trainers = [trainer_of(sae, iter(())) for sae in pair(variant)]
    dead = []
    for x in batches_of(12):
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
    dense = made(f"saefast_{variant}")
    sparse = made(f"saefast_{variant}", use_sparse_activations=True)
    trainers = [trainer_of(sae, iter(())) for sae in (dense, sparse)]
    for x in batches_of(6):
        outputs = [trainer.step(x) for trainer in trainers]
        assert outputs[1].feature_acts.is_sparse
        assert_same_output(outputs[1], outputs[0])
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
    alone, with_saefast = pair("topk", rescale_acts_by_decoder_norm=rescale)
    with torch.no_grad():
        for sae in (alone, with_saefast):
            sae.b_enc -= 0.7
    step_input = step_of(batches_of(1)[0], dead_among(40))
    own = alone.training_forward_pass(step_input)
    active = (own.feature_acts > 0).sum(1)
    assert (active < K).any()
    assert (active == K).any()
    ours = with_saefast.training_forward_pass(step_input)
    assert_same_output(ours, own)
    expected = gradients_of(alone, own)
    for name, gradient in gradients_of(with_saefast, ours).items():
        torch.testing.assert_close(gradient, expected[name], **TIGHT)


@each_variant
def test_activations_are_differentiable_as_without(variant: str) -> None:
    """A loss of one's own on what comes out, decoder norms among what it depends on."""
    step_input, gradients = step_of(batches_of(1)[0]), []
    for sae in pair(variant):
        output = sae.training_forward_pass(step_input)
        loss = output.feature_acts.square().sum() + output.hidden_pre.tanh().sum()
        (loss + output.sae_out.abs().sum()).backward()
        gradients.append({name: value.grad for name, value in sae.named_parameters()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-4, atol=1e-5)


@each_variant
def test_public_methods_agree(variant: str) -> None:
    x = torch.randn(3, 7, D)
    alone, with_saefast = pair(variant)
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
    alone, with_saefast = pair("topk")
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
    for sae in pair("topk", normalize_activations="layer_norm"):
        with pytest.raises(ValueError, match="normalize_activations"):
            sae.training_forward_pass(step_of(batches_of(1)[0], dead_among(5)))


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_normalised_activations(normalisation: str) -> None:
    alone, with_saefast = pair("topk", normalize_activations=normalisation)
    step_input = step_of(3 * batches_of(1)[0] + 1)
    own = alone.training_forward_pass(step_input)
    assert_same_output(with_saefast.training_forward_pass(step_input), own)


def test_without_subtracting_b_dec() -> None:
    alone, with_saefast = pair("topk", apply_b_dec_to_input=False)
    step_input = step_of(batches_of(1)[0])
    own = alone.training_forward_pass(step_input)
    assert_same_output(with_saefast.training_forward_pass(step_input), own)


@each_variant
def test_hooks_on_dense_tensors_are_called_and_obeyed(variant: str) -> None:
    seen: dict[str, Tensor] = {}

    def doubled(tensor: Tensor, hook: Any) -> Tensor:
        seen[hook.name] = tensor
        return 2 * tensor

    x, outputs = batches_of(1)[0], []
    names = ("hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons")
    for sae in pair(variant):
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
    alone, with_saefast = pair("topk")
    x = batches_of(1)[0]
    own, own_cache = alone.run_with_cache(x)
    ours, cache = with_saefast.run_with_cache(x)
    torch.testing.assert_close(ours, own, **TIGHT)
    assert cache.keys() == own_cache.keys()
    for name in own_cache:
        torch.testing.assert_close(cache[name], own_cache[name], **TIGHT)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes(dtype: str) -> None:
    alone, with_saefast = pair("topk", dtype=dtype)
    x = batches_of(1)[0].to(alone.dtype)
    own = alone.training_forward_pass(step_of(x))
    ours = with_saefast.training_forward_pass(step_of(x))
    assert ours.sae_out.dtype == own.sae_out.dtype == alone.dtype
    assert ours.feature_acts.dtype == own.feature_acts.dtype
    tolerance = 1e-10 if dtype == "float64" else 3e-2
    torch.testing.assert_close(ours.loss, own.loss, rtol=tolerance, atol=0)


def test_moving_to_another_dtype_keeps_the_layout() -> None:
    sae = made("saefast_topk")
    sae.training_forward_pass(step_of(batches_of(1)[0]))
    sae.to(dtype=torch.float64)
    assert sae.dtype == torch.float64
    assert sae.cfg.dtype == "float64"
    assert sae.W_enc.T.is_contiguous()
    sae.training_forward_pass(step_of(batches_of(1)[0].double())).loss.backward()
    assert sae.W_enc.grad.stride() == sae.W_enc.stride(), "so Adam runs over both alike"


def test_autocast_rounds_products_to_bfloat16_and_trains() -> None:
    alone, with_saefast = pair("topk")
    trainers = [trainer_of(sae, iter(()), autocast=True) for sae in (alone, with_saefast)]
    for x in batches_of(4):
        own, ours = (trainer.step(x) for trainer in trainers)
        torch.testing.assert_close(ours.loss, own.loss, rtol=2e-2, atol=0)
    exact = made("saefast_topk").training_forward_pass(step_of(batches_of(1)[0])).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = made("saefast_topk").training_forward_pass(step_of(batches_of(1)[0])).loss
    assert exact != rounded


@each_variant
def test_inference_files_are_those_of_saelens(variant: str, tmp_path: Path) -> None:
    x, files = batches_of(1)[0], []
    for sae in pair(variant):
        trainer_of(sae, iter(())).step(x)
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
    sae, x = made("saefast_topk", rescale_acts_by_decoder_norm=False), batches_of(1)[0]
    trainer_of(sae, iter(())).step(x)
    sae.save_inference_model(tmp_path)
    torch.testing.assert_close(saefast.load_sae(tmp_path)(x), sae(x), **TIGHT)


@each_variant
def test_training_goes_on_from_saelens_checkpoint(variant: str, tmp_path: Path) -> None:
    """By SAELens's own saving and loading, as if it had not been interrupted."""
    batches = batches_of(8)
    whole = trainer_of(made(f"saefast_{variant}"), iter(()))
    for number, x in enumerate(batches):
        if number == 4:
            whole.save_checkpoint("middle", tmp_path)
        whole.step(x)
    loaded = TrainingSAE.load_from_disk(tmp_path / "middle")
    assert loaded.cfg.architecture() == f"saefast_{variant}"
    resumed = trainer_of(loaded, iter(()))
    resumed.load_trainer_state(tmp_path / "middle")
    for x in batches[4:]:
        resumed.step(x)
    for mine, theirs in zip(resumed.sae.parameters(), whole.sae.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    other = made(f"saefast_{variant}")
    other.load_weights_from_checkpoint(tmp_path / "middle")


def test_fit_runs_and_folds(tmp_path: Path) -> None:
    """The whole loop of SAELens, with scaling of activations and a final checkpoint."""
    ends = []
    for sae in pair("batchtopk", normalize_activations="expected_average_only_in"):
        settings = {"checkpoint_path": str(tmp_path), "save_final_checkpoint": True}
        batches = batches_of(1)[0]
        endless = iter(lambda batches=batches: batches, None)
        trainer = trainer_of(sae, endless, n_batches_for_norm_estimate=2, **settings)
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
    alone, with_saefast = pair("topk")
    with_saefast.training_forward_pass(step_of(batches_of(1)[0]))
    own, ours = alone.state_dict(), with_saefast.state_dict()
    assert list(ours) == list(own)
    for name, tensor in ours.items():
        assert tensor.is_contiguous(), "safetensors refuses anything else"
        assert tensor.shape == own[name].shape
    alone.load_state_dict(ours)
    with_saefast.load_state_dict(own)
    assert with_saefast.W_enc.T.is_contiguous()


def test_state_dict_can_be_saved_without_saelens(tmp_path: Path) -> None:
    sae = made("saefast_topk")
    sae.training_forward_pass(step_of(batches_of(1)[0]))
    save_file(sae.state_dict(), tmp_path / "weights.safetensors")


@each_variant
def test_weights_drawn_anew_are_those_of_the_seed(variant: str) -> None:
    """Random numbers fill a tensor as it lies in memory, which is as in SAELens before a step."""
    alone, with_saefast = pair(variant)
    for sae in (alone, with_saefast):
        torch.manual_seed(5)
        torch.nn.init.uniform_(sae.W_enc)
        sae.W_dec.data = torch.rand_like(sae.W_dec)
    assert torch.equal(with_saefast.W_enc, alone.W_enc)
    assert torch.equal(with_saefast.W_dec, alone.W_dec)


@each_variant
def test_a_pass_in_inference_mode_leaves_weights_that_can_be_trained(variant: str) -> None:
    sae, step_input = made(f"saefast_{variant}"), step_of(batches_of(1)[0])
    with torch.inference_mode():
        sae.training_forward_pass(step_input)
    sae.training_forward_pass(step_input).loss.backward()
    assert sae.W_enc.grad.abs().sum() > 0


@each_variant
def test_copies(variant: str) -> None:
    sae, x = made(f"saefast_{variant}"), batches_of(1)[0]
    sae.training_forward_pass(step_of(x))
    other = copy.deepcopy(sae)
    assert torch.equal(other(x), sae(x))
    assert other.state_dict()["W_enc"].is_contiguous()
    assert other.W_enc.T.is_contiguous()


def test_hidden_pre_is_not_computed_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from saefast.integrations.pre_activations import PreActivations

    def read(_: PreActivations) -> Tensor:
        raise AssertionError("the dense matrix was made")

    monkeypatch.setattr(PreActivations, "dense", read)
    trainer = trainer_of(made("saefast_topk"), iter(()), dead_feature_window=0)
    trainer.n_forward_passes_since_fired += 5
    assert trainer.step(batches_of(1)[0]).losses["auxiliary_reconstruction_loss"] > 0


def test_float_k_keeps_as_many_as_saelens() -> None:
    for k in (0.3, 1.0, 5.5, 7.99):
        own, ours = (sae.encode(batches_of(1)[0]) for sae in pair("batchtopk", k=k))
        assert int((ours > 0).sum()) == int((own > 0).sum()) == int(k * N)
        torch.testing.assert_close(ours, own, **TIGHT)


def test_guesses_of_thresholds_do_not_decide() -> None:
    """After batches of very different size, as after none."""
    sae, x = made("saefast_batchtopk"), batches_of(1)[0]
    fresh = sae.encode(x)
    for scale in (100.0, 1.0, 0.01, 1.0):
        sae.encode(scale * x)
        assert torch.equal(sae.encode(x), fresh)


@pytest.mark.parametrize("use", [False, True])
def test_matryoshka_aux_loss_of_its_own(use: bool) -> None:
    alone, with_saefast = pair("matryoshka_batchtopk", use_matryoshka_aux_loss=use)
    step_input = step_of(batches_of(1)[0], torch.arange(M) % 3 == 0)
    own = alone.training_forward_pass(step_input)
    ours = with_saefast.training_forward_pass(step_input)
    assert_same_output(ours, own)
    expected = gradients_of(alone, own)
    for name, gradient in gradients_of(with_saefast, ours).items():
        torch.testing.assert_close(gradient, expected[name], **TIGHT)


def test_folding_norms_is_refused_where_saelens_refuses_it() -> None:
    with pytest.raises(NotImplementedError, match="W_dec_norm"):
        made("saefast_topk", rescale_acts_by_decoder_norm=False).fold_W_dec_norm()
