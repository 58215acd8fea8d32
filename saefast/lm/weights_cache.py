"""The weights of GGUF files, dequantised once: later loads take a fraction of the time.

They lie in `$SAEFAST_CACHE`, else `$XDG_CACHE_HOME/saefast`, else `~/.cache/saefast`, each model in
a folder named by the hash of its file. To remove the cache is safe.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from saefast.disk.atomic import flush_folder
from saefast.disk.tables import write_json
from saefast.lm.requirements import needed
from saefast.progress import tracked

_SIZES = "complete.json"  # the sizes of all files: written last, and looked at first


def cache_folder() -> Path:
    """Where all of it lies."""
    given = os.environ.get("SAEFAST_CACHE")
    if given:
        return Path(given)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "saefast"


def cached_gguf(file: Path, progress: bool = True) -> str:
    """A folder for transformers with the weights, float32, and the tokenizer of a GGUF file."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    folder = cache_folder() / f"gguf-{digest[:32]}"
    if not _whole(folder):
        with one_bar(progress):
            _fill(folder, file)
    return str(folder)


def _whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / _SIZES).read_bytes())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _fill(folder: Path, file: Path) -> None:
    """Load, write to a folder beside, and give it its name when all is on the disk."""
    transformers = needed("transformers")
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # The weights are quantised no more, but transformers would refuse to write them.
    model.hf_quantizer = None
    with contextlib.suppress(AttributeError):
        del model.config.quantization_config
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        files = [path for path in temporary.iterdir() if path.is_file()]
        for path in files:
            with path.open("rb+") as written:
                os.fsync(written.fileno())
        sizes = {path.name: path.stat().st_size for path in files}
        write_json(temporary / _SIZES, sizes)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:
            if not _whole(folder):  # else another process was faster
                raise
        flush_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def silenced() -> Iterator[None]:
    """No bar while models are loaded, downloaded or saved; then all is as its user had set it."""
    logging = needed("transformers").utils.logging
    hub = needed("huggingface_hub.utils.tqdm")
    enabled, states = logging.is_progress_bar_enabled(), dict(hub.progress_bar_states)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an environment variable may forbid to change the hub's
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logging.enable_progress_bar()
        hub.progress_bar_states.clear()
        hub.progress_bar_states.update(states)


@contextmanager
def one_bar(progress: bool) -> Iterator[None]:
    """While a GGUF file is read: one bar of ours over its tensors, if any, in place of several."""

    def ours(tensors: Iterable[Any], *_: Any, **__: Any) -> Any:
        return tracked(list(tensors), "dequantise, once", unit="tensors", progress=progress)

    # The one bar that transformers does not ask its own settings for.
    reader = needed("transformers.modeling_gguf_pytorch_utils")
    before = reader.tqdm
    reader.tqdm = ours
    try:
        with silenced():
            yield
    finally:
        reader.tqdm = before
