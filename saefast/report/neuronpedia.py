"""Features in the JSON of sae_dashboard, which Neuronpedia imports.

A file is a batch of features of one SAE: sae_dashboard's `NeuronpediaDashboardBatch`. Fields that
saefast does not measure, correlations with neurons and other features, are empty lists.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast.evaluation.explaining.contexts import TokenText
from saefast.evaluation.explaining.firings import Firings

EXTRA = "saefast"
"""Key of a feature's further facts, which sae_dashboard's own classes do not have."""

_BARS = 50
_ALIGNED = 3
_TOKENS = 10
_BEFORE, _AFTER = 24, 12  # tokens around an activation
_TOP, _PER_INTERVAL, _INTERVALS = 20, 5, 5
_EXPLAINED = (
    *("explanation", "explanation_kind", "rule_score", "rule_null", "detection", "fuzzing"),
    *("detection_shuffled", "steer_success", "steer_success_control"),
)
_MEASURED = ("group", "score", "low", "high", "support", "soft", "firing_rate", "effect")


class Corpus(NamedTuple):
    """Text that the features are shown on."""

    text: TokenText
    contexts: int
    """number of contexts"""
    context: int
    """number of tokens in a context"""
    name: str


def dashboard_feature(
    latent: int,
    row: Tensor,
    logits: Tensor,
    strings_of: Callable[[list[int]], list[str]],
    fired: Firings,
    corpus: Corpus,
) -> dict[str, Any]:
    """Return a feature as sae_dashboard writes it.

    Args:
        latent: index of the feature.
        row: [d] its row of W_dec.
        logits: [vocabulary] logits of the row.
        strings_of: function that returns the texts of tokens.
        fired: firings of the SAE on the rows of the corpus.
        corpus: text of the rows.
    """
    rows, values = fired.of(latent)
    aligned = row.topk(min(_ALIGNED, len(row)))
    count = min(_TOKENS, len(logits))
    high, low = logits.topk(count), logits.topk(count, largest=False)
    heights, centres = _histogram(values)
    logit_heights, logit_centres = _histogram(logits.numpy())
    return {
        "feature_index": latent,
        "neuron_alignment_indices": aligned.indices.tolist(),
        "neuron_alignment_values": _rounded(aligned.values),
        "neuron_alignment_l1": _rounded(aligned.values.abs() / row.abs().sum().clamp(min=1e-12)),
        "correlated_neurons_indices": [],
        "correlated_neurons_l1": [],
        "correlated_neurons_pearson": [],
        "correlated_features_indices": [],
        "correlated_features_l1": [],
        "correlated_features_pearson": [],
        "neg_str": strings_of(low.indices.tolist()),
        "neg_values": _rounded(low.values),
        "pos_str": strings_of(high.indices.tolist()),
        "pos_values": _rounded(high.values),
        "frac_nonzero": len(rows) / fired.rows,
        "freq_hist_data_bar_values": centres,
        "freq_hist_data_bar_heights": heights,
        "logits_hist_data_bar_heights": logit_heights,
        "logits_hist_data_bar_values": logit_centres,
        "n_prompts_total": corpus.contexts,
        "n_tokens_in_prompt": corpus.context,
        "dataset": corpus.name,
        "activations": list(_activations(rows, values, corpus.text)),
        "decoder_weights_dist": [],
        "vector": [],
    }


def extra_facts(
    place: int, columns: Mapping[str, Any], seeds: list[int], seed: int
) -> dict[str, Any]:
    """Return the stability, the explanation and the partners of a feature, as far as known.

    Args:
        place: row of the feature in the columns.
        columns: columns of features.parquet, see `saefast.run_folder.FEATURE_COLUMNS`.
        seeds: seeds of all SAEs, in the order of the partners.
        seed: seed of the feature's own SAE.
    """
    facts: dict[str, Any] = {"seed": seed}
    for kind, names in (("stability", _MEASURED), ("explanation", _EXPLAINED)):
        its = {name: _plain(columns[name][place]) for name in names if name in columns}
        its = {name: value for name, value in its.items() if value is not None}
        if its:
            facts[kind] = its
    if "partner" in columns:
        facts["partners"] = [
            {"seed": other, "feature": int(partner), "similarity": round(float(cosine), 4)}
            for other, partner, cosine in zip(
                seeds, columns["partner"][place], columns["similarity"][place], strict=True
            )
            if partner >= 0 and other != seed
        ]
    return facts


def _activations(
    rows: NDArray[np.int32], values: NDArray[np.float32], text: TokenText
) -> Iterator[dict[str, Any]]:
    """Yield text around the largest activations, then around some of each interval of values."""
    if not len(rows):
        return
    order = np.argsort(-values, kind="stable")
    most = float(values[order[0]])
    for place in order[:_TOP]:
        yield _activation(place, rows, values, text, (-1.0, most, -1.0))
    edges = np.linspace(0.0, most, _INTERVALS + 1)
    for low, high in zip(edges[-2::-1], edges[:0:-1], strict=True):
        inside = order[(values[order] > low) & (values[order] <= np.float32(high))]
        share = len(inside) / len(rows)
        steps = np.linspace(0, len(inside) - 1, min(_PER_INTERVAL, len(inside)))
        for place in inside[steps.astype(int)]:
            yield _activation(place, rows, values, text, (float(low), float(high), share))


def _activation(
    place: int,
    rows: NDArray[np.int32],
    values: NDArray[np.float32],
    text: TokenText,
    interval: tuple[float, float, float],
) -> dict[str, Any]:
    row = int(rows[place])
    begin, end = (int(text.context_starts[text.context[row] + side]) for side in (0, 1))
    first, end = max(begin, row - _BEFORE), min(end, row + _AFTER + 1)
    shown = np.zeros(end - first, dtype=np.float32)
    among = slice(*np.searchsorted(rows, [first, end]))
    shown[rows[among] - first] = values[among]
    return {
        "bin_min": round(interval[0], 3),
        "bin_max": round(interval[1], 3),
        "bin_contains": round(interval[2], 5),
        "tokens": text.pieces(first, end),
        "values": _rounded(torch.from_numpy(shown)),
        "qualifying_token_index": row - first,
    }


def _histogram(values: NDArray[np.float32]) -> tuple[list[int], list[float]]:
    """Return the number of values in each of equal bins, and the centres of the bins."""
    if not len(values):
        return [], []
    heights, edges = np.histogram(values.astype(np.float64), bins=_BARS)
    centres = (edges[1:] + edges[:-1]) / 2
    return heights.tolist(), [round(float(centre), 5) for centre in centres]


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 3) for value in values]


def _plain(value: Any) -> Any:
    """Return a value of a table for JSON; None for one that is not known."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
