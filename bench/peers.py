"""SAELens, sparsify and dictionary_learning in their own versions, with given weights.

Each runs with its own defaults, except that all use Adam. A peer that is not installed is left out
and named on standard error. Importing some of them breaks torch.compile for the process (one
patches FakeTensor), so they are imported after everything else was compiled.
"""

import contextlib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.cases import Shape, Weights


class Peer(NamedTuple):
    """Encoder and decoder of a peer with the given weights."""

    encode: Callable[[Tensor], Any]
    """function of rows [n, d] that returns the peer's own code"""
    decode: Callable[[Any], Tensor]
    """function that returns the reconstruction of that code"""
    dense_code: Callable[[Any], Tensor]
    """function that returns that code as [n, m], for comparisons"""
    parameters: list[Tensor]


def load(name: str) -> Any:
    """Import a peer's module quietly, or return None."""
    os.environ.setdefault("WANDB_MODE", "disabled")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return None


def fill(parameter: Tensor, value: Tensor) -> None:
    """Copy a weight into a peer's parameter."""
    with torch.no_grad():
        parameter.copy_(value)


def _sae_lens_model(
    shape: Shape, weights: Weights, variant: str = "TopK", *, inside: bool = False, **settings: Any
) -> Any:
    saes = importlib.import_module(
        "saefast.integrations.sae_lens" if inside else f"sae_lens.saes.{variant.lower()}_sae"
    )
    prefix = f"{'Saefast' if inside else ''}{variant}TrainingSAE"
    if "TopK" in variant:
        settings["k"] = shape.k
    config = getattr(saes, f"{prefix}Config")(
        d_in=shape.d, d_sae=shape.m, device=_device(weights), **settings
    )
    model = getattr(saes, prefix)(config)
    fill(model.W_enc, weights.w_enc.T)
    fill(model.b_enc, weights.b_enc)
    fill(model.W_dec, weights.w_dec)
    fill(model.b_dec, weights.b_dec)
    return model


def _sparsify_model(shape: Shape, weights: Weights) -> Any:
    sparsify = importlib.import_module("sparsify")
    config = sparsify.SparseCoderConfig(num_latents=shape.m, k=shape.k)
    model = sparsify.SparseCoder(shape.d, config, device=_device(weights))
    fill(model.encoder.weight, weights.w_enc)
    fill(model.encoder.bias, weights.b_enc)
    fill(model.W_dec, weights.w_dec)
    fill(model.b_dec, weights.b_dec)
    return model


def _dictionary_learning_trainer(
    shape: Shape, weights: Weights, variant: str = "TopK", *, inside: bool = False
) -> Any:
    module = {"TopK": "top_k", "BatchTopK": "batch_top_k"}[variant]
    trainers = importlib.import_module(
        "saefast.integrations.dictionary_learning"
        if inside
        else f"dictionary_learning.trainers.{module}"
    )
    trainer = getattr(trainers, f"{'Saefast' if inside else ''}{variant}Trainer")(
        steps=100_000,
        activation_dim=shape.d,
        dict_size=shape.m,
        k=shape.k,
        layer=0,
        lm_name="none",
        device=_device(weights),
        seed=0,
    )
    fill(trainer.ae.encoder.weight, weights.w_enc)
    fill(trainer.ae.encoder.bias, weights.b_enc)
    fill(trainer.ae.decoder.weight, weights.w_dec.T)
    fill(trainer.ae.b_dec, weights.b_dec)
    return trainer


def _device(weights: Weights) -> str:
    return str(weights.w_enc.device)


def _sae_lens_coder(shape: Shape, weights: Weights) -> Peer:
    lens = _sae_lens_model(shape, weights)
    return Peer(lens.encode, lens.decode, lambda code: code, [lens.W_dec, lens.b_dec])


def _sparsify_dense(code: Any, m: int) -> Tensor:
    dense: Tensor = code.top_acts.new_zeros(len(code.top_acts), m)
    return dense.scatter(1, code.top_indices, code.top_acts)


def _sparsify_code(model: Any, m: int) -> Callable[[Tensor], Tensor]:
    return lambda x: _sparsify_dense(model.encode(x), m)


def _sparsify_coder(shape: Shape, weights: Weights) -> Peer:
    coder = _sparsify_model(shape, weights)
    return Peer(
        coder.encode,
        lambda code: coder.decode(code.top_acts, code.top_indices),
        lambda code: _sparsify_dense(code, shape.m),
        [coder.W_dec, coder.b_dec],
    )


def _dictionary_learning_coder(shape: Shape, weights: Weights) -> Peer:
    ae = _dictionary_learning_trainer(shape, weights).ae
    return Peer(ae.encode, ae.decode, lambda code: code, [ae.decoder.weight, ae.b_dec])


def coders(shape: Shape, weights: Weights) -> dict[str, Peer]:
    """Return every installed peer as encoder and decoder."""
    return {
        name: CODERS[name](shape, weights) for name, package in PACKAGES.items() if load(package)
    }


class Training(NamedTuple):
    """Training step of a peer, and its reconstruction."""

    reconstruct: Callable[[Tensor], Tensor]
    step: Callable[[Tensor], object]
    optimiser: torch.optim.Optimizer | None = None
    """optimiser whose learning rate a schedule may set before each step"""
    dense_code: Callable[[Tensor], Tensor] | None = None
    """function that returns the code of rows as [n, m]"""


def trainings(shape: Shape, weights: Weights, lr: float) -> Iterator[tuple[str, Training]]:
    """Yield the training step of every installed peer."""
    for name, package in PACKAGES.items():
        if load(package):
            yield name, TRAININGS[name](shape, weights, lr)


def sae_lens_training(
    shape: Shape,
    weights: Weights,
    lr: float,
    *,
    autocast: bool = False,
    variant: str = "TopK",
    inside: bool = False,
    **settings: Any,
) -> Training:
    """Return SAELens's trainer, which has a setting for autocast; `inside`: with saefast inside."""
    config = importlib.import_module("sae_lens.config")
    training = importlib.import_module("sae_lens.training.sae_trainer")
    model = _sae_lens_model(shape, weights, variant, inside=inside, **settings)
    trainer_config = config.SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10**9,
        device=_device(weights),
        autocast=autocast,
        lr=lr,
        lr_end=lr,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=shape.n,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=config.LoggingConfig(log_to_wandb=False),
    )
    trainer = training.SAETrainer(trainer_config, model, iter(()))
    return Training(model.forward, trainer.step, trainer.optimizer, model.encode)


def sparsify_training(shape: Shape, weights: Weights, lr: float) -> Training:
    """Return the step of sparsify's Trainer, with Adam in place of its default optimiser."""
    model = _sparsify_model(shape, weights)
    optimiser = torch.optim.Adam(model.parameters(), lr)

    def step(x: Tensor) -> Tensor:
        model.set_decoder_norm_to_unit_norm()
        out = model(x)
        out.fvu.backward()
        model.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        return out.fvu.detach()  # type: ignore[no-any-return]

    coder = _sparsify_code(model, shape.m)
    return Training(lambda x: model(x).sae_out, step, optimiser, coder)


def dictionary_learning_training(
    shape: Shape, weights: Weights, _: float, *, inside: bool = False
) -> Training:
    """Return dictionary_learning's TopK trainer; `inside`: with saefast inside."""
    trainer = _dictionary_learning_trainer(shape, weights, inside=inside)
    return _dictionary_learning_steps(trainer)


def _dictionary_learning_steps(trainer: Any) -> Training:
    counter = iter(range(1, 10**9))  # step 0 would also compute a geometric median

    def step(x: Tensor) -> float:
        return trainer.update(next(counter), x)  # type: ignore[no-any-return]

    return Training(trainer.ae.forward, step, trainer.optimizer, trainer.ae.encode)


def batch_topk_trainings(
    shape: Shape, weights: Weights, lr: float
) -> Iterator[tuple[str, Training]]:
    """Yield the training steps of BatchTopK of the peers that have it."""
    if load("sae_lens"):
        yield "SAELens", sae_lens_training(shape, weights, lr, variant="BatchTopK")
    if load("dictionary_learning"):
        trainer = _dictionary_learning_trainer(shape, weights, "BatchTopK")
        yield "dictionary_learning", _dictionary_learning_steps(trainer)


PACKAGES = {
    "SAELens": "sae_lens",
    "sparsify": "sparsify",
    "dictionary_learning": "dictionary_learning",
}
"""Import names of the peers."""
CODERS: dict[str, Callable[[Shape, Weights], Peer]] = {
    "SAELens": _sae_lens_coder,
    "sparsify": _sparsify_coder,
    "dictionary_learning": _dictionary_learning_coder,
}
TRAININGS: dict[str, Callable[[Shape, Weights, float], Training]] = {
    "SAELens": sae_lens_training,
    "sparsify": sparsify_training,
    "dictionary_learning": dictionary_learning_training,
}
