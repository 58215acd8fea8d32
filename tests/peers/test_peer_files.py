"""A peer writes a file, saefast computes what the peer does; saefast writes it, the peer agrees."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dictionary_learning.dictionary as dl
import pytest
import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from peer_files import (
    D_OUT,
    D,
    K,
    M,
    Peer,
    assert_agree,
    assert_close,
    randomise,
    rows,
    there_and_back,
)
from sae_lens import SAE as SaeLens
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

import saefast

# SAELens


def of_sae_lens(model: Any) -> Peer:
    return Peer(model.encode, model.decode, model.forward)


def load_sae_lens(folder: Path) -> Peer:
    return of_sae_lens(SaeLens.load_from_disk(folder))


def sae_lens_model(architecture: str, **settings: Any) -> Any:
    model_class, config_class = get_sae_class(architecture)
    settings = {"d_in": D, "d_sae": M} | settings
    if architecture == "topk":
        settings.setdefault("k", K)
    model = model_class(config_class(**settings))
    randomise(model)
    return model


TRANSCODER = {"d_out": D_OUT, "apply_b_dec_to_input": False}


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("topk", {}),
        ("topk", {"rescale_acts_by_decoder_norm": True}),
        ("topk", {"apply_b_dec_to_input": False}),
        ("topk", {"normalize_activations": "layer_norm"}),
        ("topk", {"normalize_activations": "constant_norm_rescale"}),
        ("jumprelu", {}),
        ("jumprelu", {"apply_b_dec_to_input": False, "normalize_activations": "layer_norm"}),
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("gated", {}),
        ("gated", {"apply_b_dec_to_input": False}),
        ("transcoder", TRANSCODER),
        ("transcoder", {"d_out": D, "apply_b_dec_to_input": False}),
        ("skip_transcoder", TRANSCODER),
        ("jumprelu_transcoder", TRANSCODER),
        ("jumprelu_skip_transcoder", TRANSCODER),
    ],
    ids=str,
)
def test_sae_lens_inference(tmp_path: Path, architecture: str, settings: dict[str, Any]) -> None:
    model = sae_lens_model(architecture, **settings)
    model.save_model(tmp_path / "theirs")
    there_and_back(tmp_path / "theirs", of_sae_lens(model), load_sae_lens, "sae_lens")


def test_sae_lens_negative_thresholds(tmp_path: Path) -> None:
    model = sae_lens_model("jumprelu")
    with torch.no_grad():
        model.threshold.copy_(torch.linspace(-1, 1, M))
    model.save_model(tmp_path / "theirs")
    there_and_back(tmp_path / "theirs", of_sae_lens(model), load_sae_lens, "sae_lens")


def training_model(architecture: str, **settings: Any) -> Any:
    model_class, config_class = get_sae_training_class(architecture)
    if "topk" in architecture:
        settings.setdefault("k", K)
    if architecture == "matryoshka_batchtopk":
        settings["matryoshka_widths"] = [20, M]
    model = model_class(config_class(d_in=D, d_sae=M, **settings))
    randomise(model)
    if hasattr(model, "topk_threshold"):
        model.topk_threshold.fill_(0.8)
    return model


TRAINING = [
    ("standard", {}),
    ("gated", {}),
    ("jumprelu", {}),
    ("topk", {"rescale_acts_by_decoder_norm": False}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    ("batchtopk", {"rescale_acts_by_decoder_norm": False}),
    ("batchtopk", {"rescale_acts_by_decoder_norm": True, "k": 5.3}),
    ("matryoshka_batchtopk", {"rescale_acts_by_decoder_norm": True}),
]


@pytest.mark.parametrize(("architecture", "settings"), TRAINING, ids=str)
def test_sae_lens_checkpoints_are_what_is_made_of_them(
    tmp_path: Path, architecture: str, settings: dict[str, Any]
) -> None:
    model = training_model(architecture, **settings)
    model.save_model(tmp_path / "checkpoint")
    model.save_inference_model(tmp_path / "finished")
    peer = load_sae_lens(tmp_path / "finished")
    sae = saefast.load_sae(tmp_path / "checkpoint")
    variants = {"standard": "relu", "matryoshka_batchtopk": "matryoshka"}
    assert sae.variant == variants.get(architecture, architecture)
    if "topk" in architecture:
        assert sae.k == K
    there_and_back(tmp_path / "checkpoint", peer, load_sae_lens, "sae_lens")
    there_and_back(tmp_path / "finished", peer, load_sae_lens, "sae_lens")


@pytest.mark.parametrize("kind", ["expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize(("architecture", "settings"), TRAINING, ids=str)
def test_sae_lens_scales_of_a_checkpoint_are_folded(
    tmp_path: Path, architecture: str, settings: dict[str, Any], kind: str
) -> None:
    model = training_model(architecture, normalize_activations=kind, **settings)
    model.save_model(tmp_path / "checkpoint")
    scaler = ActivationScaler()
    if kind == "covariance_whitening":
        matrix = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0]
        spread = torch.linspace(0.5, 2, D, dtype=torch.float64)
        scaler.whitening = ActivationWhitening(
            0.1 * torch.randn(D, dtype=torch.float64), matrix / spread, spread[:, None] * matrix.T
        )
        model.fold_activation_whitening(
            scaler.whitening.mean, scaler.whitening.matrix, scaler.whitening.inverse_matrix
        )
    else:
        scaler.scaling_factor = 0.37
        model.fold_activation_norm_scaling_factor(0.37)
    scaler.save(str(tmp_path / "checkpoint" / "activation_scaler.json"))
    model.save_inference_model(tmp_path / "finished")
    peer = load_sae_lens(tmp_path / "finished")
    there_and_back(tmp_path / "checkpoint", peer, load_sae_lens, "sae_lens")
    scales = {"activation_scaler.json", "activation_whitening.safetensors"}
    assert not scales & {file.name for file in (tmp_path / "again").iterdir()}
    learnt = saefast.convert(tmp_path / "checkpoint", tmp_path / "dl", to="dictionary_learning")
    with torch.no_grad():
        assert_close(load_dictionary_learning(learnt).forward(rows()), peer.forward(rows()))


def test_sae_lens_scale_that_is_nowhere_is_missed(tmp_path: Path) -> None:
    model = training_model("topk", normalize_activations="expected_average_only_in")
    model.save_model(tmp_path / "sae")
    with pytest.raises(ValueError, match=r"activation_scaler.json does not give it"):
        saefast.load_sae(tmp_path / "sae")


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "standard", "gated"])
def test_sae_lens_configs_from_before_6(tmp_path: Path, architecture: str) -> None:
    model = sae_lens_model(architecture)
    model.save_model(tmp_path / "theirs")
    config = {
        "d_in": D,
        "d_sae": M,
        "dtype": "torch.float32",
        "hook_point": "blocks.3.hook_resid_pre",
        "hook_point_layer": 3,
        "model_name": "gpt2-small",
        "normalize_activations": False,
        "lp_norm": 1.0,
    }
    if architecture == "topk":
        config |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    elif architecture != "standard":
        config["architecture"] = architecture
    (tmp_path / "theirs" / "cfg.json").write_text(json.dumps(config))
    there_and_back(
        tmp_path / "theirs", load_sae_lens(tmp_path / "theirs"), load_sae_lens, "sae_lens"
    )
    again = SaeLens.load_from_disk(tmp_path / "again")
    assert again.cfg.metadata.hook_name == "blocks.3.hook_resid_pre"
    assert again.cfg.metadata.lp_norm == 1.0


def test_sae_lens_keeps_what_it_says_besides(tmp_path: Path) -> None:
    model = sae_lens_model("topk")
    model.cfg.metadata.hook_name = "blocks.1.hook_mlp_out"
    model.cfg.metadata.something_new = {"of": [1, 2]}
    model.save_model(tmp_path / "theirs")
    sae = saefast.load_sae(tmp_path / "theirs")
    again = SaeLens.load_from_disk(saefast.save_sae(sae, tmp_path / "again"))
    assert again.cfg.metadata.hook_name == "blocks.1.hook_mlp_out"
    assert again.cfg.metadata.something_new == {"of": [1, 2]}


def test_topk_transcoders_as_wide_as_their_input_are_saes_to_sae_lens(tmp_path: Path) -> None:
    sae = saefast.SAE(D, M, k=K, d_out=D, seed=0)
    randomise(sae)
    folder = saefast.save_sae(sae, tmp_path / "sae")
    assert_agree(sae, load_sae_lens(folder))
    assert saefast.load_sae(folder).transcodes


# sparsify


def of_sparsify(model: SparseCoder) -> Peer:
    def encode(x: Tensor) -> Tensor:
        values, indices, _ = model.encode(x)
        return torch.zeros(len(x), M).scatter(1, indices, values)

    def decode(dense: Tensor) -> Tensor:
        return model.decode(*dense.topk(K))

    return Peer(encode, decode, lambda x: model(x).sae_out)


def load_sparsify(folder: Path) -> Peer:
    return of_sparsify(SparseCoder.load_from_disk(folder))


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_sparsify(tmp_path: Path, transcode: bool, skip: bool) -> None:
    config = SparseCoderConfig(
        num_latents=M, k=K, transcode=transcode, skip_connection=skip, multi_topk=False
    )
    model = SparseCoder(D, config)
    randomise(model)
    model.save_to_disk(tmp_path / "layers.3")
    there_and_back(tmp_path / "layers.3", of_sparsify(model), load_sparsify, "sparsify")
    settings = json.loads((tmp_path / "again" / "cfg.json").read_text())
    assert settings["normalize_decoder"] is True


def test_sparsify_by_expansion_factor(tmp_path: Path) -> None:
    model = SparseCoder(D, SparseCoderConfig(expansion_factor=3, k=K))
    model.save_to_disk(tmp_path / "layers.3")
    assert saefast.load_sae(tmp_path / "layers.3").m == 3 * D


def test_sae_lens_reads_sparsify_wrongly_and_we_do_not(tmp_path: Path) -> None:
    """sparsify's decoder lies as its encoder does, [m, d], which is what SAELens wants. Its reader
    transposes it all the same, which shows where m is not d; and it does not take b_dec from x
    where the decoder is normalised, which sparsify always does."""
    model = SparseCoder(D, SparseCoderConfig(num_latents=M, k=K))
    randomise(model)
    model.save_to_disk(tmp_path / "layers.3")
    config, tensors = loaders.sparsify_disk_loader(tmp_path / "layers.3")
    assert tensors["W_dec"].shape == (D, M)
    assert config["apply_b_dec_to_input"] is False
    converted = saefast.convert(tmp_path / "layers.3", tmp_path / "converted", to="sae_lens")
    assert_agree(saefast.load_sae(converted), of_sparsify(model))
    theirs = load_sae_lens(converted)
    with torch.no_grad():
        assert_close(theirs.forward(rows()), model(rows()).sae_out)


# dictionary_learning

CLASSES: dict[str, Callable[[], Any]] = {
    "AutoEncoder": lambda: dl.AutoEncoder(D, M),
    "AutoEncoderNew": lambda: dl.AutoEncoderNew(D, M),
    "GatedAutoEncoder": lambda: dl.GatedAutoEncoder(D, M),
    "JumpReluAutoEncoder": lambda: dl.JumpReluAutoEncoder(D, M),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(D, M, K),
    "BatchTopKSAE": lambda: BatchTopKSAE(D, M, K),
    "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, M, K, [20, M - 20]),
}


def of_dictionary_learning(model: Any) -> Peer:
    return Peer(model.encode, model.decode, model.forward)


def load_dictionary_learning(folder: Path) -> Peer:
    config = json.loads((folder / "config.json").read_text())
    if config["trainer"]["dict_class"] == "AutoEncoder":  # else its values are scaled at loading
        model = dl.AutoEncoder.from_pretrained(folder / "ae.pt", normalize_decoder=False)
    else:
        model, _ = load_dictionary(str(folder), "cpu")
    return of_dictionary_learning(model)


def dictionary_learning_folder(folder: Path, kind: str, threshold: float = 0.6) -> Any:
    model = CLASSES[kind]()
    randomise(model)
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE", "AutoEncoderTopK"):
        model.threshold.fill_(threshold)
    folder.mkdir()
    torch.save(model.state_dict(), folder / "ae.pt")
    trainer = {
        "dict_class": kind,
        "activation_dim": D,
        "dict_size": M,
        "k": K,
        "lr": 3e-4,
        "seed": 5,
    }
    config = {"trainer": trainer, "buffer": {"ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning(tmp_path: Path, kind: str) -> None:
    model = dictionary_learning_folder(tmp_path / "trainer_0", kind)
    peer = of_dictionary_learning(model)
    there_and_back(tmp_path / "trainer_0", peer, load_dictionary_learning, "dictionary_learning")
    then, now = (
        json.loads((tmp_path / folder / "config.json").read_text())
        for folder in ("trainer_0", "again")
    )
    assert now["trainer"]["dict_class"] == kind
    assert now["trainer"]["lr"] == then["trainer"]["lr"]
    if "group_sizes" in model.state_dict():
        assert torch.load(tmp_path / "again" / "ae.pt")["group_sizes"].tolist() == [20, M - 20]
    # A checkpoint of a run lies a folder below.
    (tmp_path / "trainer_0" / "checkpoints").mkdir()
    moved = (tmp_path / "trainer_0" / "ae.pt").rename(tmp_path / "trainer_0/checkpoints/ae_5.pt")
    assert_agree(saefast.load_sae(moved), peer)


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_dictionary_learning_thresholds_that_are_not_set(tmp_path: Path, kind: str) -> None:
    model = dictionary_learning_folder(tmp_path / "trainer_0", kind, threshold=-1.0)
    assert_agree(saefast.load_sae(tmp_path / "trainer_0"), of_dictionary_learning(model))


@pytest.mark.parametrize("kind", [k for k in CLASSES if k != "AutoEncoderNew"])
def test_dictionary_learning_backups(tmp_path: Path, kind: str) -> None:
    """Written within a run on activations that are divided by norm_factor; the finished file has
    its biases multiplied by it, which `scale_biases` does."""
    factor = 3.7
    model = dictionary_learning_folder(tmp_path / "trainer_0", kind)
    backup = {
        "step": 100,
        "ae": model.state_dict(),
        "optimizer": torch.optim.Adam(model.parameters()).state_dict(),
        "config": {"dict_class": kind, "k": K},
        "norm_factor": factor,
    }
    torch.save(backup, tmp_path / "trainer_0" / "ae.pt")
    (tmp_path / "trainer_0" / "config.json").unlink()
    sae = saefast.load_sae(tmp_path / "trainer_0")
    with torch.no_grad():
        model.scale_biases(factor)
    assert_agree(sae, of_dictionary_learning(model), 3 * rows())
    again = saefast.save_sae(sae, tmp_path / "again", format="dictionary_learning")
    written = load_dictionary_learning(again)
    assert_agree(sae, written, 3 * rows())
    if "threshold" in model.state_dict():
        state = torch.load(again / "ae.pt")
        torch.testing.assert_close(state["threshold"], model.state_dict()["threshold"])
    lens = saefast.convert(tmp_path / "trainer_0", tmp_path / "lens", to="sae_lens")
    with torch.no_grad():
        assert_close(load_sae_lens(lens).encode(3 * rows()), model.encode(3 * rows()))
        assert_close(load_sae_lens(lens).forward(3 * rows()), model(3 * rows()))


# From one to another


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning_to_sae_lens_and_back(tmp_path: Path, kind: str) -> None:
    model = dictionary_learning_folder(tmp_path / "trainer_0", kind)
    lens = saefast.convert(tmp_path / "trainer_0", tmp_path / "lens", to="sae_lens")
    with torch.no_grad():
        assert_close(load_sae_lens(lens).encode(rows()), model.encode(rows()))
        assert_close(load_sae_lens(lens).forward(rows()), model(rows()))
    back = saefast.convert(lens, tmp_path / "back", to="dictionary_learning")
    assert_agree(saefast.load_sae(lens), load_dictionary_learning(back))
    assert json.loads((back / "config.json").read_text())["trainer"]["seed"] == 5


def test_an_encoder_that_is_not_centred_is_folded_where_it_has_to_be(tmp_path: Path) -> None:
    model = sae_lens_model("topk", apply_b_dec_to_input=False)
    model.save_model(tmp_path / "theirs")
    sparse = saefast.convert(tmp_path / "theirs", tmp_path / "sparse", to="sparsify")
    gated = sae_lens_model("gated", apply_b_dec_to_input=False)
    gated.save_model(tmp_path / "gated")
    other = saefast.convert(tmp_path / "gated", tmp_path / "dl", to="dictionary_learning")
    with torch.no_grad():
        assert_close(load_sparsify(sparse).forward(rows()), model(rows()))
        assert_close(load_dictionary_learning(other).encode(rows()), gated.encode(rows()))


# SAELens's own readers of files that nobody writes any more


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that SAELens takes for the Hugging Face hub."""

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
    assert_agree(saefast.load_sae(hub / folder), of_sae_lens(model))


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
    assert_agree(saefast.load_sae(hub / "layer4.sae.pt"), of_sae_lens(model))


def test_llama_scope_is_read_by_sae_lens(hub: Path) -> None:
    """Thresholds are meant for values of the size of the activations. SAELens leaves values as they
    are of scaled activations, and out of account that the norms of the decoder belong to what is
    compared with a threshold: they are one here."""
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
    assert_agree(sae, of_sae_lens(model))
