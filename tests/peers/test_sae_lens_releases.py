"""Releases of SAELens, by its own registry, and its own loader on a hub of this machine."""

import json
from pathlib import Path

import pytest
import torch
from helpers.hub_server import Hub
from sae_lens import SAE as SaeLens
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors.torch import save_file

import saefast
from saefast.hub.releases import find_released

DIRECTORY = get_pretrained_saes_directory()
OURS = {None, "sae_lens", "dictionary_learning_1", "gemma_2", "gemma_2_transcoder", "gemma_3"}
OURS |= {"llama_scope", "qwen_scope"}


def test_every_release_in_a_known_format_is_found() -> None:
    """The place of every SAE, and the number of active latents where only a name states it."""
    found = 0
    for name, release in DIRECTORY.items():
        if release.conversion_func not in OURS:
            continue
        for sae_id, place in release.saes_map.items():
            ours = find_released(name, sae_id)
            assert (ours.repository, ours.place) == (release.repo_id, place)
            assert (ours.k is not None) == (release.conversion_func == "qwen_scope")
            found += 1
    assert found > 1000


@pytest.mark.filterwarnings("ignore:\\nThis SAE has non-empty model_from_pretrained_kwargs")
@pytest.mark.parametrize("release", ["gpt2-small-res-jb", "gpt2-small-mlp-tm", "mistral-7b-res-wg"])
def test_an_sae_equals_the_one_of_their_loader(hub: Hub, release: str, tmp_path: Path) -> None:
    """A release without more, one whose factor is in the registry, one whose settings are."""
    sae_id, place = next(iter(DIRECTORY[release].saes_map.items()))
    torch.manual_seed(0)
    tensors = {"W_enc": torch.randn(12, 40), "b_enc": torch.randn(40), "b_dec": torch.randn(12)}
    tensors["W_dec"] = torch.randn(40, 12)
    folder = tmp_path / "sae"
    folder.mkdir()
    save_file(tensors, folder / "sae_weights.safetensors")
    save_file({"sparsity": -torch.rand(40)}, folder / "sparsity.safetensors")
    config = {
        "d_in": 12,
        "d_sae": 40,
        "dtype": "torch.float32",
        "device": "cpu",
        "hook_point": "blocks.0.hook_resid_pre",
        "hook_point_layer": 0,
        "model_name": "m",
        "context_size": 128,
        "prepend_bos": True,
        "dataset_path": "x",
        "activation_fn": "relu",
    }
    if release == "gpt2-small-mlp-tm":
        config["normalize_activations"] = "expected_average_only_in"
    (folder / "cfg.json").write_text(json.dumps(config))
    hub.add(DIRECTORY[release].repo_id, folder, place)

    theirs = SaeLens.from_pretrained(release, sae_id)
    ours = saefast.load_sae(release, sae_id=sae_id)
    x = torch.randn(30, 12)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
