"""Pooling of the unique features of several dictionaries into one, by descending support."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saefast import checks
from saefast.dictionary import Dictionary, Features, as_dictionaries, check_plain
from saefast.ops.threshold_encode import all_above, threshold_encode
from saefast.progress import ProgressBar
from saefast.stability.result import Stability
from saefast.unit_rows import normalised

_ROUNDING = 1e-6  # tolerance, so that copies with a cosine just below 1 count as the same feature
_BLOCK = 4096
_CHUNK = 1 << 16
_FIRST_WIDTH = 8


class Origin(NamedTuple):
    """Origin of the features of a pool, in the order of the pool."""

    dictionary: Tensor
    """[m] int64, position of the dictionary in the list"""
    feature: Tensor
    """[m] int64, index of the feature in its dictionary"""


def pool_features(
    dictionaries: Sequence[Features],
    stability: Stability,
    *,
    width: int | None = None,
    threshold: float = 0.7,
    firing_rates: Sequence[Tensor] | None = None,
    progress: bool = True,
) -> Dictionary:
    """Pool the unique features of several seeds.

    Alive features are processed by descending support, then by descending firing rate, and each is
    kept unless it is similar to a feature kept before. Opposite directions count as similar if they
    do for `stability`.

    Args:
        dictionaries: dictionaries of different seeds: tensors [m, d] such as `W_dec`, SAEs or
            `Dictionary` objects.
        stability: result of `score_stability` for the same dictionaries, in the same order.
        width: number of features to keep; None: all unique features.
        threshold: cosine of decoder rows from which two features count as the same.
        firing_rates: [m] for each dictionary; None: as stored in the dictionaries. If they are
            unknown, features of equal support are ordered by `stability.soft`.
        progress: whether to show a progress bar on stderr.

    Returns:
        A `Dictionary` in the order in which features were kept. `b_dec` is the mean over the
        dictionaries, and `b_enc` is adjusted so that every feature has the pre-activations it had
        in its own SAE. Parts that any dictionary lacks are None. `sae_from` converts it to an SAE.
    """
    for number, source in enumerate(dictionaries):
        check_plain(source, f"dictionaries[{number}]")
    each = as_dictionaries(dictionaries)
    origin = pool_origin(
        each,
        stability,
        width=width,
        threshold=threshold,
        firing_rates=firing_rates,
        progress=progress,
    )
    rates = _rates(each, firing_rates)
    b_dec = _mean_bias(each)
    return Dictionary(
        W_dec=_picked([its.W_dec for its in each], origin),
        W_enc=_gathered(_all(each, "W_enc"), origin),
        b_enc=_gathered(_shifted_bias(each, b_dec), origin),
        b_dec=b_dec,
        firing_rate=_gathered(rates, origin),
        centred=_centred(each),
    )


def pool_origin(
    dictionaries: Sequence[Features],
    stability: Stability,
    *,
    width: int | None = None,
    threshold: float = 0.7,
    firing_rates: Sequence[Tensor] | None = None,
    progress: bool = True,
) -> Origin:
    """Return the origin of the features that `pool_features` keeps for the same arguments.

    Args:
        dictionaries: dictionaries of different seeds: tensors [m, d] such as `W_dec`, SAEs or
            `Dictionary` objects.
        stability: result of `score_stability` for the same dictionaries, in the same order.
        width: number of features to keep; None: all unique features.
        threshold: cosine of decoder rows from which two features count as the same.
        firing_rates: [m] for each dictionary; None: as stored in the dictionaries.
        progress: whether to show a progress bar on stderr.

    Returns:
        The origin of each feature, in the order in which they were kept.

    Raises:
        ValueError: no feature is alive, or there are fewer unique features than `width`.
    """
    each = as_dictionaries(dictionaries)
    _check(each, stability, width, threshold)
    order = _ordered(each, stability, _rates(each, firing_rates))
    if not len(order.feature):
        raise ValueError("dictionaries must have at least one feature that is alive, got none")
    most = len(order.feature) if width is None else width
    unique = _Unique(threshold - _ROUNDING, stability.rule.absolute)
    kept: list[Origin] = []
    for block in _blocks(order, progress):
        if unique.count >= most:
            break
        rows = normalised(_picked([its.W_dec for its in each], block)).float()
        new = unique.add(rows, most - unique.count)
        kept.append(Origin(*(places[new] for places in block)))
    if width is not None and unique.count < width:
        raise ValueError(
            f"width must be at most the number of unique features, {unique.count}, got {width}; "
            f"width=None takes all"
        )
    return Origin(*(torch.cat(parts) for parts in zip(*kept, strict=True)))


class _Unique:
    """Unit rows that were kept, of which no two are more similar than a limit."""

    def __init__(self, limit: float, absolute: bool) -> None:
        self._limit, self._absolute = limit, absolute
        self.count = 0
        self._chunks: list[Tensor] = []

    def add(self, rows: Tensor, most: int) -> Tensor:
        """Keep at most `most` unit rows that are similar to no kept row; return their indices."""
        place = torch.arange(len(rows))
        for chunk in self._chunks:
            for each in _both_signs(chunk, self._absolute):
                near = threshold_encode(rows[place], each, threshold=self._limit, width=1)
                place = place[near.counts == 0]
        place = place[_unlike_earlier(rows[place], self._limit, self._absolute)][:most]
        self._keep(rows[place])
        return place

    def _keep(self, rows: Tensor) -> None:
        if not len(rows):
            return
        self.count += len(rows)
        if self._chunks and len(self._chunks[-1]) < _CHUNK:
            rows = torch.cat([self._chunks.pop(), rows])
        self._chunks.append(rows)


def _both_signs(rows: Tensor, absolute: bool) -> tuple[Tensor, ...]:
    """Return the rows and, if `absolute`, the opposite ones."""
    return (rows, -rows) if absolute else (rows,)


def _unlike_earlier(rows: Tensor, limit: float, absolute: bool) -> Tensor:
    """Return a mask of the rows that are similar to no earlier row which it contains."""
    if not len(rows):
        return torch.zeros(0, dtype=torch.bool)
    others = torch.cat(_both_signs(rows, absolute))
    near = all_above(
        lambda width: threshold_encode(rows, others, threshold=limit, width=width),
        _FIRST_WIDTH,
        len(others),
    )
    listed = torch.arange(near.indices.shape[1]) < near.counts[:, None]
    earlier, place = listed.nonzero(as_tuple=True)
    later = near.indices[earlier, place] % len(rows)
    keep = [True] * len(rows)
    # Rows are visited in ascending order, so all rows that could remove a row come before it.
    for i, j in zip(earlier.tolist(), later.tolist(), strict=True):
        if i < j and keep[i]:
            keep[j] = False
    return torch.tensor(keep, dtype=torch.bool)


def _ordered(
    each: Sequence[Dictionary], stability: Stability, rates: Sequence[Tensor] | None
) -> Origin:
    """Return the alive features of all dictionaries by descending support, then rate."""
    dictionary = torch.cat([torch.full((its.m,), s) for s, its in enumerate(each)])
    feature = torch.cat([torch.arange(its.m) for its in each])
    second = rates if rates is not None else stability.soft
    # The last key is the primary one; ties keep the order of dictionaries and features.
    order = np.lexsort(
        tuple(
            -torch.cat([values.detach().double().cpu() for values in key]).numpy()
            for key in (second, stability.support)
        )
    )
    alive = torch.cat(
        [its.alive & found.cpu() for its, found in zip(each, stability.alive, strict=True)]
    )
    chosen = torch.from_numpy(order)
    chosen = chosen[alive[chosen]]
    return Origin(dictionary[chosen], feature[chosen])


def _blocks(order: Origin, progress: bool) -> Iterator[Origin]:
    count = len(order.feature)
    with ProgressBar("pooling", total=count, unit="features", progress=progress) as bar:
        for first in range(0, count, _BLOCK):
            block = Origin(*(places[first : first + _BLOCK] for places in order))
            yield block
            bar.update(len(block.feature))


def _all(each: Sequence[Dictionary], name: str) -> list[Tensor] | None:
    """Return one part of every dictionary; None if any dictionary lacks it."""
    parts = [getattr(its, name) for its in each]
    return None if any(part is None for part in parts) else parts


def _mean_bias(each: Sequence[Dictionary]) -> Tensor | None:
    biases = _all(each, "b_dec")
    if biases is None:
        return None
    return torch.stack([bias.double() for bias in biases]).mean(0).to(biases[0].dtype)


def _shifted_bias(each: Sequence[Dictionary], b_dec: Tensor | None) -> list[Tensor] | None:
    """Return `b_enc` of every dictionary, adjusted to the inputs of the pool."""
    encoders, biases = _all(each, "W_enc"), _all(each, "b_enc")
    if encoders is None or biases is None or b_dec is None or not _centred(each):
        return biases
    return [
        (bias.double() + encoder.double() @ (b_dec.double() - _subtracted(its))).to(bias.dtype)
        for its, encoder, bias in zip(each, encoders, biases, strict=True)
    ]


def _centred(each: Sequence[Dictionary]) -> bool:
    """Return whether any dictionary is centred, and so the pool."""
    return any(its.centred for its in each)


def _subtracted(its: Dictionary) -> Tensor:
    """Return the part of every row that is no input of the encoder, [d] or [] float64."""
    subtracted = its.b_dec if its.centred else None
    return torch.zeros(()).double() if subtracted is None else subtracted.double()


def _rates(each: Sequence[Dictionary], given: Sequence[Tensor] | None) -> list[Tensor] | None:
    if given is None:
        return _all(each, "firing_rate")
    _check_lengths("firing_rates", given, each)
    return list(given)


def _gathered(parts: Sequence[Tensor] | None, of: Origin) -> Tensor | None:
    return None if parts is None else _picked(parts, of)


def _picked(parts: Sequence[Tensor], of: Origin) -> Tensor:
    """Gather the rows of features from a part of their dictionaries."""
    out = parts[0].new_empty(len(of.feature), *parts[0].shape[1:])
    for number, part in enumerate(parts):
        its = of.dictionary == number
        out[its] = part[of.feature[its]].to(out)
    return out


def _check(
    each: Sequence[Dictionary], stability: Stability, width: int | None, threshold: float
) -> None:
    if not isinstance(stability, Stability):
        raise TypeError(
            f"stability must be a result of score_stability, got {type(stability).__name__}"
        )
    _check_lengths("stability.support", stability.support, each)
    checks.at_least("threshold", threshold, 0)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
    if width is not None:
        checks.whole("width", width, 1)


def _check_lengths(name: str, values: Sequence[Tensor], each: Sequence[Dictionary]) -> None:
    lengths, expected = [len(its) for its in values], [its.m for its in each]
    if lengths != expected:
        raise ValueError(
            f"{name} must have an entry for every feature of the dictionaries, {expected}, got "
            f"{lengths}"
        )
