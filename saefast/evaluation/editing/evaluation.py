"""Evaluation of causal editing: interchanges of the latents that carry an attribute."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from saefast import checks
from saefast.evaluation.conditions import DIFFMEAN, MDAS, Condition
from saefast.evaluation.editing.annealing import EPOCHS
from saefast.evaluation.editing.facts import TRAIN, VALIDATION
from saefast.evaluation.editing.interchange import Interchange, Swap
from saefast.evaluation.editing.knowledge import Knowledge
from saefast.evaluation.editing.one_attribute import (
    ATTRIBUTION,
    MASK,
    MASS,
    SELECTORS,
    Edited,
    Settings,
    Unit,
    edit_attribute,
)
from saefast.evaluation.editing.pairs import (
    LEAST_ENTITIES,
    PARTS,
    TEMPLATES,
    Questions,
    Task,
    tasks_of,
)
from saefast.evaluation.editing.scores import NAME, H, Results, features
from saefast.evaluation.editing.subspace import SUBSPACE_EPOCHS
from saefast.evaluation.editing.supervised import supervised_units
from saefast.evaluation.scores import TRAINED, Evaluation
from saefast.lm.model import LanguageModel, check_model
from saefast.lm.patch import check_sae
from saefast.lm.sites import Site, capture, find_site
from saefast.nulls.draws import mass_matched
from saefast.progress import ProgressBar
from saefast.sae import SAE, as_saes
from saefast.stability.groups import Groups, as_groups

MASS_DRAWS = 5
"""Number of random groups of equal activation mass for each group"""


def edit(
    model: LanguageModel,
    layer: int | str,
    saes: SAE | Sequence[SAE],
    knowledge: Knowledge,
    *,
    selector: str = ATTRIBUTION,
    n: Sequence[int] = (1, 4, 16, 64, 256),
    with_error: bool = True,
    diffmean: bool = False,
    mdas: bool = False,
    conditions: Sequence[Condition] = (),
    groups: Groups | Mapping[str, Tensor] | None = None,
    mass: Sequence[Tensor] | Tensor | None = None,
    pairs: int = 100,
    least: int = LEAST_ENTITIES,
    repeats: int = 1,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Change one attribute of an entity by interchanging latents, and measure the side effects.

    At the last token of an entity, such as Paris, the latents that carry an attribute, such as
    the country, get the values that they have for another entity, such as Tokyo. Cause is the share
    of prompts for that attribute that the model then answers with the value of the other entity.
    Isolation is the share of prompts for other attributes that it still answers with the value of
    the first entity. No edit at all has cause 0 and isolation 1, and interchanging everything the
    reverse. The primary measure, the harmonic mean "h" of both, is 0 for either.

    Latents are chosen on other entities than the scored ones. Answers are compared by first tokens,
    among the first tokens of all values of the attribute. Only prompts, entities and values that
    the model knows are used.

    Args:
        model: language model from `load_model`, the one of `knowledge`.
        layer: site of the SAEs, as in `harvest`.
        saes: SAEs of different seeds on the activations of that site.
        knowledge: facts that the model knows, from `known_facts`.
        selector: "attribution" ranks latents by their first-order effect on cause pairs, minus
            the effect on isolation pairs, and takes the n best; "mask" trains a mask as SAEBench
            does.
        n: numbers of latents to interchange, in ascending order; the best one on validation
            entities is reported, and all as a curve. Not used by "mask".
        with_error: keep the reconstruction error of the base; False replaces the activation by the
            reconstruction. The harmonic mean of the alternative is reported as well.
        diffmean: add a condition "diffmean", whose latents are the axes along which the mean
            activations of the attribute's values differ; unlike SAEs it learns from the values.
        mdas: add a condition "mdas", a rotation and a mask of its axes that are trained on the
            pairs, from the axes of "diffmean": a supervised ceiling for edits of any subspace.
            For each attribute it runs the model on 10 times as many pairs as the training has.
        conditions: other SAEs to evaluate in the same way, as returned by `rival_conditions`.
        groups: for each SAE its groups {name: [m] bool}, as returned by `Stability.groups`; edits
            are repeated with the latents of each group only.
        mass: for each SAE its `FeatureStatistics.mass`, [m]; if given, each group is compared with
            random groups of equal mass.
        pairs: number of cause pairs and of isolation pairs for training, and for the test; half as
            many for the choice of n and for held-out templates.
        least: minimum number of entities for which the model must know two attributes; attributes
            with fewer have no scores.
        repeats: number of repetitions with other splits and pairs, whose spread is the noise; 1:
            the noise is estimated by resampling the test entities, which leaves out the noise of
            the choice of latents.
        batch_size: number of whole prompts in one forward pass, and of pairs in a step of a trained
            mask. More prompts are run at once where tokens before the entity need not be run again.
        seed: seed of splits, pairs and random latents.
        progress: show a progress bar on stderr.

    Returns:
        Scores of edits by condition and group, with notes on attributes without scores. `features`
        holds for each SAE the attribute that each latent carries most.
    """
    check_model(model)
    site = find_site(model.model, layer)
    trained = _checked(model, site, saes, conditions)
    if not isinstance(knowledge, Knowledge):
        raise TypeError(
            f"knowledge must be a result of known_facts, got {type(knowledge).__name__}"
        )
    checks.one_of("selector", selector, SELECTORS)
    sizes = _sizes(n)
    for name, value, low in (
        ("pairs", pairs, 4),
        ("least", least, 4),
        ("repeats", repeats, 1),
        ("batch_size", batch_size, 1),
    ):
        checks.whole(name, value)
        checks.at_least(name, value, low)
    allowed = _allowed(trained, groups, mass, seed)
    by_condition = {TRAINED: trained, **{each.name: list(each.saes) for each in conditions}}
    settings = Settings(
        selector=selector,
        n=sizes if selector == ATTRIBUTION else (),
        with_error=with_error,
        batch_size=batch_size,
        seed=seed,
    )
    values = []
    for repeat in range(repeats):
        its = dataclasses.replace(settings, seed=seed + repeat)
        questions, tasks, notes = _tasks(model, knowledge, pairs, least, its.seed)
        if not tasks:
            return Evaluation(name=NAME, scores=(), notes=tuple(notes))
        runs = Interchange(model, site, questions.listed, batch_size)
        ways = [name for name, wanted in ((DIFFMEAN, diffmean), (MDAS, mdas)) if wanted]
        results = _results(runs, tasks, by_condition, allowed, its, ways, progress)
        scores = results.scores(its.n, tuple(allowed[0]), with_error)
        values.append(scores[0].value)
        if repeat == 0:
            first = Evaluation(
                name=NAME,
                scores=tuple(scores),
                noise=results.noise(),
                features=features(results),
                notes=tuple(notes),
            )
    if repeats == 1:
        return first
    return dataclasses.replace(first, noise={H: float(np.std(values, ddof=1))})


def _checked(
    model: LanguageModel,
    site: Site,
    saes: SAE | Sequence[SAE],
    conditions: Sequence[Condition],
) -> list[SAE]:
    """Check all SAEs against the width of the site's activations; return the trained ones."""
    (seen,) = capture(model.model, [site], torch.zeros(1, 2, dtype=torch.int64))
    trained = as_saes(saes, seen.shape[2])
    for sae in trained:
        check_sae(sae)
    names = [TRAINED, DIFFMEAN, MDAS]
    for condition in conditions:
        for sae in as_saes(condition.saes, seen.shape[2]):
            check_sae(sae)
        names.append(condition.name)
    if len(set(names)) < len(names):
        raise ValueError(
            f"conditions must have names that differ and are none of {', '.join(names[:3])}, got "
            f"{', '.join(names[3:])}"
        )
    return trained


def _sizes(n: Sequence[int]) -> tuple[int, ...]:
    for number in n:
        checks.whole("n", number)
        checks.at_least("n", number, 1)
    if not n or list(n) != sorted(set(n)):
        raise ValueError(f"n must be numbers of latents in ascending order, got {tuple(n)}")
    return tuple(n)


def _allowed(
    saes: Sequence[SAE],
    groups: Groups | Mapping[str, Tensor] | None,
    mass: Sequence[Tensor] | Tensor | None,
    seed: int,
) -> list[dict[str, list[Tensor]]]:
    """Return for each SAE the masks of its groups, and of random groups of equal mass."""
    if groups is None:
        return [{} for _ in saes]
    each = as_groups(groups, [sae.m for sae in saes])
    masses = [mass] if isinstance(mass, Tensor) else mass
    if masses is not None and len(masses) != len(saes):
        raise ValueError(f"mass must be one for each SAE, {len(saes)}, got {len(masses)}")
    found = []
    for number, named in enumerate(each):
        its: dict[str, list[Tensor]] = {}
        for name, mask in named.items():
            its[name] = [mask.cpu()]
            if masses is not None:
                checks.shape(f"mass[{number}]", masses[number], (saes[number].m,))
                of_latents = masses[number].double().cpu()
                its[f"{name}:{MASS}"] = [
                    mass_matched(mask.cpu(), of_latents, seed, draw) for draw in range(MASS_DRAWS)
                ]
        found.append(its)
    return found


def _tasks(
    model: LanguageModel, knowledge: Knowledge, pairs: int, least: int, seed: int
) -> tuple[Questions, list[Task], list[str]]:
    numbers = dict.fromkeys(PARTS, pairs) | {VALIDATION: pairs // 2, TEMPLATES: pairs // 2}
    questions = Questions(model.tokenizer)
    tasks: list[Task] = []
    notes: list[str] = []
    for its in knowledge.kinds:
        of_kind, why_not = tasks_of(its, questions, pairs=numbers, least=least, seed=seed)
        tasks += of_kind
        notes += why_not
    if not tasks:
        notes.append("no attribute can be measured with this model")
    return questions, tasks, notes


def _results(
    runs: Interchange,
    tasks: list[Task],
    by_condition: Mapping[str, Sequence[SAE]],
    allowed: Sequence[Mapping[str, list[Tensor]]],
    settings: Settings,
    supervised: Sequence[str],
    progress: bool,
) -> Results:
    units = [
        Unit(condition, place, Swap(sae, runs.rows), allowed[place] if condition == TRAINED else {})
        for condition, its in by_condition.items()
        for place, sae in enumerate(its)
    ]
    edited: dict[str, list[list[Edited]]] = {unit.condition: [] for unit in units}
    for unit in units:
        edited[unit.condition].append([])
    edited |= {name: [[]] for name in supervised}
    whole = []
    total = sum(_pairs_run(task, units, supervised, settings) for task in tasks)
    with ProgressBar("edit", total=total, unit="pairs", progress=progress) as bar:
        for task in tasks:
            learned = supervised_units(
                runs, task, units[0].swap.sae, supervised, seed=settings.seed, bar=bar
            )
            its_units = [*units, *learned]
            found, everything = edit_attribute(runs, task, its_units, settings, bar)
            for unit, its in zip(its_units, found, strict=True):
                edited[unit.condition][unit.place].append(its)
            whole.append(everything)
    return Results(tasks=tasks, edited=edited, whole=whole, seed=settings.seed)


def _pairs_run(
    task: Task, units: Sequence[Unit], supervised: Sequence[str], settings: Settings
) -> int:
    """Return the number of pairs of a task for the progress bar."""
    parts = {part: len(pairs) for part, pairs in task.pairs.items()}
    of_subspace = SUBSPACE_EPOCHS * parts[TRAIN] * (MDAS in supervised)
    if settings.selector == MASK:
        masks = sum(1 + sum(map(len, unit.groups.values())) for unit in units)
        masks += DIFFMEAN in supervised
        parts |= {TRAIN: EPOCHS * masks * parts[TRAIN], VALIDATION: 0}
    return sum(parts.values()) + of_subspace
