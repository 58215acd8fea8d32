"""Logistic regressions in float64, many small problems at a time.

L2-penalised problems are solved by Newton's method, L1-penalised ones by proximal Newton with
coordinate descent. Neither draws random numbers, and the intercept is not penalised. The objective
is scikit-learn's: C times the sum of the losses, plus `|w|^2 / 2` or `|w|_1`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ITERATIONS = 100
_HALVINGS = 30
_EXACT, _ROUGH = 1e-10, 1e-4
"""Largest gradient relative to the gradient at zero, for final fits and for fits to compare"""
_DIRECT = 80  # largest width whose Hessians are formed
_CG_ITERATIONS = 60
_CG_TOLERANCE = 1e-4
_SWEEPS = 100
_ENOUGH = 1e-8  # share of the first sweep's largest gain at which coordinate descent stops


class Fit(NamedTuple):
    """Fitted coefficients."""

    weight: Tensor
    """[..., p] float64"""
    intercept: Tensor
    """[...] float64"""

    def decision(self, x: Tensor) -> Tensor:
        """Return the log-odds [..., n] of rows [..., n, p]."""
        return (x.double() @ self.weight[..., None])[..., 0] + self.intercept[..., None]


def fit_l2(
    x: Tensor,
    labels: Tensor,
    inverse_penalty: Tensor,
    shares: Tensor | None = None,
    tolerance: float = _EXACT,
) -> Fit:
    """Fit L2-penalised logistic regressions.

    Args:
        x: [b, n, p] rows of b problems; [1, n, p] for the same rows in all.
        labels: [b, n] bool or 0 and 1.
        inverse_penalty: [q] C of each variant of a problem.
        shares: [q, n] weight of each row in each variant, 0 to leave it out; None: all one.
        tolerance: largest gradient of the result, as a share of the gradient at zero.

    Returns:
        Coefficients [b, q, p] of every problem and variant.
    """
    rows = x.double()
    target = labels.double()[:, None, :]
    ones = rows.new_ones(*rows.shape[:2], 1)
    rows = torch.cat([rows, ones], 2).expand(len(target), -1, -1)
    counts = rows.new_ones(len(inverse_penalty), rows.shape[1]) if shares is None else shares
    weights = inverse_penalty.double()[:, None] * counts.double()
    penalised = rows.new_ones(rows.shape[2])
    penalised[-1] = 0
    problem = _Ridge(rows, target, weights, penalised)
    found = problem.solve(tolerance)
    return Fit(found[..., :-1], found[..., -1])


class _Ridge:
    """L2-penalised problems [b, q] over the same rows for all q."""

    def __init__(self, x: Tensor, target: Tensor, weights: Tensor, penalised: Tensor) -> None:
        self._x, self._target, self._weights, self._penalised = x, target, weights, penalised
        self._direct = x.shape[2] <= _DIRECT
        if self._direct:
            self._products = (x[..., :, None] * x[..., None, :]).flatten(2)
        else:
            # The curvature of a logistic loss is at most a quarter.
            bound = weights @ x[0].square() / 4 + penalised
            self._scale = 1 / bound.clamp(min=1e-12)

    def solve(self, tolerance: float) -> Tensor:
        """Return coefficients [b, q, p]."""
        x, b = self._x, len(self._x)
        w = x.new_zeros(b, len(self._weights), x.shape[2])
        value, gradient, curvature = self._at(w)
        enough = tolerance * gradient.abs().amax(2).clamp(min=1e-300)
        for _ in range(_ITERATIONS):
            open_ = gradient.abs().amax(2) > enough
            if not bool(open_.any()):
                break
            step = self._step(gradient, curvature) * open_[..., None]
            size = torch.ones_like(value)
            slope = (step * gradient).sum(2)
            for _ in range(_HALVINGS):
                new = w - size[..., None] * step
                after = self._value(new)
                worse = after > value - 1e-4 * size * slope + 1e-12 * value.abs()
                if not bool(worse.any()):
                    break
                size = torch.where(worse, size / 2, size)
            w = new
            value, gradient, curvature = self._at(w)
        return w

    def _odds(self, w: Tensor) -> Tensor:
        return w @ self._x.mT

    def _value(self, w: Tensor, odds: Tensor | None = None) -> Tensor:
        odds = self._odds(w) if odds is None else odds
        losses = torch.nn.functional.softplus(odds) - self._target * odds
        return (losses * self._weights).sum(2) + (w.square() * self._penalised).sum(2) / 2

    def _at(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the objective [b, q], its gradient [b, q, p] and the rows' curvature [b, q, n]."""
        odds = self._odds(w)
        chance = odds.sigmoid()
        gradient = ((chance - self._target) * self._weights) @ self._x + w * self._penalised
        return self._value(w, odds), gradient, chance * (1 - chance) * self._weights

    def _step(self, gradient: Tensor, curvature: Tensor) -> Tensor:
        p = self._x.shape[2]
        if not self._direct:
            return self._by_conjugate_gradients(gradient, curvature)
        hessian = (curvature @ self._products).view(*curvature.shape[:2], p, p)
        # Where all rows of a variant have extreme odds, the intercept has no curvature.
        hessian = hessian + torch.diag(self._penalised + 1e-12)
        step: Tensor = torch.linalg.solve(hessian, gradient)
        return step

    def _by_conjugate_gradients(self, gradient: Tensor, curvature: Tensor) -> Tensor:
        step = torch.zeros_like(gradient)
        residual = gradient.clone()
        z = residual * self._scale
        direction = z.clone()
        along = (residual * z).sum(2, keepdim=True)
        enough = _CG_TOLERANCE**2 * along
        for _ in range(_CG_ITERATIONS):
            image = ((direction @ self._x.mT) * curvature) @ self._x + direction * self._penalised
            bend = (direction * image).sum(2, keepdim=True)
            size = torch.where(along > enough, along / bend.clamp(min=1e-300), 0.0)
            step = step + size * direction
            residual = residual - size * image
            z = residual * self._scale
            after = (residual * z).sum(2, keepdim=True)
            if bool((after <= enough).all()):
                break
            direction = z + after / along.clamp(min=1e-300) * direction
            along = after
        return step


def choose_penalty(x: Tensor, labels: Tensor, candidates: Tensor, folds: Tensor) -> Tensor:
    """Choose C for each problem by the loss on held-out rows; ties go to the strongest penalty.

    Args:
        x: [b, n, p] or [1, n, p] rows.
        labels: [b, n].
        candidates: [c] values of C, ascending.
        folds: [n] int64 index of the fold in which a row is held out.

    Returns:
        [b] chosen values.
    """
    count = int(folds.max()) + 1
    inside = (folds[None] != torch.arange(count)[:, None]).double()
    shares = inside.repeat(len(candidates), 1)
    fit = fit_l2(x, labels, candidates.repeat_interleave(count), shares, _ROUGH)
    odds = fit.weight @ x.double().mT + fit.intercept[..., None]
    losses = torch.nn.functional.softplus(odds) - labels.double()[:, None] * odds
    left_out = (losses * (1 - shares)).sum(2).view(len(losses), len(candidates), count).sum(2)
    return candidates[left_out.argmin(1)]


def fit_l1(x: Tensor, labels: Tensor, inverse_penalty: float, start: Fit | None = None) -> Fit:
    """Fit one L1-penalised logistic regression.

    Args:
        x: [n, p] rows.
        labels: [n] bool or 0 and 1.
        inverse_penalty: C.
        start: initial coefficients, such as those of a neighbouring C.

    Returns:
        Coefficients [p] and intercept.
    """
    # Centred columns decouple from the intercept, which is not penalised.
    columns = x.double().numpy()
    mean = columns.mean(0)
    rows = np.concatenate([columns - mean, np.ones((len(x), 1))], 1)
    target = labels.double().numpy()
    penalty = np.full(rows.shape[1], 1.0 / inverse_penalty)
    penalty[-1] = 0.0
    w = np.zeros(rows.shape[1])
    if start is not None:
        w = np.append(start.weight.numpy(), float(start.intercept) + mean @ start.weight.numpy())

    def value(w: NDArray[np.float64]) -> float:
        odds = rows @ w
        return float((np.logaddexp(0, odds) - target * odds).sum() + (penalty * np.abs(w)).sum())

    before = value(w)
    for _ in range(_ITERATIONS):
        chance = 1 / (1 + np.exp(-np.clip(rows @ w, -700, 700)))
        gradient = rows.T @ (chance - target)
        curvature = np.maximum(chance * (1 - chance), 1e-10)
        hessian = (rows * curvature[:, None]).T @ rows
        aim = _lasso_step(w, gradient, hessian, penalty)
        direction = aim - w
        decrease = float(gradient @ direction + (penalty * (np.abs(aim) - np.abs(w))).sum())
        size = 1.0
        after = value(w + direction)
        while (
            after > before + 1e-4 * size * decrease + 1e-14 * abs(before) and size > 2.0**-_HALVINGS
        ):
            size /= 2
            after = value(w + size * direction)
        if after > before + 1e-14 * abs(before):
            break
        w = w + size * direction
        if decrease > -1e-12 * max(abs(before), 1.0):
            break
        before = after
    intercept = torch.tensor(w[-1] - mean @ w[:-1], dtype=torch.float64)
    return Fit(torch.from_numpy(w[:-1]), intercept)


def _lasso_step(
    w: NDArray[np.float64],
    gradient: NDArray[np.float64],
    hessian: NDArray[np.float64],
    penalty: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Minimise the quadratic model plus the L1 penalty by coordinate descent."""
    aim = w.copy()
    slope = gradient.copy()  # of the quadratic model at `aim`
    diagonal = np.maximum(np.diag(hessian), 1e-12)
    first = 0.0
    for _ in range(_SWEEPS):
        largest = 0.0
        for j in range(len(aim)):
            wanted = aim[j] - slope[j] / diagonal[j]
            cut = penalty[j] / diagonal[j]
            new = math.copysign(max(abs(wanted) - cut, 0.0), wanted)
            change = new - aim[j]
            if change != 0.0:
                slope += change * hessian[:, j]
                aim[j] = new
                largest = max(largest, change * change * diagonal[j])
        first = max(first, largest)
        if largest <= _ENOUGH * first:
            break
    return aim


def principal_coordinates(x: Tensor, train: Tensor) -> Tensor:
    """Rotate rows into the span of the training rows, which contains every L2-penalised fit.

    Args:
        x: [n, p] rows.
        train: [n] bool, the training rows.

    Returns:
        [n, r] float64 with r below the number of training rows: rows minus the mean of the
        training rows, along the principal axes of the latter.
    """
    rows = x.double()
    rows = rows - rows[train].mean(0)
    inner = rows @ rows[train].T
    values, vectors = torch.linalg.eigh(inner[train])
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    coordinates: Tensor = inner @ (vectors[:, kept] / values[kept].sqrt())
    return coordinates
