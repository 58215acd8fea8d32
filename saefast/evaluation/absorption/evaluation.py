"""Evaluation of absorption: latents of single words that replace the latent of their class."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saefast import checks
from saefast.activations.order import permutation
from saefast.evaluation.absorption.classes import (
    LEAST_F1,
    Absorbed,
    Split,
    absorbed_classes,
    split_words,
)
from saefast.evaluation.absorption.scores import (
    NAME,
    feature_columns,
    noise_of_splits,
    scores_of_classes,
    scores_of_groups,
    scores_of_words,
)
from saefast.evaluation.absorption.word_tasks import FIRST_LETTER, prefix_of, words_of
from saefast.evaluation.conditions import Condition
from saefast.evaluation.scores import TRAINED, Evaluation
from saefast.lm.after_prefix import capture_after
from saefast.lm.model import LanguageModel, check_model
from saefast.lm.patch import check_sae
from saefast.lm.sites import find_site
from saefast.progress import ProgressBar
from saefast.sae import SAE, as_saes, code_of
from saefast.stability.groups import Groups, as_groups
from saefast.types import SparseCode

_LEAST_CLASSES = {FIRST_LETTER: 20}
_BATCH = 4096


def absorb(
    model: LanguageModel,
    layer: int | str,
    saes: SAE | Sequence[SAE],
    *,
    task: str | Mapping[str, str | None] = FIRST_LETTER,
    conditions: Sequence[Condition] = (),
    groups: Groups | Mapping[str, Tensor] | None = None,
    mass: Sequence[Tensor] | None = None,
    words: int | None = 12_000,
    examples: int = 10,
    template: str | None = None,
    least_classes: int | None = None,
    repeats: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Measure feature absorption on words of one token, for whose class the model is prompted.

    Every word follows the same solved examples, which are read once. SAEBench draws other examples
    for each word.

    Args:
        model: language model, from `load_model`.
        layer: site of the SAEs, as in `harvest`.
        saes: trained SAEs of one width.
        task: "first letter", or {word: class}; words that are not one token are left out, and words
            with class None belong to no class.
        conditions: rivals and baselines to evaluate in the same way. Conditions whose latents are
            always active are left out, since nothing can be absorbed.
        groups: for each SAE its groups {name: [m] bool}; absorption by the latents of each group is
            reported.
        mass: for each SAE the activation mass of its latents, [m], for the comparison of groups
            with random latents of equal mass.
        words: maximum number of words, drawn at random; None: all.
        examples: number of solved examples before each word.
        template: template of an example with {word} and {label}, such as "{word} has the first
            letter: {label}"; the text before {word} precedes every word. None: the task's default.
        least_classes: minimum number of classes that probes must identify for a result; None: 20
            for "first letter", 1 for other tasks.
        repeats: number of splits of the words; the first gives the scores, all give the noise.
        seed: seed of words, examples, splits and probes.
        progress: show a progress bar on stderr.

    Returns:
        Scores over words and classes by condition and group, with notes. `features` holds for each
        SAE the number of words that each latent absorbs, and the class whose main latent it is.
    """
    check_model(model)
    site = find_site(model.model, layer)
    for name, value, least in (("examples", examples, 0), ("repeats", repeats, 1)):
        checks.whole(name, value, least)
    found = words_of(task, model.tokenizer)
    prefix, used = prefix_of(
        found, task, model.tokenizer, examples=examples, template=template, seed=seed
    )
    order = torch.from_numpy(permutation(len(found.words), seed, 1))
    order = order[~torch.isin(order, used)]
    if words is not None:
        checks.whole("words", words, 2)
        order = order[:words]
    chosen = found.chosen(order.sort().values)
    rows = capture_after(model, site, prefix, chosen.tokens, progress=progress)
    if least_classes is None:
        least_classes = _LEAST_CLASSES.get(str(task), 1)
    result = absorb_rows(
        rows,
        chosen.labels,
        chosen.classes,
        saes,
        families=chosen.families(),
        conditions=conditions,
        groups=groups,
        mass=mass,
        least_classes=least_classes,
        repeats=repeats,
        seed=seed,
        progress=progress,
    )
    notes = []
    if found.left_out:
        total = found.left_out + len(found.words)
        notes.append(
            f"words left out, since they are not a single token: {found.left_out} of {total}"
        )
    return replace(result, notes=(*notes, *result.notes))


def absorb_rows(
    rows: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    saes: SAE | Sequence[SAE],
    *,
    families: Tensor | None = None,
    conditions: Sequence[Condition] = (),
    groups: Groups | Mapping[str, Tensor] | None = None,
    mass: Sequence[Tensor] | None = None,
    least_classes: int = 1,
    repeats: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Measure feature absorption on given activations; see `absorb`.

    Args:
        rows: [n, d] activation of each word.
        labels: [n] int64 position of its class in `classes`, -1 for none.
        classes: names of the classes.
        saes: trained SAEs of one width.
        families: [n] int64 family of each word; words of one family are never split. None: each
            word is its own family.
        conditions: rivals and baselines to evaluate in the same way.
        groups: for each SAE its groups {name: [m] bool}.
        mass: for each SAE the activation mass of its latents, [m].
        least_classes: minimum number of classes that probes must identify for a result.
        repeats: number of splits; the first gives the scores, all give the noise.
        seed: seed of splits and probes.
        progress: show a progress bar on stderr.

    Returns:
        Scores as in `absorb`.
    """
    checks.floating("rows", rows, "[n, d]")
    checks.indices("labels", labels, "[n]")
    checks.size("labels", labels, 0, len(rows), "one for each row")
    checks.whole("least_classes", least_classes, 1)
    checks.whole("repeats", repeats, 1)
    trained = as_saes(saes, rows.shape[1])
    for sae in [*trained, *(sae for each in conditions for sae in each.saes)]:
        check_sae(sae)
        if sae.normalise != "none":
            raise ValueError(
                f"saes must not normalise rows, since the contributions of latents have to add up "
                f"to the reconstruction, got normalise={sae.normalise!r}"
            )
    masks = as_groups(groups, [sae.m for sae in trained]) if groups is not None else []
    rows, labels = rows.detach(), labels.to(rows.device)
    if families is None:
        families = torch.arange(len(rows))
    checks.size("families", families, 0, len(rows), "one for each row")
    splits = [
        split_words(rows, labels, len(classes), families, seed + repeat)
        for repeat in range(repeats)
    ]
    short = _too_few(splits[0], classes, least_classes)
    if short:
        return Evaluation(name=NAME, scores=(), notes=(short,))
    every = [(TRAINED, trained), *((each.name, list(each.saes)) for each in conditions)]
    found, again, always = _absorb_each(every, rows, splits, progress)
    if TRAINED in always:
        raise ValueError(
            "saes must have latents that are inactive on some words, since others cannot be "
            "absorbed"
        )
    notes = [_summary(splits[0], classes), _reach(found[TRAINED], splits[0])]
    notes += [f"{name}: its latents are always active, so none can be absorbed" for name in always]
    return Evaluation(
        name=NAME,
        scores=(
            *scores_of_words(found, splits[0], classes, seed),
            *scores_of_groups(found[TRAINED], splits[0], masks, mass, seed),
            *scores_of_classes(found, splits[0], classes, seed),
        ),
        noise=noise_of_splits(found[TRAINED], again),
        features=tuple(feature_columns(its, splits[0], classes) for its in found[TRAINED]),
        notes=tuple(notes),
    )


def _absorb_each(
    every: Sequence[tuple[str, Sequence[SAE]]],
    rows: Tensor,
    splits: Sequence[Split],
    progress: bool,
) -> tuple[dict[str, list[Absorbed]], list[list[float]], list[str]]:
    """Measure the absorption in each SAE.

    Args:
        every: SAEs of each condition, the trained ones among them.
        rows: [n, d] activation of each word.
        splits: splits of the words.
        progress: show a progress bar on stderr.

    Returns:
        By condition, absorption in each SAE with the first split; for each trained SAE, the mean
        fraction with every other split; and the conditions whose latents are always active.
    """
    found: dict[str, list[Absorbed]] = {}
    again: list[list[float]] = []
    always: dict[str, None] = {}
    repeated = sum(len(saes) for name, saes in every if name == TRAINED) * (len(splits) - 1)
    total = sum(len(saes) for _, saes in every) + repeated
    with ProgressBar("absorption", total=total, unit="SAEs", progress=progress) as bar:
        for name, sae in ((name, sae) for name, saes in every for sae in saes):
            code = _code(sae, rows)
            bar.update()
            if code.values.shape[1] == sae.m and bool((code.values != 0).all()):
                always[name] = None
                continue
            found.setdefault(name, []).append(absorbed_classes(sae, code, splits[0]))
            if name != TRAINED:
                continue
            again.append([])
            for split in splits[1:]:
                if len(split.recognised):
                    fraction = absorbed_classes(sae, code, split).fraction
                    again[-1].append(float(fraction.mean()))
                bar.update()
    return found, again, list(always)


@torch.no_grad()
def _code(sae: SAE, rows: Tensor) -> SparseCode:
    """Return the code of all rows [n, width], encoded in batches."""
    parts = [code_of(sae, some) for some in torch.split(rows, _BATCH)]
    width = max(part.values.shape[1] for part in parts)
    padded = [
        [torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in part]
        for part in parts
    ]
    return SparseCode(*(torch.cat(side) for side in zip(*padded, strict=True)))


def _too_few(split: Split, classes: Sequence[str], least: int) -> str:
    """Return the reason why there is no result, or ""."""
    recognised = len(split.recognised)
    if recognised >= least and split.words:
        return ""
    return (
        f"absorption is not measured: the number of classes that probes recognise in the "
        f"activations (F1 above {LEAST_F1}) is {recognised} of {len(classes)}, and must be at "
        f"least {least}"
    )


def _summary(split: Split, classes: Sequence[str]) -> str:
    left_out = len(classes) - len(split.recognised)
    return (
        f"absorption is measured on {split.words} held-out words; number of classes: "
        f"{len(split.recognised)}, and {left_out} left out, whose probes have an F1 of at most "
        f"{LEAST_F1}"
    )


def _reach(trained: Sequence[Absorbed], split: Split) -> str:
    main = float(torch.stack([each.main_f1 for each in trained]).mean())
    return (
        f"main latents predict classes with an F1 of {main:.2f}, probes of the activations with "
        f"{float(split.f1[split.recognised].mean()):.2f}: if no latent represents a class, low "
        f"absorption is not informative"
    )
