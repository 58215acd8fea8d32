"""Reconstruction, sparsity and geometry of SAEs at a site, and their cost to the model's loss."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saefast.evaluation.conditions import Condition
from saefast.evaluation.geometry import Geometry, geometry_of
from saefast.evaluation.intervals import (
    UNLIMITED,
    Interval,
    proportion_interval,
    two_way_interval,
)
from saefast.evaluation.item_scores import ratio_values, scores_of_items
from saefast.evaluation.row_sums import RowSums, sums_of_mean, sums_of_sae
from saefast.evaluation.scores import TRAINED, Evaluation, Score
from saefast.linalg import one_thread
from saefast.lm.corpus import Texts
from saefast.lm.losses import counted
from saefast.lm.model import LanguageModel, check_model
from saefast.lm.packing import TokenBatch
from saefast.lm.patch import check_sae, held_out_batches, patched_losses
from saefast.lm.sites import Site, capture, find_site
from saefast.nulls.cosines import BestOfRandom
from saefast.progress import ProgressBar
from saefast.sae import SAE, as_saes

NAME = "core"
PRIMARY = "cross entropy score"
MEAN = "mean ablation"
"""Name of the condition that replaces every activation by the mean activation"""

CONVENTIONS = {
    "explained variance": "1 - sum of squared errors / sum of squared distances to the mean "
    "activation, over all rows; that mean is the floor, 0",
    "L0": "active latents per row",
    "length ratio": "length of the reconstruction over the length of the row, mean over rows",
    "relative bias": "sum of |x'|^2 / sum of <x, x'>, with x' the reconstruction of x; 1 is none",
    "cosine": "cosine of row and reconstruction, mean over rows",
    PRIMARY: "(CE_zero - CE) / (CE_zero - CE_unmodified), CE of the next token; floor: zeros in "
    "place of the activations",
    "KL score": "(KL_zero - KL) / KL_zero, KL(unmodified || replaced) computed from "
    "log-probabilities, which do not underflow",
    "latents that fire": "share of latents active on some row",
    "dense latents": "share of latents active on more than a tenth of the rows",
    "encoder-decoder cosine": "cosine of a latent's rows of W_enc and W_dec, mean over latents "
    "that fire",
    "nearest cosine": "largest cosine of a latent's row of W_dec with another's, mean over latents "
    "that fire; floor: of as many random directions",
}

_RATIOS = {
    "explained variance": ("explained", "distances"),
    "cosine": ("cosines", "number"),
    "length ratio": ("ratios", "number"),
    "relative bias": ("squares", "products"),
    "L0": ("active", "number"),
}
"""Numerator and denominator of each measure, as names of sums of `RowSums`"""
_DENSE = 0.1
_NORMAL = 1.959963984540054

Floats = NDArray[np.float64]


def core_scores(
    model: LanguageModel,
    layer: int | str,
    saes: SAE | Sequence[SAE],
    *,
    conditions: Sequence[Condition] = (),
    corpus: Texts | None = None,
    tokens: int = 16384,
    context: int = 256,
    batch_size: int = 4,
    drop_bos: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Measure the reconstruction, sparsity and geometry of SAEs, and the model's loss with them.

    Intervals are over contexts and SAEs.

    Args:
        model: language model, from `load_model`.
        layer: site of the SAEs, as in `harvest`.
        saes: trained SAEs of one width.
        conditions: rivals and baselines to evaluate in the same way.
        corpus: texts to read; None: the held-out part of `builtin_corpus()`.
        tokens: approximate number of tokens; whole batches are read, and their activations are
            held in memory.
        context: number of tokens per context.
        batch_size: number of contexts in a forward pass.
        drop_bos: leave out first positions and BOS, as `harvest` does.
        seed: seed of the bootstraps.
        progress: show a progress bar on stderr.

    Returns:
        Scores of the losses, the rows and the latents; see `CONVENTIONS`. `features` holds for each
        trained SAE the held-out firing rate, encoder-decoder cosine and nearest cosine, [m] each.
    """
    check_model(model)
    site = find_site(model.model, layer)
    batches = held_out_batches(model, corpus, tokens, context, batch_size, drop_bos)
    texts = _captured(model, site, batches)
    everything = {TRAINED: as_saes(saes, texts[0].shape[1])}
    for condition in conditions:
        everything[condition.name] = as_saes(condition.saes, texts[0].shape[1])
    for its in everything.values():
        for sae in its:
            check_sae(sae)
    mean = _mean(texts)
    total = sum(map(len, everything.values()))
    measured_rows: dict[str, list[RowSums]] = {MEAN: [sums_of_mean(texts, mean)]}
    with ProgressBar("reconstruct", total=total, unit="SAEs", progress=progress) as bar:
        for name, its in everything.items():
            measured_rows[name] = []
            for sae in its:
                measured_rows[name].append(sums_of_sae(sae, texts, mean))
                bar.update()
    losses = _losses(model, site, everything, mean, batches, progress)
    rivals = [name for name in (*everything, MEAN) if name != TRAINED]
    latents = {name: [geometry_of(sae) for sae in its] for name, its in everything.items()}
    rates = {
        name: [of.fired.double() / of.rows for of in measured_rows[name]] for name in everything
    }
    return Evaluation(
        name=NAME,
        scores=(
            *_scores_of_losses(losses, rivals, seed),
            *_scores_of_rows(measured_rows, rivals, seed),
            *_scores_of_latents(everything, latents, rates, seed),
        ),
        features=tuple(
            {
                "held_out_firing_rate": rate,
                "encoder_decoder_cosine": geometry.encoder_decoder,
                "nearest_cosine": geometry.nearest,
            }
            for rate, geometry in zip(rates[TRAINED], latents[TRAINED], strict=True)
        ),
    )


def _captured(model: LanguageModel, site: Site, batches: Sequence[TokenBatch]) -> list[Tensor]:
    """Return the activations [rows, d] of each context, without contexts that have no rows."""
    texts = []
    for batch in batches:
        (seen,) = capture(model.model, [site], batch.ids)
        texts += [x[kept.to(x.device)] for x, kept in zip(seen, batch.kept, strict=True)]
    return [x if x.dtype == torch.float64 else x.float() for x in texts if len(x)]


def _mean(texts: Sequence[Tensor]) -> Tensor:
    with one_thread():
        total = torch.stack([x.double().sum(0) for x in texts]).sum(0)
    mean: Tensor = total / sum(map(len, texts))
    return mean.to(texts[0])


def _losses(
    model: LanguageModel,
    site: Site,
    everything: Mapping[str, Sequence[SAE]],
    mean: Tensor,
    batches: list[TokenBatch],
    progress: bool,
) -> dict[str, list[tuple[Floats, Floats]]]:
    """Return by condition, for each SAE, the cross entropy and divergence of each context.

    Both are sums over the predictions of a context; contexts without any are left out.
    """

    def replacements(x: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "zero", torch.zeros_like(x)
        yield MEAN, mean.to(x).expand_as(x)
        for name, its in everything.items():
            for place, sae in enumerate(its):
                rows = x.to(sae.W_enc)
                yield f"{name} {place}", sae.decode(sae.encode(rows), rows).to(x.device)

    found = patched_losses(model, site, replacements, batches, progress)
    predictions = torch.cat([counted(batch).sum(1) for batch in batches]).numpy()
    there = predictions > 0

    def of(key: str) -> tuple[Floats, Floats]:
        ce, kl = (part.numpy()[there] for part in found[key])
        return ce, kl

    by_condition = {
        name: [of(f"{name} {place}") for place in range(len(its))]
        for name, its in everything.items()
    }
    return {"clean": [of("clean")], "zero": [of("zero")], MEAN: [of(MEAN)], **by_condition}


def _scores_of_losses(
    losses: Mapping[str, Sequence[tuple[Floats, Floats]]], rivals: Sequence[str], seed: int
) -> list[Score]:
    ((clean, _),), ((ce_zero, kl_zero),) = losses["clean"], losses["zero"]
    shown = {name: its for name, its in losses.items() if name not in ("clean", "zero")}
    by_measure = {
        PRIMARY: {
            name: np.stack([ratio_values(ce_zero - ce, ce_zero - clean) for ce, _ in its])
            for name, its in shown.items()
        },
        "KL score": {
            name: np.stack([ratio_values(kl_zero - kl, kl_zero) for _, kl in its])
            for name, its in shown.items()
        },
    }
    return [
        score
        for measure, values in by_measure.items()
        for score in scores_of_items(
            NAME,
            measure,
            _trained_first(values),
            floor=0.0,
            ceiling=1.0,
            rivals=rivals,
            primary=measure == PRIMARY,
            seed=seed,
        )
    ]


def _trained_first(values: Mapping[str, Floats]) -> dict[str, Floats]:
    return {TRAINED: values[TRAINED], **values}


def _scores_of_rows(
    measured_rows: Mapping[str, Sequence[RowSums]], rivals: Sequence[str], seed: int
) -> list[Score]:
    limits = {"explained variance": (-np.inf, 1.0), "cosine": (-1.0, 1.0)}
    scores: list[Score] = []
    for measure, (above, below) in _RATIOS.items():
        values = {
            name: np.stack([ratio_values(getattr(of, above), getattr(of, below)) for of in its])
            for name, its in measured_rows.items()
            if not (measure == "L0" and name == MEAN)
        }
        scores += scores_of_items(
            NAME,
            measure,
            _trained_first(values),
            floor=float(values[MEAN].mean()) if measure in limits else float("nan"),
            ceiling=float("nan") if measure == "L0" else 1.0,
            rivals=rivals if measure in limits else (),
            limits=limits.get(measure, UNLIMITED),
            seed=seed,
        )
    return scores


def _scores_of_latents(
    everything: Mapping[str, Sequence[SAE]],
    latents: Mapping[str, Sequence[Geometry]],
    rates: Mapping[str, Sequence[Tensor]],
    seed: int,
) -> list[Score]:
    scores = []
    for name, its in everything.items():
        fires = [rate > 0 for rate in rates[name]]
        chance = BestOfRandom(its[0].m - 1, its[0].d_out).mean() if its[0].m > 1 else float("nan")
        columns = {
            "latents that fire": ([fire.double() for fire in fires], float("nan"), 1.0),
            "dense latents": (
                [(rate > _DENSE).double() for rate in rates[name]],
                float("nan"),
                float("nan"),
            ),
            "encoder-decoder cosine": (
                [each.encoder_decoder[f] for each, f in zip(latents[name], fires, strict=True)],
                0.0,
                1.0,
            ),
            "nearest cosine": (
                [each.nearest[f] for each, f in zip(latents[name], fires, strict=True)],
                chance,
                float("nan"),
            ),
        }
        for measure, (values, floor, ceiling) in columns.items():
            scores.append(
                Score(
                    evaluation=NAME,
                    measure=measure,
                    condition=name,
                    **_over_latents(values, seed)._asdict(),
                    n=sum(map(len, values)),
                    floor=floor,
                    ceiling=ceiling,
                )
            )
    return scores


def _over_latents(values: Sequence[Tensor], seed: int) -> Interval:
    """Return the mean over SAEs with an interval over SAEs, or over latents if there is one SAE."""
    known = [its[~its.isnan()] for its in values]
    if len(known) > 1:
        return two_way_interval([[float(its.mean())] for its in known], seed=seed)
    (its,) = known
    if bool(((its == 0) | (its == 1)).all()):
        return proportion_interval(int(its.sum()), len(its))
    value, error = float(its.mean()), float(its.std()) / max(len(its), 1) ** 0.5
    return Interval(value, value - _NORMAL * error, value + _NORMAL * error)
