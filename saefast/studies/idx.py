"""Reader of images in IDX files, the format of MNIST."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

NAMES = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")
"""Names of MNIST's training images, possibly followed by .gz."""

_MAGIC = bytes((0, 0, 8, 3))  # unsigned bytes, three dimensions
_HEADER = 16
_LARGEST = 2 << 30  # bytes; MNIST has 47 million


def read_idx_images(path: str | Path) -> Tensor:
    """Read the images of an IDX file.

    Args:
        path: the file, possibly gzipped, or a folder with MNIST's training images.

    Returns:
        [n, height * width] float32 from 0 to 1.
    """
    file = _file(Path(path))
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(file, "rb") if packed else file.open("rb") as stream:
            header = stream.read(_HEADER)
            if len(header) < _HEADER or header[:4] != _MAGIC:
                raise ValueError(
                    f"{file} must be an IDX file of images (unsigned bytes, 3 dimensions), which "
                    f"begins with {_MAGIC!r}, but begins with {header[:4]!r}"
                )
            count, height, width = (int(size) for size in np.frombuffer(header, ">u4", 3, 4))
            size = math.prod((count, height, width))
            if not 0 < size <= _LARGEST:
                raise ValueError(
                    f"{file} must hold from 1 to {_LARGEST} bytes of images, but its header says "
                    f"{count} images of {height} x {width}"
                )
            # One byte more than expected, to detect a file that is longer than its header says.
            pixels = stream.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} is truncated or damaged: {error}; get it again") from error
    if len(pixels) != size:
        more = "more" if len(pixels) > size else f"{len(pixels)}"
        raise ValueError(
            f"{file} must hold {size} bytes of images after its header ({count} x {height} x "
            f"{width}), but holds {more}; it is truncated or not an IDX file"
        )
    images = np.frombuffer(pixels, np.uint8).reshape(count, height * width)
    return torch.from_numpy(images.astype(np.float32) / 255)


def _file(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; check the path")
        return path
    for name in NAMES:
        for file in (path / name, path / f"{name}.gz"):
            if file.is_file():
                return file
    raise FileNotFoundError(
        f"{path} must hold {NAMES[0]} or {NAMES[0]}.gz, but holds neither; give the path of the "
        f"file if it has another name"
    )
