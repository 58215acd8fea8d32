"""Activations cached by SAELens: a folder of the `datasets` library, in Arrow format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from saefast.activations.columns import Column, FileActivations, Span

_ARROW_DTYPES = {"halffloat": torch.float16, "float": torch.float32, "double": torch.float64}
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def open_sae_lens(
    folder: str | Path, *, hook_name: str | None = None, dtype: torch.dtype | None = torch.float32
) -> FileActivations:
    """Open the activations in a folder that SAELens cached.

    Args:
        folder: folder of the `datasets` library, with a column of arrays [context_size, d], whose
            rows become the rows of activations.
        hook_name: name of the column; None: the only such column.
        dtype: dtype of the batches; None: as stored, but float32 unless that is float16.

    Returns:
        Activations that read rows of the files as they are needed.
    """
    folder = Path(folder)
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise ValueError(
            f"{folder} stores its rows in a different order than its files; load it with datasets, "
            f"call flatten_indices() and save it again"
        )
    name, context, d = _feature(folder, hook_name)
    spans: list[Span] = []
    kinds = set()
    for file in _data_files(folder, state):
        for span, kind in _spans(folder / file, name, context * d, d):
            spans.append(span)
            kinds.add(kind)
    if len(kinds) != 1:
        raise ValueError(f"{folder} must hold rows of one dtype, got {sorted(map(str, kinds))}")
    return FileActivations(Column(spans, (d,), kinds.pop()), dtype=dtype)


def _data_files(folder: Path, state: dict[str, Any]) -> list[str]:
    """Return the names of the files of rows, all of which are in the folder."""
    path = folder / "state.json"
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} must list _data_files, each with a filename") from error
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{path} names a file in another folder: {name}")
    return names


def _feature(folder: Path, hook_name: str | None) -> tuple[str, int, int]:
    """Return the name of the column, the length of its contexts and its width."""
    path = folder / "dataset_info.json"
    features = _json(path).get("features")
    arrays = {
        name: feature["shape"]
        for name, feature in (features.items() if isinstance(features, dict) else ())
        if isinstance(feature, dict)
        and feature.get("_type") == "Array2D"
        and _is_shape(feature.get("shape"))
    }
    chosen = list(arrays) if hook_name is None else [hook_name]
    if len(chosen) != 1 or chosen[0] not in arrays:
        wanted = "one column" if hook_name is None else f"a column {hook_name!r}"
        raise ValueError(
            f"{path} must name {wanted} of type Array2D, as SAELens writes it, got "
            f"{', '.join(arrays) or 'none'}; choose one with open_sae_lens(folder, hook_name=...)"
        )
    context, d = arrays[chosen[0]]
    return chosen[0], context, d


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(size, int) and 0 < size < 2**31 for size in value)
    )


def _spans(
    path: Path, name: str, values_per_array: int, d: int
) -> Iterator[tuple[Span, torch.dtype]]:
    """Yield the byte range of the values of every record batch in the file, and their dtype."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            file = mapped.read_buffer()
            mapped.seek(0)
            # Arrow accepts a stream that ends between two batches as complete.
            if file.slice(max(0, file.size - 8)).to_pybytes() != _END_OF_STREAM:
                raise ValueError("it lacks the end marker of a stream")
            for batch in pa.ipc.open_stream(mapped):
                batch.validate(full=True)  # Arrow ends the process for offsets beyond a buffer
                column = batch.column(batch.schema.get_field_index(name))
                if isinstance(column, pa.ExtensionArray):  # if `datasets` was imported
                    column = column.storage
                values = column.flatten().flatten()
                kind = _ARROW_DTYPES.get(str(values.type))
                if kind is None or len(values) != len(column) * values_per_array:
                    raise ValueError(
                        f"{name} must hold {values_per_array} floats an array, got {len(values)} "
                        f"of type {values.type} in {len(column)} arrays"
                    )
                if len(values):
                    address = values.buffers()[1].address + values.offset * kind.itemsize
                    if not file.address <= address < file.address + file.size:
                        raise ValueError("it is compressed")
                    yield Span(path, address - file.address, len(values) // d), kind
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is truncated or not a file cached by SAELens: {error}; write it again"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
