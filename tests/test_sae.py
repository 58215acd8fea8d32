"""The model, and its files."""

import json
import os
from pathlib import Path

import pytest
import torch
from helpers.tolerance import assert_same_bits

import saefast
from saefast import SAE
from saefast.activations import StoreWriter
from saefast.formats import FORMATS
from saefast.sae import VARIANTS


def test_forward_is_encode_then_decode_for_any_leading_shape() -> None:
    sae = SAE(12, 50, k=4, seed=0)
    x = torch.randn(2, 3, 12)
    flat = x.reshape(-1, 12)
    code = sae.encode(flat)
    assert (code.values >= 0).all()
    expected = (code.to_dense(50) @ sae.W_dec + sae.b_dec).reshape(x.shape)
    torch.testing.assert_close(sae(x), expected)


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        ([1.0], TypeError, "x must be a torch.Tensor"),
        (torch.tensor(1.0), ValueError, "x must have the width of the SAE, 12"),
        (torch.ones(2, 6), ValueError, "x must have the width of the SAE, 12"),
    ],
)
def test_rows_that_do_not_fit_raise(x: object, kind: type[Exception], message: str) -> None:
    sae = SAE(12, 50, k=4, seed=0)
    for call in (sae, sae.encode):
        with pytest.raises(kind, match=message):
            call(x)


def test_a_seed_gives_reproducible_directions_of_norm_one() -> None:
    first, second, other = (SAE(12, 50, k=4, seed=seed) for seed in (3, 3, 4))
    assert_same_bits(first.W_dec, second.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)
    torch.testing.assert_close(first.W_dec.norm(dim=1), torch.ones(50))
    assert_same_bits(first.W_enc, first.W_dec)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_loaded_sae_equals_the_saved_one(tmp_path: Path, dtype: torch.dtype) -> None:
    sae = SAE(7, 20, k=3, seed=0, dtype=dtype)
    with torch.no_grad():
        sae.b_enc.normal_()
    folder = saefast.save_sae(sae, tmp_path / "run" / "sae")
    loaded = saefast.load_sae(folder)
    for name, parameter in sae.named_parameters():
        assert_same_bits(dict(loaded.named_parameters())[name], parameter)
    assert (loaded.d, loaded.m, loaded.k) == (7, 20, 3)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["sae"]


def test_saving_replaces_and_a_failure_keeps_the_old_sae(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saefast.save_sae(SAE(7, 20, k=3, seed=0), tmp_path / "sae")
    saefast.save_sae(SAE(7, 20, k=5, seed=1), folder)
    assert saefast.load_sae(folder).k == 5

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        saefast.save_sae(SAE(7, 20, k=4, seed=2), folder)
    assert saefast.load_sae(folder).k == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sae"]


@pytest.mark.parametrize("there", ["run", "store", "model", "file"])
def test_saving_replaces_only_saes(tmp_path: Path, there: str) -> None:
    sae, path = SAE(7, 20, k=3, seed=0), tmp_path / "mine"
    if there == "run":
        saefast.save_sae(sae, path / "seed-0")
        (path / "run.json").write_text("{}")
    elif there == "store":
        with StoreWriter(path, 7) as store:
            store.append(torch.ones(3, 7))
    elif there == "model":
        path.mkdir()
        for name in ("config.json", "model.safetensors"):
            (path / name).write_bytes(b"")
    else:
        path.write_text("notes")
    before = {p: p.read_bytes() for p in (path, *path.rglob("*")) if p.is_file()}
    for save in (
        lambda: saefast.save_sae(sae, path),
        lambda: saefast.convert(saefast.save_sae(sae, tmp_path / "sae"), path, to="sparsify"),
    ):
        with pytest.raises(FileExistsError, match="path must be a new folder or hold only an SAE"):
            save()
    assert {p: p.read_bytes() for p in (path, *path.rglob("*")) if p.is_file()} == before


@pytest.mark.parametrize("path", [".", "", ".."])
def test_a_folder_is_saved_by_its_name(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working folder would be replaced under the feet of the process."""
    folder = saefast.save_sae(SAE(7, 20, k=3, seed=0), tmp_path / "sae")
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=f"path must end in the name .*, got '{path or '.'}'"):
        saefast.save_sae(SAE(7, 20, k=3, seed=1), path)


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_replaces_its_own_files(tmp_path: Path, name: str) -> None:
    variant = "jumprelu" if name == "gemma_scope" else "topk"
    normalise = "layer_norm" if name == "openai" else "none"
    sae = SAE(7, 20, k=3, seed=0, variant=variant, normalise=normalise)
    for _ in range(2):
        saefast.save_sae(sae, tmp_path / "sae", format=name)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        folder = saefast.save_sae(SAE(7, 20, k=3, seed=0), tmp_path / "sae")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o666 & ~mask}


def test_the_old_folder_stays_until_the_new_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saefast.save_sae(SAE(7, 20, k=3, seed=0), tmp_path / "sae")
    fsync = os.fsync
    seen: list[int] = []

    def look(descriptor: int) -> None:
        seen.append(saefast.load_sae(folder).k if folder.exists() else 0)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    saefast.save_sae(SAE(7, 20, k=5, seed=1), folder)
    # Files and names are flushed while the old folder still exists, then both of its new names.
    old, away, new = (seen.count(k) for k in (3, 0, 5))
    assert old >= 4
    assert seen == [3] * old + [0] * away + [5] * new
    assert away == new == 2
    assert saefast.load_sae(folder).k == 5


def test_the_folder_matches_sae_lens(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    sae = SAE(7, 20, k=3, seed=0)
    folder = saefast.save_sae(sae, tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("topk", 7, 20)
    assert config["apply_b_dec_to_input"] is True
    assert config["metadata"]["sae_lens_version"].startswith("6.")
    tensors = load_file(folder / "sae_weights.safetensors")
    assert tensors["W_enc"].shape == (7, 20)
    assert tensors["W_dec"].shape == (20, 7)


def broken_files() -> dict[str, tuple[str, bytes | None, type[Exception], str]]:
    """Return files, their wrong content (None: missing), and the error message."""
    return {
        "no config": ("cfg.json", None, FileNotFoundError, "cfg.json does not exist"),
        "config cut": ("cfg.json", b'{"d_in": 7,', ValueError, "cfg.json is not JSON"),
        "config empty": ("cfg.json", b"{}", ValueError, "must give d_in, d_sae"),
        "other variant": (
            "cfg.json",
            b'{"d_in": 7, "d_sae": 20, "k": 3, "architecture": "temporal"}',
            ValueError,
            "architecture must be one of abstopk, gated, jumprelu, standard, topk",
        ),
        "no k": (
            "cfg.json",
            b'{"d_in": 7, "d_sae": 20, "architecture": "topk"}',
            ValueError,
            "must give k",
        ),
        "no d_out": (
            "cfg.json",
            b'{"d_in": 7, "d_sae": 20, "architecture": "transcoder"}',
            ValueError,
            "must give d_out",
        ),
        "other size": (
            "cfg.json",
            b'{"d_in": 8, "d_sae": 20, "k": 3}',
            ValueError,
            r"W_enc must have shape \(8, 20\)",
        ),
        "no weights": ("sae_weights.safetensors", None, FileNotFoundError, "does not exist"),
        "weights cut": ("sae_weights.safetensors", b"\x10", ValueError, "truncated or not a"),
    }


@pytest.mark.parametrize("case", broken_files())
def test_errors_name_broken_files(tmp_path: Path, case: str) -> None:
    folder = saefast.save_sae(SAE(7, 20, k=3, seed=0), tmp_path / "sae")
    name, content, kind, message = broken_files()[case]
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(kind, match=message):
        saefast.load_sae(folder)


@pytest.mark.parametrize("d_out", [None, 9])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_saved_and_loaded(tmp_path: Path, variant: str, d_out: int | None) -> None:
    sae = SAE(7, 20, k=3, seed=0, variant=variant, d_out=d_out)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in sae.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=generator))
    loaded = saefast.load_sae(saefast.save_sae(sae, tmp_path / "sae"))
    assert (loaded.variant, loaded.k, loaded.d_out) == (variant, 3, sae.d_out)
    assert loaded.transcodes == (d_out is not None)
    assert loaded.state_dict().keys() == sae.state_dict().keys()
    for name, value in sae.state_dict().items():
        assert_same_bits(loaded.state_dict()[name], value)
    x = torch.randn(11, 7, generator=generator)
    assert_same_bits(loaded(x), sae(x))


@pytest.mark.parametrize("by_norm", [False, True])
def test_abstopk_keeps_signs_and_leaves_out_masked_latents(by_norm: bool) -> None:
    sae = SAE(7, 20, k=15, seed=0, variant="abstopk", by_norm=by_norm, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.0, 3.0, 20, dtype=torch.float64)[:, None]
        sae.b_enc.normal_(generator=generator)
        sae.b_enc[::3] = -torch.inf  # 13 latents are left
    x = torch.randn(11, 7, generator=generator, dtype=torch.float64)
    scores = (x @ sae.W_enc.T + sae.b_enc).detach().masked_fill(sae.b_enc == -torch.inf, 0.0)
    for k in (15, 4):
        sae.k = k
        code = sae.encode(x)
        size = scores.abs() * (sae.W_dec.norm(dim=1) if by_norm else 1.0)
        kept = torch.zeros_like(size).scatter(1, size.topk(min(k, 13)).indices, 1.0)
        torch.testing.assert_close(code.to_dense(20).detach(), scores * kept)
        (slope,) = torch.autograd.grad(code.values.sum(), sae.b_enc)
        torch.testing.assert_close(slope, (kept * (scores != 0)).sum(0))


def test_a_changed_threshold_is_saved_as_jumprelu(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saefast.save_sae(SAE(7, 20, k=3, seed=0, variant="batchtopk"), tmp_path / "sae")
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["threshold"] = torch.linspace(0, 1, 20)
    save_file(tensors, folder / "sae_weights.safetensors")
    loaded = saefast.load_sae(folder)
    assert loaded.variant == "jumprelu"
    assert_same_bits(loaded.threshold.detach(), tensors["threshold"])


def test_errors_name_nan_in_a_file(tmp_path: Path) -> None:
    sae = SAE(7, 20, k=3, seed=0)
    with torch.no_grad():
        sae.b_enc[4] = torch.nan
    folder = saefast.save_sae(sae, tmp_path / "sae")
    with pytest.raises(ValueError, match="b_enc holds NaN"):
        saefast.load_sae(folder)
