"""Every format is detected from content, written as read, and refuses SAEs that it cannot store."""

from pathlib import Path

import pytest
import torch
from helpers.sae_files import (
    B_DEC,
    D_OUT,
    ENC,
    HOLDS,
    LENS,
    SIX,
    D,
    K,
    M,
    X,
    assert_close,
    draw,
    safe,
    some_sae,
    torch_folder,
)
from helpers.tolerance import assert_same_bits

import saefast
from saefast.formats import FORMATS
from saefast.formats.source import find

CASES = [(name, variant) for name, variants in HOLDS.items() for variant in variants]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_written_files_are_recognised_and_compute_the_same(
    tmp_path: Path, name: str, variant: str, centred: bool
) -> None:
    sae = some_sae(variant, centred=centred)
    path = saefast.save_sae(sae, tmp_path / "a", format=name)
    found = find(path)
    assert [module.NAME for module in FORMATS.values() if module.recognises(found)] == [name]
    with torch.no_grad():
        loaded = saefast.load_sae(path)
        assert_close(loaded.encode(X).to_dense(M), sae.encode(X).to_dense(M).double())
        assert_close(loaded(X), sae(X).double())
    folder = saefast.convert(path, tmp_path / "b")
    assert_same_bits(saefast.load_sae(folder)(X), loaded(X))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("name", FORMATS)
def test_parts_that_a_format_lacks_are_refused(tmp_path: Path, name: str) -> None:
    misfits = {
        "variant": some_sae("gated"),
        "skip": some_sae("topk", skip=True),
        "transcoder": some_sae("topk", d_out=D_OUT),
        "normalise": some_sae("relu", normalise="norm"),
    }
    for sae in misfits.values():
        try:
            path = saefast.save_sae(sae, tmp_path / "sae", format=name)
        except ValueError as error:
            assert "cannot be stored as" in str(error)  # noqa: PT017
            assert list(tmp_path.iterdir()) == []
            continue
        assert_close(saefast.load_sae(path)(X), sae(X).double())
        saefast.save_sae(sae, tmp_path / "other")
        for made in tmp_path.iterdir():
            for file in made.iterdir():
                file.unlink()
            made.rmdir()


def test_refusals_name_the_given_variant_and_the_format_for_most_saes(tmp_path: Path) -> None:
    lacks = "sparsify, which does not support variant='matryoshka'; sae_lens is the format"
    with pytest.raises(ValueError, match=lacks):
        saefast.save_sae(some_sae("matryoshka"), tmp_path / "sae", format="sparsify")
    both = some_sae("topk", skip=True, normalise="norm")
    with pytest.raises(ValueError, match=r"sae_lens, which does not support normalise='norm'$"):
        saefast.save_sae(both, tmp_path / "sae")


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_dtypes_are_kept_or_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    """float16 and 8-bit floats, with which saefast does not compute, become float32, exactly."""
    tensors = {name: value.to(dtype) for name, value in LENS.items()}
    config = SIX | {"architecture": "topk", "k": K}
    sae = saefast.load_sae(safe(tmp_path / "a", "sae_weights.safetensors", tensors, **config))
    kept = dtype in (torch.bfloat16, torch.float64)
    assert sae.W_dec.dtype == (dtype if kept else torch.float32)
    assert torch.equal(sae.W_enc.detach(), ENC.to(dtype).to(sae.W_enc.dtype))


def test_a_file_of_ambiguous_format_raises(tmp_path: Path) -> None:
    square = draw(D, D)
    contents = {"W_enc": square, "W_dec": square, "b_enc": B_DEC, "b_dec": B_DEC}
    config = {"act_size": D, "dict_size": D, "d_in": D, "d_sae": D}
    folder = torch_folder(tmp_path / "a", "sae.pt", contents, **config)
    with pytest.raises(ValueError, match="may be of the format sae_lens or batch_topk"):
        saefast.load_sae(folder)


@pytest.mark.parametrize("variant", ["topk", "jumprelu", "gated"])
def test_a_file_of_ambiguous_tensors_needs_its_config(tmp_path: Path, variant: str) -> None:
    """SAELens's JumpReLU has the tensors of Gemma Scope, which computes something else."""
    folder = saefast.save_sae(some_sae(variant), tmp_path / "sae")
    (folder / "cfg.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"cfg\.json does not exist"):
        saefast.load_sae(folder)
