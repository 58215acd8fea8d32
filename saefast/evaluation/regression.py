"""Regression of features' effects on a group, adjusted for firing rate and mean activation."""

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
    """Least-squares fit of `log |effect|` with standard errors for unequal variances (HC3)."""

    coefficient: dict[str, float]
    """coefficient of each of `TERMS`; exp(coefficient["group"]) is the ratio of the effect of a
    feature in the group to the effect of one outside it that fires as often and as strongly"""
    standard_error: dict[str, float]
    """standard error of each coefficient"""
    unadjusted: float
    """coefficient of the group without the other terms, so that differences in firing rate and
    activation count as the group's"""
    unadjusted_error: float
    """standard error of `unadjusted`"""
    r_squared: float
    """share of the variance of `log |effect|` that the fit explains"""
    features: int
    """number of features in the fit"""
    left_out: int
    """number of features that never fire or have an effect of exactly zero, which has no
    logarithm"""

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

    Effect, firing rate and mean activation enter by their logarithms. An effect is a mean over
    rows, so it is proportional to the firing rate: linear in logarithms. Without them the relation
    would be curved, and the curvature would be attributed to the group.

    Args:
        effect: [m] effects, such as `FeatureFunction.effect`; the sign is ignored. For several
            SAEs, concatenate each argument over the SAEs.
        group: [m] bool, such as the unstable features.
        firing_rate: [m] share of rows on which each feature fires.
        mean: [m] mean activation where a feature fires.

    Returns:
        Coefficients, standard errors and the numbers of features.
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
            f"features with an effect must exist inside and outside of group, more than "
            f"{len(TERMS)} in total, got {int(member.sum())} inside of {int(used.sum())}"
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
    """Return coefficients, their HC3 standard errors, and residuals."""
    inverse = np.linalg.pinv(terms)  # collinear terms share their coefficient
    coefficient = inverse @ values
    residual = values - terms @ coefficient
    leverage = np.einsum("ij,ji->i", terms, inverse)
    # A row with leverage 1 determines its own fit and carries no information on the spread.
    outside = np.where(leverage < 1 - 1e-9, residual / np.maximum(1 - leverage, 1e-9), 0.0)
    return coefficient, np.sqrt((inverse**2) @ outside**2), residual
