"""Causal editing: a linear model whose answers are known, and the parts on tiny models."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers import linear_lm, tiny_lm
from helpers.linear_lm import ATTRIBUTES, VALUES, D
from torch import Tensor

import saefast
from saefast.evaluation.conditions import rival_conditions
from saefast.evaluation.editing.evaluation import edit
from saefast.evaluation.editing.fact_prompts import answers, prompt
from saefast.evaluation.editing.facts import SPLITS, Facts
from saefast.evaluation.editing.interchange import Interchange, Swap
from saefast.evaluation.editing.knowledge import Knowledge, known_facts
from saefast.evaluation.editing.masks import active, attribution, best, random_mask, trained_mask
from saefast.evaluation.editing.mean_differences import mean_differences
from saefast.evaluation.editing.one_attribute import ALL, CHOSEN, NONE, RANDOM, Outcome, harmonic
from saefast.evaluation.editing.pairs import PARTS, TEMPLATES, Pair, Question, Questions, tasks_of
from saefast.lm import find_site
from saefast.progress import ProgressBar
from saefast.types import SparseCode

OPTIONS = {"n": (1, VALUES, D), "pairs": 60, "progress": False}


def silent() -> ProgressBar:
    return ProgressBar("test", total=None, unit="pairs", progress=False)


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
    """The model with its prompts, and one task on it."""
    questions = Questions(model.tokenizer)
    numbers = dict.fromkeys(PARTS, 200)
    tasks, _ = tasks_of(knowledge.kinds[0], questions, pairs=numbers, least=40, seed=0)
    return Interchange(model, find_site(model.model, 0), questions.listed, 32), tasks[0]


def test_the_latents_of_an_attribute_change_it_and_nothing_else(edited):
    for measure in ("h", "cause", "isolation", "disentangle"):
        score = edited.overall(measure)
        assert (score.value, score.high, score.ceiling) == (1, 1, 1)
        # No entity differs from the others: what so many of them may miss remains.
        assert score.low == pytest.approx(0.025 ** (1 / score.n))
    assert edited.overall("latents").value == VALUES
    assert edited.overall("share of active latents").value == pytest.approx(1 / len(ATTRIBUTES))
    assert edited.overall("h on held-out templates").value == 1
    assert edited.overall("h without the error").value == 1
    beyond = edited.overall("disentangle beyond trivial edits")
    assert beyond.value == 1
    assert beyond.low < 0.025 ** (1 / beyond.n)  # no edit at all lies below 0
    # All latents that may carry it are these: more change nothing.
    assert edited.overall(f"h at {D}").value == 1
    assert edited.overall("h at 1").value < 0.6


def test_shuffled_decoder_rows_bring_it_to_the_floor(edited):
    score = edited.overall("h", "permuted_decoder")
    assert score.value < 0.3
    difference = edited.overall("h", "trained - permuted_decoder")
    assert difference.value == pytest.approx(1 - score.value)
    assert 0.5 < difference.low < difference.value < difference.high


def test_means_of_values_edit_where_entities_are_many(model, knowledge, sae):
    found = edit(model, 0, sae, knowledge, diffmean=True, **OPTIONS | {"n": (1, VALUES - 1, D)})
    # Means of V values differ in V - 1 directions; what the sample lends to others is little.
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


def test_no_edit_and_all_edits_are_exact(runs, sae):
    inside, task = runs
    nothing = torch.zeros(D, dtype=torch.bool)
    assert rates(inside, task, nothing, sae) == (0, 1)
    assert rates(inside, task, ~nothing, sae) == (1, 0)
    assert float(harmonic(np.zeros(1), np.ones(1))[0]) == 0
    assert float(harmonic(np.zeros(1), np.zeros(1))[0]) == 0


def test_random_latents_are_at_chance(runs, sae):
    """Of the two values, none, one or both are interchanged; read-outs break ties by number."""
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
    # If the base's value is taken away and none put in, all logits are 0: the first is read.
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


def test_scale_and_rotation_change_nothing(model, knowledge, edited, sae):
    table = rows(edit(model, 0, sae, knowledge, **OPTIONS))
    scaled = linear_lm.true_sae(scale=4.0)
    assert str(rows(edit(model, 0, scaled, knowledge, **OPTIONS))) == str(table)
    turned = linear_lm.linear_lm(turned=True)
    known = known_facts(turned, linear_lm.facts(), progress=False)
    rotated = edit(turned, 0, linear_lm.true_sae(turned=True), known, **OPTIONS)
    # Of latents with equal scores, rounding decides which is the best one.
    chosen = [row for row in table if not row["measure"].endswith("at 1")]
    others = [row for row in rows(rotated) if not row["measure"].endswith("at 1")]
    for row, other in zip(chosen, others, strict=True):
        assert row["value"] == pytest.approx(other["value"], nan_ok=True)


def test_the_same_call_gives_the_same_scores_another_seed_other_ones(model, knowledge, sae):
    first, again, other = (
        edit(model, 0, sae, knowledge, seed=seed, **OPTIONS) for seed in (0, 0, 1)
    )
    assert str(rows(first)) == str(rows(again))
    assert first.overall("h at 1") != other.overall("h at 1")


def test_groups_restrict_what_may_change(model, knowledge, sae):
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


def test_repeats_give_the_noise(model, knowledge, sae):
    options = {**OPTIONS, "n": (1,)}
    found = edit(model, 0, sae, knowledge, repeats=3, **options)
    alone = [edit(model, 0, sae, knowledge, seed=s, **options).overall("h").value for s in range(3)]
    assert found.noise == {"h": pytest.approx(np.std(alone, ddof=1))}
    assert found.noise["h"] > 0
    assert edit(model, 0, sae, knowledge, **options).noise == {}


def test_too_few_entities_give_no_number(model, sae):
    few = linear_lm.facts().select(entities=39)
    found = edit(model, 0, sae, known_facts(model, few, progress=False), **OPTIONS)
    assert found.scores == ()
    assert found.notes[0] == (
        "thing: colour gives no number: the model knows it together with another attribute for at "
        "most 39 entities, and 40 are needed"
    )
    assert "no attribute gives a number" in found.lines()[-1]


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
    # Values 0 to 3 of the first attribute now begin alike.
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


def tiny_runs(model, where="resid.1") -> tuple[Interchange, list[Pair]]:
    """Prompts of different lengths on a tiny language model, and pairs of them."""
    facts = Facts(
        kind="city",
        entities=("Rome", "Oslo", "Lisbon", "Z\u00fcrich"),
        values={"country": (("Italy",), ("Norway",), ("Portugal",), ("Switzerland",))},
        templates={"country": ("{} lies in", "The land of {} is")},
        template_splits={"country": ("train", "test")},
    )
    listed = [
        Question(
            entity,
            prompt(model.tokenizer, template, name),
            answers(model.tokenizer, facts, "country", template),
        )
        for template in facts.templates["country"]
        for entity, name in enumerate(facts.entities)
    ]
    pairs = [
        Pair(b % 3 > 0, b, s) for b in range(8) for s in range(8) if b != s and b // 4 == s // 4
    ]
    return Interchange(model, find_site(model.model, where), listed, 3), pairs


@pytest.mark.parametrize("make", [tiny_lm.llama, tiny_lm.gpt2])
def test_gradients_are_those_of_differences(make):
    model = make(dtype=torch.float64)
    runs, pairs = tiny_runs(model)
    with silent() as bar:
        found = runs.gradients(pairs[:6], bar)
    generator = torch.Generator().manual_seed(0)
    for pair, gradient in zip(pairs[:6], found, strict=True):
        context = runs.begin([pair.base])
        step = 1e-5 * torch.randn(context.h.shape, generator=generator, dtype=torch.float64)
        wanted, given = (runs.questions[n].token for n in (pair.source, pair.base))
        above, below = (
            runs.logits(context, torch.tensor([0]), context.h + sign * step)[0] for sign in (1, -1)
        )
        change = (above - below)[wanted] - (above - below)[given]
        assert float(change) == pytest.approx(2 * float((gradient.double() * step).sum()), rel=1e-3)


def test_where_nothing_changes_nothing_is_run():
    runs, pairs = tiny_runs(tiny_lm.llama())
    sae = tiny_lm.random_sae()
    nothing = Swap(sae, runs.rows).change(torch.zeros(sae.m), with_error=True)
    hits, valid = runs.outcomes(pairs, [nothing], silent())
    cause = torch.tensor([pair.cause for pair in pairs])
    assert torch.equal(hits[0][~cause], valid[~cause])


def test_changes_that_make_the_same_activation_run_once(monkeypatch):
    runs, pairs = tiny_runs(tiny_lm.llama())
    sae = tiny_lm.random_sae()
    run: list[tuple[int, tuple[int, ...]]] = []
    logits = Interchange.logits

    def counted(self, context, contexts, h):
        run.append((len(contexts), context.activations.shape))
        return logits(self, context, contexts, h)

    monkeypatch.setattr(Interchange, "logits", counted)
    swap = Swap(sae, runs.rows)
    everything = swap.change(torch.ones(sae.m), with_error=True)
    nothing = swap.change(torch.zeros(sae.m), with_error=True)
    once, valid = runs.outcomes(pairs, [everything], silent())
    rows = sum(count for count, _ in run)
    assert 0 < rows <= len(pairs)
    run.clear()
    several, again = runs.outcomes(pairs, [everything, nothing, everything], silent())
    assert sum(count for count, _ in run) == rows
    assert torch.equal(several[0], once[0])
    assert torch.equal(several[2], once[0])
    assert torch.equal(several[1], runs.outcomes(pairs, [nothing], silent())[0][0])
    assert torch.equal(again, valid)


@pytest.mark.parametrize("batch_size", [1, 2, 40])
def test_answers_do_not_depend_on_the_batch(batch_size):
    """Prompts of two lengths, with the entity at two places, alone and with others."""
    model = tiny_lm.llama(dtype=torch.float64)
    runs, pairs = tiny_runs(model)
    site = find_site(model.model, "resid.1")
    other = Interchange(model, site, runs.questions, batch_size)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(len(runs.questions), runs.rows.shape[1], generator=generator)

    def change(_base, source, h):
        return h + noise[source].to(h)

    for mine, its in zip(
        runs.outcomes(pairs, [runs.whole, change], silent()),
        other.outcomes(pairs, [runs.whole, change], silent()),
        strict=True,
    ):
        assert torch.equal(mine, its)
    lengths = {
        (context.activations.shape[1], tuple(context.place.tolist()))
        for context, _, _ in other._contexts(pairs)
    }
    assert {length for length, _ in lengths} == {len(q.prompt.ids) for q in runs.questions}
    assert all(len(set(places)) == 1 for _, places in lengths)
    with silent() as bar:
        torch.testing.assert_close(runs.gradients(pairs, bar), other.gradients(pairs, bar))


def test_a_change_of_all_is_the_source():
    """The whole forward pass is done anew, with the row of the source in it."""
    model = tiny_lm.llama()
    runs, pairs = tiny_runs(model)
    site = find_site(model.model, "resid.1")
    base, source = runs.questions[pairs[0].base], runs.questions[pairs[0].source]
    context = runs.begin([pairs[0].base, 5])
    torch.testing.assert_close(context.h[0], runs.rows[pairs[0].base])
    direct = model.model(torch.tensor([base.prompt.ids])).logits[0, -1]
    torch.testing.assert_close(context.logits[0], direct)
    rows = runs.rows[[pairs[0].source]]
    changed = runs.logits(context, torch.tensor([0]), rows)[0]

    def put(_module, _inputs, output):
        whole = output.clone()
        whole[0, base.prompt.position] = rows[0]
        return whole

    with torch.no_grad():
        hook = site.module.register_forward_hook(put)
        expected = model.model(torch.tensor([base.prompt.ids])).logits[0, -1]
        hook.remove()
    torch.testing.assert_close(changed, expected)
    assert source.prompt.ids != base.prompt.ids


@pytest.mark.parametrize("settings", [{}, {"normalise": "layer_norm"}, {"variant": "relu"}])
def test_attribution_is_the_dense_formula(settings):
    model = tiny_lm.llama()
    runs, pairs = tiny_runs(model)
    sae = tiny_lm.random_sae(**settings)
    swap = Swap(sae, runs.rows)
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(len(pairs), tiny_lm.D, generator=generator)
    codes = sae.encode(runs.rows).to_dense(sae.m).double()
    cause = torch.tensor([pair.cause for pair in pairs])
    effects = torch.zeros(len(pairs), sae.m, dtype=torch.float64)
    for row, pair in enumerate(pairs):
        scale = 1.0
        if sae.normalise == "layer_norm":
            scale = float(runs.rows[pair.base].std())
        along = sae.W_dec.double() @ gradients[row].double() * scale
        effects[row] = (codes[pair.source] - codes[pair.base]) * along
    expected = effects[cause].mean(0) - effects[~cause].abs().mean(0)
    found = attribution(swap, pairs, gradients)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    unpunished = attribution(swap, pairs, gradients, penalty=0)
    torch.testing.assert_close(unpunished, effects[cause].mean(0), rtol=1e-4, atol=1e-5)


def test_the_best_are_positive_and_allowed():
    scores = torch.tensor([0.0, 3, -1, 2, 3, 1])
    assert best(scores, 2).nonzero()[:, 0].tolist() == [1, 4]
    assert best(scores, 9).nonzero()[:, 0].tolist() == [1, 3, 4, 5]
    allowed = torch.tensor([True, True, True, True, False, False])
    assert best(scores, 2, allowed).nonzero()[:, 0].tolist() == [1, 3]


@pytest.mark.parametrize("settings", [{}, {"normalise": "layer_norm"}])
def test_edits_replace_codes(settings):
    model = tiny_lm.llama()
    runs, _ = tiny_runs(model)
    sae = tiny_lm.random_sae(**settings)
    swap = Swap(sae, runs.rows)
    base, source = torch.tensor([0, 1, 2]), torch.tensor([3, 0, 1])
    mask = torch.arange(sae.m) % 3 == 0
    codes = sae.encode(runs.rows).to_dense(sae.m)
    mixed = torch.where(mask, codes[source], codes[base])
    every = torch.arange(sae.m).expand(3, -1).contiguous()
    x = runs.rows[base]
    expected = sae.decode(SparseCode(mixed, every), x)
    without = swap.change(mask, with_error=False)(base, source, x)
    torch.testing.assert_close(without, expected, rtol=1e-4, atol=1e-4)
    error = x - sae.decode(SparseCode(codes[base], every), x)
    kept = swap.change(mask, with_error=True)(base, source, x)
    torch.testing.assert_close(kept, expected + error, rtol=1e-4, atol=1e-4)
    nothing = torch.zeros(sae.m, dtype=torch.bool)
    assert torch.equal(swap.change(nothing, with_error=True)(base, source, x), x)


def test_entities_are_resampled_not_pairs():
    """One entity holds most pairs and all misses: with few entities the interval must be wide."""
    hits = np.array([0.0, 10, 10, 10])
    outcome = Outcome(hits, np.array([300.0, 10, 10, 10]), hits, np.array([300.0, 10, 10, 10]))
    counts = np.array([[0.0, 1, 1, 1], [3, 0, 0, 0]])
    cause, isolation = outcome.rates(counts)
    assert cause.tolist() == [1, 0]
    assert isolation.tolist() == [1, 0]
    assert outcome.rates()[0].tolist() == [pytest.approx(30 / 330)]
    assert outcome.pooled(outcome).rates()[0].tolist() == outcome.rates()[0].tolist()


def test_rivals_stand_beside(edited):
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


def test_features_say_what_they_carry(edited):
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
def test_bad_input_is_told(model, knowledge, sae, change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        edit(model, 0, sae, knowledge, **{**OPTIONS, **change})


def test_other_bad_input_is_told(model, knowledge, sae):
    with pytest.raises(TypeError, match="knowledge must be what known_facts returns, got dict"):
        edit(model, 0, sae, {}, **OPTIONS)
    with pytest.raises(ValueError, match="width is 15, got d=16"):
        edit(model, 0, saefast.SAE(D + 1, 20, k=2), knowledge, **OPTIONS)
