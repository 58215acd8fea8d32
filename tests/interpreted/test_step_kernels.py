"""Steps with every rule and objective on the GPU's kernels, against autograd on dense products."""

import pytest
import torch
from helpers.planted_batches import batches
from helpers.small_objectives import Dense, make

from saefast import AuxK, FusedStep, Penalty, Rules
from saefast.train.objectives import Current

RULES = {
    "usual": Rules(),
    "clipped": Rules(clip=0.5),
    "penalties": Rules(
        unit_norm=False,
        penalties=(Penalty("encoder", "fro_squared", 0.05), Penalty("decoder", "mean_abs", 3.0)),
    ),
    "frozen": Rules(frozen="decoder"),
    "parallel": Rules(remove_parallel=False),
}


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        *(("topk", rules) for rules in RULES),
        ("abstopk", "clipped"),
        ("batchtopk", "clipped"),
        ("matryoshka", "usual"),
        ("relu", "usual"),
        ("jumprelu", "usual"),
    ],
)
def test_steps_equal_autograd(name: str, rules: str) -> None:
    results = []
    for dense in (False, True):
        sae, objective = make(name, dtype=torch.float32)
        step = FusedStep(
            sae,
            lr=1e-3,
            rules=RULES[rules],
            objective=Dense(objective) if dense else objective,
            auxk=AuxK(4, dead_after=5) if name in ("topk", "abstopk") else None,
        )
        step.now = Current(5)
        losses = []
        for x in batches(2, 8, 16, torch.float32):
            step._dense.fill_(dense)
            result = step(x)
            assert result.path == ("autograd" if dense else "fused")
            losses.append(float(result.loss))
        results.append((losses, [p.detach() for p in sae.parameters()]))
    (losses, weights), (expected_losses, expected) = results
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for actual, wanted in zip(weights, expected, strict=True):
        # Adam takes a step of the size of lr, for either sign of a gradient of nearly zero.
        apart = (actual - wanted).abs()
        assert (apart > 1e-4).double().mean() < 5e-3
        assert apart.max() <= 6e-3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_the_loss_of_weights_that_are_nan_is_nan(precision: str) -> None:
    """The next report then ends the training, and no kernel reads out of bounds."""
    sae, objective = make("topk", dtype=torch.float32)
    step = FusedStep(sae, objective=objective, precision=precision)
    (x,) = batches(1, 8, 16, torch.float32)
    with torch.no_grad():
        sae.W_enc[3, 2] = torch.nan
    result = step(x)
    assert result.loss.isnan()
    assert result.code is not None
    assert (result.code.indices == torch.arange(sae.k)).all()
