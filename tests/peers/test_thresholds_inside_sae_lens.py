"""SAELens's standard and JumpReLU SAEs train and encode the same with saefast inside."""

import copy
from typing import Any

import pytest
import torch
from lens_training import (
    THRESHOLDS,
    TIGHT,
    D,
    M,
    N,
    assert_same_output,
    batches_of,
    dead_among,
    gradients_of,
    made,
    pair,
    step_of,
    trainer_of,
)
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from saefast.integrations import sae_lens as inside
from saefast.integrations.pre_activations import PreActivations

JUMP = {"jumprelu_init_threshold": 0.3, "jumprelu_bandwidth": 0.4, "l0_coefficient": 0.7}
COEFFICIENTS = {"l0": 0.7, "l1": 0.3}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("standard", {"l1_coefficient": 0.3}),
    # Its gradient grows without bound towards zero, and amplifies rounding.
    ("standard", {"lp_norm": 0.5, "dtype": "float64"}),
    ("standard", {"lp_norm": 2.0, "apply_b_dec_to_input": False}),
    ("standard", {"normalize_activations": "layer_norm"}),
    ("jumprelu", JUMP),
    ("jumprelu", JUMP | {"jumprelu_ste_to_input": True}),
    ("jumprelu", JUMP | {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_ste_to_input": True}),
    ("jumprelu", JUMP | {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 9.0}),
    ("jumprelu", JUMP | {"pre_act_loss_coefficient": 0.2}),
]
each_setting = pytest.mark.parametrize(("variant", "settings"), SETTINGS, ids=str)
each_variant = pytest.mark.parametrize("variant", THRESHOLDS)


def is_sparse(output: TrainStepOutput) -> bool:
    return isinstance(output.hidden_pre, PreActivations)


@pytest.mark.usefixtures("however_dense")
@each_setting
@pytest.mark.parametrize("dead_latents", [0, 40])
def test_losses_activations_and_gradients_agree(
    variant: str, settings: dict[str, Any], dead_latents: int
) -> None:
    alone, with_saefast = pair(variant, **settings)
    x = batches_of(1)[0].to(alone.dtype)
    step_input = step_of(x, dead_among(dead_latents), **COEFFICIENTS)
    own = alone.training_forward_pass(step_input)
    ours = with_saefast.training_forward_pass(step_input)
    assert is_sparse(ours)
    assert_same_output(ours, own)
    assert ("pre_act_loss" in own.losses) == ("pre_act_loss_coefficient" in settings)
    assert type(ours.feature_acts) is Tensor
    expected = gradients_of(alone, own)
    assert all(bool(gradient.any()) for gradient in expected.values())
    for name, gradient in gradients_of(with_saefast, ours).items():
        torch.testing.assert_close(gradient, expected[name], **TIGHT)


@pytest.mark.usefixtures("however_dense")
@each_setting
def test_every_step_of_the_trainer_equals_one_without_saefast(
    variant: str, settings: dict[str, Any]
) -> None:
    """In float64, since Adam amplifies the rounding of gradients that would be zero."""
    settings = settings | {"dtype": "float64"}
    trainers = [trainer_of(sae, iter(())) for sae in pair(variant, **settings)]
    for x in batches_of(12).double():
        own, ours = (trainer.step(x) for trainer in trainers)
        assert is_sparse(ours)
        assert_same_output(ours, own)
        for name, theirs in trainers[0].sae.named_parameters():
            mine = trainers[1].sae.get_parameter(name)
            # The thresholds of jumprelu are float32.
            tolerance = 1e-6 if variant == "jumprelu" else 1e-9
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance / 10)
        for count in ("act_freq_scores", "n_forward_passes_since_fired"):
            assert torch.equal(getattr(trainers[1], count), getattr(trainers[0], count))


@pytest.mark.usefixtures("however_dense")
@each_setting
def test_losses_of_every_step_agree_in_the_dtype_of_the_sae(
    variant: str, settings: dict[str, Any]
) -> None:
    trainers = [trainer_of(sae, iter(())) for sae in pair(variant, **settings)]
    for x in batches_of(12).to(trainers[0].sae.dtype):
        own, ours = (trainer.step(x) for trainer in trainers)
        assert is_sparse(ours)
        torch.testing.assert_close(ours.loss, own.loss, **TIGHT)


@each_variant
def test_dense_batches_are_left_to_saelens(variant: str) -> None:
    """The density of one batch decides for the next; the first are tried, and left if dense."""
    trainers = [trainer_of(sae, iter(())) for sae in pair(variant)]
    ours = []
    for number, x in enumerate(batches_of(12)):
        with torch.no_grad():
            for trainer in trainers:  # sparse from the fifth to the eighth batch
                trainer.sae.b_enc += {4: -3.0, 8: 3.0}.get(number, 0.0)
        outputs = [trainer.step(x) for trainer in trainers]
        assert_same_output(outputs[1], outputs[0])
        ours.append(is_sparse(outputs[1]))
    assert ours == 5 * [False] + 3 * [True] + 4 * [False]


@each_variant
def test_hooks_on_dense_tensors_are_called_and_applied(variant: str) -> None:
    def doubled(tensor: Tensor, hook: Any) -> Tensor:
        assert tensor.shape == (N, M if "acts" in hook.name else D)
        return 2 * tensor

    x = batches_of(1)[0]
    alone, with_saefast = pair(variant)
    for name in ("hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons"):
        hooks = [(name, doubled)]
        own, ours = (sae.run_with_hooks(x, fwd_hooks=hooks) for sae in (alone, with_saefast))
        torch.testing.assert_close(ours, own, **TIGHT)
        assert not torch.allclose(own, alone(x))


@pytest.mark.usefixtures("however_dense")
@each_variant
def test_public_methods_agree(variant: str) -> None:
    alone, with_saefast = pair(variant)
    for x in (batches_of(1)[0], torch.randn(3, 7, D)):
        own_acts, own_pre = alone.encode_with_hidden_pre(x)
        acts, pre = with_saefast.encode_with_hidden_pre(x)
        assert isinstance(pre, PreActivations)
        torch.testing.assert_close(acts, own_acts, **TIGHT)
        torch.testing.assert_close(pre + 0, own_pre, **TIGHT)
        torch.testing.assert_close(with_saefast.encode(x), alone.encode(x), **TIGHT)
        torch.testing.assert_close(with_saefast(x), alone(x), **TIGHT)
        step_input = step_of(x, **COEFFICIENTS)
        own = alone.training_forward_pass(step_input)
        ours = with_saefast.training_forward_pass(step_input)
        assert_same_output(ours, own)
        expected = gradients_of(alone, own)
        for name, gradient in gradients_of(with_saefast, ours).items():
            torch.testing.assert_close(gradient, expected[name], **TIGHT)


@pytest.mark.usefixtures("however_dense")
@each_variant
def test_losses_of_a_subclass_are_used(variant: str) -> None:
    ours, _ = get_sae_training_class(f"saefast_{variant}")

    class Another(ours):  # type: ignore[valid-type,misc]
        def calculate_aux_loss(
            self, step_input: TrainStepInput, feature_acts: Tensor, **_: Any
        ) -> dict[str, Tensor]:
            return {"mine": feature_acts.square().sum()}

    sae = made(f"saefast_{variant}")
    sae.__class__ = Another
    output = sae.training_forward_pass(step_of(batches_of(1)[0], **COEFFICIENTS))
    assert output.losses["mine"] == output.feature_acts.square().sum()


@pytest.mark.usefixtures("however_dense")
@pytest.mark.parametrize(("dtype", "sparse"), [("float64", True), ("bfloat16", False)])
@each_variant
def test_other_dtypes_agree(variant: str, dtype: str, sparse: bool) -> None:
    alone, with_saefast = pair(variant, dtype=dtype)
    step_input = step_of(batches_of(1)[0].to(alone.dtype), **COEFFICIENTS)
    own = alone.training_forward_pass(step_input)
    ours = with_saefast.training_forward_pass(step_input)
    assert is_sparse(ours) == sparse
    assert ours.sae_out.dtype == own.sae_out.dtype == alone.dtype
    torch.testing.assert_close(ours.loss, own.loss, rtol=1e-10, atol=0)


@pytest.mark.usefixtures("however_dense")
@each_variant
def test_the_dense_matrix_is_not_computed_in_a_step(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: PreActivations) -> Tensor:
        raise AssertionError("the dense matrix was made")

    monkeypatch.setattr(PreActivations, "dense", read)
    settings = {"pre_act_loss_coefficient": 0.2} if variant == "jumprelu" else {}
    trainer = trainer_of(made(f"saefast_{variant}", **settings), iter(()), dead_feature_window=0)
    trainer.n_forward_passes_since_fired += 5
    assert trainer.step(batches_of(1)[0]).loss > 0


@pytest.mark.usefixtures("however_dense")
@each_variant
def test_copies_are_independent(variant: str) -> None:
    sae, x = made(f"saefast_{variant}"), batches_of(1)[0]
    sae.training_forward_pass(step_of(x, **COEFFICIENTS))
    other = copy.deepcopy(sae)
    assert torch.equal(other(x), sae(x))
    before = sae._room.fullest
    other.encode(100 * x)
    assert sae._room.fullest == before


def test_both_are_registered() -> None:
    assert get_sae_training_class("saefast_standard")[0] is inside.SaefastStandardTrainingSAE
    assert get_sae_training_class("saefast_jumprelu")[0] is inside.SaefastJumpReLUTrainingSAE
