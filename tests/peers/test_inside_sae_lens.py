"""SAELens trains the same with saefast inside: losses, gradients, steps."""

from pathlib import Path

import pytest
import torch
from lens_training import (
    TIGHT,
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
from torch import Tensor


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
def test_every_step_of_the_trainer_equals_one_without_saefast(variant: str) -> None:
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
    if hasattr(trainers[0].sae, "topk_threshold"):
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
def test_activations_are_differentiable_as_without_saefast(variant: str) -> None:
    """A custom loss of the outputs, which depends on decoder norms as well."""
    step_input, gradients = step_of(batches_of(1)[0]), []
    for sae in pair(variant):
        output = sae.training_forward_pass(step_input)
        loss = output.feature_acts.square().sum() + output.hidden_pre.tanh().sum()
        (loss + output.sae_out.abs().sum()).backward()
        gradients.append({name: value.grad for name, value in sae.named_parameters()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-4, atol=1e-5)


def test_aux_loss_of_dense_pre_activations() -> None:
    """The matrix is not from an encoder, as in SAELens's tests."""
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


def test_aux_loss_refuses_normalised_activations_like_saelens() -> None:
    for sae in pair("topk", normalize_activations="layer_norm"):
        with pytest.raises(ValueError, match="normalize_activations"):
            sae.training_forward_pass(step_of(batches_of(1)[0], dead_among(5)))


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_normalised_activations(normalisation: str) -> None:
    alone, with_saefast = pair("topk", normalize_activations=normalisation)
    step_input = step_of(3 * batches_of(1)[0] + 1)
    own = alone.training_forward_pass(step_input)
    assert_same_output(with_saefast.training_forward_pass(step_input), own)


def test_saes_without_subtraction_of_b_dec() -> None:
    alone, with_saefast = pair("topk", apply_b_dec_to_input=False)
    step_input = step_of(batches_of(1)[0])
    own = alone.training_forward_pass(step_input)
    assert_same_output(with_saefast.training_forward_pass(step_input), own)


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


def test_fit_runs_and_folds(tmp_path: Path) -> None:
    """The whole loop of SAELens, with scaled activations and a final checkpoint."""
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


def test_hidden_pre_is_not_computed_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from saefast.integrations.pre_activations import PreActivations

    def read(_: PreActivations) -> Tensor:
        raise AssertionError("the dense matrix was made")

    monkeypatch.setattr(PreActivations, "dense", read)
    trainer = trainer_of(made("saefast_topk"), iter(()), dead_feature_window=0)
    trainer.n_forward_passes_since_fired += 5
    assert trainer.step(batches_of(1)[0]).losses["auxiliary_reconstruction_loss"] > 0


@pytest.mark.parametrize("use", [False, True])
def test_matryoshka_has_its_own_aux_loss(use: bool) -> None:
    alone, with_saefast = pair("matryoshka_batchtopk", use_matryoshka_aux_loss=use)
    step_input = step_of(batches_of(1)[0], torch.arange(M) % 3 == 0)
    own = alone.training_forward_pass(step_input)
    ours = with_saefast.training_forward_pass(step_input)
    assert_same_output(ours, own)
    expected = gradients_of(alone, own)
    for name, gradient in gradients_of(with_saefast, ours).items():
        torch.testing.assert_close(gradient, expected[name], **TIGHT)
