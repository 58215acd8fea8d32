"""sparsify trains the same with saefast inside, except that wrong gradients are corrected."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import saefast
from saefast.integrations import sparsify as inside
from saefast.integrations.pre_activations import PreActivations

D, M, K, N = 24, 96, 6, 50
TIGHT = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Restore sparsify after each test, and the matmul precision that its trainer sets."""
    precision = torch.get_float32_matmul_precision()
    yield
    inside.disable()
    torch.set_float32_matmul_precision(precision)


def _coder(**settings: object) -> SparseCoder:
    torch.manual_seed(0)
    coder = SparseCoder(D, SparseCoderConfig(num_latents=M, k=K, **settings))
    with torch.no_grad():
        coder.encoder.bias.normal_(std=0.1)
        coder.b_dec.normal_(std=0.1)
    return coder


def _batches(steps: int) -> Tensor:
    return torch.randn(steps, N, D, generator=torch.Generator().manual_seed(1))


def _step(coder: SparseCoder, optimiser: torch.optim.Optimizer, x: Tensor) -> Tensor:
    """Process a batch like sparsify's trainer."""
    coder.set_decoder_norm_to_unit_norm()
    out = coder(x)
    out.fvu.backward()
    coder.remove_gradient_parallel_to_decoder_directions()
    optimiser.step()
    optimiser.zero_grad()
    return out.fvu.detach()


def _gradients(coder: SparseCoder, x: Tensor, **forward: Tensor) -> dict[str, Tensor]:
    coder.zero_grad()
    out = coder(x, **forward)
    (out.fvu + out.auxk_loss + out.multi_topk_fvu / 8).backward()
    return {name: parameter.grad.clone() for name, parameter in coder.named_parameters()}


def _true_gradients(coder: SparseCoder, x: Tensor, dead: Tensor | None) -> dict[str, Tensor]:
    """Return gradients of the same losses by dense autograd in float64, without sparsify."""
    coder = copy.deepcopy(coder).double()
    coder.zero_grad()
    x = x.double()
    acts = torch.relu(coder.encoder(x - coder.b_dec))

    def kept(acts: Tensor, k: int) -> Tensor:
        values, indices = acts.topk(k)
        return torch.zeros_like(acts).scatter(1, indices, values.clamp(min=0))

    variance = (x - x.mean(0)).square().sum()
    error = x - kept(acts, coder.cfg.k) @ coder.W_dec - coder.b_dec
    loss = error.square().sum() / variance
    if dead is not None:
        found = kept(acts.masked_fill(~dead, -torch.inf), min(D // 2, int(dead.sum())))
        scale = min(int(dead.sum()) / (D // 2), 1.0)
        missed = found @ coder.W_dec - error.detach()
        loss = loss + scale * missed.square().sum() / variance
    if coder.cfg.multi_topk:
        wide = kept(acts, 4 * coder.cfg.k) @ coder.W_dec + coder.b_dec
        loss = loss + (wide - x).square().sum() / variance / 8
    loss.backward()
    return {name: parameter.grad.float() for name, parameter in coder.named_parameters()}


def _dead(latents: int) -> Tensor:
    """Choose some of all latents."""
    return 7 * torch.arange(M) % M < latents


def _assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **TIGHT)


def test_every_step_equals_one_without_saefast() -> None:
    alone = _coder()
    with_saefast = copy.deepcopy(alone)
    adams = [torch.optim.Adam(coder.parameters(), 1e-3) for coder in (alone, with_saefast)]
    losses = []
    for x in _batches(8):
        inside.disable()
        expected = _step(alone, adams[0], x)
        inside.enable()
        torch.testing.assert_close(_step(with_saefast, adams[1], x), expected, **TIGHT)
        for mine, theirs in zip(with_saefast.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        losses.append(float(expected))
    assert losses[-1] < losses[0]


def test_sparsifys_trainer_on_a_language_model(tmp_path: Path) -> None:
    """Its whole loop with hooks and files, two layers and two seeds."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=D,
        intermediate_size=2 * D,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    tokens = torch.randint(64, (20, 16)).tolist()
    dataset = Dataset.from_dict({"input_ids": tokens}).with_format("torch")
    states = []
    for switch, name in ((inside.disable, "alone"), (inside.enable, "inside")):
        switch()
        settings = TrainConfig(
            SparseCoderConfig(num_latents=M, k=K),
            batch_size=4,
            optimizer="adam",
            lr=1e-3,
            lr_warmup_steps=1,
            layers=[0, 1],
            init_seeds=[0, 1],
            log_to_wandb=False,
            save_dir=str(tmp_path),
            run_name=name,
        )
        Trainer(settings, dataset, model).fit()
        files = sorted((tmp_path / name).rglob("sae.safetensors"))
        states.append({str(file.relative_to(tmp_path / name)): load_file(file) for file in files})
    assert len(states[0]) == 4
    assert states[1].keys() == states[0].keys()
    for file, state in states[0].items():
        assert states[1][file].keys() == state.keys()
        for key, tensor in state.items():
            torch.testing.assert_close(states[1][file][key], tensor, rtol=1e-4, atol=1e-5)


def test_encode_equals_sparsifys() -> None:
    coder, x = _coder(), _batches(1)[0]
    own = coder.encode(x)
    inside.enable()
    ours = coder.encode(x)
    assert ours._fields == own._fields
    assert ours.top_indices.dtype == own.top_indices.dtype
    torch.testing.assert_close(ours.top_acts, own.top_acts.sort(dim=1, descending=True).values)
    order = own.top_acts.argsort(dim=1, descending=True)
    assert torch.equal(ours.top_indices, own.top_indices.gather(1, order))
    assert isinstance(ours.pre_acts, torch.Tensor)
    assert ours.pre_acts.shape == own.pre_acts.shape
    assert ours.pre_acts.dtype == own.pre_acts.dtype
    torch.testing.assert_close(ours.pre_acts + 0, own.pre_acts)
    torch.testing.assert_close((ours.pre_acts > 0.5).sum(), (own.pre_acts > 0.5).sum())
    torch.testing.assert_close(torch.cat([ours.pre_acts, own.pre_acts])[:N], own.pre_acts)


def test_decode_takes_any_order_and_repeated_latents() -> None:
    coder = _coder()
    acts = torch.rand(N, K)
    indices = torch.randint(M, (N, K))
    expected = coder.decode(acts, indices)
    inside.enable()
    torch.testing.assert_close(coder.decode(acts, indices), expected)


def test_encode_keeps_leading_dimensions() -> None:
    coder, x = _coder(), torch.randn(2, 5, D)
    own = coder.encode(x)
    inside.enable()
    ours = coder.encode(x)
    assert ours.top_acts.shape == own.top_acts.shape == ours.top_indices.shape
    torch.testing.assert_close(ours.top_acts.sum(-1), own.top_acts.sum(-1))
    torch.testing.assert_close(ours.pre_acts * 1, own.pre_acts)


@pytest.mark.parametrize("multi_topk", [False, True])
@pytest.mark.parametrize("dead_latents", [0, 5, 40])
def test_losses_agree_and_gradients_are_the_true_ones(multi_topk: bool, dead_latents: int) -> None:
    coder, x = _coder(multi_topk=multi_topk), _batches(1)[0]
    dead = _dead(dead_latents) if dead_latents else None
    own = coder(x, dead_mask=dead)
    inside.enable()
    ours = coder(x, dead_mask=dead)
    for name in ("sae_out", "fvu", "auxk_loss", "multi_topk_fvu"):
        torch.testing.assert_close(getattr(ours, name), getattr(own, name), **TIGHT)
    assert (ours.auxk_loss > 0) == (dead_latents > 0)
    assert (ours.multi_topk_fvu > 0) == multi_topk
    found = _gradients(coder, x, **({} if dead is None else {"dead_mask": dead}))
    _assert_close(found, _true_gradients(coder, x, dead))


def test_sparsify_alone_does_not_train_the_encoder_by_auxk() -> None:
    """A difference made by `enable`; if sparsify fixes it, change the docstring of the module."""
    coder, x = _coder(), _batches(1)[0]
    dead = _dead(40)
    without, with_auxk = _gradients(coder, x), _gradients(coder, x, dead_mask=dead)
    assert torch.equal(without["encoder.weight"][dead], with_auxk["encoder.weight"][dead])
    inside.enable()
    assert not torch.equal(
        without["encoder.weight"][dead],
        _gradients(coder, x, dead_mask=dead)["encoder.weight"][dead],
    )


def test_rows_with_fewer_positives_than_k() -> None:
    coder, x = _coder(), _batches(1)[0]
    with torch.no_grad():
        coder.encoder.bias -= 0.7
    own = coder(x)
    positives = (coder.encode(x).pre_acts > 0).sum(1)
    assert (positives < K).any()
    assert (positives >= K).any()
    inside.enable()
    ours = coder(x)
    torch.testing.assert_close(ours.sae_out, own.sae_out, **TIGHT)
    torch.testing.assert_close(ours.fvu, own.fvu, **TIGHT)
    each = ours.latent_indices.sort(1).values
    assert (each[:, 1:] > each[:, :-1]).all(), "a row selects no latent twice"
    _assert_close(_gradients(coder, x), _true_gradients(coder, x, None))


def test_transcoder_with_a_skip_connection() -> None:
    coder = _coder(transcode=True, skip_connection=True)
    x, y = _batches(2)
    with torch.no_grad():
        coder.W_dec.normal_()
        coder.W_skip.normal_(std=0.1)
    own = coder(x, y)
    inside.enable()
    torch.testing.assert_close(coder(x, y).fvu, own.fvu, **TIGHT)


def test_groupmax_and_half_precision_are_left_to_sparsify() -> None:
    grouped, halves, x = _coder(activation="groupmax"), _coder().half(), _batches(1)[0]
    expected = grouped.encode(x), halves.encode(x.half()).top_acts
    inside.enable()
    for mine, theirs in zip(grouped.encode(x), expected[0], strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(halves.encode(x.half()).top_acts, expected[1])


def test_bfloat16_weights_agree() -> None:
    coder, x = _coder().bfloat16(), _batches(1)[0].bfloat16()
    own = coder(x)
    inside.enable()
    ours = coder(x)
    assert ours.sae_out.dtype == own.sae_out.dtype == torch.bfloat16
    torch.testing.assert_close(ours.fvu, own.fvu, rtol=2e-2, atol=0)
    ours.fvu.backward()
    assert coder.encoder.weight.grad.dtype == torch.bfloat16


def test_disable_restores_all_names() -> None:
    from sparsify import fused_encoder, sparse_coder, utils

    def names() -> tuple[object, ...]:
        return (
            fused_encoder.fused_encoder,
            sparse_coder.fused_encoder,
            sparse_coder.decoder_impl,
            utils.decoder_impl,
        )

    before = names()
    inside.enable()
    inside.enable()
    assert all(now is not then for now, then in zip(names(), before, strict=True))
    inside.disable()
    assert names() == before


def test_sparsify_saves_and_loads(tmp_path: Path) -> None:
    coder, x = _coder(), _batches(1)[0]
    inside.enable()
    _step(coder, torch.optim.Adam(coder.parameters(), 1e-3), x)
    coder.save_to_disk(tmp_path)
    out = coder(x).sae_out
    inside.disable()
    loaded = SparseCoder.load_from_disk(tmp_path)
    assert loaded.state_dict().keys() == coder.state_dict().keys()
    torch.testing.assert_close(loaded(x).sae_out, out, **TIGHT)


def test_pre_activations_must_be_read_before_the_weights_change() -> None:
    coder, x = _coder(), _batches(1)[0]
    inside.enable()
    late = coder.encode(x).pre_acts
    with torch.no_grad():
        coder.encoder.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="before the optimiser's step"):
        late.sum()


def test_pre_activations_are_not_computed_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The [n, m] matrix is never made, not even for dead latents or Multi-TopK."""

    def read(_: PreActivations) -> Tensor:
        raise AssertionError("the dense matrix was made")

    monkeypatch.setattr(PreActivations, "dense", read)
    coder = _coder(multi_topk=True)
    inside.enable()
    out = coder(_batches(1)[0], dead_mask=_dead(40))
    (out.fvu + out.auxk_loss + out.multi_topk_fvu).backward()


def test_other_masks_and_topks_use_the_dense_matrix() -> None:
    coder, x = _coder(), _batches(1)[0]
    own = coder.encode(x).pre_acts.detach()
    inside.enable()
    ours = coder.encode(x).pre_acts
    alive = torch.rand(N, M) < 0.5  # by row, so not a mask of latents
    found = torch.where(alive, ours, -torch.inf).topk(3).values
    torch.testing.assert_close(found, torch.where(alive, own, -torch.inf).topk(3).values)
    torch.testing.assert_close(ours.topk(3, dim=0).values, own.topk(3, dim=0).values)
    torch.testing.assert_close(
        ours.topk(3, largest=False).values, own.topk(3, largest=False).values
    )
    few = torch.where((torch.arange(M) < 2)[None], ours, -torch.inf).topk(4).values
    assert (few[:, 2:] == -torch.inf).all()


def test_input_that_is_not_finite_raises() -> None:
    coder, x = _coder(), _batches(1)[0]
    inside.enable()
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        coder(x)
    assert saefast.__version__
