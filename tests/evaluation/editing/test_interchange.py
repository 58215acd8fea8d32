"""Interchanges of activations and latents: gradients, answers, attributions, codes."""

import pytest
import torch
from helpers import tiny_lm
from helpers.linear_lm import VALUES, D
from helpers.silent_bar import silent

from saefast.evaluation.editing.fact_prompts import answers, prompt
from saefast.evaluation.editing.facts import Facts
from saefast.evaluation.editing.interchange import Interchange, Swap
from saefast.evaluation.editing.masks import attribution, best
from saefast.evaluation.editing.pairs import Pair, Question
from saefast.lm import find_site
from saefast.types import SparseCode

OPTIONS = {"n": (1, VALUES, D), "pairs": 60, "progress": False}


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
def test_gradients_equal_finite_differences(make):
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


def test_pairs_without_a_change_are_not_run():
    runs, pairs = tiny_runs(tiny_lm.llama())
    sae = tiny_lm.random_sae()
    nothing = Swap(sae, runs.rows).change(torch.zeros(sae.m), with_error=True)
    hits, valid = runs.outcomes(pairs, [nothing], silent())
    cause = torch.tensor([pair.cause for pair in pairs])
    assert torch.equal(hits[0][~cause], valid[~cause])


def test_equal_changes_run_once(monkeypatch):
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
    """Prompts of two lengths, with the entity at two places, alone and in a batch."""
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


def test_a_change_of_all_latents_gives_the_source():
    """Compare with a whole forward pass with the row of the source."""
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
def test_attribution_equals_the_dense_formula(settings):
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


def test_chosen_latents_have_positive_scores_and_are_allowed():
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
