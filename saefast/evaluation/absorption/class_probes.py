"""Linear probes of each of several classes against all others, on rows and on codes."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from saefast.activations.order import permutation
from saefast.linalg import one_thread
from saefast.ops.latent_sum import latent_sum
from saefast.ops.sparse_decode import sparse_decode
from saefast.types import SparseCode

_PENALTY = 1e-3
_NEWTON_STEPS = 50
_HALVINGS = 20
_TOLERANCE = 1e-3  # norm of the gradient, relative to its norm at zero
_CG_STEPS, _CG_TOLERANCE = 50, 0.1

_EPOCHS, _BATCH = 50, 4096
_RATES = 1e-2, 1e-5
_L1 = 0.01
_ADAM = 0.9, 0.999, 1e-8


class RowProbes(NamedTuple):
    """One probe for each class."""

    weight: Tensor
    """[classes, d] weights"""
    bias: Tensor
    """[classes] biases"""

    def logits(self, rows: Tensor) -> Tensor:
        """Return the logits [n, classes] of rows [n, d], positive for predicted members."""
        with one_thread():
            return torch.addmm(self.bias, rows, self.weight.T)


def members(labels: Tensor, classes: int) -> Tensor:
    """Return labels [n] as one-hot rows, [n, classes] bool; -1 is no class."""
    return labels[:, None] == torch.arange(classes, device=labels.device)


def fit_row_probes(rows: Tensor, positive: Tensor) -> RowProbes:
    """Fit a logistic regression with balanced classes for each of several classes.

    Rows are centred and scaled by one number, and the penalty is the squared norm, so that a
    rotation of the rows rotates the probes.

    Args:
        rows: [n, d] rows.
        positive: [n, classes] bool; each class needs positive and negative rows.

    Returns:
        Weights [classes, d] and bias [classes] of the probes.
    """
    mean = rows.mean(0)
    centred = rows - mean
    scale = float(centred.square().mean().sqrt()) or 1.0
    centred = centred / scale
    with one_thread():
        w = _ridge(torch.cat([centred, centred.new_ones(len(rows), 1)], 1), positive)
        weight = (w[:-1].T / scale).contiguous()
        return RowProbes(weight, w[-1] - weight @ mean)


def _ridge(terms: Tensor, positive: Tensor) -> Tensor:
    """Fit weights [p, classes] by Newton's method with steps by conjugate gradients.

    The last of the terms [n, p] is constant, and its weight is not penalised.

    Returns:
        [p, classes] weights.
    """
    truth = positive.to(terms)
    share = truth.mean(0)
    weight = torch.where(positive, 0.5 / share, 0.5 / (1 - share)) / len(terms)
    penalty = terms.new_full((terms.shape[1], 1), _PENALTY)
    penalty[-1] = 0

    def losses(w: Tensor) -> Tensor:
        logits = terms @ w
        fit = binary_cross_entropy_with_logits(logits, truth, weight, reduction="none").sum(0)
        return fit + (penalty * w.square()).sum(0) / 2

    w = terms.new_zeros(terms.shape[1], positive.shape[1])
    now = losses(w)
    enough: Tensor | None = None
    for _ in range(_NEWTON_STEPS):
        chance = (terms @ w).sigmoid()
        slope = terms.T @ (weight * (chance - truth)) + penalty * w
        size_of_slope = torch.linalg.vector_norm(slope, dim=0)
        enough = _TOLERANCE * size_of_slope if enough is None else enough
        if bool((size_of_slope <= enough).all()):
            break
        step = _conjugate_gradients(terms, weight * chance * (1 - chance), penalty, slope)
        size = torch.ones_like(now)
        for _ in range(_HALVINGS):
            then = losses(w - size * step)
            size = torch.where(then > now, size / 2, size)
            if not bool((then > now).any()):
                break
        better = then <= now
        w, now = torch.where(better, w - size * step, w), torch.where(better, then, now)
        if not bool((better & (size_of_slope > enough)).any()):
            break
    return w


def _conjugate_gradients(terms: Tensor, curved: Tensor, penalty: Tensor, slope: Tensor) -> Tensor:
    """Return approximately the inverse Hessian times the gradient by class, [p, classes]."""
    step, left = torch.zeros_like(slope), slope
    direction, size = left, left.square().sum(0)
    enough = _CG_TOLERANCE**2 * size
    for _ in range(_CG_STEPS):
        image = terms.T @ (curved * (terms @ direction)) + penalty * direction
        bend = (direction * image).sum(0)
        length = torch.where((size > enough) & (bend > 0), size / bend, 0.0)
        step, left = step + length * direction, left - length * image
        after = left.square().sum(0)
        if bool((after <= enough).all()):
            break
        direction = left + torch.where(size > 0, after / size, 0.0) * direction
        size = after
    return step


def fit_code_probes(code: SparseCode, positive: Tensor, latents: int, seed: int) -> Tensor:
    """Fit a logistic regression with an L1 penalty on codes for each of several classes.

    Args:
        code: code of n rows.
        positive: [n, classes] bool.
        latents: number of latents m.
        seed: seed of the order of the rows.

    Returns:
        [m, classes] weights; the largest of a class belong to the latents that indicate it.
    """
    n, classes = positive.shape
    wanted = positive.to(code.values)
    share = wanted.mean(0)
    # Positive rows are weighted to count as much in total as the negative ones.
    weight = torch.where(positive, (1 - share) / share, 1.0)
    w, bias = code.values.new_zeros(latents, classes), code.values.new_zeros(classes)
    adam = [_Adam(w), _Adam(bias)]
    decay = (_RATES[1] / _RATES[0]) ** (1 / _EPOCHS)
    for epoch in range(_EPOCHS):
        order = torch.from_numpy(permutation(n, seed, epoch)).to(positive.device)
        for rows in torch.split(order, _BATCH):
            values, indices = code.values[rows], code.indices[rows]
            logits = sparse_decode(values, indices, w, bias)
            slope = weight[rows] * (logits.sigmoid() - wanted[rows]) / len(rows)
            with one_thread():
                bias_slope = slope.sum(0)
            slopes = latent_sum(values, indices, slope, latents) + _L1 * w.sign(), bias_slope
            for each, its in zip(adam, slopes, strict=True):
                each.step(its, _RATES[0] * decay**epoch)
    return w


class _Adam:
    def __init__(self, parameter: Tensor):
        self._parameter = parameter
        self._first, self._second = torch.zeros_like(parameter), torch.zeros_like(parameter)
        self._steps = 0

    def step(self, slope: Tensor, rate: float) -> None:
        low, high, eps = _ADAM
        self._steps += 1
        self._first.lerp_(slope, 1 - low)
        self._second.mul_(high).addcmul_(slope, slope, value=1 - high)
        size = rate / (1 - low**self._steps)
        root = (self._second / (1 - high**self._steps)).sqrt_().add_(eps)
        self._parameter.addcdiv_(self._first, root, value=-size)


def columns_of(code: SparseCode, latents: Tensor, m: int) -> Tensor:
    """Return the activations of distinct latents [c] in n rows, [n, c] float64."""
    place = torch.full((m,), -1, dtype=torch.int64, device=latents.device)
    place[latents] = torch.arange(len(latents), device=latents.device)
    at = place[code.indices]
    row, slot = ((at >= 0) & (code.values != 0)).nonzero(as_tuple=True)
    columns = code.values.new_zeros(len(code.values), len(latents), dtype=torch.float64)
    columns[row, at[row, slot]] = code.values[row, slot].double()
    return columns


def fit_columns(columns: Tensor, positive: Tensor) -> Tensor:
    """Fit one logistic regression with balanced classes, by Newton's method.

    Args:
        columns: [n, k] float64 columns.
        positive: [n] bool.

    Returns:
        [k + 1] weights, the last one for the constant.
    """
    n, k = columns.shape
    terms = torch.cat([columns, columns.new_ones(n, 1)], 1)
    truth = positive.to(terms)
    share = truth.mean()
    weight = torch.where(positive, 0.5 / share, 0.5 / (1 - share))
    penalty = torch.cat([terms.new_ones(k), terms.new_zeros(1)])

    def loss(w: Tensor) -> float:
        logits = terms @ w
        fit = binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum")
        return float(fit + (penalty * w.square()).sum() / 2)

    with one_thread():
        w = terms.new_zeros(k + 1)
        now = loss(w)
        for _ in range(_NEWTON_STEPS):
            chance = (terms @ w).sigmoid()
            slope = terms.T @ (weight * (chance - truth)) + penalty * w
            curved = (terms * (weight * chance * (1 - chance))[:, None]).T @ terms
            step = torch.linalg.solve(curved + torch.diag(penalty + 1e-9), slope)
            size, then = 1.0, loss(w - step)
            while then > now and size > 1e-6:
                size /= 2
                then = loss(w - size * step)
            if not now - then > 1e-10 * max(now, 1.0):
                break
            w, now = w - size * step, then
    return w


def predicted(columns: Tensor, weights: Tensor) -> Tensor:
    """Return the mask [n] of rows that a fit predicts as positive, from columns [n, k]."""
    with one_thread():
        return columns @ weights[:-1] + weights[-1] > 0


def f1(guess: Tensor, truth: Tensor) -> Tensor:
    """Return the F1 scores [...] float64 of predictions [n, ...] bool; 0 without a hit."""
    right = (guess & truth).sum(0).double()
    return 2 * right / (guess.sum(0) + truth.sum(0)).clamp(min=1)
