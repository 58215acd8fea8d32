"""Activations cached by SAELens in folders of the `datasets` library."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sources import D, take
from helpers.strategies import normal

from saefast.activations import open_activations, open_sae_lens

CONTEXT = 8


def write_arrow(
    folder: Path, shards: list[np.ndarray], name: str = "blocks.0.hook_resid_post"
) -> None:
    """Write a folder like `datasets.Dataset.save_to_disk`, with arrays [n, context, d] by shard.

    Compared by hand with the output of datasets 5.2 as SAELens 6 calls it.
    """
    import pyarrow as pa

    folder.mkdir()
    context, d = shards[0].shape[1:]
    kind = str(shards[0].dtype)
    features = {
        name: {"shape": [context, d], "dtype": kind, "_type": "Array2D"},
        "token_ids": {
            "feature": {"dtype": "int32", "_type": "Value"},
            "length": context,
            "_type": "List",
        },
    }
    inner = pa.list_(pa.list_(pa.from_numpy_dtype(shards[0].dtype)))
    extension = {
        "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
        "ARROW:extension:metadata": json.dumps([[context, d], kind]),
    }
    schema = pa.schema(
        [
            pa.field(name, inner, metadata=extension),
            pa.field("token_ids", pa.list_(pa.int32(), context)),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    files = []
    for number, shard in enumerate(shards):
        files.append({"filename": f"data-{number:05d}-of-{len(shards):05d}.arrow"})
        with pa.ipc.new_stream(str(folder / files[-1]["filename"]), schema) as stream:
            for part in np.array_split(shard, 2):
                tokens = pa.array([[0] * context] * len(part), pa.list_(pa.int32(), context))
                stream.write(pa.record_batch([pa.array(part.tolist(), inner), tokens], schema))
    state = {"_data_files": files, "_fingerprint": "77427b6aa19fa0c4", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shards", [1, 3])
def test_rows_of_a_folder_are_read(kind: str, shards: int, tmp_path: Path) -> None:
    arrays = normal((20, CONTEXT, D), 0, torch.float64).numpy().astype(kind)
    write_arrow(tmp_path / "cached", np.array_split(arrays, shards))
    source = open_activations(tmp_path / "cached")
    assert (source.rows, source.d) == (20 * CONTEXT, D)
    rows = torch.from_numpy(arrays.reshape(-1, D)).float()
    for batch in take(source.batches(48, seed=0), 7):
        assert torch.equal(batch.x, rows[torch.from_numpy(batch.rows)])
    row = CONTEXT * len(np.array_split(arrays, shards)[-1]) - 1
    last = f"data-{shards - 1:05d}-of-{shards:05d}.arrow, row {row}"
    assert source.locate(20 * CONTEXT - 1).endswith(last)


def test_rows_are_read_if_datasets_was_imported(tmp_path: Path) -> None:
    """The `datasets` library registers its type in pyarrow, which then wraps columns in it."""
    import pyarrow as pa

    class Array2D(pa.ExtensionType):
        def __init__(self) -> None:
            inner = pa.list_(pa.list_(pa.float32()))
            super().__init__(inner, "datasets.features.features.Array2DExtensionType")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: object, serialized: bytes) -> "Array2D":
            return cls()

    arrays = normal((5, CONTEXT, D), 0, torch.float32).numpy()
    write_arrow(tmp_path / "cached", [arrays])
    before = open_sae_lens(tmp_path / "cached").fingerprint
    pa.register_extension_type(Array2D())
    try:
        assert open_sae_lens(tmp_path / "cached").fingerprint == before
    finally:
        pa.unregister_extension_type("datasets.features.features.Array2DExtensionType")


def test_errors_name_bad_folders(tmp_path: Path) -> None:
    arrays = normal((20, CONTEXT, D), 0, torch.float32).numpy()
    folder = tmp_path / "cached"
    write_arrow(folder, [arrays])
    with pytest.raises(ValueError, match=r"column 'blocks\.1'.*got blocks\.0\.hook"):
        open_sae_lens(folder, hook_name="blocks.1")
    data = folder / "data-00000-of-00001.arrow"
    whole = data.read_bytes()
    for keep in (10, len(whole) // 2, len(whole) - 200, len(whole) - 8):
        data.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"data-00000-of-00001\.arrow"):
            open_sae_lens(folder)
    data.unlink()
    with pytest.raises(FileNotFoundError, match=r"data-00000-of-00001\.arrow"):
        open_sae_lens(folder)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(ValueError, match="another folder"):
        open_sae_lens(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state\.json is not JSON"):
        open_sae_lens(folder)
