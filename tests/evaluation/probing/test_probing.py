"""Sparse probing end to end in a model with known activations: embeddings of letters."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="needs saefast[lm]")

from helpers.tiny_lm import D, llama, random_sae

import saefast
from saefast.evaluation.conditions import Condition, rival_conditions
from saefast.evaluation.intervals import auroc
from saefast.evaluation.probing.evaluation import probe
from saefast.evaluation.probing.rows import task_rows
from saefast.evaluation.probing.tasks import LabelledTask, Span, labelled_task
from saefast.evaluation.scores import TRAINED, Evaluation
from saefast.lm import LanguageModel, find_site

SITE = "model.embed_tokens"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def planted_model(directions: Tensor) -> LanguageModel:
    """Return a model in which the activation of each letter is its own direction."""
    model = llama()
    weight = model.model.get_input_embeddings().weight
    with torch.no_grad():
        weight.zero_()
        for number, letter in enumerate(LETTERS):
            weight[model.tokenizer(letter)["input_ids"][0]] = directions[number]
    return model


def dictionary(directions: Tensor) -> saefast.SAE:
    """Return the SAE whose latents are those directions."""
    sae = saefast.SAE(D, len(directions), variant="relu", k=4)
    with torch.no_grad():
        sae.W_enc.copy_(directions)
        sae.W_dec.copy_(directions)
        sae.b_enc.fill_(-0.5)  # rounding alone does not activate a latent
    return sae.requires_grad_(False)


DIRECTIONS = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0][:26]


def words(count: int, seed: int, length: int = 8) -> list[str]:
    """Make random words, whose first letter does not matter."""
    generator = np.random.default_rng(seed)
    letters = np.array(list(LETTERS))
    return ["z" + "".join(generator.choice(letters, length)) for _ in range(count)]


def task(name: str, holds: Any, count: int = 600, seed: int = 0) -> LabelledTask:
    texts = words(count, seed)
    return labelled_task(name, texts, [holds(text[1:]) for text in texts])


def quietly(*arguments: Any, **options: Any) -> Evaluation:
    options = {"k": (1, 2), "draws": 4, "repeats": 2, "pool": "max", **options}
    return probe(*arguments, progress=False, **options)


def test_the_true_dictionary_predicts_a_letter_without_error() -> None:
    tasks = [task(f"has {letter}", lambda text, letter=letter: letter in text) for letter in "aqz"]
    found = quietly(
        planted_model(DIRECTIONS), SITE, dictionary(DIRECTIONS), tasks, pool="mean", draws=20
    )
    score = found.overall("auroc at 1")
    assert score.value == 1.0
    assert score.primary
    assert (score.floor, score.n) == (0.5, 3)
    assert found.overall("auroc at 2").value == 1.0
    assert found.overall("auroc at 1", "random latents").value < 0.65
    assert found.overall("auroc at 1", "full").value > 0.95
    assert found.overall("auroc at 1", "text").value > 0.95
    (columns,) = found.features
    for letter in "aqz":
        assert columns["probe_task"][LETTERS.index(letter)] == f"has {letter}"
        assert columns["probe_t"][LETTERS.index(letter)] > 10


@pytest.mark.parametrize("kind", ["and", "or"])
def test_the_auroc_of_one_latent_for_two_letters_follows_from_counts(kind: str) -> None:
    join = all if kind == "and" else any
    one = task(kind, lambda text: join(letter in text for letter in "ab"), count=4000)
    found = quietly(planted_model(DIRECTIONS), SITE, dictionary(DIRECTIONS), one)
    test = one.test_examples(0)
    counted = []
    for letter in "ab":
        has = np.array([letter in text[1:] for text in one.texts])[test]
        labels = np.array(one.labels)[test]
        # An indicator: ties count half.
        counted.append(0.5 + (has[labels].mean() - has[~labels].mean()) / 2)
    value = found.overall("auroc at 1").value
    assert any(abs(value - each) < 1e-12 for each in counted)
    assert 0.6 < value < 0.99
    assert found.overall("auroc at 2").value > value + 0.02
    assert found.overall("auroc at 2").value > 0.98


def test_a_permuted_decoder_does_not_change_bits() -> None:
    model, sae = llama(), random_sae()
    # For one task, the best latents may be the same by chance.
    tasks = [
        task("a", lambda text: "a" in text, count=200),
        task("b", lambda text: "b" in text, count=200),
        task("c", lambda text: "c" in text, count=200),
    ]
    rows = torch.randn(50, D, generator=torch.Generator().manual_seed(2))
    conditions = rival_conditions(sae, rows, ["permuted_decoder", "untrained"])
    found = quietly(model, 2, sae, tasks, conditions=conditions)
    for k in (1, 2):
        measure = f"auroc at {k}"
        same = found.overall(measure, "permuted_decoder")
        its, ours = (
            [score.value for score in found.scores if (score.measure, score.condition) == key]
            for key in ((measure, "permuted_decoder"), (measure, "trained"))
        )
        assert its == ours[: len(its)]
        assert len(its) == 4  # overall, and of each task
        assert found.overall(measure, "untrained").value != same.value
        # It is the same SAE, so it is not a rival.
        assert same.rival != ""
        assert found.overall(measure).rival != "permuted_decoder"


def test_the_same_sae_is_not_a_trivial_rival() -> None:
    """The bag of letters barely predicts the last letter; the permuted decoder does so fully."""
    sae, model = dictionary(DIRECTIONS), planted_model(DIRECTIONS)
    one = task("ends with a", lambda text: text[-1] == "a", count=4000)
    conditions = rival_conditions(sae, torch.zeros(9, D), ["permuted_decoder"])
    found = quietly(model, SITE, sae, one, pool="last", conditions=conditions)
    assert found.overall("auroc at 1", "permuted_decoder").value == 1.0
    assert found.overall("auroc at 1").rival == "text"
    assert found.overall("auroc at 1").rival_value < 0.99


def test_scale_of_the_latents_does_not_matter() -> None:
    model, sae = llama(), random_sae()
    tasks = [task("a", lambda text: "a" in text, count=200)]
    scaled = random_sae()
    with torch.no_grad():
        # A power of 2 for each latent: exact.
        scale = 2.0 ** (torch.arange(sae.m) % 7 - 3)
        for parameter in (scaled.W_enc, scaled.b_enc):
            parameter *= scale[:, None] if parameter.ndim == 2 else scale
        scaled.W_dec /= scale[:, None]
    relu = []
    for each in (sae, scaled):
        its = saefast.SAE(D, each.m, variant="relu", k=6)
        with torch.no_grad():
            for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
                getattr(its, name).copy_(getattr(each, name))
        relu.append(its.requires_grad_(False))
    a, b = (quietly(model, 2, each, tasks, pool="mean") for each in relu)
    assert a.scores == b.scores
    assert [row["probe_t"].tolist() for row in a.features] == [
        row["probe_t"].tolist() for row in b.features
    ]
    by_difference = [
        quietly(model, 2, each, tasks, pool="mean", select="difference").scores for each in relu
    ]
    assert by_difference[0] != by_difference[1]


def test_rotation_of_activations_and_weights_does_not_matter() -> None:
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(9)))[0]
    tasks = [
        task("vowels", lambda text: sum(text.count(v) for v in "aeiou") > 1, count=300),
        task("a", lambda text: "a" in text, count=300),
    ]
    plain = random_sae(variant="relu")
    turned = random_sae(variant="relu")
    with torch.no_grad():
        for parameter in (turned.W_enc, turned.W_dec, turned.b_dec):
            parameter.copy_(parameter @ turn)
    a = quietly(planted_model(DIRECTIONS), SITE, plain, tasks, pool="mean")
    b = quietly(planted_model(DIRECTIONS @ turn), SITE, turned, tasks, pool="mean")
    for k in (1, 2):
        for condition in (TRAINED, "permuted labels", "random latents", "text"):
            mine, its = (e.overall(f"auroc at {k}", condition).value for e in (a, b))
            assert mine == pytest.approx(its, abs=2e-3), condition


def test_groups_restrict_the_choice() -> None:
    model, sae = planted_model(DIRECTIONS), dictionary(DIRECTIONS)
    tasks = [task(f"has {letter}", lambda text, letter=letter: letter in text) for letter in "acy"]
    first = torch.arange(26) < 13
    groups = [{"stable": first, "unstable": ~first}]
    found = quietly(model, SITE, sae, tasks, groups=groups)
    by_task = {
        (score.task, score.group): score.value
        for score in found.scores
        if score.measure == "auroc at 1" and score.condition == TRAINED
    }
    assert by_task["has a", "stable"] == by_task["has c", "stable"] == 1.0
    assert by_task["has y", "unstable"] == 1.0
    assert max(by_task["has a", "unstable"], by_task["has y", "stable"]) < 0.7
    share = found.overall("best latent in group", group="stable")
    assert share.value == pytest.approx(2 / 3)
    assert 0.3 < share.floor < 0.7
    assert any("2 of 3 best latents are stable" in note for note in found.notes)
    assert found.overall("auroc at 1", group="stable:mass").value < 1
    difference = found.overall("auroc at 1", group="stable - stable:mass")
    assert difference.value == pytest.approx(
        found.overall("auroc at 1", group="stable").value
        - found.overall("auroc at 1", group="stable:mass").value
    )


def test_two_seeds_agree_on_their_best_latents() -> None:
    order = torch.randperm(26, generator=torch.Generator().manual_seed(4))
    saes = [dictionary(DIRECTIONS), dictionary(DIRECTIONS[order])]
    tasks = [task(f"has {letter}", lambda text, letter=letter: letter in text) for letter in "acy"]
    model = planted_model(DIRECTIONS)
    score = quietly(model, SITE, saes, tasks).overall("best latents matched")
    assert score.value == 1.0
    assert score.floor < 0.3
    with torch.no_grad():
        saes[1].W_dec.copy_(saes[1].W_dec[torch.arange(26).roll(1)])
    assert quietly(model, SITE, saes, tasks).overall("best latents matched").value < 0.5


def test_the_same_arguments_give_the_same_bytes_on_any_number_of_threads(
    torch_threads: None,
) -> None:
    tasks = [task("a", lambda text: "a" in text), task("b", lambda text: "b" in text)]
    groups = [{"half": torch.arange(26) < 13}]
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(
            quietly(planted_model(DIRECTIONS), SITE, dictionary(DIRECTIONS), tasks, groups=groups,
                    pool="mean")
        )  # fmt: skip
    assert str(found[0].scores) == str(found[1].scores)
    assert found[0].noise == found[1].noise
    assert found[0].lines() == found[1].lines()
    other = quietly(
        planted_model(DIRECTIONS), SITE, dictionary(DIRECTIONS), tasks, seed=1, pool="mean"
    )
    assert other.lines() != found[0].lines()


@pytest.mark.parametrize(("method", "measure"), [("saebench", "accuracy"), ("sae-probes", "auroc")])
def test_rules_of_peers_use_their_measure(method: str, measure: str) -> None:
    # The last letter decides: the mean over letters predicts it less well.
    one = task("ends with a vowel", lambda text: text[-1] in "aeiou", count=2000)
    model, sae = planted_model(DIRECTIONS), dictionary(DIRECTIONS)
    found = quietly(model, SITE, sae, one, method=method, pool=None, k=(1, 5), draws=2)
    assert found.overall(f"{measure} at 1").primary
    best = found.overall(f"{measure} at 5").value
    assert (best > 0.95) if method == "sae-probes" else (0.5 < best < 0.9)


def reference_pooled(sae: saefast.SAE, rows: list[Tensor], pool: str) -> Tensor:
    dense = [sae.encode(its).to_dense(sae.m) for its in rows]
    pools = {"mean": lambda z: z.mean(0), "max": lambda z: z.amax(0), "last": lambda z: z[-1]}
    return torch.stack([pools[pool](z) for z in dense])


@pytest.mark.parametrize("pool", ["mean", "max", "last"])
@pytest.mark.parametrize("bos", [False, True])
def test_latents_are_pooled_over_the_tokens_of_a_text(pool: str, bos: bool) -> None:
    model, sae = llama(bos=bos), random_sae()
    texts = [word[: 2 + number % 7] for number, word in enumerate(words(60, 3))] + ["q"]
    one = LabelledTask(name="t", texts=tuple(texts), labels=(True, *[False, True] * 30))
    site = find_site(model.model, 1)
    (found,) = task_rows(model, site, [one], pool=pool, context=6, batch_size=7, drop_bos=True)
    rows = []
    for text in texts:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        room = 5 if bos else 6
        ids = ids[-room:] if pool == "last" else ids[:room]
        ids = [0, *ids] if bos else ids
        with torch.no_grad():
            hidden = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
        rows.append(hidden[1:] if len(ids) > 1 else hidden)
    torch.testing.assert_close(
        found.pooled(sae, pool), reference_pooled(sae, rows, pool), rtol=1e-4, atol=1e-5
    )
    pools = {"mean": lambda h: h.mean(0), "max": lambda h: h.amax(0), "last": lambda h: h[-1]}
    torch.testing.assert_close(
        found.pooled_rows(pool), torch.stack([pools[pool](h) for h in rows]), rtol=1e-4, atol=1e-5
    )


def spans_task(texts: Sequence[str], spans: Sequence[Span], labels: Sequence[bool]) -> LabelledTask:
    return LabelledTask(
        name="spans",
        texts=tuple(texts),
        labels=tuple(labels),
        spans=tuple(spans),
        documents=tuple(span.text for span in spans),
    )


def test_a_span_is_read_at_its_first_token() -> None:
    model = llama()
    texts = words(60, 5)
    # Letters 3 and 4 of each text; and one span of white space, which contains no token.
    spans = [Span(text, 3 + place, 4 + place) for text in range(60) for place in range(2)]
    labels = [bool(number % 2) for number in range(120)]
    texts[0] = texts[0][:5] + " " + texts[0][6:]
    one = spans_task(texts, [*spans, Span(0, 5, 6)], [*labels, True])
    site = find_site(model.model, 1)
    (found,) = task_rows(model, site, [one], pool="mean", context=32, batch_size=9, drop_bos=True)
    assert found.used.tolist() == list(range(120))
    with torch.no_grad():
        for number in (0, 1, 77):
            ids = torch.tensor([model.tokenizer(texts[number // 2])["input_ids"]])
            hidden = model.model(ids, output_hidden_states=True).hidden_states[2][0]
            torch.testing.assert_close(
                found.rows[number], hidden[3 + number % 2], rtol=1e-4, atol=1e-5
            )
    result = quietly(model, 1, random_sae(), one)
    assert "spans: 1 of 121 spans contain no token of the model" in result.notes


def test_scores_have_floor_rival_and_ceiling() -> None:
    model, sae = planted_model(DIRECTIONS), dictionary(DIRECTIONS)
    tasks = [task(f"has {letter}", lambda text, letter=letter: letter in text) for letter in "ac"]
    found = quietly(model, SITE, [sae, sae], tasks)
    assert {score.evaluation for score in found.scores} == {"probe"}
    primary = {score.measure for score in found.scores if score.primary}
    assert primary == {"auroc at 1"}
    score = found.overall("auroc at 2")
    assert score.floor == 0.5
    assert score.rival in ("text", "random latents")
    assert score.ceiling == found.overall("auroc at 2", "full").value
    assert score.low <= score.value <= score.high
    for score in found.scores:
        if score.measure in ("auroc at 1", "auroc at 2") and not math.isnan(score.low):
            assert -1 * (" - " in score.condition) <= score.low <= score.high <= 1, score
    assert found.overall("gap closed at 1").value == pytest.approx(
        0.5 / (found.overall("auroc at 1", "full").value - 0.5), abs=0.01
    )
    assert set(found.noise) == {"auroc at 1", "auroc at 2"}
    assert found.to_table().num_rows == len(found.scores)


def test_one_sae_and_one_task_have_the_interval_over_examples() -> None:
    found = quietly(llama(), 1, random_sae(), TASK).overall("auroc at 1")
    assert found.low < found.value - 0.01
    assert found.high > found.value + 0.01


SAE = random_sae()
TASK = task("a", lambda text: "a" in text, count=200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"saes": saefast.SAE(7, 9, k=2)}, "must have the width of the activations, d=32, got d=7"),
        ({"layer": 9}, "the layer of a site must be from 0 to 3"),
        ({"tasks": []}, "tasks must be one or several tasks with different names"),
        ({"tasks": [TASK, TASK]}, "tasks must be one or several tasks with different names"),
        ({"k": (1, 1)}, "k must be a number or several different numbers"),
        ({"k": 0}, "k must be at least 1"),
        ({"method": "mine"}, "method must be one of saefast, saebench, sae-probes"),
        ({"pool": "sum"}, "pool must be one of mean, last, max"),
        ({"select": "best"}, "select must be one of t, difference, normalised"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"repeats": 1}, "repeats must be at least 2"),
        ({"mass": [torch.ones(3)]}, r"mass\[0\] must have shape"),
        ({"mass": [torch.ones(48)] * 2}, "mass must be one for each SAE, 1, got 2"),
        ({"groups": [{"a": torch.ones(3, dtype=torch.bool)}]}, r"groups\[0\]\['a'\]"),
        ({"conditions": [Condition(name="full", saes=(SAE,))]}, "none of them trained"),
    ],
)
def test_errors_name_bad_arguments(options: dict[str, Any], message: str) -> None:
    arguments = {"layer": 1, "saes": SAE, "tasks": [TASK], **options}
    with pytest.raises(ValueError, match=message):
        quietly(llama(), **arguments)


def test_errors_name_arguments_of_wrong_type() -> None:
    for options, message in [
        ({"tasks": ["a"]}, r"tasks\[0\] must be a LabelledTask, got str; use labelled_tasks"),
        ({"conditions": [SAE]}, r"conditions\[0\] must be a Condition, got SAE"),
        ({"k": 1.5}, "k must be an int"),
    ]:
        with pytest.raises(TypeError, match=message):
            quietly(llama(), **{"layer": 1, "saes": SAE, "tasks": [TASK], **options})


def test_scores_equal_the_auroc_of_the_best_latent() -> None:
    """Compute them from the definition, with dense codes and loops."""
    model, sae = llama(), random_sae()
    found = quietly(model, 2, sae, TASK, pool="mean")
    site = find_site(model.model, 2)
    (rows,) = task_rows(model, site, [TASK], pool="mean", context=128, batch_size=32, drop_bos=True)
    z = rows.pooled(sae, "mean").double()
    labels, test = rows.labels, TASK.test_examples(0)
    best, size = -1, -1.0
    for latent in range(sae.m):
        a, b = (z[~test & (labels == value), latent] for value in (True, False))
        error = (a.var() / len(a) + b.var() / len(b)).sqrt()
        t = float((a.mean() - b.mean()) / error) if error > 0 else 0.0
        if abs(t) > size:
            best, size, sign = latent, abs(t), np.sign(t)
    value = auroc(labels[test], sign * z[test, best])
    assert found.overall("auroc at 1").value == pytest.approx(value, abs=1e-12)
