"""SAEs of a repository of the hub: fetched files, and texts of errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.hub_server import Hub, commit_hash
from huggingface_hub import constants

import saefast

NAME = "lab/saes"


def some_sae(seed: int = 0) -> saefast.SAE:
    sae = saefast.SAE(6, 20, k=3, seed=seed)
    sae.firing_rate = torch.linspace(0, 1, 20)
    return sae


def same(a: saefast.SAE, b: saefast.SAE) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture
def stored(hub: Hub, tmp_path: Path) -> Hub:
    """Make a repository with an SAE at the top and in two folders, and other files."""
    for place in ("", "layer_3/width_20", "layer_4/width_20"):
        seed = len(place) and int(place[6])
        folder = saefast.save_sae(some_sae(seed), tmp_path / f"sae-{seed}")
        (folder / "optimizer.pt").write_bytes(b"large")
        hub.add(NAME, folder, place)
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("a card")
    hub.add(NAME, tmp_path / "card")
    return hub


def test_an_sae_is_loaded_from_the_top_and_from_a_folder(stored: Hub) -> None:
    top = saefast.load_sae(NAME)
    assert same(top, some_sae(0))
    assert torch.allclose(top.firing_rate, some_sae().firing_rate, atol=1e-6)
    assert same(saefast.load_sae(NAME, subfolder="layer_3/width_20"), some_sae(3))
    assert same(saefast.load_sae(NAME, subfolder="/layer_4/width_20/"), some_sae(4))


def test_only_the_files_of_the_sae_are_fetched(stored: Hub) -> None:
    saefast.load_sae(NAME, subfolder="layer_3/width_20")
    fetched = {asked.rpartition("/")[2] for asked in stored.asked if asked.startswith("GET /lab")}
    assert fetched == {"cfg.json", "sparsity.safetensors", "sae_weights.safetensors"}


def test_a_file_is_chosen_by_its_path(hub: Hub, tmp_path: Path) -> None:
    for layer in (1, 2):
        sae = saefast.SAE(6, 20, k=3, seed=layer, centred=False)
        saefast.save_sae(sae, tmp_path / f"layer{layer}.sae.pt", format="qwen_scope")
        hub.add(NAME, tmp_path, "qwen")
    with pytest.raises(ValueError, match=r"several files of tensors, layer1.sae.pt, layer2.sae.pt"):
        saefast.load_sae(NAME, subfolder="qwen")
    found = saefast.load_sae(NAME, subfolder="qwen/layer2.sae.pt", format="qwen_scope")
    assert torch.equal(found.W_enc, saefast.SAE(6, 20, k=3, seed=2).W_enc)


def test_the_settings_of_a_checkpoint_match_its_run(hub: Hub, tmp_path: Path) -> None:
    sae = saefast.SAE(6, 20, k=3, seed=5)
    folder = saefast.save_sae(sae, tmp_path / "trainer_0", format="dictionary_learning")
    (folder / "checkpoints").mkdir()
    (folder / "ae.pt").rename(folder / "checkpoints" / "ae_100.pt")
    hub.add(NAME, folder, "run/trainer_0")
    found = saefast.load_sae(NAME, subfolder="run/trainer_0/checkpoints/ae_100.pt")
    assert torch.equal(found.W_enc, sae.W_enc)


def test_a_revision_is_a_branch_or_a_commit(stored: Hub, tmp_path: Path) -> None:
    old = commit_hash(stored.files(NAME))
    folder = saefast.save_sae(some_sae(9), tmp_path / "newer")
    stored.add(NAME, folder, branch="v2")
    assert same(saefast.load_sae(NAME, revision="v2"), some_sae(9))
    stored.add(NAME, folder)
    assert same(saefast.load_sae(NAME), some_sae(9))
    assert same(saefast.load_sae(NAME, revision=old), some_sae(0))


def test_matching_and_conversion_accept_a_download(stored: Hub, tmp_path: Path) -> None:
    path = saefast.download_sae(NAME, subfolder="layer_3/width_20")
    (dictionary,) = saefast.load_dictionaries(path)
    assert torch.equal(dictionary.W_dec, some_sae(3).W_dec)
    target = tmp_path / "converted"
    saefast.convert(NAME, target, "sparsify", subfolder="layer_4/width_20")
    assert same(saefast.load_sae(target), some_sae(4))


def test_a_path_that_exists_is_never_looked_for_on_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saefast.save_sae(some_sae(1), "lab/saes")
    assert same(saefast.load_sae(NAME), some_sae(1))
    with pytest.raises(ValueError, match=r"subfolder must be None .* lab/saes exists on this"):
        saefast.load_sae(NAME, subfolder="x")
    with pytest.raises(FileNotFoundError, match=r"lab/other does not exist"):
        saefast.load_sae(Path("lab/other"))
    assert not hub.asked


def test_a_pickle_from_the_hub_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    torch.save({"W_enc": torch.eye(3), "x": subprocess.Popen}, tmp_path / "evil" / "sae.pt")
    hub.add(NAME, tmp_path / "evil")
    with pytest.raises(ValueError, match=r"load it with allow_pickle=True"):
        saefast.load_sae(NAME)


def test_the_cache_serves_without_a_connection(
    stored: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "layer_3/width_20"
    saefast.load_sae(NAME, subfolder=place)
    before = len(stored.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(saefast.load_sae(NAME, subfolder=place), some_sae(3))
    assert len(stored.asked) == before
    with pytest.raises(FileNotFoundError, match=r"cached copy of lab/saes.*'layer_3/width_20'"):
        saefast.load_sae(NAME, subfolder="layer_4/width_20")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match=r"127.0.0.1:9 cannot be reached .* from the cache, at"):
        assert same(saefast.load_sae(NAME, subfolder=place), some_sae(3))


def test_an_interrupted_download_is_not_loaded(
    stored: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights come last, so that without them nothing is loaded, and with them all is there."""
    path = saefast.download_sae(NAME)
    (path / "sae_weights.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"holds no SAE at its top"):
        saefast.load_sae(NAME)
    order = [asked.rpartition("/")[2] for asked in stored.asked if asked.startswith("GET /lab")]
    assert order[-1] == "sae_weights.safetensors"


ERRORS = {
    "no repository": (
        {"path": "lab/sae"},
        FileNotFoundError,
        "lab/sae is neither a path here nor a repository that you can read on the hub at .*: check "
        "the spelling; for a private one, log in with `hf auth login` or set HF_TOKEN$",
    ),
    "a revision": (
        {"revision": "v7"},
        FileNotFoundError,
        "revision 'v7' does not exist in lab/saes on the hub at .*; revision must be a commit or "
        "one of main$",
    ),
    "a subfolder": (
        {"subfolder": "layer_3/width_21"},
        FileNotFoundError,
        r"lab/saes \(revision main\) holds no SAE in layer_3/width_21; give subfolder=..., one of "
        "'layer_3/width_20', 'layer_4/width_20'$",
    ),
    "a folder above": (
        {"subfolder": "layer_3"},
        FileNotFoundError,
        "holds no SAE in layer_3; give subfolder=..., one of 'layer_3/width_20'",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_sentence_with_its_remedy(stored: Hub, case: str) -> None:
    arguments, error, message = ERRORS[case]
    with pytest.raises(error, match=message) as raised:
        saefast.load_sae(**{"path": NAME, **arguments})
    assert "\n" not in str(raised.value)


def test_the_error_of_a_gated_repository_names_the_page_of_its_terms(stored: Hub) -> None:
    stored.repositories[NAME].gated = True
    page = re.escape(f"{stored.endpoint}/{NAME}")
    with pytest.raises(PermissionError, match=f"accept its terms on the page {page}, then log in"):
        saefast.load_sae(NAME)


def test_a_wrong_token_is_named(stored: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(PermissionError, match=r"missing, invalid or expired: log in with `hf auth"):
        saefast.load_sae(NAME)


def test_the_error_of_a_failing_hub_suggests_a_retry(stored: Hub) -> None:
    stored.failing = 501
    with pytest.raises(ConnectionError, match=r"cannot be used now: .*501.*; try again later$"):
        saefast.load_sae(NAME)


def test_without_connection_and_cache_the_error_names_both(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = r"nor in the cache .*cache, and the hub at .* cannot be reached \({}\): check the"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=message.format("HF_HUB_OFFLINE is set")):
        saefast.load_sae(NAME, revision="v2")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=message.format(".*refused.*")):
        saefast.load_sae(NAME)


def test_without_the_package_the_error_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"lab/saes does not exist here.*'saefast\[hub\]'"):
        saefast.load_sae(NAME)


def test_the_environment_chooses_the_hub(stored: Hub, tmp_path: Path) -> None:
    """The settings of huggingface_hub itself, in a process of its own."""
    code = """
import sys
import saefast
assert not any(name.startswith(("huggingface_hub", "yaml")) for name in sys.modules)
print(saefast.load_sae("lab/saes", subfolder="layer_3/width_20").m)
"""
    others = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**others, "HF_ENDPOINT": stored.endpoint, "HF_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "20\n"), result.stderr
    assert any(asked.startswith("GET /lab") for asked in stored.asked)
    assert (tmp_path / "home" / "hub").is_dir()
