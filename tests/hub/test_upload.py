"""SAEs published in a repository of the hub, and read back."""

import pytest
import torch
from helpers.hub_server import TOKEN, Hub
from huggingface_hub import constants

import saefast

NAME = "lab/mine"


@pytest.fixture
def writable(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def weights(sae: saefast.SAE) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in sae.parameters()]


def test_an_sae_is_published_and_loaded(writable: Hub) -> None:
    sae = saefast.SAE(6, 20, k=3, seed=1)
    url = saefast.push_to_hub(sae, NAME, subfolder="seed-1", message="Add seed 1")
    assert url.startswith(f"{writable.endpoint}/{NAME}/commit/")
    assert set(writable.files(NAME)) == {"seed-1/cfg.json", "seed-1/sae_weights.safetensors"}
    found = saefast.load_sae(NAME, subfolder="seed-1")
    assert all(map(torch.equal, weights(found), weights(sae)))


def test_a_published_sae_is_replaced_whole(writable: Hub) -> None:
    """Statistics of the old one must not be read as those of the new one."""
    old = saefast.SAE(6, 20, k=3, seed=1)
    old.firing_rate = torch.ones(20)
    saefast.push_to_hub(old, NAME)
    assert "sparsity.safetensors" in writable.files(NAME)
    saefast.push_to_hub(saefast.SAE(6, 20, k=3, seed=2), NAME)
    assert set(writable.files(NAME)) == {"cfg.json", "sae_weights.safetensors"}
    assert saefast.load_sae(NAME).firing_rate is None


def test_a_file_of_another_format_is_replaced(writable: Hub) -> None:
    """Two files of tensors would be ambiguous."""
    for format, normalise in (("openai", "layer_norm"), ("qwen_scope", "none")):
        sae = saefast.SAE(6, 20, k=3, seed=1, normalise=normalise)
        saefast.push_to_hub(sae, NAME, format=format)
    assert set(writable.files(NAME)) == {"layer.sae.pt"}
    assert saefast.load_sae(NAME).k == 3


def test_a_branch_and_a_format_can_be_chosen(writable: Hub) -> None:
    sae = saefast.SAE(6, 20, k=3, seed=1)
    saefast.push_to_hub(sae, NAME, revision="v2", format="sparsify")
    assert not writable.files(NAME)
    assert set(writable.files(NAME, "v2")) == {"cfg.json", "sae.safetensors"}
    found = saefast.load_sae(NAME, revision="v2")
    assert all(map(torch.equal, weights(found), weights(sae)))


def test_without_a_token_nothing_is_published(hub: Hub) -> None:
    with pytest.raises(PermissionError, match=r"missing, invalid or expired: log in with `hf auth"):
        saefast.push_to_hub(saefast.SAE(6, 20, k=3), NAME)
    assert not hub.repositories


def test_without_a_right_to_write_the_role_is_named(writable: Hub) -> None:
    writable.failing = 403
    with pytest.raises(PermissionError, match=r"may not do this to lab/mine .* role write"):
        saefast.push_to_hub(saefast.SAE(6, 20, k=3), NAME)


def test_without_a_connection_nothing_is_published(
    writable: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"cannot be reached .* nothing was published: check"):
        saefast.push_to_hub(saefast.SAE(6, 20, k=3), NAME)


def test_wrong_arguments_are_named(hub: Hub) -> None:
    with pytest.raises(TypeError, match=r"sae must be a saefast.SAE, got str; load_sae loads one"):
        saefast.push_to_hub("run/seed-0", NAME)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'organisation/name', got 'mine'"):
        saefast.push_to_hub(saefast.SAE(6, 20, k=3), "mine")
    assert not hub.asked
