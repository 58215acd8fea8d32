"""Files of one peer for another, and old formats as read by SAELens."""

import json
from pathlib import Path

import pytest
import torch
from peer_files import D, K, M, assert_agree, assert_close, randomise, rows
from peer_models import (
    CLASSES,
    as_peer,
    dictionary_learning_folder,
    load_dictionary_learning,
    load_sae_lens,
    load_sparsify,
    sae_lens_model,
)
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.registry import get_sae_class
from safetensors.torch import save_file

import saefast


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning_converts_to_sae_lens_and_back(tmp_path: Path, kind: str) -> None:
    model = dictionary_learning_folder(tmp_path / "trainer_0", kind)
    lens = saefast.convert(tmp_path / "trainer_0", tmp_path / "lens", to="sae_lens")
    with torch.no_grad():
        assert_close(load_sae_lens(lens).encode(rows()), model.encode(rows()))
        assert_close(load_sae_lens(lens).forward(rows()), model(rows()))
    back = saefast.convert(lens, tmp_path / "back", to="dictionary_learning")
    assert_agree(saefast.load_sae(lens), load_dictionary_learning(back))
    assert json.loads((back / "config.json").read_text())["trainer"]["seed"] == 5


def test_an_uncentred_encoder_is_folded_where_necessary(tmp_path: Path) -> None:
    model = sae_lens_model("topk", apply_b_dec_to_input=False)
    model.save_model(tmp_path / "theirs")
    sparse = saefast.convert(tmp_path / "theirs", tmp_path / "sparse", to="sparsify")
    gated = sae_lens_model("gated", apply_b_dec_to_input=False)
    gated.save_model(tmp_path / "gated")
    other = saefast.convert(tmp_path / "gated", tmp_path / "dl", to="dictionary_learning")
    with torch.no_grad():
        assert_close(load_sparsify(sparse).forward(rows()), model(rows()))
        assert_close(load_dictionary_learning(other).encode(rows()), gated.encode(rows()))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide a folder that SAELens uses as the Hugging Face hub."""

    def download(
        repo_id: str, filename: str, subfolder: str | None = None, force_download: bool = False
    ) -> str:
        return str(tmp_path.joinpath(*([subfolder] if subfolder else []), filename))

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    return tmp_path


def test_gemma_scope_is_read_by_sae_lens(hub: Path) -> None:
    sae = saefast.SAE(D, M, variant="jumprelu", seed=0, centred=False)
    randomise(sae)
    with torch.no_grad():
        sae.jump_threshold.abs_()
    folder = "layer_3/width_16k/average_l0_20"
    saefast.save_sae(sae, hub / folder, format="gemma_scope")
    config, tensors, _ = loaders.gemma_2_sae_huggingface_loader("gemma-scope-2b-pt-res", folder)
    assert config["apply_b_dec_to_input"] is False
    model_class, config_class = get_sae_class(config["architecture"])
    model = model_class(config_class(d_in=D, d_sae=M, apply_b_dec_to_input=False))
    model.load_state_dict(tensors)
    assert_agree(saefast.load_sae(hub / folder), as_peer(model))


def test_qwen_scope_is_read_by_sae_lens(hub: Path) -> None:
    sae = saefast.SAE(D, M, k=K, seed=0, centred=False)
    randomise(sae)
    saefast.save_sae(sae, hub / "layer4.sae.pt", format="qwen_scope")
    repository = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
    config, tensors, _ = loaders.qwen_scope_sae_huggingface_loader(repository, "layer4.sae.pt")
    assert config["apply_b_dec_to_input"] is False
    model_class, config_class = get_sae_class(config["architecture"])
    model = model_class(config_class(d_in=D, d_sae=M, k=K, apply_b_dec_to_input=False))
    model.load_state_dict(tensors)
    assert_agree(saefast.load_sae(hub / "layer4.sae.pt"), as_peer(model))


def test_llama_scope_is_read_by_sae_lens(hub: Path) -> None:
    """Thresholds apply to values on the scale of the activations.

    SAELens keeps values on the scale of scaled activations, and does not multiply them by the norms
    of the decoder before the comparison: these are one here.
    """
    config = {"d_model": D, "d_sae": M, "act_fn": "jumprelu", "jump_relu_threshold": 0.3}
    config |= {"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True}
    config |= {"hook_point_in": "blocks.3.hook_resid_post", "dtype": "torch.float32"}
    config |= {"hook_point_out": "blocks.3.hook_resid_post", "expansion_factor": M / D}
    config["dataset_average_activation_norm"] = {"in": 11.0, "out": 11.0}
    folder = hub / "L3R"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "hyperparams.json").write_text(json.dumps(config))
    sae = saefast.SAE(D, M, variant="relu", seed=0)
    randomise(sae)
    decoder = torch.nn.functional.normalize(sae.W_dec.detach())
    tensors = {"encoder.weight": sae.W_enc, "encoder.bias": sae.b_enc}
    tensors |= {"decoder.weight": decoder.T.contiguous(), "decoder.bias": sae.b_dec}
    save_file({n: v.detach() for n, v in tensors.items()}, folder / "checkpoints/final.safetensors")
    settings, state, _ = loaders.llama_scope_sae_huggingface_loader(
        "fnlp/Llama3_1-8B-Base-LXR-8x", "L3R", "cpu", cfg_overrides={"dtype": "float32"}
    )
    model_class, config_class = get_sae_class(settings["architecture"])
    model = model_class(config_class(d_in=D, d_sae=M, apply_b_dec_to_input=False))
    model.load_state_dict(state)
    factor = D**0.5 / 11
    model.fold_activation_norm_scaling_factor(factor)
    ours = saefast.load_sae(folder)
    with torch.no_grad():
        assert_close(factor * ours.encode(rows()).to_dense(M), model.encode(rows()))
        assert_close(ours(rows()), model.forward(rows()))


@pytest.mark.parametrize("kind", [k for k in CLASSES if k != "AutoEncoderNew"])
def test_dictionary_learning_is_read_by_sae_lens(hub: Path, kind: str) -> None:
    dictionary_learning_folder(hub / "theirs", kind)
    sae = saefast.load_sae(hub / "theirs")
    sae.metadata["dictionary_learning"] |= {"layer": 3, "lm_name": "EleutherAI/pythia-70m"}
    saefast.save_sae(sae, hub / "ours", format="dictionary_learning")
    config, tensors, _ = loaders.dictionary_learning_sae_huggingface_loader_1("x/y", "ours")
    config = loaders.handle_config_defaulting(config)
    model_class, config_class = get_sae_class(config["architecture"])
    model = model_class(config_class.from_dict(config))
    model.load_state_dict(tensors)
    assert_agree(sae, as_peer(model))
