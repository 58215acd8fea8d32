"""Sparse probing: classification of labelled tasks by a few latents of an SAE."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from zlib import crc32

import torch
from torch import Tensor

from saefast import checks
from saefast.evaluation.conditions import Condition
from saefast.evaluation.probing.one_task import Controls, Probed, Split, probe_latents, probe_wide
from saefast.evaluation.probing.results import OWN_CONDITIONS, Results, TaskResults
from saefast.evaluation.probing.rows import POOLS, TaskRows, sharing_texts, task_rows
from saefast.evaluation.probing.rules import CHOICES, RULES, ProbingRule
from saefast.evaluation.probing.tasks.labelled import LabelledTask
from saefast.evaluation.scores import Evaluation
from saefast.linalg import side_by_side
from saefast.lm.model import LanguageModel, check_model
from saefast.lm.sites import capture, find_site
from saefast.progress import ProgressBar
from saefast.sae import SAE, as_saes
from saefast.stability.groups import Groups, as_groups


def probe(
    model: LanguageModel,
    layer: int | str,
    saes: SAE | Sequence[SAE],
    tasks: LabelledTask | Sequence[LabelledTask],
    *,
    k: int | Sequence[int] = (1, 5),
    method: str = "saefast",
    pool: str | None = None,
    select: str | None = None,
    conditions: Sequence[Condition] = (),
    groups: Groups | Mapping[str, Tensor] | None = None,
    mass: Tensor | Sequence[Tensor] | None = None,
    draws: int = 20,
    repeats: int = 5,
    context: int = 128,
    batch_size: int = 32,
    drop_bos: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Choose the best k latents for each task, fit a probe on them, score it on held-out examples.

    A third of the examples of a task is its test part. Latents are chosen, and probes fitted, on
    the rest. The scores are compared with random latents that are about as active as the chosen
    ones, with probes chosen and fitted on permuted labels, with a probe on the text's bag of tokens
    ("text"), and with a probe on the whole activation ("full"), which is the ceiling.

    Args:
        model: model whose activations the SAEs encode.
        layer: site of the SAEs, as in `saefast.lm.find_site`.
        saes: SAEs of different seeds.
        tasks: tasks, as returned by `labelled_tasks` or `table_tasks`.
        k: numbers of latents; the first belongs to the primary measure.
        method: "saefast" chooses by t and fits L2-penalised probes on standardised latents, with C
            chosen in five folds; one latent is scored by itself. "saebench" chooses by difference
            of means, fits with C = 1 on latents as they are and measures accuracy, as SAEBench
            does; "sae-probes" chooses by normalised difference at the last token and fits
            L1-penalised probes, as that package does.
        pool: "mean" or "max" of a latent over the tokens of a text, or the "last" token; None: the
            method's default.
        select: "t", "difference" or "normalised" choice of latents; None: the method's default.
        conditions: rivals and baselines, probed by the same code.
        groups: for each SAE its groups {name: [m] bool}, as returned by `Stability.groups`. Probes
            are also fitted on latents chosen from each group, and from random latents of the same
            activation mass.
        mass: for each SAE the activation mass of its latents, [m]; None: the sum of the lengths of
            a latent's contributions over the examples of a task.
        draws: number of random sets, of permutations, and of mass-matched sets of each group.
        repeats: number of splits; the first gives the scores, the others estimate the variation of
            scores due to the split.
        context: maximum number of tokens of a text.
        batch_size: number of texts in one forward pass.
        drop_bos: leave out the activations of first positions and BOS.
        seed: seed of splits, folds and draws.
        progress: show a progress bar on stderr.

    Returns:
        Scores of every condition by measure, such as "auroc at 1", and of every group of latents;
        how often the best latent of a task is in each group, and how often the best latents of two
        SAEs are matched. `features` holds for each SAE the task that each latent predicts best,
        with its t.
    """
    check_model(model)
    site = find_site(model.model, layer)
    rule = _rule(method, pool, select)
    ks = _numbers(k)
    every = _tasks(tasks)
    for name, value, least in (("draws", draws, 1), ("repeats", repeats, 2)):
        checks.whole(name, value)
        checks.at_least(name, value, least)
    for name, value, least in (("context", context, 2), ("batch_size", batch_size, 1)):
        checks.whole(name, value)
        checks.at_least(name, value, least)
    (seen,) = capture(model.model, [site], torch.zeros(1, 2, dtype=torch.int64))
    trained = as_saes(saes, seen.shape[2])
    rivals = _conditions(conditions, seen.shape[2])
    controls = _controls(trained, groups, mass, draws)
    results: list[TaskResults] = []
    with ProgressBar("probe", total=len(every), unit="tasks", progress=progress) as bar:
        for run in sharing_texts(every):
            seen_rows = task_rows(
                model,
                site,
                run,
                pool=rule.pool,
                context=context,
                batch_size=batch_size,
                drop_bos=drop_bos,
            )
            for task, rows in zip(run, seen_rows, strict=True):
                splits = [_split(task, rows, seed, repeat) for repeat in range(repeats)]
                results.append(_probe_all(task, rows, splits, rule, ks, trained, controls, rivals))
                bar.update()
    return Results(
        rule=rule, ks=ks, saes=trained, groups=list(controls[0].groups), tasks=results, seed=seed
    ).evaluation()


def _split(task: LabelledTask, rows: TaskRows, seed: int, repeat: int) -> Split:
    test = task.test_examples(seed, repeat)[rows.used]
    return Split(rows.labels, test, crc32(f"{seed} {task.name} {repeat}".encode()))


def _probe_all(
    task: LabelledTask,
    rows: TaskRows,
    splits: Sequence[Split],
    rule: ProbingRule,
    ks: Sequence[int],
    trained: Sequence[SAE],
    controls: Sequence[Controls],
    rivals: Sequence[Condition],
) -> TaskResults:
    """Probe every SAE on one task."""

    def all_splits(number: int) -> list[Probed]:
        latents = rows.pooled(trained[number], rule.pool)
        first = probe_latents(latents, splits[0], rule, ks, controls[number])
        return [first, *(probe_latents(latents, split, rule, ks) for split in splits[1:])]

    def one_split(sae: SAE) -> Probed:
        return probe_latents(rows.pooled(sae, rule.pool), splits[0], rule, ks)

    with side_by_side() as run:
        full, text = run(
            lambda part: probe_wide(part[0], part[1], splits[0], rule),
            [(rows.pooled_rows(rule.pool), True), (rows.surface(), False)],
        )
        ours = list(run(all_splits, range(len(trained))))
        others = {rival.name: list(run(one_split, rival.saes)) for rival in rivals}
    missing = len(task.labels) - len(rows.used)
    lost = [f"{task.name}: {missing} of {len(task.labels)} spans contain no token of the model"]
    return TaskResults(
        name=task.name,
        notes=(*task.notes, *(lost if missing else ())),
        trained=ours,
        others=others,
        full=full,
        text=text,
    )


def _rule(method: str, pool: str | None, select: str | None) -> ProbingRule:
    checks.one_of("method", method, tuple(RULES))
    rule = RULES[method]
    if pool is not None:
        checks.one_of("pool", pool, POOLS)
        rule = replace(rule, pool=pool)
    if select is not None:
        checks.one_of("select", select, CHOICES)
        rule = replace(rule, choice=select)
    return rule


def _numbers(k: int | Sequence[int]) -> list[int]:
    ks = list(k) if isinstance(k, Sequence) else [k]
    for value in ks:
        checks.whole("k", value)
        checks.at_least("k", value, 1)
    if not ks or len(set(ks)) < len(ks):
        raise ValueError(f"k must be a number or several different numbers, got {ks}")
    return ks


def _tasks(tasks: LabelledTask | Sequence[LabelledTask]) -> list[LabelledTask]:
    every = [tasks] if isinstance(tasks, LabelledTask) else list(tasks)
    for number, task in enumerate(every):
        if not isinstance(task, LabelledTask):
            raise TypeError(
                f"tasks[{number}] must be a LabelledTask, got {type(task).__name__}; use "
                f"labelled_tasks(), table_tasks(path) or labelled_task(name, texts, labels)"
            )
    names = [task.name for task in every]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"tasks must be one or several tasks with different names, got {names}")
    return every


def _conditions(conditions: Sequence[Condition], d: int) -> list[Condition]:
    for number, condition in enumerate(conditions):
        if not isinstance(condition, Condition):
            raise TypeError(
                f"conditions[{number}] must be a Condition, got {type(condition).__name__}"
            )
        as_saes(condition.saes, d)
    names = [condition.name for condition in conditions]
    taken = {name for name in names if names.count(name) > 1 or name in OWN_CONDITIONS}
    if taken:
        raise ValueError(
            f"conditions must have different names, none of them {', '.join(OWN_CONDITIONS)}, got "
            f"{', '.join(sorted(taken))}"
        )
    return list(conditions)


def _controls(
    saes: Sequence[SAE],
    groups: Groups | Mapping[str, Tensor] | None,
    mass: Tensor | Sequence[Tensor] | None,
    draws: int,
) -> list[Controls]:
    each_groups: Sequence[Mapping[str, Tensor]] = [{}] * len(saes)
    if groups is not None:
        each_groups = as_groups(groups, [sae.m for sae in saes])
        for number, its in enumerate(each_groups):
            if its.keys() != each_groups[0].keys():
                raise ValueError(
                    f"groups[{number}] must have the names of groups[0], "
                    f"{sorted(each_groups[0])}, got {sorted(its)}"
                )
    each_mass: Sequence[Tensor | None] = [None] * len(saes)
    if mass is not None:
        each_mass = [mass] if isinstance(mass, Tensor) else list(mass)
        if len(each_mass) != len(saes):
            raise ValueError(f"mass must be one for each SAE, {len(saes)}, got {len(each_mass)}")
    controls = []
    for number, sae in enumerate(saes):
        its_mass = each_mass[number]
        if its_mass is not None:
            checks.shape(f"mass[{number}]", its_mass, (sae.m,))
            its_mass = its_mass.cpu()
        its_groups = {name: mask.cpu() for name, mask in each_groups[number].items()}
        controls.append(
            Controls(
                draws=draws,
                groups=its_groups,
                mass=its_mass,
                norms=sae.W_dec.detach().double().cpu().norm(dim=1),
                number=number,
            )
        )
    return controls
