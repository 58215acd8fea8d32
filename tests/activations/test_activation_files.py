"""Activations in a file: the format is detected from the content, and errors name the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sources import D, make, numbered

from saefast.activations import (
    TensorActivations,
    open_activations,
    open_npy,
    open_pt,
    open_safetensors,
)


@pytest.mark.parametrize("kind", ["store", "npy", "pt", "safetensors"])
def test_format_is_detected_from_the_content(kind: str, tmp_path: Path) -> None:
    make(kind, tmp_path)
    (path,) = tmp_path.iterdir()
    unnamed = path.rename(tmp_path / "without-a-name")
    for given_path in (unnamed, str(unnamed)):
        source = open_activations(given_path, dtype=torch.float64)
        batch = next(source.batches(20, seed=0))
        assert torch.equal(batch.x, numbered()[torch.from_numpy(batch.rows)].double())


def test_open_activations_takes_tensors_arrays_and_activations() -> None:
    x = numbered()
    for source in (x, x.numpy(), list(x.split(17)), iter(x.split(17))):
        assert open_activations(source).d == D
    ready = TensorActivations(x)
    assert open_activations(ready) is ready


class Runs:
    """An object whose unpickling runs code."""

    def __reduce__(self) -> tuple:
        return (print, ("this must not be printed",))


def test_pickled_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Runs(), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt must hold one tensor, .*run code"):
        open_activations(tmp_path / "x.pt")
    assert "printed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": torch.zeros(2, 2)}, "got dict"),
        (torch.zeros(3), r"shape \[n, d\]"),
        (torch.zeros(3, 2).int(), "got int32"),
    ],
)
def test_a_pt_file_must_hold_one_tensor(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt.*{message}"):
        open_pt(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2), "i4"), "got <i4"),
        (np.zeros((3, 2), ">f4"), "got >f4"),
        (np.array([[None]]), r"got \|O"),
        (np.zeros(3, "f4"), r"got shape \(3,\)"),
        (np.zeros((0, 3), "f4"), "not empty"),
        (np.asfortranarray(np.zeros((3, 2), "f4")), "column by column"),
    ],
)
def test_errors_name_bad_npy_files(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=rf"x\.npy .*{message}"):
        open_npy(tmp_path / "x.npy")


@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors"])
@pytest.mark.parametrize("keep", [0.999, 0.5, 0.02])
def test_errors_name_truncated_files(kind: str, keep: float, tmp_path: Path) -> None:
    make(kind, tmp_path)
    path = tmp_path / f"x.{kind}"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=rf"x\.{kind} "):
        open_activations(path)


def test_a_file_of_several_tensors_needs_a_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file({"a": numbered(), "b": numbered() + 1, "c": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"a \[103, 6\], b \[103, 6\], c \[3\]; name one"):
        open_activations(path)
    with pytest.raises(ValueError, match="a tensor 'c'"):
        open_safetensors(path, tensor="c")
    batch = next(open_safetensors(path, tensor="b").batches(5, seed=0))
    assert torch.equal(batch.x, numbered()[torch.from_numpy(batch.rows)] + 1)


def test_unsupported_files_and_folders_raise(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=numbered().numpy())
    (tmp_path / "x.txt").write_text("1 2 3")
    for name in ("x.npz", "x.txt", "."):
        with pytest.raises(ValueError, match="must be"):
            open_activations(tmp_path / name)


def test_a_file_truncated_during_reading_raises(tmp_path: Path) -> None:
    source = make("npy", tmp_path)
    path = tmp_path / "x.npy"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"x\.npy ended \d+ bytes early"):
        next(source.batches(5, seed=0))
