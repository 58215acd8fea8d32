"""Stage steer: whether text shows a latent whose direction is added."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from saefast.evaluation.explaining.contexts import text_of_sequences, token_text
from saefast.evaluation.explaining.firings import firings
from saefast.evaluation.explaining.predicates import UNCLEAR, Rule, RuleReader
from saefast.evaluation.explaining.rules import FeatureRules, find_rules
from saefast.evaluation.scores import TRAINED, Evaluation
from saefast.evaluation.steering import CONTROLS, OPENERS
from saefast.evaluation.steering import steer as steer_saes
from saefast.pipeline.evaluation_settings import of_budget
from saefast.pipeline.evaluations import evaluate_run
from saefast.pipeline.job import Job
from saefast.pipeline.settings import EvaluateSettings
from saefast.pipeline.subject import Subject


def steer(job: Job) -> None:
    """Steer with the SAEs of a run."""
    evaluate_run("steer", measure, job)


def measure(subject: Subject, how: EvaluateSettings) -> Evaluation:
    """Steer with a subject, whose latents rules explain; a quick one has no other conditions."""
    settings = how.steer
    conditions = of_budget(how.budget, None, (), subject.sparse_conditions)
    text = token_text(subject.held_out, subject.model.tokenizer)
    found: dict[str, list[FeatureRules]] = {}
    for name, saes in ((TRAINED, subject.saes), *((each.name, each.saes) for each in conditions)):
        fired = firings(saes, str(subject.held_out), progress=subject.progress)
        found[name] = find_rules(text, fired, progress=subject.progress)
    predictors: dict[str, Sequence[Tensor]] = {
        "rule score": [torch.from_numpy(its.balanced_accuracy) for its in found[TRAINED]]
    }
    if subject.stability is not None:
        predictors["stability"] = subject.stability.score
    return steer_saes(
        subject.model,
        subject.site,
        subject.saes,
        {name: [its.texts for its in each] for name, each in found.items()},
        rules={
            name: [_callables(its, subject.model.tokenizer) for its in each]
            for name, each in found.items()
        },
        features=of_budget(how.budget, settings.features, 8, 16),
        openers=OPENERS[: of_budget(how.budget, settings.openers, 4, 8)],
        controls=of_budget(how.budget, None, CONTROLS[:2], CONTROLS),
        strengths=settings.strengths,
        new_tokens=settings.new_tokens,
        matches=subject.matches,
        predictors=predictors,
        conditions=conditions,
        groups=subject.groups,
        mass=subject.mass,
        activations=str(subject.held_out),
        progress=subject.progress,
    )


def _callables(rules: FeatureRules, tokenizer: Any) -> dict[int, Callable[[Tensor], Tensor]]:
    """Return {latent: function of tokens [n, length] to bool [n, length]} of clear rules."""
    return {
        latent: partial(_holds, rule, tokenizer)
        for latent, (rule, kind) in enumerate(zip(rules.rules, rules.kinds, strict=True))
        if rule is not None and kind not in ("", UNCLEAR)
    }


def _holds(rule: Rule, tokenizer: Any, tokens: Tensor) -> Tensor:
    """[n, length] bool: where the rule holds on tokens [n, length]."""
    held = RuleReader(text_of_sequences(tokens.tolist(), tokenizer)).holds(rule)
    return torch.from_numpy(held).reshape(tokens.shape)
