"""Evaluation of explanations of latents, by rules and by judges."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saefast import checks
from saefast.activations import StoreActivations
from saefast.evaluation.conditions import Condition
from saefast.evaluation.explaining.contexts import WINDOW, Booleans, TokenText, token_text
from saefast.evaluation.explaining.explained import (
    Explained,
    encode_conditions,
    sample_conditions,
    scramble,
)
from saefast.evaluation.explaining.judges import EndpointJudge, Judge, RulesJudge, calibrate
from saefast.evaluation.explaining.judges.answers import ANSWERS
from saefast.evaluation.explaining.judging import Judged, judge_all, judging_cost
from saefast.evaluation.explaining.score_rows import NAME, SCRAMBLED
from saefast.evaluation.explaining.scores import judge_scores, rule_scores
from saefast.evaluation.scores import TRAINED, Evaluation
from saefast.lm.model import LanguageModel, check_model
from saefast.lm.sites import find_site
from saefast.sae import SAE, as_saes
from saefast.stability.groups import Groups, as_groups

_NOISY = ("specificity", "detection", "fuzzing")
"""Measures whose noise is estimated"""


def explain(
    model: LanguageModel,
    layer: int | str,
    saes: SAE | Sequence[SAE],
    activations: StoreActivations | str | Path,
    *,
    judge: Judge | None = None,
    features: int = 60,
    conditions: Sequence[Condition] = (),
    groups: Groups | Mapping[str, Tensor] | None = None,
    mass: Tensor | Sequence[Tensor] | None = None,
    rows: int | None = None,
    documents: Tensor | None = None,
    window: int = WINDOW,
    out: str | Path | None = None,
    dry_run: bool = False,
    repeats: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Explain latents in one half of a held-out text and score the explanations in the other.

    Every latent of every SAE gets the best of many rules on tokens, their context, syntax and
    topic. For a sample of latents a judge then predicts from an explanation whether the latent
    fires in a window (detection) and on which of its tokens (fuzzing). The primary measure is
    specificity: detection minus detection with the explanation of another latent that fires about
    as often. The model itself does not run; only its tokenizer is needed.

    Judges are first calibrated on features with known explanations; the scores of a judge that
    fails are withheld.

    Args:
        model: harvested model.
        layer: site of the activations, see `saefast.lm.find_site`.
        saes: SAEs of different seeds, trained on that site.
        activations: store of held-out activations with tokens, from `saefast.lm.harvest`.
        judge: judge that rates explanations, and writes them if it can; None: `RulesJudge`.
        features: number of judged latents of each SAE, spread evenly over the firing rates; each
            group gets half as many.
        conditions: rivals, see `rival_conditions` and `train_baselines`.
        groups: for each SAE its groups {name: [m] bool}, as returned by `Stability.groups`.
        mass: for each SAE its `FeatureStatistics.mass`, [m]; None: it is measured here.
        rows: number of rows to read, from the first; None: all.
        documents: [rows] index of each row's document, see `token_text`.
        window: number of tokens in a window.
        out: folder in which an `EndpointJudge` stores its answers; None: in memory.
        dry_run: return the judge's calls and tokens as notes, without sending requests.
        repeats: number of evaluations with other seeds that give the noise, if rules judge.
        seed: seed of all random choices.
        progress: show progress bars on stderr.

    Returns:
        Scores of rules over all latents and of the judge over sampled ones, by condition and group.
        `features` holds for each SAE the explanations and scores of its latents.
    """
    checks.whole("features", features, 2)
    checks.whole("repeats", repeats, 1)
    checks.whole("seed", seed, 0)
    store, text = _read(model, layer, activations, rows, documents, window)
    trained = as_saes(saes, store.d)
    masks = _masks(groups, [sae.m for sae in trained])
    judge = RulesJudge() if judge is None else judge
    if isinstance(judge, EndpointJudge) and out is not None and not judge.keeps:
        judge.keep_answers(Path(out) / ANSWERS)
    subjects = encode_conditions(trained, conditions, store, text, seed, progress)
    masses = _masses(mass, subjects[TRAINED])
    samples = sample_conditions(subjects, text, features, masks, seed)
    scores = list(rule_scores(subjects, masks, masses, seed))
    notes = _rule_notes(subjects)
    subjects[SCRAMBLED], samples[SCRAMBLED] = scramble(
        subjects[TRAINED], text, samples[TRAINED], seed
    )
    judged: dict[str, list[Judged]] = {}
    noise: dict[str, float] = {}
    if dry_run:
        notes.append(judging_cost(judge, subjects, text, samples, model.tokenizer, seed))
    else:
        calibration = calibrate(judge, model.tokenizer, seed=seed)
        notes.append(calibration.line)
        if calibration.able:
            judged = judge_all(judge, subjects, text, samples, seed)
            scores += judge_scores(judged, samples)
            notes += _judge_notes(judge, judged)
    if judged and isinstance(judge, RulesJudge) and repeats > 1:
        noise = _noise(judge, subjects[TRAINED], text, features, masks, seed, repeats)
    return Evaluation(
        name=NAME,
        scores=tuple(scores),
        noise=noise,
        features=tuple(
            _columns(subject, judged[TRAINED][number] if judged else None)
            for number, subject in enumerate(subjects[TRAINED])
        ),
        notes=tuple(notes),
    )


def _read(
    model: LanguageModel,
    layer: int | str,
    activations: StoreActivations | str | Path,
    rows: int | None,
    documents: Tensor | None,
    window: int,
) -> tuple[StoreActivations, TokenText]:
    """Open the store and its text; raise if it is not of the model's site."""
    check_model(model)
    if not isinstance(activations, StoreActivations | str | Path):
        raise TypeError(
            f"activations must be a store with tokens or its path, which saefast.lm.harvest "
            f"writes, got {type(activations).__name__}"
        )
    store = activations
    if not isinstance(store, StoreActivations):
        store = StoreActivations(store)
    site = find_site(model.model, layer).name
    stored = store.index.metadata.get("site", site)
    if stored != site:
        raise ValueError(
            f"activations must be of the site {site}, got those of {stored}; pass layer={stored!r} "
            f"or the store of the layer"
        )
    return store, token_text(store, model.tokenizer, rows=rows, documents=documents, window=window)


def _masks(
    groups: Groups | Mapping[str, Tensor] | None, sizes: Sequence[int]
) -> list[dict[str, Booleans]]:
    """Return for each SAE its groups as arrays; all must have the same names."""
    if groups is None:
        return [{} for _ in sizes]
    each = as_groups(groups, sizes)
    for number, named in enumerate(each):
        if named.keys() != each[0].keys():
            raise ValueError(
                f"groups[{number}] must have the names of groups[0], {sorted(each[0])}, got "
                f"{sorted(named)}"
            )
    return [{name: mask.cpu().numpy() for name, mask in named.items()} for named in each]


def _masses(mass: Tensor | Sequence[Tensor] | None, subjects: Sequence[Explained]) -> list[Tensor]:
    """Return the activation mass [m] of each SAE, measured on the text unless given."""
    if mass is None:
        return [subject.mass for subject in subjects]
    given = [mass] if isinstance(mass, Tensor) else list(mass)
    if len(given) != len(subjects):
        raise ValueError(f"mass must be one for each SAE, {len(subjects)}, got {len(given)}")
    for number, (its, subject) in enumerate(zip(given, subjects, strict=True)):
        checks.shape(f"mass[{number}]", its, (subject.firings.m,))
    return [its.double().cpu() for its in given]


def _noise(
    judge: Judge,
    subjects: Sequence[Explained],
    text: TokenText,
    features: int,
    masks: Sequence[Mapping[str, Booleans]],
    seed: int,
    repeats: int,
) -> dict[str, float]:
    """Return the standard deviations of overall scores over samples of latents and windows."""
    alone = {TRAINED: list(subjects)}
    means: dict[str, list[float]] = {measure: [] for measure in _NOISY}
    for repeat in range(repeats):
        # Seeds are far apart because the seeds of consecutive SAEs differ by 1.
        again = seed + 1000 * repeat
        samples = sample_conditions(alone, text, features, masks, again)
        (judged,) = judge_all(judge, alone, text, samples, again).values()
        for measure, values in means.items():
            each = [
                its.of(measure, sample.overall)
                for its, sample in zip(judged, samples[TRAINED], strict=True)
            ]
            values.append(float(np.nanmean(np.concatenate(each))))
    return {measure: float(np.std(values, ddof=1)) for measure, values in means.items()}


def _rule_notes(subjects: Mapping[str, Sequence[Explained]]) -> list[str]:
    """Return notes on latents that the scores of rules leave out."""
    notes = []
    for name, each in subjects.items():
        alive = sum(int((its.rules.fired > 0).sum()) for its in each)
        scored = sum(int((~np.isnan(its.rules.balanced_accuracy)).sum()) for its in each)
        total = sum(its.firings.m for its in each)
        if scored < total:
            notes.append(
                f"{name}: {total - alive} of {total} latents never fire, {alive - scored} fire "
                f"either only in explaining or only in scoring documents; scores of rules are over "
                f"the other {scored}"
            )
    return notes


def _judge_notes(judge: Judge, judged: Mapping[str, Sequence[Judged]]) -> list[str]:
    """Return notes on missing explanations and answers, and on graded judges."""
    notes = []
    if judge.graded:
        notes.append(f"judge {judge.name} only ranks windows: its detection and fuzzing are AUROC")
    for name, each in judged.items():
        silent = sum(not its.text for one in each for its in one.explanations)
        if silent:
            total = sum(len(one.explanations) for one in each)
            notes.append(
                f"{name}: {silent} of {total} sampled latents have no explanation; their answers "
                f"count as guesses"
            )
    failed = judge.failed if isinstance(judge, EndpointJudge) else 0
    if failed:
        notes.append(
            f"requests without an answer of judge {judge.name}, which count as guesses: {failed}"
        )
    return notes


def _columns(subject: Explained, judged: Judged | None) -> dict[str, object]:
    """Return the columns of features.parquet for one SAE."""
    rules = subject.rules
    texts = rules.texts
    kinds = list(rules.kinds)
    columns: dict[str, object] = {
        "explanation": texts,
        "explanation_kind": kinds,
        "rule_score": rules.balanced_accuracy,
        "rule_precision": rules.precision,
        "rule_recall": rules.recall,
        "rule_null": rules.null,
    }
    measures = {"detection": "detection", "fuzzing": "fuzzing"}
    measures["detection_shuffled"] = "detection shuffled"
    for column, measure in measures.items():
        values = np.full(subject.firings.m, np.nan)
        if judged is not None:
            values[judged.latents] = judged.values[measure]
        columns[column] = values
    for latent, explanation in (
        zip(judged.latents.tolist(), judged.explanations, strict=True) if judged else ()
    ):
        texts[latent] = explanation.text
    return {
        name: torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        for name, values in columns.items()
    }
