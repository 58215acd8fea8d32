"""Relation of properties of sampled latents to the gain of steering with them."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from saefast.evaluation.intervals import Floats
from saefast.evaluation.scores import TRAINED, Score
from saefast.evaluation.steering.inputs import check_per_latent
from saefast.evaluation.steering.prediction import Prediction, predictions
from saefast.evaluation.steering.results import Results
from saefast.evaluation.steering.runs import Items
from saefast.evaluation.steering.scores import NAME
from saefast.sae import SAE

Properties = Mapping[str, Sequence[Tensor]]
"""By name, for each trained SAE a property [m] of its latents, NaN where unknown"""
Examine = Callable[[Sequence[Tensor]], Properties]
"""Function from the indices [f] of the sampled latents of each trained SAE to their properties"""

_RATE, _STABILITY = "log firing rate", "stability"
_OF_EXPLANATIONS = ("detection", "rule score")
"""Scores of explanations, of which the first known one is held against stability and rate"""


def examined(examine: Examine | None, items: Items, trained: Sequence[SAE]) -> Properties:
    """Return the properties of the sampled latents that a function measures.

    Args:
        examine: the function; None: no property is measured.
        items: latents to steer with.
        trained: trained SAEs.
    """
    if examine is None:
        return {}
    found = examine([latents.numbers for name, _, latents in items.parts if name == TRAINED])
    for name, each in found.items():
        check_per_latent(f"examine(...)[{name!r}]", each, trained)
    return found


def predicted_gain(
    results: Results,
    predictors: Properties,
    seed: int,
) -> list[Prediction]:
    """Measure how well properties of trained latents predict the gain of steering.

    A score of explanations, stability and firing rate also get the correlations that remain while
    the other two are held fixed.

    Args:
        results: results of steering.
        predictors: properties of latents.
        seed: seed of resamples, permutations and folds.

    Returns:
        A prediction for each property and outcome.
    """
    items = results.items
    chosen = items.sample.of(TRAINED)
    sae, latent = items.sample.sae[chosen], items.sample.latent[chosen]
    covariates: dict[str, Floats] = {
        _RATE: items.rate.log().numpy()[chosen],
        "mean activation": items.mean.numpy()[chosen],
        "encoder-decoder cosine": items.cosine.numpy()[chosen],
    }
    given: dict[str, Floats] = {}
    for name, each in predictors.items():
        columns = [values.detach().double().cpu().numpy() for values in each]
        given[name] = np.array([columns[s][j] for s, j in zip(sae, latent, strict=True)])
    given["output score"] = results.output_score[chosen]
    given["input score"] = results.input_score[chosen]
    gain = results.reported.gain(results.primary)[chosen, 0]
    success = results.reported.success(results.primary)[chosen, 0] >= 0.5
    of_explanations = [name for name in _OF_EXPLANATIONS if name in given][:1]
    named = (*of_explanations, _STABILITY, _RATE)
    given |= covariates
    together = tuple(name for name in named if name in given)
    return predictions(gain, success, sae, given, covariates, seed, together=together)


def as_score(one: Prediction) -> Score:
    """Return a prediction as a score whose task is the predictor."""
    return Score(
        evaluation=NAME,
        measure=one.measure,
        condition=TRAINED,
        **one.value._asdict(),
        n=one.n,
        task=one.by,
        floor=0.5 if "auroc" in one.measure else 0.0,
    )


def prediction_notes(predicted: Sequence[Prediction], primary: str) -> Iterator[str]:
    """Yield a sentence on the rank correlations of each predictor, with their tests."""
    found = {(one.measure, one.by): one for one in predicted}
    together = [one.by for one in predicted if one.measure == "joint spearman"]
    for by in dict.fromkeys(one.by for one in predicted):
        plain, partial, joint = (
            found.get((kind, by)) for kind in ("spearman", "partial spearman", "joint spearman")
        )
        if plain is None:
            continue
        sentence = f"steer: rank correlation of {by} with the gain by {primary}: {_number(plain)}"
        if partial is not None:
            held = "rate, mean activation and encoder-decoder cosine held fixed"
            sentence += f"; {held}: {_number(partial)}"
        if joint is not None:
            others = " and ".join(other for other in together if other != by)
            sentence += f"; {others} held fixed: {_number(joint)}"
        yield sentence


def _number(one: Prediction) -> str:
    value, low, high = one.value
    return f"{value:.3f} ({low:.3f} to {high:.3f}, permutation p {one.p:.3f}, n {one.n})"
