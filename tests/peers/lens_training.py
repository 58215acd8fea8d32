"""Small SAEs of SAELens, alone and with saefast inside, and comparisons of their training."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from saefast.integrations import sae_lens  # noqa: F401, registers saefast's

D, M, K, N = 24, 96, 6, 50
TIGHT = {"rtol": 1e-5, "atol": 1e-6}
VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {"k": K},
    "abstopk": {"k": K},
    "batchtopk": {"k": 5.5, "topk_threshold_lr": 0.2},
    "matryoshka_batchtopk": {"k": K, "matryoshka_widths": [20, 50, M]},
}
THRESHOLDS = ("standard", "jumprelu")
each_variant = pytest.mark.parametrize("variant", list(VARIANTS))
each_rescaling = pytest.mark.parametrize("rescale", [True, False])


def made(variant: str, **settings: Any) -> TrainingSAE:
    sae_class, config_class = get_sae_training_class(variant)
    chosen = copy.deepcopy(VARIANTS.get(variant.removeprefix("saefast_"), {})) | settings
    torch.manual_seed(0)
    sae = sae_class(config_class(d_in=D, d_sae=M, **chosen))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return sae


def pair(variant: str, **settings: Any) -> tuple[TrainingSAE, TrainingSAE]:
    return made(variant, **settings), made(f"saefast_{variant}", **settings)


def batches_of(steps: int) -> Tensor:
    return torch.randn(steps, N, D, generator=torch.Generator().manual_seed(1))


def step_of(x: Tensor, dead: Tensor | None = None, **coefficients: float) -> TrainStepInput:
    return TrainStepInput(
        sae_in=x,
        coefficients=coefficients,
        dead_neuron_mask=dead,
        n_training_steps=0,
        is_logging_step=False,
    )


def dead_among(latents: int) -> Tensor:
    """Choose some of all latents."""
    return 7 * torch.arange(M) % M < latents


def trainer_of(sae: TrainingSAE, batches: Iterator[Tensor], **settings: Any) -> SAETrainer:
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


def gradients_of(sae: TrainingSAE, output: TrainStepOutput) -> dict[str, Tensor]:
    sae.zero_grad()
    output.loss.backward()
    return {name: parameter.grad for name, parameter in sae.named_parameters()}


def assert_same_output(ours: TrainStepOutput, own: TrainStepOutput) -> None:
    assert ours.losses.keys() == own.losses.keys()
    for name in own.losses:
        torch.testing.assert_close(ours.losses[name], own.losses[name], **TIGHT)
    torch.testing.assert_close(ours.loss, own.loss, **TIGHT)
    torch.testing.assert_close(ours.sae_out, own.sae_out, **TIGHT)
    torch.testing.assert_close(ours.feature_acts.to_dense(), own.feature_acts.to_dense(), **TIGHT)
    assert ours.sae_in is own.sae_in
