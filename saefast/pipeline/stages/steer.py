"""Stage steer: texts written along latents, and whether they show them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from saefast.evaluation.explaining.contexts import TokenText, text_of_sequences, token_text
from saefast.evaluation.explaining.explained import Explained
from saefast.evaluation.explaining.firings import firings
from saefast.evaluation.explaining.judges import (
    EmbeddingJudge,
    EndpointJudge,
    Judge,
    RulesJudge,
    TextRater,
    calibrate,
)
from saefast.evaluation.explaining.judges.answers import ANSWERS
from saefast.evaluation.explaining.judges.calibration import known_questions
from saefast.evaluation.explaining.judges.of_texts import PER_PROMPT
from saefast.evaluation.explaining.judging import TYPICAL
from saefast.evaluation.explaining.predicates import UNCLEAR
from saefast.evaluation.explaining.rated_rules import rated_rules, typical_questions
from saefast.evaluation.explaining.rule_reader import Rule, RuleReader
from saefast.evaluation.explaining.rules import FeatureRules, find_rules
from saefast.evaluation.scores import TRAINED, Evaluation
from saefast.evaluation.steering import CONTROLS, OPENERS, comparisons
from saefast.evaluation.steering import steer as steer_saes
from saefast.evaluation.steering.scores import NAME
from saefast.pipeline.evaluation_settings import of_budget
from saefast.pipeline.evaluations import evaluate_run
from saefast.pipeline.job import Job
from saefast.pipeline.judges import judge_of
from saefast.pipeline.settings import EvaluateSettings
from saefast.pipeline.subject import Subject
from saefast.sae import SAE


def steer(job: Job) -> None:
    """Steer with the SAEs of a run."""
    evaluate_run("steer", measure, job)


def measure(
    subject: Subject,
    how: EvaluateSettings,
    *,
    dry_run: bool = False,
    prices: tuple[float, float] | None = None,
) -> Evaluation:
    """Steer with the latents of a subject, which are explained by rules.

    The judge also rates the rules of the trained latents to steer with, so that its detection score
    can be compared with their success. With a quick budget, the only conditions are SAEs of other
    runs.

    Args:
        subject: SAEs with their model and held-out rows.
        how: settings, of which `steer` and the budget are used.
        dry_run: count the judge's requests without steering.
        prices: prices of the dry run, as of an `EndpointJudge`.

    Returns:
        Scores of steering, or with `dry_run` notes alone.
    """
    settings = how.steer
    conditions = of_budget(how.budget, None, subject.beside, subject.sparse_conditions)
    sizes = _Sizes(how)
    judge = judge_of(
        settings,
        device=subject.model.device,
        per_prompt=PER_PROMPT,
        prices=prices,
        progress=subject.progress,
    )
    if isinstance(judge, EndpointJudge):
        judge.keep_answers(subject.out / ANSWERS)
    if dry_run:
        saes = [*subject.saes, *(sae for each in conditions for sae in each.saes)]
        note = _cost(judge, saes, len(subject.saes), sizes, subject)
        return Evaluation(name=NAME, scores=(), notes=(note,))
    raters, notes = _raters(judge, subject)
    text = token_text(subject.held_out, subject.model.tokenizer)
    found: dict[str, list[FeatureRules]] = {}
    for name, each in ((TRAINED, subject.saes), *((its.name, its.saes) for its in conditions)):
        fired = firings(each, str(subject.held_out), progress=subject.progress)
        found[name] = find_rules(text, fired, progress=subject.progress)
        if name == TRAINED:
            trained = [
                Explained(its, rules, sae.W_dec.detach().float().cpu())
                for its, rules, sae in zip(fired, found[name], each, strict=True)
            ]
    predictors: dict[str, Sequence[Tensor]] = {
        "rule score": [torch.from_numpy(its.balanced_accuracy) for its in found[TRAINED]]
    }
    if subject.stability is not None:
        predictors["stability"] = subject.stability.score
    steered = steer_saes(
        subject.model,
        subject.site,
        subject.saes,
        {name: [its.texts for its in each] for name, each in found.items()},
        rules={
            name: [_callables(its, subject.model.tokenizer) for its in each]
            for name, each in found.items()
        },
        features=sizes.features,
        rival_features=sizes.rival_features,
        openers=sizes.openers,
        controls=sizes.controls,
        strengths=settings.strengths,
        new_tokens=settings.new_tokens,
        matches=subject.matches,
        predictors=predictors,
        examine=_examination(judge, bool(raters), trained, text),
        conditions=conditions,
        groups=subject.groups,
        mass=subject.mass,
        activations=str(subject.held_out),
        progress=subject.progress,
        **raters,
    )
    return replace(steered, notes=(*notes, *steered.notes))


class _Sizes:
    """Sizes of steering for a budget."""

    def __init__(self, how: EvaluateSettings) -> None:
        self.features = of_budget(how.budget, how.steer.features, 8, 16)
        self.rival_features = of_budget(how.budget, how.steer.features, 8, 8)
        self.openers = OPENERS[: of_budget(how.budget, how.steer.openers, 4, 6)]
        self.controls = of_budget(how.budget, None, CONTROLS[:2], CONTROLS)
        self.strengths = how.steer.strengths
        self.new_tokens = how.steer.new_tokens


def _raters(judge: Judge | None, subject: Subject) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the arguments that give `steer` a judge, none for a failing judge, and notes."""
    if judge is None:
        return {}, ()
    calibration = calibrate(judge, subject.model.tokenizer)
    notes = (f"steer: {calibration.line}",)
    if not calibration.able:
        return {}, notes
    if isinstance(judge, EmbeddingJudge):
        return {"embedding": judge.encoder.encode}, notes
    return {"judge": TextRater(judge)}, notes


def _examination(
    judge: Judge | None, able: bool, trained: Sequence[Explained], text: TokenText
) -> Callable[[Sequence[Tensor]], dict[str, list[Tensor]]] | None:
    """Return the function that rates rules by the judge or by execution; None if it is not able."""
    if judge is not None and not able:
        return None
    return partial(rated_rules, judge or RulesJudge(), trained, text)


def _cost(
    judge: Judge | None, saes: Sequence[SAE], trained: int, sizes: _Sizes, subject: Subject
) -> str:
    """Return a sentence on the cost of the comparisons, the rated rules and the calibration.

    Args:
        judge: judge; None: rules are executed.
        saes: SAEs to steer with, the trained ones first.
        trained: number of trained SAEs.
        sizes: sizes of steering.
        subject: subject of the evaluation.
    """
    if judge is None:
        return "steer: rules are executed; no judge would be called"
    each_sae = [
        min(sizes.features if place < trained else sizes.rival_features, sae.m)
        for place, sae in enumerate(saes)
    ]
    latents = sum(each_sae)
    each = comparisons(len(sizes.openers), len(sizes.strengths), len(sizes.controls))
    explanations, texts = [], []
    for latent in range(latents):
        for number in range(each):
            # Two texts of typical length in both orders, different for each comparison.
            pair = ["word " * sizes.new_tokens + f"{latent}.{number}", "word " * sizes.new_tokens]
            texts += [*pair, *pair[::-1]]
            explanations += [f"{TYPICAL}{latent}"] * 4
    known = known_questions(subject.model.tokenizer)
    text = token_text(subject.held_out, subject.model.tokenizer)
    rated = typical_questions(text, sum(each_sae[:trained]))
    cost = judge.cost([], [*known.right, *known.swapped, *rated])
    cost = cost.plus(TextRater(judge).cost(explanations, texts))
    return (
        f"steer: judge {judge.name} would get at most about {cost.in_words()} for {latents} "
        f"latents and its calibration; it was not called"
    )


def _callables(rules: FeatureRules, tokenizer: Any) -> dict[int, Callable[[Tensor], Tensor]]:
    """Return {latent: function of tokens [n, length] to bool [n, length]} of clear rules."""
    return {
        latent: partial(_holds, rule, tokenizer)
        for latent, (rule, kind) in enumerate(zip(rules.rules, rules.kinds, strict=True))
        if rule is not None and kind not in ("", UNCLEAR)
    }


def _holds(rule: Rule, tokenizer: Any, tokens: Tensor) -> Tensor:
    """Return where the rule holds on tokens [n, length], [n, length] bool."""
    held = RuleReader(text_of_sequences(tokens.tolist(), tokenizer)).holds(rule)
    return torch.from_numpy(held).reshape(tokens.shape)
