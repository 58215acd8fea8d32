"""Files of tensors that come in pieces have the bytes of those of whole tensors."""

from pathlib import Path

import pytest
import torch

from saefast.disk.atomic import write_tensors
from saefast.disk.streamed_tensors import Pieces, write_pieces


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 3, 5, 7, 64])
def test_pieces_give_the_bytes_of_whole_tensors(
    dtype: torch.dtype, length: int, tmp_path: Path
) -> None:
    tensors = {
        "W": torch.randn(31, 7).to(dtype),
        "a": torch.randn(9).to(dtype),
        "scalar": torch.tensor(0.5, dtype=dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
    }
    write_tensors(tmp_path / "whole", tensors)
    pieces = {
        name: Pieces(tuple(tensor.shape), torch.split(tensor.reshape(-1), length))
        for name, tensor in tensors.items()
    }
    write_pieces(tmp_path / "pieces", pieces, dtype)
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_file_with_missing_pieces_is_not_written(tmp_path: Path) -> None:
    pieces = {"W": Pieces((4, 2), [torch.ones(6)])}
    with pytest.raises(ValueError, match=r"W must have shape \(4, 2\), got 24 bytes"):
        write_pieces(tmp_path / "file", pieces, torch.float32)
    assert list(tmp_path.iterdir()) == []
