"""The GPU checks of trainings in bench/, run on the CPU's kernels."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import saefast.train.learner
from bench.cases import Shape
from bench.gpu import training_checks
from bench.gpu.finding import drawn_on
from bench.gpu.times import Ceilings
from saefast import SAE, reference
from saefast.ops.latent_pass import LatentPass
from saefast.types import Update

H100 = Ceilings(bf16_flops=8e14, copy_bytes=3e12, l2_bytes=5.5e12)

CHECKED = Shape(40, 127, 5, 33)


@pytest.mark.parametrize("shape", training_checks.DEFAULTS_AT)
def test_default_steps_are_compared(shape: Shape) -> None:
    found = list(training_checks.defaults(shape, *drawn_on(shape, "cpu")))
    assert len(found) == len(training_checks.VARIANTS)
    assert [finding for finding in found if not finding.holds] == []


def test_checks_of_default_steps_detect_a_missing_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    latent_pass = saefast.train.learner.latent_pass

    def without_one(update: Update) -> LatentPass:
        if update.values.dtype == torch.float32:  # the step, not the truth
            of_one = update.indices == update.indices[0, 0]
            update = update._replace(
                value_grads=update.value_grads.masked_fill(of_one, 0.0),
                values=update.values.masked_fill(of_one, 0.0),
            )
        return latent_pass(update)

    monkeypatch.setattr(saefast.train.learner, "latent_pass", without_one)
    monkeypatch.setattr(training_checks, "VARIANTS", ("topk",))
    [finding] = training_checks.defaults(CHECKED, *drawn_on(CHECKED, "cpu"))
    assert not finding.holds


@pytest.mark.parametrize("shape", training_checks.DEFAULTS_AT)
def test_no_selection_of_the_default_steps_is_a_near_tie(shape: Shape) -> None:
    """Their truth selects latents itself, so rounding to float32 must not change the selection.

    Gaps are in units of the possible error of a float32 sum in any order, truncated twice.
    """
    x, weights = drawn_on(shape, "cpu")
    shape = shape._replace(n=training_checks.DEFAULTS_AT[shape])
    x = x[: shape.n]
    wide = x.double() - weights.b_dec.double()
    allowed = 2.5 * (shape.d + 32) * 2.0**-24 * float(wide.norm(dim=1).max())

    def scores(w: Any) -> Tensor:
        return reference.scores(wide, w.w_enc.double(), w.b_enc.double(), None)

    by_row = scores(weights).sort(dim=1, descending=True).values
    gaps = {"topk": float((by_row[:, shape.k - 1] - by_row[:, shape.k]).min())}
    of_batch = scores(weights).flatten().sort(descending=True).values
    last = shape.n * shape.k
    gaps["batchtopk"] = float(of_batch[last - 1] - of_batch[last])
    low = scores(training_checks.lowered(weights, x - weights.b_dec, shape.k))
    bandwidth = 0.05
    threshold = float(SAE(1, 1, k=1, variant="jumprelu").jump_threshold.detach())
    limits = {"relu": 0.0, "jumprelu": threshold}
    limits |= {f"edge {s}": threshold + s * bandwidth / 2 for s in (-1, 1)}
    gaps |= {name: float((low - limit).abs().min()) for name, limit in limits.items()}
    assert {name for name, gap in gaps.items() if gap <= 2 * allowed} == set()


def test_checks_of_trainings_pass_for_a_near_tie() -> None:
    """Two latents have equal scores: the check passes whichever of them is active."""
    x, weights = drawn_on(CHECKED, "cpu")
    for of in (weights.w_enc, weights.b_enc):
        of[64:] = of[: len(of) - 64]
    weights.w_enc[64:] *= 1 + 2.0**-23
    for precision in ("exact", "bf16"):
        for auxk in (False, True):
            finding = training_checks.training(CHECKED, x, weights, precision, auxk=auxk)
            assert finding.holds, finding
    [finding] = training_checks.gradients(CHECKED, x, weights)
    assert finding.holds, finding


def test_checks_of_trainings_detect_a_wrong_selection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check detects it although the truth uses the same selection."""
    largest = training_checks.PackedEncoder.largest

    def others(self: Any, inputs: Tensor, k: int, scale: Any = None, **options: Any) -> Any:
        code = largest(self, inputs, k + 1, scale, **options)
        keep = [0, *range(2, k + 1)]
        return code._replace(values=code.values[:, keep], indices=code.indices[:, keep])

    monkeypatch.setattr(training_checks.PackedEncoder, "largest", others)
    finding = training_checks.training(CHECKED, *drawn_on(CHECKED, "cpu"), "exact", auxk=False)
    assert not finding.holds
    assert finding.figures["loss_apart"] < 1e-5 < 1.0 < finding.figures["apart"]


def cancelling() -> tuple[Shape, Tensor, Any]:
    """Make one row whose value gradient is a thousandth of the rounding of its terms."""
    shape = Shape(16, 64, 1, 1)
    x, weights = drawn_on(shape, "cpu")
    weights.b_enc.copy_(1e-7 - weights.w_dec @ weights.b_dec)
    return shape, x, weights


def test_terms_that_cancel_pass_the_checks() -> None:
    [finding] = training_checks.residuals(*cancelling())
    assert finding.holds, finding


def test_a_missing_term_is_detected_where_terms_cancel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = training_checks.decode_residual

    def without_a_column(values: Tensor, indices: Tensor, weight: Tensor, *others: Any) -> Any:
        residual, value_grads, square = exact(values, indices, weight, *others)
        lacking = value_grads - (residual[:, -1:] * weight[indices][..., -1])
        return residual, lacking, square

    monkeypatch.setattr(training_checks, "decode_residual", without_a_column)
    [finding] = training_checks.residuals(*cancelling())
    assert not finding.holds
    assert finding.figures["value_grads"] > 1e-3


def test_checks_of_trainings_detect_a_wrong_auxk_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is wrong, but not the gradients."""
    module = importlib.import_module("saefast.train.auxk")
    gradients_of = module.sparse_gradients

    def longer(inputs: Tensor, *others: Any, **options: Any) -> Any:
        missed, *gradients = gradients_of(inputs, *others, **options)
        factor = 1 + 1e-4 if inputs.dtype == torch.float32 else 1.0
        return missed * factor, *gradients

    monkeypatch.setattr(module, "sparse_gradients", longer)
    finding = training_checks.training(CHECKED, *drawn_on(CHECKED, "cpu"), "exact", auxk=True)
    assert not finding.holds
    assert finding.figures["loss_apart"] < 1e-5 < 1e-4 < finding.figures["auxk_apart"]
