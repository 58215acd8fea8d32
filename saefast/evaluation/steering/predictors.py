"""Relation of properties of sampled latents to the gain of steering with them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from saefast.evaluation.intervals import Floats
from saefast.evaluation.scores import TRAINED, Score
from saefast.evaluation.steering.prediction import Prediction, predictions
from saefast.evaluation.steering.results import Results
from saefast.evaluation.steering.scores import NAME


def predicted_gain(
    results: Results,
    predictors: Mapping[str, Sequence[Tensor]] | None,
    seed: int,
) -> list[Prediction]:
    """Measure how well properties of trained latents predict the gain of steering.

    Args:
        results: results of steering.
        predictors: by name, for each trained SAE a property [m] of its latents.
        seed: seed of resamples, permutations and folds.
    """
    items = results.items
    chosen = items.sample.of(TRAINED)
    sae, latent = items.sample.sae[chosen], items.sample.latent[chosen]
    covariates: dict[str, Floats] = {
        "log firing rate": items.rate.log().numpy()[chosen],
        "mean activation": items.mean.numpy()[chosen],
        "encoder-decoder cosine": items.cosine.numpy()[chosen],
    }
    given: dict[str, Floats] = {}
    for name, each in (predictors or {}).items():
        columns = [values.detach().double().cpu().numpy() for values in each]
        given[name] = np.array([columns[s][j] for s, j in zip(sae, latent, strict=True)])
    given["output score"] = results.output_score[chosen]
    given["input score"] = results.input_score[chosen]
    gain = results.reported.gain(results.primary)[chosen, 0]
    success = results.reported.success(results.primary)[chosen, 0] >= 0.5
    return predictions(gain, success, sae, {**given, **covariates}, covariates, seed)


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
    for by in dict.fromkeys(one.by for one in predicted):
        plain, partial = (found.get((kind, by)) for kind in ("spearman", "partial spearman"))
        if plain is None:
            continue
        sentence = f"steer: rank correlation of {by} with the gain by {primary}: {_number(plain)}"
        if partial is not None:
            held = "rate, mean activation and encoder-decoder cosine held fixed"
            sentence += f"; {held}: {_number(partial)}"
        yield sentence


def _number(one: Prediction) -> str:
    value, low, high = one.value
    return f"{value:.3f} ({low:.3f} to {high:.3f}, permutation p {one.p:.3f}, n {one.n})"
