"""Loss of a model with reconstructions or without single features."""

from typing import Any, ClassVar

import pytest
import torch
from helpers.tiny_lm import TEXTS, D, gpt2, llama, random_sae, write_in_place
from torch import Tensor

import saefast
from saefast.lm import (
    LanguageModel,
    as_corpus,
    evaluate_patched,
    find_site,
    first_order_effects,
    marginal_effects,
)
from saefast.lm.packing import Packing
from saefast.lm.sites import capture
from saefast.types import SparseCode

pytestmark = pytest.mark.usefixtures("light")


SITES = [0, "mlp.2", "attn.1", 3, "model.layers.1.self_attn.o_proj", "model.embed_tokens"]


def pages(model: LanguageModel, context: int = 12) -> list[Tensor]:
    """Cut all texts into contexts: [n, context] whole ones, and the last, shorter one."""
    letters = model.tokenizer("".join(text + "\n\n" for text in TEXTS))["input_ids"]
    whole = len(letters) // context * context
    return [torch.tensor(letters[:whole]).view(-1, context), torch.tensor([letters[whole:]])]


def plainly(model: LanguageModel, site: int | str, change: Any) -> tuple[float, float]:
    """Return mean cross entropy and divergence from the definition.

    `change` gets the activations [n, d] after first positions and returns others.
    """
    module = find_site(model.model, site).module
    found = []

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        behind = x[:, 1:]
        x = torch.cat([x[:, :1], change(behind.flatten(0, 1)).view_as(behind)], dim=1)
        return x if isinstance(output, Tensor) else (x, *output[1:])

    for ids in pages(model):
        clean = model.model(input_ids=ids).logits[:, 1:-1].log_softmax(-1)
        handle = module.register_forward_hook(hook)
        logits = model.model(input_ids=ids).logits[:, 1:-1].log_softmax(-1)
        handle.remove()
        ce = torch.nn.functional.nll_loss(
            logits.flatten(0, 1), ids[:, 2:].flatten(), reduction="none"
        )
        kl = torch.nn.functional.kl_div(logits, clean, log_target=True, reduction="none").sum(-1)
        found.append((ce, kl.flatten()))
    ce, kl = (torch.cat(values).double().mean() for values in zip(*found, strict=True))
    return float(ce), float(kl)


def activations(model: LanguageModel, site: int | str) -> Tensor:
    """Return the activations of all texts after first positions, [n, d]."""
    chosen = [find_site(model.model, site)]
    return torch.cat(
        [capture(model.model, chosen, ids)[0][:, 1:].flatten(0, 1) for ids in pages(model)]
    )


class TestPatching:
    SETTINGS: ClassVar[dict[str, Any]] = {
        "corpus": TEXTS,
        "context": 12,
        "batch_size": 3,
        "progress": False,
    }

    @pytest.mark.parametrize("site", SITES)
    def test_every_variant_equals_its_definition(self, site: int | str) -> None:
        model = llama()
        write_in_place(model)
        sae = random_sae()
        mask = torch.rand(48, generator=torch.Generator().manual_seed(0)) < 0.4
        nothing = torch.zeros(48, dtype=torch.bool)
        found = evaluate_patched(model, site, sae, {"some": mask, "none": nothing}, **self.SETTINGS)
        rows = activations(model, site)

        def masked(keep: Tensor) -> Any:
            def change(x: Tensor) -> Tensor:
                dense = sae.encode(x).to_dense(48) * keep
                return dense @ sae.W_dec + sae.b_dec

            return change

        changes = {
            "clean": lambda x: x,
            "zero": torch.zeros_like,
            "mean": lambda x: rows.mean(0).expand_as(x),
            "full": masked(~nothing),
        }
        for name, change in changes.items():
            effect = getattr(found, name)
            ce, kl = plainly(model, site, change)
            assert effect.ce.value == pytest.approx(ce, rel=1e-5)
            assert effect.kl.value == pytest.approx(kl, rel=1e-4, abs=1e-7)
        for masks, kept in (
            (found.keep, {"some": mask, "none": nothing}),
            (found.drop, {"some": ~mask, "none": ~nothing}),
        ):
            assert list(masks) == ["some", "none"]
            for name, keep in kept.items():
                ce, kl = plainly(model, site, masked(keep))
                assert masks[name].ce.value == pytest.approx(ce, rel=1e-5)
                assert masks[name].kl.value == pytest.approx(kl, rel=1e-4)
        assert found.predictions == sum(ids[:, 2:].numel() for ids in pages(model))
        assert found.drop["none"] == found.full
        # The model is unchanged.
        again = evaluate_patched(model, site, sae, **self.SETTINGS)
        assert again.full == found.full
        assert not any("forward" in module.__dict__ for module in model.model.modules())

    def test_scores_are_0_at_the_floor_and_1_unmodified(self) -> None:
        found = evaluate_patched(llama(), 1, random_sae(), **self.SETTINGS)
        clean, zero, mean, full = found.clean, found.zero, found.mean, found.full
        assert clean.kl.value == 0
        assert clean.ce_increase == (0, 0)
        assert clean.ce_score == clean.kl_score == clean.ce_score_mean == clean.kl_score_mean
        assert clean.kl_score == (1, 0)
        assert zero.ce_score.value == zero.kl_score.value == 0
        assert mean.ce_score_mean.value == mean.kl_score_mean.value == 0
        span = zero.ce.value - clean.ce.value
        assert full.ce_score.value == pytest.approx((zero.ce.value - full.ce.value) / span)
        assert full.kl_score.value == pytest.approx(1 - full.kl.value / zero.kl.value)
        assert full.ce_score_mean.value == pytest.approx(
            (mean.ce.value - full.ce.value) / (mean.ce.value - clean.ce.value)
        )
        assert full.kl_score_mean.value == pytest.approx(1 - full.kl.value / mean.kl.value)

    def test_errors_match_a_mean_over_contexts(self) -> None:
        # For contexts of equal length, the jackknife equals the usual standard error.
        corpus = ["".join(chr(97 + (i * i + j * 7) % 26) for i in range(119)) for j in range(6)]
        settings = {**self.SETTINGS, "corpus": ["".join(corpus)[:600]]}
        model = llama()
        found = evaluate_patched(model, 1, random_sae(), **settings)
        batches = Packing(12, 1).batches(as_corpus(settings["corpus"]), model.tokenizer)
        means = []
        for batch in batches:
            logits = model.model(input_ids=batch.ids).logits[0, 1:-1].log_softmax(-1)
            means.append(-logits.gather(1, batch.ids[0, 2:, None]).double().mean())
        whole = torch.stack(means[:50])
        assert found.contexts == 51  # the last has the empty line after the text
        assert found.clean.ce.value == pytest.approx(float(whole.mean()), rel=1e-2)
        assert found.clean.ce.error == pytest.approx(float(whole.std() / 50**0.5), rel=0.05)

    def test_layers_before_the_site_run_once_per_batch(self) -> None:
        model = llama()
        ran: dict[str, int] = {}
        for name, module in model.model.named_modules():
            if name.endswith(("down_proj", "o_proj")):
                module.register_forward_hook(
                    lambda *_, name=name: ran.update({name: ran.get(name, 0) + 1})
                )
        mask = torch.ones(48, dtype=torch.bool)
        zero = torch.zeros(D)
        for site, inside in (("mlp.2", 1), ("resid.2", 0)):
            ran.clear()
            evaluate_patched(model, site, random_sae(), {"all": mask}, mean=zero, **self.SETTINGS)
            batches = ran["model.layers.0.mlp.down_proj"]
            # unmodified, zero, mean, full, keep and drop
            assert ran["model.layers.3.mlp.down_proj"] == 6 * batches
            assert ran["model.layers.1.self_attn.o_proj"] == batches
            assert ran["model.layers.2.mlp.down_proj"] == batches
            assert ran["model.layers.2.self_attn.o_proj"] == (1 + 5 * inside) * batches

    def test_gpt2_and_bfloat16_are_patched(self) -> None:
        model = gpt2()
        found = evaluate_patched(model, 1, random_sae(24), **self.SETTINGS)
        ce, kl = plainly(model, 1, random_sae(24))
        assert found.full.ce.value == pytest.approx(ce, rel=1e-5)
        assert found.full.kl.value == pytest.approx(kl, rel=1e-4)
        half = llama(dtype=torch.bfloat16)
        found = evaluate_patched(half, 1, random_sae(), **self.SETTINGS)
        whole = evaluate_patched(llama(), 1, random_sae(), **self.SETTINGS)
        assert found.full.ce.value == pytest.approx(whole.full.ce.value, rel=0.02)

    def test_bad_groups_and_transcoders_raise(self) -> None:
        model = llama()
        for groups, error in (
            ({"a": torch.ones(48)}, "must be a bool tensor"),
            ({"a": [True]}, "must be a bool tensor"),
        ):
            with pytest.raises(TypeError, match=error):
                evaluate_patched(model, 1, random_sae(), groups, **self.SETTINGS)
        with pytest.raises(ValueError, match=r"groups\['a'\] must have shape \(48,\)"):
            evaluate_patched(model, 1, random_sae(), {"a": torch.ones(47) > 0}, **self.SETTINGS)
        with pytest.raises(ValueError, match="got a transcoder"):
            evaluate_patched(model, 1, saefast.SAE(D, 48, d_out=D), **self.SETTINGS)
        with pytest.raises(ValueError, match="of at least two tokens"):
            evaluate_patched(model, 1, random_sae(), **{**self.SETTINGS, "corpus": []})


class TestMarginalEffects:
    SETTINGS = TestPatching.SETTINGS

    @pytest.mark.parametrize("site", [1, "mlp.2", "model.embed_tokens"])
    def test_effects_match_single_features(self, site: int | str) -> None:
        model, sae = llama(), random_sae()
        write_in_place(model)
        features = torch.tensor([5, 0, 41, 17])
        found = marginal_effects(model, site, sae, features, **self.SETTINGS)
        base = plainly(model, site, sae)
        rows = activations(model, site)
        dense = sae.encode(rows).to_dense(48)
        for i, feature in enumerate(features.tolist()):

            def without(x: Tensor, feature: int = feature) -> Tensor:
                dense = sae.encode(x).to_dense(48)
                dense[:, feature] = 0
                return dense @ sae.W_dec + sae.b_dec

            ce, kl = plainly(model, site, without)
            assert float(found.ce[i]) == pytest.approx(ce - base[0], rel=1e-3, abs=1e-6)
            assert float(found.kl[i]) == pytest.approx(kl - base[1], rel=1e-3, abs=1e-6)
            assert int(found.fired[i]) == int((dense[:, feature] > 0).sum())
            assert found.ce_error[i] > 0

    def test_a_feature_that_never_fires_has_no_effect(self) -> None:
        sae = random_sae()
        sae.b_enc[7] = -1e6
        found = marginal_effects(llama(), 1, sae, torch.tensor([7]), **self.SETTINGS)
        assert found.ce.tolist() == found.kl.tolist() == found.fired.tolist() == [0]
        empty = torch.zeros(0, dtype=torch.int64)
        assert len(marginal_effects(llama(), 1, sae, empty, **self.SETTINGS).ce) == 0
        with pytest.raises(ValueError, match=r"features must be in \[0, 48\)"):
            marginal_effects(llama(), 1, sae, torch.tensor([48]), **self.SETTINGS)

    @pytest.mark.parametrize("site", [1, "mlp.2", "attn.0", "transformer.wte"])
    def test_the_first_order_is_the_limit_of_differences(self, site: int | str) -> None:
        model, sae = gpt2(torch.float64), random_sae(24, torch.float64)
        found = first_order_effects(model, site, sae, **self.SETTINGS)
        active = activations(model, site)
        fired = (sae.encode(active).to_dense(48) > 0).sum(0)
        assert found.fired.tolist() == fired.tolist()
        for feature in fired.argsort(descending=True)[:5].tolist():
            step = 1e-4

            def less(x: Tensor, by: float, feature: int = feature) -> Tensor:
                dense = sae.encode(x).to_dense(48)
                dense[:, feature] *= 1 - by
                return dense @ sae.W_dec + sae.b_dec

            low, high = (plainly(model, site, lambda x, by=by: less(x, by)) for by in (-step, step))
            for slope, a, b in zip((found.ce, found.kl), low, high, strict=True):
                assert float(slope[feature]) == pytest.approx((b - a) / (2 * step), rel=1e-5)
        never = (fired == 0).nonzero()[:, 0]
        assert found.ce[never].tolist() == [0] * len(never)

    def test_small_features_have_their_first_order_effect(self) -> None:
        sae = random_sae(24, torch.float64)
        sae.W_dec.mul_(1e-4)
        model = gpt2(torch.float64)
        features = torch.arange(48)
        exact = marginal_effects(model, 1, sae, features, **self.SETTINGS)
        slope = first_order_effects(model, 1, sae, **self.SETTINGS)
        for a, b in ((exact.ce, slope.ce), (exact.kl, slope.kl)):
            torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3 * float(b.abs().max()))
        torch.testing.assert_close(
            exact.ce_error, slope.ce_error, rtol=0.05, atol=5e-3 * float(slope.ce_error.max())
        )


@pytest.mark.parametrize("settings", [{"normalise": "layer_norm"}, {"skip": True}])
class TestSaesThatDecodeWithRows:
    SETTINGS = TestPatching.SETTINGS

    def test_effects_equal_their_definition(self, settings: dict[str, Any]) -> None:
        model, sae = llama(), random_sae(**settings)
        if sae.skip:
            sae.W_skip.add_(0.1 * torch.eye(D).flip(0))
        mask = torch.rand(48, generator=torch.Generator().manual_seed(0)) < 0.4

        def keeping(keep: Tensor) -> Any:
            def change(x: Tensor) -> Tensor:
                values, indices = sae.encode(x)
                return sae.decode(SparseCode(values * keep[indices], indices), x)

            return change

        found = evaluate_patched(model, 1, sae, {"some": mask}, **self.SETTINGS)
        full = plainly(model, 1, sae)
        assert found.full.ce.value == pytest.approx(full[0], rel=1e-5)
        for effect, keep in ((found.keep["some"], mask), (found.drop["some"], ~mask)):
            assert effect.ce.value == pytest.approx(plainly(model, 1, keeping(keep))[0], rel=1e-5)
        features = torch.tensor([5, 0, 41, 17])
        marginal = marginal_effects(model, 1, sae, features, **self.SETTINGS)
        for i, feature in enumerate(features.tolist()):
            ce, kl = plainly(model, 1, keeping(torch.arange(48) != feature))
            assert float(marginal.ce[i]) == pytest.approx(ce - full[0], rel=1e-3, abs=1e-6)
            assert float(marginal.kl[i]) == pytest.approx(kl - full[1], rel=1e-3, abs=1e-6)

    def test_the_first_order_is_the_limit_of_differences(self, settings: dict[str, Any]) -> None:
        model, sae = gpt2(torch.float64), random_sae(24, torch.float64, **settings)
        found = first_order_effects(model, 1, sae, **self.SETTINGS)
        feature, step = int(found.fired.argmax()), 1e-4

        def less(x: Tensor, by: float) -> Tensor:
            values, indices = sae.encode(x)
            return sae.decode(
                SparseCode(values * (1 - by * (indices == feature).double()), indices), x
            )

        low, high = (plainly(model, 1, lambda x, by=by: less(x, by)) for by in (-step, step))
        for slope, a, b in zip((found.ce, found.kl), low, high, strict=True):
            assert float(slope[feature]) == pytest.approx((b - a) / (2 * step), rel=1e-5)
