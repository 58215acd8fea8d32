"""The interfaces that evaluators need, written down here without installing them."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saefast
from saefast.integrations.delphi import DelphiSae
from saefast.integrations.dictionary_learning import SaefastDictionary
from saefast.integrations.sae_bench import SaeBenchSae
from saefast.sae import VARIANTS

D, M, K = 24, 96, 6
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def _sae(variant: str = "topk", *, unit_norm: bool = True, d_out: int | None = None) -> saefast.SAE:
    sae = saefast.SAE(D, M, variant=variant, k=K, seed=0, d_out=d_out)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for bias in (sae.b_enc, sae.b_dec):
            bias.normal_(std=0.1, generator=generator)
        if sae.threshold is not None and variant in ("batchtopk", "matryoshka", "jumprelu"):
            sae.threshold.fill_(1.2)
        if not unit_norm:
            sae.W_dec.mul_(torch.linspace(0.1, 3.0, M)[:, None])
    return sae


def _rows(*shape: int) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(5))


def _dense_latents(x: Tensor, sae: DelphiSae) -> Tensor:
    """Convert a code into a matrix like delphi."""
    rows = x.reshape(-1, x.shape[-1])
    top_acts, top_indices, _ = sae.encode(rows)
    dense = torch.zeros(len(rows), sae.num_latents, dtype=rows.dtype, device=rows.device)
    dense.scatter_(-1, top_indices.long(), top_acts.to(dense.dtype))  # the last write wins
    return dense.reshape(*x.shape[:-1], -1)


@each_variant
def test_delphi_caches_all_latents(variant: str) -> None:
    sae = _sae(variant)
    x = _rows(3, 7)
    expected = sae.encode(x.reshape(-1, D)).to_dense(M).view(3, 7, M)
    hooks = {"layers.3": partial(_dense_latents, sae=DelphiSae(sae))}
    torch.testing.assert_close(hooks["layers.3"](x), expected)
    assert (expected != 0).any()


@each_variant
def test_delphi_codes_have_distinct_latents(variant: str) -> None:
    sae = _sae(variant)
    out = DelphiSae(sae).encode(3 * _rows(40))  # rows with different numbers of active latents
    assert out.top_acts.shape == out.top_indices.shape
    each = out.top_indices.sort(1).values
    assert (each[:, 1:] > each[:, :-1]).all()
    assert each.min() >= 0
    assert each.max() < M
    torch.testing.assert_close(
        DelphiSae(sae).decode(out.top_acts, out.top_indices), sae(3 * _rows(40))
    )
    dense = (3 * _rows(40) - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    if variant != "abstopk":  # which chooses by the absolute value
        dense = dense.relu()
    torch.testing.assert_close(out.pre_acts + 0, dense)


def test_delphi_codes_of_nearly_dense_rows() -> None:
    sae = _sae("relu")
    with torch.no_grad():
        sae.b_enc += torch.linspace(-1, 4, M)
    coder, x = DelphiSae(sae), _rows(20)
    assert sae.encode(x).indices.shape[1] > M // 2
    torch.testing.assert_close(_dense_latents(x, coder), sae.encode(x).to_dense(M))


def test_attributes_that_delphi_reads() -> None:
    coder = DelphiSae(_sae())
    assert coder.num_latents == M
    assert coder.cfg.k == K
    assert not coder.cfg.transcode
    assert not coder.cfg.skip_connection
    assert coder.encode(_rows(2))._fields == ("top_acts", "top_indices", "pre_acts")
    moved = coder.to(dtype=torch.float64)
    assert moved.dtype == torch.float64
    assert moved.device == torch.device("cpu")
    assert moved.encode(_rows(2)).top_acts.dtype == torch.float64
    assert DelphiSae(_sae(d_out=40)).cfg.transcode


@each_variant
@pytest.mark.parametrize("unit_norm", [True, False])
def test_sae_bench_encodes_decodes_and_reconstructs(variant: str, unit_norm: bool) -> None:
    sae = _sae(variant, unit_norm=unit_norm)
    bench, x = SaeBenchSae(sae, "pythia-70m-deduped", 3), _rows(3, 7)
    acts = bench.encode(x)
    assert acts.shape == (3, 7, M)
    torch.testing.assert_close(bench(x), sae(x))
    torch.testing.assert_close(bench.decode(acts), sae(x))
    torch.testing.assert_close(bench(_rows(9)), sae(_rows(9)))


def test_sae_bench_weights() -> None:
    """Shapes and norms that the evaluations need, and a latent's pre-activation from them."""
    sae = _sae(unit_norm=False)
    bench, x = SaeBenchSae(sae, "pythia-70m-deduped", 3), _rows(9)
    shapes = {"W_enc": (D, M), "W_dec": (M, D), "b_enc": (M,), "b_dec": (D,)}
    for name, shape in shapes.items():
        weight = getattr(bench, name)
        assert isinstance(weight, torch.nn.Parameter)
        assert weight.shape == shape
    assert bench.check_decoder_norms()
    acts = bench.encode(x)
    scores = (x - bench.b_dec) @ bench.W_enc + bench.b_enc
    torch.testing.assert_close(acts, scores * (acts != 0))
    bench.W_dec.data[3] *= 1.5
    assert not bench.check_decoder_norms()


def test_sae_bench_config_is_serialisable() -> None:
    bench = SaeBenchSae(_sae(), "pythia-70m-deduped", 3, context_size=128, training_tokens=10**6)
    written = json.loads(json.dumps(dataclasses.asdict(bench.cfg)))
    assert written["d_in"] == D
    assert written["d_sae"] == M
    assert written["hook_layer"] == 3
    assert written["hook_name"] == "blocks.3.hook_resid_post"
    assert written["hook_head_index"] is None
    assert written["architecture"] == "topk"
    assert written["context_size"] == 128
    assert written["dtype"] == "float32"
    assert bench.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    assert bench.cfg.metadata.never_heard_of is None
    named = SaeBenchSae(_sae(), "gemma-2-2b", 12, "blocks.12.hook_mlp_out")
    assert named.cfg.hook_name == "blocks.12.hook_mlp_out"


@each_variant
def test_sae_bench_moves_to_the_models_dtype(variant: str) -> None:
    bench = SaeBenchSae(_sae(variant), "gemma-2-2b", 12).to(device="cpu", dtype=torch.bfloat16)
    assert bench.dtype == torch.bfloat16
    assert bench.cfg.dtype == "bfloat16"
    acts = bench.encode(_rows(2, 5).bfloat16())
    assert acts.dtype == torch.bfloat16
    assert (acts > 0).any()
    assert bench.check_decoder_norms()
    assert bench(_rows(4)).dtype == torch.bfloat16, "rows of another dtype are taken, too"


def test_transcoders_are_refused_where_inputs_are_reconstructed() -> None:
    transcoder = _sae(d_out=40)
    with pytest.raises(ValueError, match="transcoder"):
        SaeBenchSae(transcoder, "gemma-2-2b", 12)
    with pytest.raises(ValueError, match="transcoder"):
        SaefastDictionary(transcoder)


@pytest.mark.parametrize("settings", [{"normalise": "layer_norm"}, {"skip": True}])
def test_saes_that_need_rows_to_decode_are_refused_where_there_are_none(settings: Any) -> None:
    sae = saefast.SAE(D, M, k=K, **settings)
    with pytest.raises(ValueError, match="must not normalise rows or have a skip connection"):
        SaeBenchSae(sae, "gemma-2-2b", 12)
    with pytest.raises(ValueError, match="must not normalise rows or have a skip connection"):
        SaefastDictionary(sae)
    assert DelphiSae(sae).cfg.skip_connection == sae.skip


@each_variant
def test_dictionary_adapter_computes_the_same(variant: str) -> None:
    sae, x = _sae(variant), _rows(3, 7)
    dictionary = SaefastDictionary(sae)
    assert (dictionary.activation_dim, dictionary.dict_size) == (D, M)
    reconstruction, features = dictionary(x, output_features=True)
    torch.testing.assert_close(reconstruction, sae(x))
    torch.testing.assert_close(dictionary(x), sae(x))
    torch.testing.assert_close(dictionary.encode(x), features)
    torch.testing.assert_close(dictionary.decode(features), sae(x))


@each_variant
def test_dictionary_adapter_scales_its_biases(variant: str) -> None:
    """Three times the input gives three times the features, as for normalised activations."""
    sae, x = _sae(variant), _rows(11)
    before = SaefastDictionary(sae).encode(x)
    dictionary = SaefastDictionary(sae)
    dictionary.scale_biases(3.0)
    torch.testing.assert_close(dictionary.encode(3 * x), 3 * before, rtol=1e-4, atol=1e-5)


def test_dictionary_adapter_loads_a_folder(tmp_path: Path) -> None:
    sae = _sae()
    saefast.save_sae(sae, tmp_path)
    dictionary = SaefastDictionary.from_pretrained(tmp_path, device="cpu")
    torch.testing.assert_close(dictionary(_rows(4)), sae(_rows(4)))
