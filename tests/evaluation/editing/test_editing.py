"""Causal editing in a linear model with known answers, and its parts in tiny models."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers import linear_lm
from helpers.linear_lm import ATTRIBUTES, VALUES, D
from helpers.silent_bar import silent
from torch import Tensor

import saefast
from saefast.evaluation.conditions import rival_conditions
from saefast.evaluation.editing import evaluation
from saefast.evaluation.editing.evaluation import edit
from saefast.evaluation.editing.facts import SPLITS
from saefast.evaluation.editing.interchange import Interchange, Swap
from saefast.evaluation.editing.knowledge import Knowledge, known_facts
from saefast.evaluation.editing.masks import active, random_mask, trained_mask
from saefast.evaluation.editing.mean_differences import mean_differences
from saefast.evaluation.editing.one_attribute import ALL, CHOSEN, NONE, RANDOM, Outcome, harmonic
from saefast.evaluation.editing.pairs import PARTS, TEMPLATES, Questions, tasks_of
from saefast.evaluation.editing.scores import Results
from saefast.evaluation.intervals import DRAWS, interval_of_draws
from saefast.lm import find_site

OPTIONS = {"n": (1, VALUES, D), "pairs": 60, "progress": False}


@pytest.fixture(scope="module")
def model():
    return linear_lm.linear_lm()


@pytest.fixture(scope="module")
def knowledge(model) -> Knowledge:
    return known_facts(model, linear_lm.facts(), progress=False)


@pytest.fixture(scope="module")
def sae() -> saefast.SAE:
    return linear_lm.true_sae()


@pytest.fixture(scope="module")
def edited(model, knowledge, sae):
    conditions = rival_conditions([sae], torch.randn(64, D), ["permuted_decoder"], seed=1)
    return edit(model, 0, sae, knowledge, conditions=conditions, **OPTIONS)


@pytest.fixture(scope="module")
def runs(model, knowledge):
    """Return a model with its prompts, and one task."""
    questions = Questions(model.tokenizer)
    numbers = dict.fromkeys(PARTS, 200)
    tasks, _ = tasks_of(knowledge.kinds[0], questions, pairs=numbers, least=40, seed=0)
    return Interchange(model, find_site(model.model, 0), questions.listed, 32), tasks[0]


def test_latents_of_an_attribute_change_only_this_attribute(edited):
    for measure in ("h", "cause", "isolation", "disentangle"):
        score = edited.overall(measure)
        assert (score.value, score.high, score.ceiling) == (1, 1, 1)
        # No entity differs from the others: the misses that are possible for so many of them
        # remain.
        assert score.low == pytest.approx(0.025 ** (1 / score.n))
    assert edited.overall("latents").value == VALUES
    assert edited.overall("share of active latents").value == pytest.approx(1 / len(ATTRIBUTES))
    assert edited.overall("h on held-out templates").value == 1
    assert edited.overall("h without the error").value == 1
    beyond = edited.overall("disentangle beyond trivial edits")
    assert beyond.value == 1
    assert beyond.low < 0.025 ** (1 / beyond.n)  # no edit is below 0
    # These are all latents that can carry the attribute: more do not change anything.
    assert edited.overall(f"h at {D}").value == 1
    assert edited.overall("h at 1").value < 0.6


def test_shuffled_decoder_rows_score_the_floor(edited):
    score = edited.overall("h", "permuted_decoder")
    assert score.value < 0.3
    difference = edited.overall("h", "trained - permuted_decoder")
    assert difference.value == pytest.approx(1 - score.value)
    assert 0.5 < difference.low < difference.value < difference.high


def test_means_of_values_edit_if_there_are_many_entities(model, knowledge, sae):
    found = edit(model, 0, sae, knowledge, diffmean=True, **OPTIONS | {"n": (1, VALUES - 1, D)})
    # Means of V values differ in V - 1 directions; sampling adds little in other directions.
    assert found.overall("h", "diffmean").value > 0.95
    assert found.overall("latents", "diffmean").value == VALUES - 1
    assert found.overall("h at 1", "diffmean").value < 0.6
    difference = found.overall("h", "trained - diffmean")
    assert difference.value == pytest.approx(1 - found.overall("h", "diffmean").value)
    assert len(found.features) == 1


def test_mean_differences_are_spanned_by_the_first_axes(runs, sae):
    inside, task = runs
    axes = mean_differences(inside, task.pairs["train"], sae)
    pairs = [pair for pair in task.pairs["train"] if pair.cause]
    numbers = {number for pair in pairs for number in (pair.base, pair.source)}
    by_value: dict[int, list[Tensor]] = {}
    for number in numbers:
        by_value.setdefault(inside.questions[number].token, []).append(inside.rows[number])
    means = torch.stack([torch.stack(each).mean(0) for each in by_value.values()])
    basis = axes.W_dec.double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(D).double(), atol=1e-6, rtol=0)
    along = (means - means[0]).double() @ basis.T
    assert along[:, VALUES - 1 :].abs().max() < 1e-6
    assert along[:, : VALUES - 1].abs().max() > 0.5
    assert axes.encode(inside.rows).to_dense(D).gt(0).all()


def rates(runs, task, mask: Tensor, sae, part: str = "test", with_error: bool = True):
    pairs = task.pairs[part]
    swap = Swap(sae, runs.rows)
    hits, valid = runs.outcomes(pairs, [swap.change(mask, with_error=with_error)], silent())
    assert valid.all()
    cause = torch.tensor([pair.cause for pair in pairs])
    return float(hits[0][cause].float().mean()), float(hits[0][~cause].float().mean())


def test_without_edits_and_with_all_edits_scores_are_exact(runs, sae):
    inside, task = runs
    nothing = torch.zeros(D, dtype=torch.bool)
    assert rates(inside, task, nothing, sae) == (0, 1)
    assert rates(inside, task, ~nothing, sae) == (1, 0)
    assert float(harmonic(np.zeros(1), np.ones(1))[0]) == 0
    assert float(harmonic(np.zeros(1), np.zeros(1))[0]) == 0


def test_random_latents_are_at_chance(runs, sae):
    """None, one or both of the two values are interchanged; read-outs break ties by index."""
    inside, task = runs
    n, draws = 6, 100
    pairs = task.pairs["test"]
    swap = Swap(sae, inside.rows)
    masks = [random_mask(torch.ones(D, dtype=torch.bool), n, 0, draw) for draw in range(draws)]
    hits, _ = inside.outcomes(pairs, [swap.change(m, with_error=True) for m in masks], silent())
    neither = (D - n) * (D - n - 1) / (D * (D - 1))
    one = n * (D - n) / (D * (D - 1))
    both = n * (n - 1) / (D * (D - 1))
    base, source = (
        torch.stack([inside.questions[getattr(pair, name)].right for pair in pairs]).int().argmax(1)
        for name in ("base", "source")
    )
    # If the base's value is removed without a new one, all logits are 0: the first is read.
    of_cause = both + one * (source > base) + one * (source == 0)
    of_isolation = neither + one * (source < base) + one * (base == 0)
    cause = torch.tensor([pair.cause for pair in pairs])
    expected = torch.where(cause, of_cause, of_isolation)
    for kind in (cause, ~cause):
        assert float(hits[:, kind].float().mean()) == pytest.approx(
            float(expected[kind].mean()), abs=0.02
        )
    assert active(swap, task.pairs["train"]).all()


def rows(evaluation) -> list[dict]:
    return evaluation.to_table().to_pylist()


def test_scale_and_rotation_do_not_change_scores(model, knowledge, edited, sae):
    table = rows(edit(model, 0, sae, knowledge, **OPTIONS))
    scaled = linear_lm.true_sae(scale=4.0)
    assert str(rows(edit(model, 0, scaled, knowledge, **OPTIONS))) == str(table)
    turned = linear_lm.linear_lm(turned=True)
    known = known_facts(turned, linear_lm.facts(), progress=False)
    rotated = edit(turned, 0, linear_lm.true_sae(turned=True), known, **OPTIONS)
    # Rounding decides which of the latents with equal scores is the best one.
    chosen = [row for row in table if not row["measure"].endswith("at 1")]
    others = [row for row in rows(rotated) if not row["measure"].endswith("at 1")]
    for row, other in zip(chosen, others, strict=True):
        assert row["value"] == pytest.approx(other["value"], nan_ok=True)


def test_scores_depend_on_the_seed_only(model, knowledge, sae):
    first, again, other = (
        edit(model, 0, sae, knowledge, seed=seed, **OPTIONS) for seed in (0, 0, 1)
    )
    assert str(rows(first)) == str(rows(again))
    assert first.overall("h at 1") != other.overall("h at 1")


def test_groups_restrict_the_changed_latents(model, knowledge, sae):
    first = torch.arange(D) < VALUES  # the latents of the first attribute
    groups = {"first": first, "others": ~first}
    found = edit(model, 0, sae, knowledge, groups=groups, mass=torch.ones(D) / D, **OPTIONS)
    by_task = {
        (score.task, score.group): score.value for score in found.scores if score.measure == "h"
    }
    assert found.overall("h", group="first").value == pytest.approx(1 / 3)
    assert found.overall("h", group="others").value == pytest.approx(2 / 3)
    assert 0 < found.overall("h", group="first:mass").value < 1
    assert by_task["", "first"] == found.overall("h", group="first").value


def test_a_trained_mask_finds_the_same_latents(model, knowledge, sae, runs):
    inside, task = runs
    mask = trained_mask(
        inside,
        Swap(sae, inside.rows),
        task.pairs["train"],
        batch_size=16,
        seed=0,
        bar=silent(),
    )
    assert mask.tolist() == [latent < VALUES for latent in range(D)]
    found = edit(model, 0, sae, knowledge, selector="mask", batch_size=16, **OPTIONS)
    assert found.overall("h").value == 1
    assert found.overall("latents").value == VALUES
    assert "h at 1" not in {score.measure for score in found.scores}


def test_repeats_measure_the_noise(model, knowledge, sae):
    options = {**OPTIONS, "n": (1,)}
    found = edit(model, 0, sae, knowledge, repeats=3, **options)
    alone = [edit(model, 0, sae, knowledge, seed=s, **options).overall("h").value for s in range(3)]
    assert found.noise == {"h": pytest.approx(np.std(alone, ddof=1))}
    assert found.noise["h"] > 0


def mixed_sae() -> saefast.SAE:
    """Return an SAE each of whose latents carries several values."""
    sae = linear_lm.true_sae()
    generator = torch.Generator().manual_seed(3)
    rows = torch.linalg.qr(torch.eye(D) + 0.6 * torch.randn(D, D, generator=generator))[0]
    with torch.no_grad():
        sae.W_enc.copy_(rows)
        sae.W_dec.copy_(rows)
    return sae


def test_one_run_estimates_the_noise_of_the_test_entities(model, knowledge):
    """The estimate is below the spread over seeds, which also choose other latents."""
    options = {"n": (1, 5), "pairs": 40, "progress": False}
    found = edit(model, 0, mixed_sae(), knowledge, **options)
    measured = edit(model, 0, mixed_sae(), knowledge, repeats=6, **options).noise["h"]
    assert 0.4 * measured < found.noise["h"] < 1.2 * measured
    least = 1.96 * 2**0.5 * found.noise["h"]
    assert f"h: differences of two SAEs below {least:.3f} are" in "\n".join(found.lines())


def test_equal_entities_have_the_noise_of_their_interval(edited):
    score = edited.overall("h")
    assert score.value == score.high == 1
    assert edited.noise == {"h": pytest.approx((1 - score.low) / 1.96, rel=1e-4)}


def test_a_resample_without_pairs_has_no_value(model, knowledge, monkeypatch):
    """With one attribute and few pairs, some resamples of entities hold no cause pair."""
    tasks_and_notes = evaluation._tasks

    def first(*arguments):
        questions, tasks, notes = tasks_and_notes(*arguments)
        return questions, tasks[:1], notes

    monkeypatch.setattr(evaluation, "_tasks", first)
    found = edit(model, 0, [mixed_sae(), linear_lm.true_sae()], knowledge, n=(5,), pairs=4)
    score = found.overall("h")
    assert 0 <= score.low < score.value < score.high <= 1
    alone = edit(model, 0, mixed_sae(), knowledge, n=(5,), pairs=4).overall("h")
    assert 0 <= alone.low <= alone.value < alone.high <= 1


def test_no_row_is_a_bare_mean(edited):
    for row in edited.scores:
        assert not math.isnan(row.floor), row
    for condition in ("trained", "permuted_decoder"):
        latents = edited.overall("latents", condition)
        assert (latents.floor, latents.rival, latents.rival_value) == (0, ALL, D)
    # Random latents are drawn among those that are active on some prompt, here all.
    share = edited.overall("share of active latents")
    assert share.rival == RANDOM
    assert share.rival_value == pytest.approx(VALUES / D, abs=0.1)


def test_too_few_entities_are_not_measured(model, sae):
    few = linear_lm.facts().select(entities=39)
    found = edit(model, 0, sae, known_facts(model, few, progress=False), **OPTIONS)
    assert found.scores == ()
    assert found.notes[0] == (
        "thing: colour is not measured: the model knows it together with another attribute for at "
        "most 39 entities, and 40 are needed"
    )
    assert "no attribute can be measured" in found.lines()[-1]


def test_test_entities_and_templates_are_held_out(model, knowledge):
    questions = Questions(model.tokenizer)
    tasks, _ = tasks_of(
        knowledge.kinds[0], questions, pairs=dict.fromkeys(PARTS, 50), least=40, seed=3
    )
    for task in tasks:
        entities, prompts = {}, {}
        for part, pairs in task.pairs.items():
            assert sum(pair.cause for pair in pairs) == 50
            assert len(pairs) == 100
            used = [number for pair in pairs for number in (pair.base, pair.source)]
            entities[part] = {questions.listed[number].entity for number in used}
            words = [questions.listed[number].prompt.ids[1] for number in used]
            prompts[part] = set(model.tokenizer.convert_ids_to_tokens(words))
        assert entities[TEMPLATES] <= entities["test"] | entities[TEMPLATES]
        for split in SPLITS:
            for other in SPLITS:
                assert split == other or not entities[split] & entities[other]
        assert not entities[TEMPLATES] & (entities["train"] | entities["validation"])
        assert prompts == {
            "train": {"0", "2"},
            "validation": {"0", "2"},
            "test": {"0", "2"},
            TEMPLATES: {"1", "3"},
        }
        for pair in task.pairs["train"]:
            base, source = questions.listed[pair.base], questions.listed[pair.source]
            assert not (base.right & source.right).any()
            assert base.answers is source.answers


def test_values_with_equal_first_tokens_are_no_pairs(model, knowledge):
    its = knowledge.kinds[0]
    values = dict(its.facts.values)
    # Values 0 to 3 of the first attribute now start with the same token.
    values["colour"] = tuple(
        ("colour4",) if its_values == ("colour4",) else (f"colour0 {its_values[0]}",)
        for its_values in values["colour"]
    )
    facts = dataclasses.replace(its.facts, values=values)
    questions = Questions(model.tokenizer)
    tasks, _ = tasks_of(
        dataclasses.replace(its, facts=facts),
        questions,
        pairs=dict.fromkeys(PARTS, 50),
        least=40,
        seed=0,
    )
    for pair in tasks[0].pairs["train"]:
        tokens = {questions.listed[number].token for number in (pair.base, pair.source)}
        assert len(tokens) == 2


def test_intervals_resample_entities_instead_of_pairs():
    """One entity has most pairs and all misses: with few entities the interval must be wide."""
    hits = np.array([0.0, 10, 10, 10])
    outcome = Outcome(hits, np.array([300.0, 10, 10, 10]), hits, np.array([300.0, 10, 10, 10]))
    counts = np.array([[0.0, 1, 1, 1], [3, 0, 0, 0]])
    cause, isolation = outcome.rates(counts)
    assert cause.tolist() == [1, 0]
    assert isolation.tolist() == [1, 0]
    assert outcome.rates()[0].tolist() == [pytest.approx(30 / 330)]
    assert outcome.pooled(outcome).rates()[0].tolist() == outcome.rates()[0].tolist()


def test_rivals_have_scores(edited):
    score = edited.overall("h", "permuted_decoder")
    assert score.rival in (NONE, ALL, RANDOM)
    assert not math.isnan(score.rival_value)
    assert edited.overall("disentangle").floor == 0.5
    assert edited.overall("disentangle").rival_value >= 0.5
    assert CHOSEN not in {score.condition for score in edited.scores}
    assert all(
        score.primary == (score.measure == "h" and "-" not in score.condition)
        for score in edited.scores
    )


def test_features_state_their_attribute(edited):
    (columns,) = edited.features
    expected = [f"thing: {name}" for name in ATTRIBUTES for _ in range(VALUES)]
    assert columns["edit_attribute"] == expected
    assert min(columns["edit_score"]) > 0
    assert max(columns["edit_score"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selector": "best"}, "selector must be one of attribution, mask, got 'best'"),
        ({"n": (4, 1)}, r"n must be numbers of latents in ascending order, got \(4, 1\)"),
        ({"n": ()}, "n must be numbers of latents in ascending order"),
        ({"pairs": 2}, "pairs must be at least 4, got 2"),
        ({"mass": [torch.ones(D)] * 2, "groups": {"a": torch.ones(D).bool()}}, "mass must be one"),
        ({"groups": {"a": torch.ones(D)}}, "must be a bool tensor"),
    ],
)
def test_bad_input_raises(model, knowledge, sae, change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        edit(model, 0, sae, knowledge, **{**OPTIONS, **change})


def test_other_bad_input_raises(model, knowledge, sae):
    with pytest.raises(TypeError, match="knowledge must be a result of known_facts, got dict"):
        edit(model, 0, sae, {}, **OPTIONS)
    with pytest.raises(ValueError, match="d=15, got d=16"):
        edit(model, 0, saefast.SAE(D + 1, 20, k=2), knowledge, **OPTIONS)


@pytest.mark.parametrize("saes", [2, 4])
def test_intervals_cover_where_saes_differ_by_more_than_entities(saes: int) -> None:
    generator = np.random.default_rng(saes)
    covered = 0
    for seed in range(200):
        values = generator.standard_normal((saes, 1, 1))
        draws = values + 0.1 * generator.standard_normal((saes, 1, DRAWS))
        results = Results(tasks=[], edited={}, whole=[], seed=seed)
        found = interval_of_draws(float(values.mean()), results._over_seeds(draws))
        covered += found.low <= 0 <= found.high
    assert covered >= 0.9 * 200
