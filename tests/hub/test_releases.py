"""SAEs by the names of SAELens's releases, with a registry in the layout of SAELens's own.

tests/peers compares with the registry and the loader of SAELens itself.
"""

import json
from pathlib import Path

import pytest
import torch
from helpers.hub_server import Hub, register_releases
from safetensors.torch import save_file

import saefast
from saefast.hub import releases

REGISTRY = """
small-res:
  model: small
  repo_id: lab/small
  config_overrides:
    normalize_activations: expected_average_only_in
  saes:
  - id: blocks.0.hook_resid_pre
    path: zero
    norm_scaling_factor: 2.5
  - id: blocks.1.hook_resid_pre
    path: one
small-qwen:
  conversion_func: qwen_scope
  model: small
  repo_id: lab/SAE-Res-Small-W32K-L0_3
  saes:
  - id: layer0
    path: layer0.sae.pt
small-transcoders:
  conversion_func: gemma_2_transcoder
  model: small
  repo_id: lab/small-transcoders
  saes:
  - id: layer_7/width_16k/average_l0_5
    path: layer_7/width_16k/average_l0_5
small-scope-2:
  conversion_func: gemma_3
  model: small
  repo_id: lab/small-scope-2
  saes:
  - id: transcoder/layer_7_width_16k_l0_big
    path: transcoder/layer_7_width_16k_l0_big
small-goodfire:
  conversion_func: goodfire
  model: small
  repo_id: lab/goodfire
  saes:
  - id: layer_5
    path: five.pt
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_releases(tmp_path / "site", REGISTRY, monkeypatch)


def test_an_sae_of_a_release_is_loaded(hub: Hub, registry: None, tmp_path: Path) -> None:
    """Settings and factor of the registry count: only there SAELens keeps them for old SAEs."""
    torch.manual_seed(0)
    tensors = {"W_enc": torch.randn(6, 9), "W_dec": torch.randn(9, 6), "b_enc": torch.randn(9)}
    tensors["b_dec"] = torch.randn(6)
    folder = tmp_path / "zero"
    folder.mkdir()
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": 6, "d_sae": 9, "hook_point": "x"}))
    hub.add("lab/small", folder, "zero")
    sae = saefast.load_sae("small-res", sae_id="blocks.0.hook_resid_pre")
    x = torch.randn(5, 6)
    hidden = ((2.5 * x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]).relu()
    expected = (hidden @ tensors["W_dec"] + tensors["b_dec"]) / 2.5
    torch.testing.assert_close(sae(x), expected, rtol=1e-5, atol=1e-5)


def test_the_name_of_a_repository_gives_k(hub: Hub, registry: None, tmp_path: Path) -> None:
    sae = saefast.SAE(6, 20, k=3, seed=1, centred=False)
    contents = {"W_enc": sae.W_enc, "W_dec": sae.W_dec.T, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    (tmp_path / "files").mkdir()
    plain = {name: value.detach().clone() for name, value in contents.items()}
    torch.save(plain, tmp_path / "files" / "layer0.sae.pt")
    hub.add("lab/SAE-Res-Small-W32K-L0_3", tmp_path / "files")
    found = saefast.load_sae("small-qwen", sae_id="layer0")
    assert (found.k, found.m) == (3, 20)


@pytest.mark.parametrize(
    ("release", "place", "site"),
    [
        ("small-transcoders", "layer_7/width_16k/average_l0_5", "ln2.hook_normalized"),
        ("small-scope-2", "transcoder/layer_7_width_16k_l0_big", "hook_mlp_in"),
    ],
)
def test_transcoders_of_gemma_scope_are_transcoders(
    hub: Hub, registry: None, tmp_path: Path, release: str, place: str, site: str
) -> None:
    """Their files are those of SAEs with outputs of the input's width; only the registry tells."""
    sae = saefast.SAE(6, 9, variant="jumprelu", k=3, seed=1, centred=False)
    hub.add(f"lab/{release}", saefast.save_sae(sae, tmp_path / "a", "gemma_scope"), place)
    found = saefast.load_sae(release, sae_id=place)
    assert found.transcodes
    assert found.metadata["gemma_scope"] == {
        "hook_name": f"blocks.7.{site}",
        "hook_name_out": "blocks.7.hook_mlp_out",
    }
    x = torch.randn(5, 6)
    assert torch.equal(found(x), sae(x))
    for format in ("gemma_scope", "sae_lens"):
        again = saefast.load_sae(saefast.save_sae(found, tmp_path / format, format))
        assert again.transcodes


def test_errors_list_the_names(hub: Hub, registry: None) -> None:
    ids = "'blocks.1.hook_resid_pre', 'blocks.0.hook_resid_pre'"
    with pytest.raises(ValueError, match=f"'small-res', such as {ids}, got 'blocks.1.hook'"):
        saefast.load_sae("small-res", sae_id="blocks.1.hook")
    with pytest.raises(ValueError, match=r"sae_id must name an SAE of the release 'small-res'"):
        saefast.load_sae("small-res")
    with pytest.raises(ValueError, match=r"got 'small-ress'; similar names: 'small-res'"):
        saefast.load_sae("small-ress", sae_id="x")
    with pytest.raises(ValueError, match=r"only SAELens reads \(goodfire\).*accelerate"):
        saefast.load_sae("small-goodfire", sae_id="layer_5")
    with pytest.raises(ValueError, match="subfolder must be None where sae_id is given"):
        saefast.load_sae("small-res", sae_id="blocks.1.hook_resid_pre", subfolder="one")
    assert not hub.asked


def test_without_sae_lens_the_error_has_the_command(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "find_spec", lambda _name: None)
    with pytest.raises(ImportError, match=r"not installed: pip install sae-lens; or give the name"):
        saefast.load_sae("small-res", sae_id="blocks.0.hook_resid_pre")
    with pytest.raises(FileNotFoundError, match=r"^small-res does not exist$"):
        saefast.load_sae("small-res")
