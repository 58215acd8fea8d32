"""Models with saefast inside support the operations of SAELens: hooks, dtypes, copies."""

import copy
from typing import Any

import pytest
import torch
from lens_training import TIGHT, D, M, N, batches_of, each_variant, made, pair, step_of
from torch import Tensor


@each_variant
def test_public_methods_agree(variant: str) -> None:
    x = torch.randn(3, 7, D)
    alone, with_saefast = pair(variant)
    for sae in (alone, with_saefast):
        sae.eval()
    own_acts, own_pre = alone.encode_with_hidden_pre(x)
    acts, pre = with_saefast.encode_with_hidden_pre(x)
    torch.testing.assert_close(acts, own_acts, **TIGHT)
    assert pre.shape == own_pre.shape
    torch.testing.assert_close(pre + 0, own_pre, **TIGHT)
    torch.testing.assert_close(with_saefast.encode(x), alone.encode(x), **TIGHT)
    torch.testing.assert_close(with_saefast.decode(acts), alone.decode(own_acts), **TIGHT)
    torch.testing.assert_close(with_saefast(x), alone(x), **TIGHT)
    torch.testing.assert_close(with_saefast(x), with_saefast.decode(acts), **TIGHT)


@each_variant
def test_hooks_on_dense_tensors_are_called_and_applied(variant: str) -> None:
    seen: dict[str, Tensor] = {}

    def doubled(tensor: Tensor, hook: Any) -> Tensor:
        seen[hook.name] = tensor
        return 2 * tensor

    x, outputs = batches_of(1)[0], []
    names = ("hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons")
    for sae in pair(variant):
        for name in names:
            seen.clear()
            outputs.append(sae.run_with_hooks(x, fwd_hooks=[(name, doubled)]))
            assert seen[name].shape == (N, M if "acts" in name else D)
        outputs.append(sae(x))
    own, ours = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
    for mine, theirs in zip(ours, own, strict=True):
        torch.testing.assert_close(mine, theirs, **TIGHT)
    assert not torch.equal(own[0], own[-1])


def test_caches_of_all_hooks_agree() -> None:
    alone, with_saefast = pair("topk")
    x = batches_of(1)[0]
    own, own_cache = alone.run_with_cache(x)
    ours, cache = with_saefast.run_with_cache(x)
    torch.testing.assert_close(ours, own, **TIGHT)
    assert cache.keys() == own_cache.keys()
    for name in own_cache:
        torch.testing.assert_close(cache[name], own_cache[name], **TIGHT)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes_agree(dtype: str) -> None:
    alone, with_saefast = pair("topk", dtype=dtype)
    x = batches_of(1)[0].to(alone.dtype)
    own = alone.training_forward_pass(step_of(x))
    ours = with_saefast.training_forward_pass(step_of(x))
    assert ours.sae_out.dtype == own.sae_out.dtype == alone.dtype
    assert ours.feature_acts.dtype == own.feature_acts.dtype
    tolerance = 1e-10 if dtype == "float64" else 3e-2
    torch.testing.assert_close(ours.loss, own.loss, rtol=tolerance, atol=0)


def test_moving_to_another_dtype_keeps_the_layout() -> None:
    sae = made("saefast_topk")
    sae.training_forward_pass(step_of(batches_of(1)[0]))
    sae.to(dtype=torch.float64)
    assert sae.dtype == torch.float64
    assert sae.cfg.dtype == "float64"
    assert sae.W_enc.T.is_contiguous()
    sae.training_forward_pass(step_of(batches_of(1)[0].double())).loss.backward()
    assert sae.W_enc.grad.stride() == sae.W_enc.stride(), "so Adam runs over both alike"


@each_variant
def test_redrawn_weights_match_the_seed(variant: str) -> None:
    """Random numbers fill a tensor in memory order, which equals SAELens's before a step."""
    alone, with_saefast = pair(variant)
    for sae in (alone, with_saefast):
        torch.manual_seed(5)
        torch.nn.init.uniform_(sae.W_enc)
        sae.W_dec.data = torch.rand_like(sae.W_dec)
    assert torch.equal(with_saefast.W_enc, alone.W_enc)
    assert torch.equal(with_saefast.W_dec, alone.W_dec)


@each_variant
def test_a_pass_in_inference_mode_leaves_weights_that_can_be_trained(variant: str) -> None:
    sae, step_input = made(f"saefast_{variant}"), step_of(batches_of(1)[0])
    with torch.inference_mode():
        sae.training_forward_pass(step_input)
    sae.training_forward_pass(step_input).loss.backward()
    assert sae.W_enc.grad.abs().sum() > 0


@each_variant
def test_copies_are_independent(variant: str) -> None:
    sae, x = made(f"saefast_{variant}"), batches_of(1)[0]
    sae.training_forward_pass(step_of(x))
    other = copy.deepcopy(sae)
    assert torch.equal(other(x), sae(x))
    assert other.state_dict()["W_enc"].is_contiguous()
    assert other.W_enc.T.is_contiguous()


def test_float_k_keeps_as_many_as_saelens() -> None:
    for k in (0.3, 1.0, 5.5, 7.99):
        own, ours = (sae.encode(batches_of(1)[0]) for sae in pair("batchtopk", k=k))
        assert int((ours > 0).sum()) == int((own > 0).sum()) == int(k * N)
        torch.testing.assert_close(ours, own, **TIGHT)


def test_guesses_of_thresholds_do_not_change_results() -> None:
    """After batches of very different scale, as after none."""
    sae, x = made("saefast_batchtopk"), batches_of(1)[0]
    fresh = sae.encode(x)
    for scale in (100.0, 1.0, 0.01, 1.0):
        sae.encode(scale * x)
        assert torch.equal(sae.encode(x), fresh)


def test_folding_norms_is_refused_where_saelens_refuses_it() -> None:
    with pytest.raises(NotImplementedError, match="W_dec_norm"):
        made("saefast_topk", rescale_acts_by_decoder_norm=False).fold_W_dec_norm()
