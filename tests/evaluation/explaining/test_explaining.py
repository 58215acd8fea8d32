"""The evaluation "explain" on SAEs with planted latents, and its parts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import tiny_lm
from helpers.chat_server import serving
from helpers.planted_text import WordTokenizer, write_text

import saefast
from saefast.evaluation.conditions import Condition
from saefast.evaluation.explaining.contexts import text_of_sequences, token_text
from saefast.evaluation.explaining.evaluation import explain
from saefast.evaluation.explaining.explained import Explained
from saefast.evaluation.explaining.firings import firings
from saefast.evaluation.explaining.judges import EndpointJudge, RulesJudge
from saefast.evaluation.explaining.judges.calibration import KNOWN_RULES
from saefast.evaluation.explaining.predicates import fold
from saefast.evaluation.explaining.rated_rules import RATED, rated_rules, typical_questions
from saefast.evaluation.explaining.rule_reader import RuleReader
from saefast.evaluation.explaining.rules import find_rules
from saefast.evaluation.scores import Evaluation
from saefast.lm import LanguageModel

CONTEXTS = 80
TOKENS = 16  # latents that fire on a token; as many others fire at random


class World(NamedTuple):
    """A store, SAEs whose latents are its coordinates, and their true explanations."""

    model: LanguageModel
    store: Path
    sae: saefast.SAE
    other: saefast.SAE
    groups: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return planted_world(tmp_path_factory.mktemp("explain"))


def planted_world(folder: Path, axes: torch.Tensor | None = None) -> World:
    """Make latents 0 to 15 fire on a token each, 16 to 31 as often at random, 32 never.

    Args:
        folder: folder for the store.
        axes: [33, 33] orthonormal rows, along which the activations lie; None: their coordinates.

    Returns:
        The world, with latents that read along the axes.
    """
    text = token_text(folder / "text", write_text(folder / "text", CONTEXTS))
    pieces = [fold(piece) for piece in text.pieces(0, text.rows)]
    names, counts = np.unique(np.array(pieces, dtype=object), return_counts=True)
    words = [str(names[i]) for i in np.argsort(-counts, kind="stable")[4 : 4 + TOKENS]]
    fires = np.array([[piece == word for word in words] for piece in pieces])
    generator = np.random.default_rng(0)
    noise = np.stack([generator.permutation(column) for column in fires.T], axis=1)
    planted_rows = np.concatenate([fires, noise, np.zeros((text.rows, 1), dtype=bool)], axis=1)
    activations = torch.from_numpy(planted_rows * generator.uniform(1, 2, planted_rows.shape))
    axes = torch.eye(33) if axes is None else axes
    tokenizer = write_text(
        folder / "store", CONTEXTS, activations=activations.float() @ axes, site="resid.2"
    )
    model = LanguageModel(tiny_lm.llama().model, tokenizer)
    groups = {"stable": torch.arange(33) >= TOKENS, "unstable": torch.arange(33) < TOKENS}
    return World(model, folder / "store", reading_sae(axes), reading_sae(axes.flip(0)), groups)


def reading_sae(axes: torch.Tensor, *, bias: float = 0.0, scale: float = 1.0) -> saefast.SAE:
    """Return an SAE whose latents read and write along orthonormal axes [m, d]."""
    m, d = axes.shape
    sae = saefast.SAE(d, m, variant="relu", seed=0)
    with torch.no_grad():
        sae.W_enc.copy_(axes * scale)
        sae.W_dec.copy_(axes / scale)
        sae.b_enc.fill_(bias * scale)
        sae.b_dec.zero_()
    return sae


def explained(world: World, **settings: Any) -> Evaluation:
    return explain(
        world.model,
        2,
        world.sae,
        world.store,
        progress=False,
        **{"features": 32, "repeats": 1, **settings},
    )


def test_planted_tokens_are_explained_and_noise_is_not(world: World) -> None:
    found = explained(world, groups=world.groups)
    columns = found.features[0]
    assert columns["explanation_kind"][:TOKENS] == ["surface"] * TOKENS
    assert columns["explanation_kind"][TOKENS : 2 * TOKENS].count("unclear") >= TOKENS - 3
    assert columns["explanation_kind"][32] == ""
    assert columns["rule_score"][:TOKENS].tolist() == [1.0] * TOKENS
    assert columns["detection"][:TOKENS].tolist() == [1.0] * TOKENS
    assert columns["fuzzing"][:TOKENS].tolist() == [1.0] * TOKENS
    assert abs(float(columns["detection"][TOKENS:32].mean()) - 0.5) < 0.1
    assert found.overall("specificity", group="unstable").value > 0.35
    assert abs(found.overall("specificity", group="stable").value) < 0.1
    assert abs(found.overall("specificity", "scrambled").value) < 0.1


def test_scales_of_latents_and_rotations_do_not_matter(world: World, tmp_path: Path) -> None:
    # Rounding of rotated activations must not make a latent fire.
    bias = -0.5
    axes = torch.linalg.qr(torch.randn(33, 33, generator=torch.Generator().manual_seed(8)))[0]
    turned = planted_world(tmp_path, axes)._replace(sae=reading_sae(axes, bias=bias))
    plain, scaled = (
        world._replace(sae=reading_sae(torch.eye(33), bias=bias, scale=scale)) for scale in (1, 4)
    )
    tables = [
        str(explained(each, groups=world.groups).to_table().to_pylist())
        for each in (plain, scaled, turned)
    ]
    assert tables[1] == tables[0]
    assert tables[2] == tables[0]


def test_surface_share_of_groups_is_compared_at_equal_rate(world: World) -> None:
    found = explained(world, groups=world.groups)
    surface = "explained by surface"
    assert found.overall(surface, group="unstable").value == 1.0
    assert found.overall(surface, group="stable").value <= 3 / TOKENS
    apart = found.overall(surface, group="unstable - stable at equal firing rate")
    assert apart.value > 0.8
    assert apart.low > 0.5
    assert apart.floor == 0.0
    random = found.overall(surface, group="stable:mass")
    assert random.low < 0.5 < random.high


def test_specificity_is_primary_and_scores_have_intervals(world: World) -> None:
    rival = Condition(name="turned", saes=(world.other,))
    found = explained(world, conditions=[rival], repeats=2)
    assert {score.measure for score in found.scores if score.primary} == {"specificity"}
    for score in found.scores:
        if not np.isnan(score.value):
            assert score.low <= score.value <= score.high, score
    assert found.overall("rule balanced accuracy").rival == "turned"
    assert found.overall("rule balanced accuracy", "trained - turned").value == pytest.approx(0)
    assert set(found.noise) == {"specificity", "detection", "fuzzing"}
    assert any("1 of 33 latents never fire" in note for note in found.notes)
    assert any("features with a known explanation: 1.00" in note for note in found.notes)


def test_order_of_latents_and_a_second_run_do_not_change_scores(world: World) -> None:
    first, again = explained(world), explained(world)
    assert str(first.to_table().to_pylist()) == str(again.to_table().to_pylist())
    turned = explained(world._replace(sae=world.other))
    old, new = first.features[0], turned.features[0]
    assert old["explanation"] == new["explanation"][::-1]
    torch.testing.assert_close(old["rule_score"], new["rule_score"].flip(0), equal_nan=True)


def answering(world: World) -> Callable[[dict[str, Any]], str]:
    """Return a judge that names the most frequent marked token, and understands rules in words."""
    rules = {rule.text: rule for rule in KNOWN_RULES}
    tokenizer = WordTokenizer()

    def fits(description: str, passage: str) -> bool:
        bare = re.sub("[\u27e6\u27e7]", "", passage)
        if description in rules:
            text = text_of_sequences([tokenizer(bare)["input_ids"]], tokenizer)
            return bool(RuleReader(text).holds(rules[description]).any())
        marked = re.findall("\u27e6([^\u27e7]*)\u27e7", passage)
        wanted = description.removeprefix("only ")
        pieces = marked if "\u27e6" in passage else re.findall(r" ?\w+| ?[^\w\s]+|\s", bare)
        return any(fold(piece) == wanted for piece in pieces)

    def answer(body: dict[str, Any]) -> str:
        asked = json.loads(body["messages"][-1]["content"])
        if isinstance(asked, dict):
            return str([int(fits(asked["description"], each)) for each in asked["passages"]])
        marked = [fold(token) for each in asked for token, _ in each["strongest"]]
        return f"Description: only {max(sorted(set(marked)), key=marked.count)}"

    return answer


def test_endpoint_explains_and_judges_with_one_request_each(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    settings = {"progress": False, "backoff": 0.01, "per_prompt": 20}
    with serving(answer=answering(world)) as server:
        judge = EndpointJudge(server.url, "oracle", **settings)
        dry = explained(world, judge=judge, features=8, out=tmp_path, dry_run=True)
        assert len(server.bodies) == 0
        assert dry.features[0]["detection"].isnan().all()
        found = explained(world, judge=judge, features=8, out=tmp_path)
        calls = len(server.bodies)
        again = explained(
            world, judge=EndpointJudge(server.url, "oracle", **settings), features=8, out=tmp_path
        )
        assert len(server.bodies) == calls
    remark = next(note for note in dry.notes if "it was not called" in note)
    expected = int(re.findall(r"about (\d+) requests", remark)[0])
    assert abs(expected - calls) <= 0.1 * calls
    assert str(found.to_table().to_pylist()) == str(again.to_table().to_pylist())
    columns = found.features[0]
    judged = (~columns["detection"][:TOKENS].isnan()).nonzero()[:, 0].tolist()
    assert len(judged) >= 2
    for latent in judged:
        assert columns["explanation"][latent].startswith("only ")
        assert columns["detection"][latent] == columns["fuzzing"][latent] == 1.0
        assert columns["detection_shuffled"][latent] < 1.0
    assert (tmp_path / "judgements.jsonl").is_file()


def test_scores_of_an_unable_judge_are_withheld(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def never(body: dict[str, Any]) -> str:
        return str([0] * len(json.loads(body["messages"][-1]["content"])["passages"]))

    with serving(answer=never) as server:
        judge = EndpointJudge(server.url, "never", progress=False, per_prompt=20)
        found = explained(world, judge=judge)
        calls = len(server.bodies)
    assert calls < 100  # only those of the calibration
    assert any(
        "cannot tell right explanations from wrong ones, and its scores are withheld" in note
        for note in found.notes
    )
    measures = {score.measure for score in found.scores}
    assert "rule balanced accuracy" in measures
    assert not measures & {"detection", "specificity", "fuzzing"}
    assert found.features[0]["detection"].isnan().all()


def test_given_latents_are_rated_as_explain_rates_them(world: World) -> None:
    """With the rules of two SAEs, of which one has some latents and the other has others."""
    text = token_text(world.store, world.model.tokenizer)
    saes = [world.sae, world.other]
    fired = firings(saes, world.store, progress=False)
    rules = find_rules(text, fired, progress=False)
    subjects = [
        Explained(its, found, sae.W_dec.detach())
        for its, found, sae in zip(fired, rules, saes, strict=True)
    ]
    chosen = [torch.tensor([1, 3, 20, 32]), torch.tensor([30, 5])]
    found = rated_rules(RulesJudge(), subjects, text, chosen)
    assert tuple(found) == RATED
    for place, latents in enumerate((chosen[0][:3], chosen[1])):  # latent 32 never fires
        for columns in found.values():
            known = columns[place].isfinite().nonzero()[:, 0]
            assert known.tolist() == sorted(latents.tolist())
    assert found["detection"][0][[1, 3]].tolist() == [1.0, 1.0]
    assert found["fuzzing"][0][[1, 3]].tolist() == [1.0, 1.0]
    assert abs(float(found["detection"][0][20]) - 0.5) < 0.2
    assert found["detection"][1][30] == 1.0  # coordinate 2 of the other order
    each = explained(world).features[0]["detection"][[1, 3, 20]]
    torch.testing.assert_close(found["detection"][0][[1, 3, 20]], each)


def test_a_judge_that_explains_is_asked_about_the_rules_given(world: World) -> None:
    seen: list[str] = []

    class Reader(RulesJudge):
        explains = True

        def explain(self, examples: Any) -> list[str]:
            raise AssertionError("rules are given")

        def rate(self, questions: Any) -> Any:
            seen.extend(question.explanation.text for question in questions)
            return super().rate(questions)

    text = token_text(world.store, world.model.tokenizer)
    (fired,) = firings([world.sae], world.store, progress=False)
    (rules,) = find_rules(text, [fired], progress=False)
    subject = Explained(fired, rules, world.sae.W_dec.detach())
    latents = torch.tensor([0, 4])
    rated_rules(Reader(), [subject], text, [latents])
    assert set(seen) == {rules.texts[latent] for latent in latents.tolist()}
    assert len(seen) <= len(typical_questions(text, len(latents)))


def test_errors_name_bad_input(world: World) -> None:
    with pytest.raises(ValueError, match=r"of the site resid\.1, got those of resid\.2"):
        explain(world.model, 1, world.sae, world.store)
    with pytest.raises(TypeError, match="activations must be a store with tokens or its path"):
        explain(world.model, 2, world.sae, torch.zeros(3, 33))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must have the width of the activations, d=33"):
        explain(world.model, 2, saefast.SAE(4, 8, k=2), world.store)
    with pytest.raises(ValueError, match="or 'scrambled', got 'trained'"):
        explained(world, conditions=[Condition(name="trained", saes=(world.sae,))])
    with pytest.raises(ValueError, match="features must be at least 2"):
        explained(world, features=0)
    with pytest.raises(ValueError, match=r"mass\[0\] must have shape"):
        explained(world, mass=torch.ones(3))
