"""Absorption of parents by children in SAEs made by hand, and in a tiny model."""

import math
import string
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import saefast
from saefast.evaluation.absorption import evaluation as absorption
from saefast.evaluation.absorption.classes import split_words
from saefast.evaluation.absorption.evaluation import absorb, absorb_rows
from saefast.evaluation.absorption.scores import (
    CENTRED,
    FULL,
    MAIN_COUNT,
    MAIN_F1,
    PRIMARY,
)
from saefast.evaluation.absorption.word_tasks import prefix_of, words_of
from saefast.evaluation.absorption.words import absorbed_words
from saefast.evaluation.conditions import Condition, rival_conditions
from saefast.types import SparseCode

CLASSES, EACH = 4, 100
NAMES = [f"class {c}" for c in range(CLASSES)]


class Nested(NamedTuple):
    """Words whose rows are the sum of a parent direction and a direction of their own."""

    rows: Tensor
    labels: Tensor
    parents: Tensor
    children: Tensor


def nested(seed: int = 0) -> Nested:
    generator = torch.Generator().manual_seed(seed)
    d = CLASSES + CLASSES * EACH
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q.float()
    parents, children = basis[:CLASSES], basis[CLASSES:]
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    return Nested(parents[labels] + children, labels, parents, children)


def made_by_hand(world: Nested, absorbing: Tensor, part: float = 1.0) -> saefast.SAE:
    """Make an SAE in which `absorbing` words [words] bool take `part` of their parent."""
    parent_of = world.parents[world.labels]
    taken = part * absorbing.float()[:, None]
    sae = saefast.SAE(world.rows.shape[1], CLASSES + len(world.rows), variant="relu", k=2)
    decoder = torch.cat([world.parents, world.children + taken * parent_of])
    less = torch.zeros(CLASSES, len(world.rows))
    less[world.labels, torch.arange(len(world.rows))] = taken[:, 0]
    encoder = torch.cat([world.parents - less @ world.children, world.children])
    with torch.no_grad():
        sae.W_dec.copy_(decoder)
        sae.W_enc.copy_(encoder)
        # A latent that is only active by rounding counts as silent.
        sae.b_enc.fill_(-1e-5)
    return sae


def some(world: Nested, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(world.rows), generator=generator) < 0.25


def held_out(world: Nested, seed: int = 0) -> Tensor:
    split = split_words(world.rows, world.labels, CLASSES, torch.arange(len(world.rows)), seed)
    return torch.cat(split.places)


def measured(world: Nested, sae: saefast.SAE, **settings: Any) -> Any:
    return absorb_rows(world.rows, world.labels, NAMES, sae, progress=False, **settings)


def test_only_planted_absorption_is_found() -> None:
    world = nested()
    nothing = torch.zeros(len(world.rows), dtype=torch.bool)
    clean = measured(world, made_by_hand(world, nothing))
    assert [clean.overall(name).value for name in (PRIMARY, FULL, CENTRED)] == [0, 0, 0]
    assert clean.overall(MAIN_F1).value == pytest.approx(1)
    assert clean.overall(MAIN_COUNT).value == 1
    absorbing = some(world)
    words = held_out(world)
    assert 0 < absorbing[words].sum() < len(words)
    assert len(words) == 80
    found = measured(world, made_by_hand(world, absorbing))
    expected = float(absorbing[words].double().mean())
    assert found.overall(PRIMARY).value == pytest.approx(expected, abs=1e-12)
    assert found.overall(FULL).value == pytest.approx(expected, abs=1e-12)
    assert found.overall(PRIMARY).n == len(words)
    # The absorbing latents are the planted children, each in one word.
    by_latent = found.features[0]["absorbed_words"]
    planted = torch.zeros(len(by_latent), dtype=torch.float64)
    planted[CLASSES + words[absorbing[words]]] = 1
    torch.testing.assert_close(by_latent, planted)
    assert found.features[0]["main_of"][:CLASSES] == NAMES
    # With the main latents of another class, every word would seem absorbed.
    assert found.overall(PRIMARY).floor > expected + 0.5
    assert found.overall(PRIMARY).ceiling == 0


@pytest.mark.parametrize("part", [0.5, 0.75])
def test_a_partly_absorbed_parent_has_its_fraction(part: float) -> None:
    world = nested()
    everything = torch.ones(len(world.rows), dtype=torch.bool)
    found = measured(world, made_by_hand(world, everything, part))
    assert found.overall(PRIMARY).value == pytest.approx(part, abs=1e-4)
    assert found.overall(FULL).value == 0
    by_class = [s for s in found.scores if s.measure == PRIMARY and s.task]
    assert [s.task for s in by_class] == NAMES
    assert sum(s.n for s in by_class) == found.overall(PRIMARY).n


def test_less_than_two_fifths_do_not_count_as_absorption() -> None:
    world = nested()
    everything = torch.ones(len(world.rows), dtype=torch.bool)
    for part, expected in ((0.39, 0.0), (0.41, 0.41)):
        found = measured(world, made_by_hand(world, everything, part))
        assert found.overall(PRIMARY).value == pytest.approx(expected, abs=1e-4)


def test_norms_of_rows_and_rotations_do_not_matter() -> None:
    world = nested()
    sae = made_by_hand(world, some(world), 0.7)
    before = measured(world, sae)
    with torch.no_grad():
        factor = torch.rand(sae.m, generator=torch.Generator().manual_seed(3)) * 4 + 0.1
        sae.W_dec /= factor[:, None]
        sae.W_enc *= factor[:, None]
        sae.b_enc *= factor
    scaled = measured(world, sae)
    generator = torch.Generator().manual_seed(4)
    d = world.rows.shape[1]
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q.float()
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec @ turn)
        sae.W_enc.copy_(sae.W_enc @ turn)
    turned = measured(world._replace(rows=world.rows @ turn), sae)
    for other in (scaled, turned):
        for name in (PRIMARY, FULL, CENTRED, MAIN_F1):
            assert other.overall(name).value == pytest.approx(before.overall(name).value, abs=1e-4)
    assert 0 < before.overall(PRIMARY).value < 1


def test_shuffled_labels_are_refused() -> None:
    world = nested()
    order = torch.randperm(len(world.rows), generator=torch.Generator().manual_seed(0))
    sae = made_by_hand(world, some(world))
    refused = measured(world._replace(labels=world.labels[order]), sae)
    assert refused.scores == ()
    (note,) = refused.notes
    assert "is 0 of 4, and must be at least 1" in note
    assert measured(world, sae, least_classes=4).scores
    (note,) = measured(world, sae, least_classes=5).notes
    assert "is 4 of 4, and must be at least 5" in note


def test_a_class_of_two_latents_has_both_as_main_latents() -> None:
    world = nested()
    sae = made_by_hand(world, torch.zeros(len(world.rows), dtype=torch.bool))
    halves = torch.arange(len(world.rows)) % 2 == 0
    # A latent for each half of the words of the first class.
    first = world.children[halves & (world.labels == 0)].sum(0)
    second = world.children[~halves & (world.labels == 0)].sum(0)
    twice = saefast.SAE(sae.d, sae.m + 1, variant="relu", k=2)
    with torch.no_grad():
        twice.W_dec.copy_(torch.cat([world.parents[:1], sae.W_dec]))
        twice.W_enc.copy_(torch.cat([world.parents[:1] - first, sae.W_enc]))
        twice.W_enc[1] -= second
        twice.b_enc.fill_(-1e-5)
    found = measured(world, twice)
    counts = {s.task: s.value for s in found.scores if s.measure == MAIN_COUNT and s.task}
    assert counts == {"class 0": 2, "class 1": 1, "class 2": 1, "class 3": 1}
    assert found.overall(PRIMARY).value == 0


def test_groups_share_absorption_and_conditions_have_scores() -> None:
    world = nested()
    absorbing = some(world)
    saes = [made_by_hand(world, absorbing), made_by_hand(world, some(world, 5))]
    even = torch.arange(saes[0].m) % 2 == 0
    mass = torch.ones(saes[0].m)
    conditions = rival_conditions(saes, world.rows, ("untrained", "residual"))
    clean = made_by_hand(world, torch.zeros_like(absorbing))
    found = absorb_rows(
        world.rows,
        world.labels,
        NAMES,
        saes,
        groups=[{"even": even, "odd": ~even}] * 2,
        mass=[mass, mass],
        conditions=[*conditions, Condition(name="clean", saes=(clean,))],
        repeats=3,
        progress=False,
    )
    total = found.overall(PRIMARY)
    parts = [found.overall(PRIMARY, group=name).value for name in ("even", "odd")]
    assert sum(parts) == pytest.approx(total.value)
    assert min(parts) > 0
    drawn = found.overall(PRIMARY, group="even:mass")
    assert drawn.value == pytest.approx(total.value / 2, abs=0.1)
    assert found.overall(PRIMARY, "clean").value == 0
    assert found.overall(PRIMARY, "trained - clean").value == pytest.approx(total.value)
    assert total.low < total.value < total.high
    for score in found.scores:
        if score.measure != MAIN_COUNT and not math.isnan(score.low):
            assert -1 * (" - " in score.condition) <= score.low <= score.high <= 1, score
    assert found.noise[PRIMARY] > 0
    assert any("residual: its latents are always active" in note for note in found.notes)
    assert {score.condition for score in found.scores} >= {"trained", "untrained", "clean"}
    assert all(score.n > 1 for score in found.scores if not score.task)


def test_the_same_arguments_give_the_same_bytes_on_any_number_of_threads(
    torch_threads: None,
) -> None:
    world = nested()
    sae = made_by_hand(world, some(world), 0.8)
    tables = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        tables.append(str(measured(world, sae, repeats=2).to_table().to_pylist()))
    assert tables[0] == tables[1]


def by_hand(values: list[float], cosines: list[float], total: float) -> Any:
    """Make one word whose main latent is 0; the probe reads the first coordinate."""
    decoder = torch.tensor([[c, (1 - c * c) ** 0.5] for c in cosines])
    code = SparseCode(torch.tensor([values]), torch.arange(len(values))[None])
    row = torch.tensor([[total, 0.3]])
    return absorbed_words(code, row, decoder, torch.tensor([2.0, 0.0]), [0])


@pytest.mark.parametrize(
    ("values", "cosines", "total", "fraction", "full"),
    [
        ([0, 1, 0], [1, 0.5, 0.5], 1.0, 1.0, True),  # main is silent, half of the reading elsewhere
        ([0, 1, 0], [1, 0.3, 0.5], 1.0, 0.0, False),  # too little elsewhere
        ([0, 1, 1], [1, 0.3, 0.3], 1.0, 1.0, False),  # two together
        ([0, 9, 0], [1, 0.09, 0.5], 1.0, 0.0, True),  # barely aligned, but large
        ([0, 99, 0], [1, 0.02, 0.5], 1.0, 0.0, False),  # not aligned
        ([0.2, 1, 0], [1, 0.5, 0.5], 1.0, 0.5 / 0.7, False),
        ([0.8, 1, 0], [1, 0.5, 0.5], 1.0, 0.2, False),  # at most what main lacks
        ([1.0, 1, 0], [1, 0.5, 0.5], 1.0, 0.0, False),  # main explains all of it
        ([1, 1, 0], [-0.5, 0.9, 0.5], 1.0, 1.0, False),  # main points away
        ([0, 1, 0], [1, 0.5, 0.5], -1.0, 0.0, False),  # nothing to absorb
        ([0.1, 1, 1, 1, 1], [1, 0.2, 0.2, 0.2, 0.2], 1.0, 0.6 / 0.7, False),  # three at most
    ],
)
def test_single_words(
    values: list[float], cosines: list[float], total: float, fraction: float, full: bool
) -> None:
    found = by_hand(values, cosines, total)
    assert float(found.fraction) == pytest.approx(fraction, abs=1e-6)
    assert bool(found.full) is full
    assert float(found.reading) == pytest.approx(total)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, "labels"),
        ({"labels": torch.zeros(400)}, TypeError, "labels"),
        ({"families": torch.zeros(3, dtype=torch.int64)}, ValueError, "families"),
        ({"rows": torch.zeros(400, 3)}, ValueError, "saes"),
        ({"groups": {"a": torch.zeros(3)}}, TypeError, "groups"),
        ({"least_classes": 0}, ValueError, "least_classes"),
        ({"repeats": 0}, ValueError, "repeats"),
        ({"saes": saefast.SAE(404, 8, k=2, d_out=3)}, ValueError, "transcoder"),
        ({"saes": saefast.SAE(404, 8, k=2, normalise="norm")}, ValueError, "normalise"),
    ],
)
def test_errors_name_mismatched_arguments(change: Any, error: type, words: str) -> None:
    world = nested()
    arguments = {
        "rows": world.rows,
        "labels": world.labels,
        "classes": NAMES,
        "saes": made_by_hand(world, some(world)),
        "progress": False,
    }
    with pytest.raises(error, match=words):
        absorb_rows(**{**arguments, **change})


def test_families_are_not_split() -> None:
    world = nested()
    families = torch.arange(len(world.rows)) // 3
    split = split_words(world.rows, world.labels, CLASSES, families, 0)
    assert not set(families[split.train].tolist()) & set(families[split.test].tolist())
    assert sorted([*split.train.tolist(), *split.test.tolist()]) == list(range(len(world.rows)))
    assert np.isclose(len(split.train) / len(world.rows), 0.8, atol=0.03)


def test_a_model_is_read_at_words_of_one_token() -> None:
    tiny_lm = pytest.importorskip("helpers.tiny_lm")
    model = tiny_lm.llama()
    letters = string.ascii_letters
    asked = {letter: "vowel" if letter.lower() in "aeiou" else "other" for letter in letters}
    sae = tiny_lm.random_sae()
    found = absorb(model, 0, sae, task={**asked, "ab": "vowel"}, examples=2, progress=False)
    assert "words left out, since they are not a single token: 1 of 53" in found.notes
    again = absorb(model, 0, sae, task={**asked, "ab": "vowel"}, examples=2, progress=False)
    assert str(found) == str(again)
    assert str(found.scores) == str(again.scores)


def test_example_words_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_lm = pytest.importorskip("helpers.tiny_lm")
    seen = {}

    def capture_after(_model: Any, _site: Any, prefix: Tensor, tokens: Tensor, **_: Any) -> Tensor:
        seen.update(prefix=prefix, tokens=tokens)
        return torch.zeros(len(tokens), tiny_lm.D)

    monkeypatch.setattr(absorption, "capture_after", capture_after)
    model = tiny_lm.llama()
    for words, left in ((None, 52 - 7), (10, 10)):
        found = absorb(model, 1, tiny_lm.random_sae(), examples=7, words=words, progress=False)
        assert len(seen["tokens"]) == left
        lines = model.tokenizer.decode(seen["prefix"]).splitlines()
        shown = [model.tokenizer(line[0])["input_ids"][0] for line in lines]
        assert len(shown) == 7
        assert not set(shown) & set(seen["tokens"].tolist())
    # Zeros do not predict a class.
    assert found.scores == ()


def test_first_letters_need_twenty_classes() -> None:
    tiny_lm = pytest.importorskip("helpers.tiny_lm")
    found = absorb(tiny_lm.llama(), 1, tiny_lm.random_sae(), progress=False)
    assert found.scores == ()
    assert "is 0 of 26" in found.notes[0]
    assert "must be at least 20" in found.notes[0]


def test_words_have_the_prompt_before_them() -> None:
    tiny_lm = pytest.importorskip("helpers.tiny_lm")
    tokenizer = tiny_lm.tokenizer()
    words = words_of("first letter", tokenizer)
    assert sorted(words.words) == sorted(string.ascii_letters)
    assert all(
        words.classes[c] == word.lower() for c, word in zip(words.labels, words.words, strict=True)
    )
    families = words.families()
    assert len(families.unique()) == 26
    assert families[words.words.index("q")] == families[words.words.index("Q")]
    prefix, used = prefix_of(
        words, "first letter", tokenizer, examples=3, template="Say {word}: {label}", seed=1
    )
    text = tokenizer.decode(prefix)
    shown = [words.words[place] for place in used]
    assert text == "".join(f"Say {word}: {word.lower()}\n" for word in shown) + "Say "
    assert len(set(words.labels[used].tolist())) == 3
    with pytest.raises(ValueError, match="template"):
        prefix_of(words, "", tokenizer, examples=1, template="{word}", seed=0)
    with pytest.raises(ValueError, match="one token"):
        words_of({"ab": "x"}, tokenizer)
    with pytest.raises(ValueError, match="first letter"):
        words_of("last letter", tokenizer)


def test_a_single_class_has_no_floor() -> None:
    sae = saefast.SAE(16, 64, k=4, seed=0)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 16, generator=generator)
    labels = torch.where(torch.arange(400) % 2 == 0, 0, -1)
    rows[labels == 0, 0] += 4
    found = absorb_rows(rows, labels, ["a"], sae, progress=False)
    score = found.overall("absorption fraction")
    assert 0 <= score.value < 1
    assert math.isnan(score.floor)
