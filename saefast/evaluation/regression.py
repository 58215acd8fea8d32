"""Whether a group of features differs from the others beyond how often and strongly they fire."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from saefast import checks
from saefast.types import brief

if TYPE_CHECKING:
    import pyarrow as pa

TERMS = ("constant", "group", "log_firing_rate", "log_mean")


@dataclass(frozen=True, kw_only=True)
class EffectRegression:
    """Least squares of `log |effect|`, with standard errors for unequal variances (HC3)."""

    coefficient: dict[str, float]
    """for each of `TERMS`; exp(coefficient["group"]) is how many times as large the effect of a
    feature of the group is as that of another which fires as often and as strongly"""
    standard_error: dict[str, float]
    unadjusted: float
    """the coefficient of the group without the other terms: what being rarer does counts as the
    group's"""
    unadjusted_error: float
    r_squared: float
    features: int
    """how many went in"""
    left_out: int
    """how many never fire or have an effect of exactly zero, which has no logarithm"""

    __repr__ = brief

    def to_table(self) -> "pa.Table":
        """Return a table with a row for each of `TERMS`."""
        import pyarrow as pa

        return pa.table(
            {
                "term": list(TERMS),
                "coefficient": [self.coefficient[term] for term in TERMS],
                "standard_error": [self.standard_error[term] for term in TERMS],
            }
        )


def regress_effect(
    effect: Tensor, group: Tensor, firing_rate: Tensor, mean: Tensor
) -> EffectRegression:
    """Regress the size of features' effects on a group, their firing rate and mean activation.

    All three sizes enter by their logarithm: an effect is a mean over rows, so it goes with the
    firing rate by a factor, and what is a straight line in logarithms would otherwise be bent and
    leave its bend to the group.

    Args:
        effect: [m] such as `FeatureFunction.effect`; its sign is ignored. For several SAEs
            concatenate theirs, and the rest alike.
        group: [m] bool, such as the unstable features.
        firing_rate: [m]
        mean: [m] activation where a feature fires.
    """
    for name, values in (("group", group), ("firing_rate", firing_rate), ("mean", mean)):
        checks.size(name, values, 0, len(effect), "one entry per feature, as in effect")
    size, rate, strength = (
        values.detach().double().abs().cpu().numpy() for values in (effect, firing_rate, mean)
    )
    used = (size > 0) & (rate > 0) & (strength > 0)
    member = group.cpu().numpy().astype(float)[used]
    if used.sum() <= len(TERMS) or len(set(member)) < 2:
        raise ValueError(
            f"group must have features with an effect inside and outside, more than {len(TERMS)} "
            f"in all, got {int(member.sum())} inside of {int(used.sum())}"
        )
    logs = np.log(size[used])
    one = np.ones_like(logs)
    full = np.stack([one, member, np.log(rate[used]), np.log(strength[used])], 1)
    coefficient, error, residual = _least_squares(full, logs)
    alone, alone_error, _ = _least_squares(full[:, :2], logs)
    return EffectRegression(
        coefficient=dict(zip(TERMS, coefficient.tolist(), strict=True)),
        standard_error=dict(zip(TERMS, error.tolist(), strict=True)),
        unadjusted=float(alone[1]),
        unadjusted_error=float(alone_error[1]),
        r_squared=float(1 - residual.var() / logs.var()) if logs.var() > 0 else float("nan"),
        features=int(used.sum()),
        left_out=int((~used).sum()),
    )


def _least_squares(
    terms: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients, their HC3 standard errors, and residuals."""
    inverse = np.linalg.pinv(terms)  # of terms that say the same each takes its share
    coefficient = inverse @ values
    residual = values - terms @ coefficient
    leverage = np.einsum("ij,ji->i", terms, inverse)
    # A row that alone decides its own fit says nothing about the spread.
    outside = np.where(leverage < 1 - 1e-9, residual / np.maximum(1 - leverage, 1e-9), 0.0)
    return coefficient, np.sqrt((inverse**2) @ outside**2), residual
