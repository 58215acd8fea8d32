"""Steering in models with a planted unembedding, where the result is known."""

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny_lm import TEXTS, llama, random_sae, tokenizer
from torch import Tensor

import saefast
from saefast.evaluation.conditions import Condition
from saefast.evaluation.scores import Evaluation
from saefast.evaluation.steering import comparisons, steer
from saefast.evaluation.steering.inputs import partners_of
from saefast.evaluation.steering.outcomes import Continuations, Firing, Member
from saefast.lm import LanguageModel
from saefast.lm.generation import Opening
from saefast.lm.unembedding import unembed
from saefast.match.result import Matches

pytestmark = pytest.mark.usefixtures("light")

VOCABULARY, WIDTH = 258, 264
QUICK: dict[str, Any] = {
    "corpus": TEXTS,
    "new_tokens": 10,
    "batch_size": 16,
    "openers": ["The quick", "def add("],
    "progress": False,
}


def axes(turned: bool) -> Tensor:
    """Return the [WIDTH, WIDTH] orthonormal axes of the residual stream."""
    if not turned:
        return torch.eye(WIDTH)
    generator = torch.Generator().manual_seed(7)
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]


@cache
def planted_model(*, turned: bool = False) -> LanguageModel:
    """Return layers that add nothing; axis t of the residual stream is token t's logit."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.embed_tokens.weight.copy_(torch.randn(VOCABULARY, WIDTH) @ axes(turned))
    model.lm_head.weight.copy_(0.6 * axes(turned)[:VOCABULARY])
    return LanguageModel(model, tokenizer(), "planted")


def planted_sae(first: int = 60, *, turned: bool = False, scale: float = 1.0) -> saefast.SAE:
    """Return an SAE: latent j writes token first + j, and fires where its coordinate > 1."""
    sae = saefast.SAE(WIDTH, 40, variant="relu", seed=0).requires_grad_(False)
    rows = axes(turned)[first : first + 40]
    sae.W_dec.copy_(rows / scale)
    sae.W_enc.copy_(rows * scale)
    sae.b_enc.fill_(-scale)
    return sae


GROUPS = {"all": torch.ones(40, dtype=torch.bool)}


def writes(token: int) -> Any:
    return lambda ids: ids == token


RULES = [{j: writes(60 + j) for j in range(40)}]


def planted(**settings: Any) -> Evaluation:
    arguments = {"features": 8, "rules": RULES, "strengths": (10.0, 30.0), **QUICK, **settings}
    return steer(planted_model(), 0, planted_sae(), **arguments)


def test_planted_directions_succeed_and_others_do_not() -> None:
    found = planted()
    success = found.overall("success by rule")
    assert (success.value, success.high) == (1, 1)
    assert success.low == pytest.approx(0.025 ** (1 / success.n))
    assert success.floor == 0
    assert success.rival_value <= 0.25
    above = found.overall("success by rule above mismatched")
    assert above.primary
    assert above.value == 1
    assert {score.measure for score in found.scores if score.primary} == {above.measure}
    along = {score.task: score.value for score in found.scores if score.measure == success.measure}
    assert {along[f"along {name}"] for name in ("mismatched", "random", "minus")} == {0}
    # Along the direction of largest variance, tokens of the text become more likely.
    assert along["along covariance"] <= 0.25
    assert found.overall("divergence").value > 0.5
    (columns,) = found.features
    sampled = ~columns["steer_success"].isnan()
    assert int(sampled.sum()) == 8
    assert bool((columns["steer_success"][sampled] == 1).all())
    assert bool((columns["steer_success_control"][sampled] == 0).all())


def test_differences_of_means_are_not_a_trivial_rival() -> None:
    found = planted(controls=["diffmean"], features=4)
    success = found.overall("success by rule")
    assert success.rival == ""
    (along,) = [
        score
        for score in found.scores
        if (score.measure, score.task) == (success.measure, "along diffmean")
    ]
    assert along.n == success.n


def test_scales_of_latents_and_rotations_do_not_matter() -> None:
    # Other directions are drawn, or are principal axes whose sign is arbitrary.
    settings: dict[str, Any] = {"controls": ("mismatched", "minus"), "rules": RULES, **QUICK}
    settings |= {"features": 8, "strengths": (3.0, 10.0)}
    table, scaled, rotated = (
        steer(planted_model(turned=turned), 0, sae, **settings).to_table().to_pylist()
        for turned, sae in (
            (False, planted_sae()),
            (False, planted_sae(scale=4.0)),
            (True, planted_sae(turned=True)),
        )
    )
    assert str(scaled) == str(table)
    assert len(rotated) == len(table)
    for row, other in zip(table, rotated, strict=True):
        # A planted direction raises one token; rounding chooses the next 19 of the input score.
        if row["measure"] == "input score":
            continue
        for name in ("value", "low", "high", "floor", "rival_value"):
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5, nan_ok=True), row


def test_texts_that_are_not_fluent_do_not_succeed() -> None:
    assert planted(most_loss=-5.0).overall("success by rule").value == 0
    assert planted(most_loss=-5.0).overall("gain by rule").value == 0


def test_strength_zero_does_not_change_bits() -> None:
    found = planted(strengths=(0.0,), rule="norm")
    for measure in ("gain by rule", "gain by self", "rise of the loss", "divergence"):
        score = found.overall(measure)
        assert score.value == 0
        assert math.isnan(score.low)  # of equal items only: each is zero


def test_a_match_fires_on_the_token_that_the_latent_writes() -> None:
    """The encoder of the match reads the embedding of that token."""
    other = planted_sae()
    embeddings = planted_model().model.model.embed_tokens.weight
    other.W_enc.copy_(torch.nn.functional.normalize(embeddings[60:100], dim=1))
    other.b_enc.fill_(-8.0)
    identity, none = torch.arange(40), torch.zeros(40, dtype=torch.bool)
    pair = Matches(partner=identity, similarity=identity.double(), mutual=none)
    found = steer(
        planted_model(),
        0,
        [planted_sae(), other],
        matches={(0, 1): pair},
        features=6,
        rule="norm",
        strengths=(3.0,),
        most_loss=5.0,
        **QUICK,
    )
    assert found.overall("success by other seed").value == 1
    assert found.overall("success by other seed").n == 6
    assert found.overall("success by self").n == 12
    assert any("not defined for 6 of 12" in note for note in found.notes)


def test_an_opposite_match_fires_with_the_opposite_sign() -> None:
    """Latents of abstopk may match in the opposite direction, where their values have that sign."""
    sae, other = (saefast.SAE(24, 48, k=6, variant="abstopk", seed=0) for _ in range(2))
    with torch.no_grad():
        other.W_dec.neg_()
        other.W_enc.neg_()
    identity = torch.arange(48)
    pair = Matches(
        partner=identity, similarity=torch.ones(48), mutual=torch.ones(48, dtype=torch.bool)
    )
    items = SimpleNamespace(parts=[("trained", 0, SimpleNamespace(sae=sae, numbers=identity))])
    partners = partners_of({(0, 1): pair}, items, [sae, other])
    assert partners == [[Member(other, j, -1)] for j in range(48)]
    same = partners_of({(0, 1): pair}, items, [sae, sae])
    rows = torch.randn(4, 9, 24, generator=torch.Generator().manual_seed(3))
    texts = SimpleNamespace(activations=rows)
    text, item = torch.cartesian_prod(torch.arange(4), identity).T
    value = Firing("other seed", partners).value(texts, text, item)
    assert 0 < float(value.mean()) < 0.5
    assert torch.equal(value, Firing("other seed", same).value(texts, text, item))


def test_firing_is_the_share_of_new_tokens_with_the_latent() -> None:
    model, sae = llama(), random_sae()
    tokens = torch.randint(2, 250, (3, 12), generator=torch.Generator().manual_seed(2))
    texts = Continuations(Opening(model, 1, "def add(a", batch_size=4), tokens, model.tokenizer)
    code = sae.encode(texts.activations.flatten(0, 1))
    fires = torch.zeros(36, 48).scatter_(1, code.indices, code.values).view(3, 12, 48) > 0
    share = fires.double().mean(1)
    assert 0 < float(share.mean()) < 0.5
    text, item = torch.cartesian_prod(torch.arange(3), torch.arange(48)).T
    both = [[Member(sae, j), Member(sae, (j + 1) % 48)] for j in range(48)]
    for members, want in (
        ([its[:1] for its in both], share),
        (both, (share + share.roll(-1, 1)) / 2),
    ):
        value, gain = Firing("self", members).compare(texts, text, item)
        torch.testing.assert_close(value, want.flatten(), rtol=0, atol=1e-12)
        torch.testing.assert_close(gain, (want - want[0]).flatten(), rtol=0, atol=1e-12)


def test_latents_without_an_outcome_are_counted() -> None:
    other = Condition(name="others", saes=(planted_sae(100),))
    found = planted(conditions=[other])
    assert found.overall("success by rule", "others").n == 0
    assert any("8 of 8 latents of others" in note for note in found.notes)
    rules = {"trained": RULES, "others": [{j: writes(100 + j) for j in range(40)}]}
    found = planted(conditions=[other], rules=rules)
    assert found.overall("success by rule", "others").value == 1
    difference = found.overall("success by rule", "trained - others")
    assert difference.value == 0
    assert -0.5 < difference.low < 0 < difference.high < 0.5


def test_conditions_can_have_fewer_latents() -> None:
    other = Condition(name="others", saes=(planted_sae(first=100),))
    rules = {"trained": RULES, "others": [{j: writes(100 + j) for j in range(40)}]}
    found = planted(conditions=[other], rules=rules, features=6, rival_features=3)
    assert found.overall("success by rule").n == 6
    assert found.overall("success by rule", "others").n == 3
    assert found.overall("success by rule", "trained - others").n == 3


def test_groups_are_compared_with_random_latents_of_equal_mass() -> None:
    first = torch.arange(40) < 10
    rules = [{j: RULES[0][j] for j in range(10)} | {j: writes(0) for j in range(10, 40)}]
    found = planted(
        rules=rules,
        groups={"first": first, "rest": ~first},
        mass=[torch.ones(40)],
        features=8,
    )
    assert found.overall("success by rule", group="first").value == 1
    assert found.overall("success by rule", group="first").n == 4
    assert found.overall("success by rule", group="rest").value == 0
    assert 0 < found.overall("success by rule", group="first:mass").value < 1
    # A quarter of the latents, in half of the sample.
    assert found.overall("success by rule").value == pytest.approx(0.25)


class Judge:
    """Prefer the text with more of a letter, or the first text, or give no answer."""

    name = "letters"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def rate(self, explanations: list[str], texts: list[str]) -> list[float]:
        if self.kind == "first":
            return [1.0, 0.0] * (len(texts) // 2)
        if self.kind == "silent":
            return [float("nan")] * len(texts)
        return [
            text.count(explanation) / max(len(text), 1)
            for explanation, text in zip(explanations, texts, strict=True)
        ]


@pytest.mark.parametrize("strengths", [(30.0,), (10.0, 30.0)])
@pytest.mark.parametrize("openers", [2, 3])
def test_comparisons_are_counted_in_advance(strengths: tuple[float, ...], openers: int) -> None:
    model, judge = planted_model(), Judge("letters")
    judged = []
    judge.rate = lambda words, texts: judged.extend(texts) or [0.0] * len(texts)
    words = [[model.tokenizer.decode([60 + j]) for j in range(40)]]
    controls = ("mismatched", "random")
    planted(
        explanations=words,
        judge=judge,
        strengths=strengths,
        openers=["The quick", "def add(", "Nothing"][:openers],
        controls=controls,
        new_tokens=2,
    )
    # Both texts of a comparison, in either order.
    assert len(judged) == 4 * 8 * comparisons(openers, len(strengths), len(controls))


@pytest.mark.parametrize(("kind", "success"), [("letters", 1), ("first", 0), ("silent", 0)])
def test_a_judge_must_prefer_a_text_in_both_orders(kind: str, success: float) -> None:
    model = planted_model()
    words = [[model.tokenizer.decode([60 + j]) for j in range(40)]]
    found = planted(explanations=words, judge=Judge(kind), outcome="judge")
    assert found.overall("success by judge").value == success
    silent = [note for note in found.notes if "letters gave no number" in note]
    assert ("gave no number in 0 of" in silent[0]) == (kind != "silent")


def test_the_embedding_is_compared_with_the_explanation() -> None:
    model = planted_model()
    words = [[model.tokenizer.decode([60 + j]) * 3 for j in range(40)]]

    def counted(texts: Any) -> Tensor:
        ids = [model.tokenizer(text)["input_ids"] for text in texts]
        return torch.stack([torch.bincount(torch.tensor(i), minlength=VOCABULARY) for i in ids])

    found = planted(explanations=words, embedding=counted)
    assert found.overall("success by embedding").value == 1
    assert found.overall("cosine of at least 0.45").value == 1
    assert found.overall("gain by embedding").value > 0.8


def test_token_scores_equal_their_definitions() -> None:
    model, sae = planted_model(), planted_sae()
    found = planted(features=40, new_tokens=1)
    (columns,) = found.features
    opener = torch.tensor(model.tokenizer(QUICK["openers"][0])["input_ids"])
    here = model.model.model.embed_tokens(opener[-1:])
    for latent in range(40):
        raised = here + 10 * sae.encode(here).values.max() * sae.W_dec[latent]
        chance = model.model.lm_head(model.model.model.norm(raised)).softmax(1)[0]
        top = unembed(model, sae.W_dec[latent : latent + 1])[0].topk(20).indices
        assert 60 + latent in top.tolist()
        rank = min((chance > chance[token]).sum() for token in top)
        score = float((1 - rank / VOCABULARY) * chance[top].max())
        assert float(columns["output_score"][latent]) == pytest.approx(score, rel=1e-4)
    ids = [model.tokenizer(text + "\n\n")["input_ids"] for text in TEXTS]
    # Every page is one context without its first position, whose activation is left out.
    letters = torch.tensor([each for text in ids for each in text])
    pages = [page[1:] for page in letters.split(256)]
    for latent in (0, 7, 20):
        top = unembed(model, sae.W_dec[latent : latent + 1])[0].topk(20).indices
        peaks = []
        for page in pages:
            z = sae.encode(model.model.model.embed_tokens(page))
            values = torch.where(z.indices == latent, z.values, 0.0).amax(1)
            if values.max() > 0:
                peaks.append(int(page[int(values.argmax())]))
        share = sum(peak in top.tolist() for peak in peaks) / len(peaks)
        assert float(columns["input_score"][latent]) == pytest.approx(share)


def test_tables_are_reproducible_and_repeats_measure_noise() -> None:
    quick = {"features": 4, "strengths": (30.0,), "new_tokens": 4, "most_loss": 5.0, "seed": 1}
    first = planted(**quick)
    assert str(first.to_table().to_pylist()) == str(planted(**quick).to_table().to_pylist())
    noise = planted(**quick, repeats=2).noise
    assert noise["success by rule"] == 0
    assert noise["divergence"] > 0


def test_one_run_estimates_the_noise_of_its_sample() -> None:
    options = {"features": 12, "strengths": (8.0,), "least_gain": 0.2, "new_tokens": 6}
    primary = "success by rule above mismatched"
    found = planted(**options)
    assert list(found.noise) == [primary]
    estimate = found.noise[primary]
    measured = planted(**options, repeats=8).noise[primary]
    assert 0.6 * measured < estimate < 1.6 * measured
    stated = f"{primary}: differences of two SAEs below {1.96 * 2**0.5 * estimate:.3f} are"
    assert stated in "\n".join(found.lines())


def test_sampled_latents_are_examined_and_their_properties_predict() -> None:
    asked: list[list[Tensor]] = []

    def examine(latents: Any) -> dict[str, list[Tensor]]:
        asked.append(list(latents))
        score = torch.full((40,), torch.nan, dtype=torch.float64)
        score[latents[0]] = torch.linspace(0, 1, len(latents[0]), dtype=torch.float64)
        return {"detection": [score]}

    half = [{j: writes(60 + j) for j in range(20)} | {j: writes(0) for j in range(20, 40)}]
    stability = [torch.rand(40, generator=torch.Generator().manual_seed(2))]
    found = planted(features=20, rules=half, predictors={"stability": stability}, examine=examine)
    ((latents,),) = asked
    (columns,) = found.features
    sampled = ~columns["steer_success"].isnan()
    assert sampled.nonzero()[:, 0].tolist() == latents.tolist()
    assert columns["steer_detection"][sampled].tolist() == pytest.approx(
        torch.linspace(0, 1, len(latents)).tolist()
    )
    assert columns["steer_detection"][~sampled].isnan().all()
    by_measure = {
        (score.measure, score.task): score for score in found.scores if "spearman" in score.measure
    }
    assert by_measure["spearman", "detection"].value < -0.6  # the first half succeeds
    joint = {task for measure, task in by_measure if measure == "joint spearman"}
    assert joint == {"detection", "stability", "log firing rate"}
    assert any("detection and log firing rate held fixed" in note for note in found.notes)
    with pytest.raises(ValueError, match=r"examine\(...\)\['p'\]\[0\] must have shape \(40,\)"):
        planted(features=2, new_tokens=2, examine=lambda latents: {"p": [torch.zeros(3)]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "loud"}, "rule must be one of activation, norm, fixed, clamp, got 'loud'"),
        ({"controls": ["left"]}, "controls must be one of mismatched, random"),
        ({"openers": ["one"]}, "openers must be at least 2 texts"),
        ({"strengths": ()}, "strengths must hold at least one number"),
        ({"features": 0}, "^features must be at least 1, got 0"),
        ({"rival_features": 0}, "rival_features must be at least 1, got 0"),
        ({"activations": torch.zeros(20, 5)}, "activations must be from the site 0, whose wid"),
        ({"outcome": "taste"}, "outcome must be a defined outcome, rule, self, got 'taste'"),
        ({"explanations": [["x"]]}, r"explanations\[0\] must be one for each of the 40 latents"),
        (
            {"rules": [{j: lambda ids: ids[:, :2] > 0 for j in range(40)}]},
            r"rules must return a bool tensor \(2, 11\), the shape of the tokens, got \(2, 2\) of",
        ),
        (
            {"rules": [{j: lambda ids: ids / 2 for j in range(40)}]},
            r"rules must return a bool tensor .*, got \(2, 11\) of torch.float32",
        ),
        ({"mass": []}, r"mass must be one tensor for each SAE, 1, got 0"),
        ({"mass": [torch.ones(41)], "groups": GROUPS}, r"mass\[0\] must have shape \(40,\)"),
        (
            {"predictors": {"p": [torch.zeros(3)]}},
            r"predictors\['p'\]\[0\] must have shape \(40,\)",
        ),
    ],
)
def test_errors_name_bad_input(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planted(**{"features": 2, "new_tokens": 2, **settings})
