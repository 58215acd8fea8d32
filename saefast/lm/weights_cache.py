"""Cache of dequantised weights of GGUF files, which later loads read in a fraction of the time.

The cache is the folder `$SAEFAST_CACHE`, else `$XDG_CACHE_HOME/saefast`, else `~/.cache/saefast`.
It has a folder for each model, named by the hash of its file. Removing it is safe.
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

from saefast.disk.atomic import flush_file, flush_folder, make_folder
from saefast.disk.tables import write_json
from saefast.lm.gguf_header import check_gguf
from saefast.lm.requirements import needed
from saefast.progress import tracked

_SIZES = "complete.json"  # sizes of all files: written last, and checked first


def cache_folder() -> Path:
    """Return the folder of the cache."""
    given = os.environ.get("SAEFAST_CACHE")
    if given:
        return Path(given)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "saefast"


def cached_gguf(file: Path, progress: bool = True) -> str:
    """Return a folder for transformers with the weights, float32, and tokenizer of a GGUF file."""
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
    """Load the model, write it to a temporary folder, and rename that when all is on disk."""
    make_folder(folder.parent)
    model, tokenizer = _read(file)
    # The weights are no longer quantised, but transformers would refuse to write them.
    model.hf_quantizer = None
    with contextlib.suppress(AttributeError):
        del model.config.quantization_config
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        files = [path for path in temporary.iterdir() if path.is_file()]
        for path in files:
            flush_file(path)
        sizes = {path.name: path.stat().st_size for path in files}
        write_json(temporary / _SIZES, sizes)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:
            if not _whole(folder):  # otherwise another process was faster
                raise
        flush_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(file: Path) -> tuple[Any, Any]:
    """Return the dequantised model and the tokenizer of a GGUF file, after checks of its header."""
    values = check_gguf(file).values
    transformers = needed("transformers")
    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        config = transformers.AutoConfig.from_pretrained(**place)
        with torch.device("meta"):
            empty = transformers.AutoModelForCausalLM.from_config(config)
        asked = sum(parameter.numel() for parameter in empty.parameters())
        if asked > 2 * values:  # twice: embedding and head may be one tensor
            raise ValueError(f"its settings ask for {asked} parameters, and it holds {values}")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **place, config=config, dtype=torch.float32
        )
        return model, transformers.AutoTokenizer.from_pretrained(**place)
    except (ImportError, MemoryError, OSError):
        raise
    except Exception as error:  # transformers and tokenizers have classes of their own
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file} could not be loaded by transformers, as it is damaged or of an unsupported "
            f"kind: {reason}; get the file again, or use the folder of the model"
        ) from error


@contextmanager
def silenced() -> Iterator[None]:
    """Hide progress bars while models are loaded, downloaded or saved; restore them after."""
    logging = needed("transformers").utils.logging
    hub = needed("huggingface_hub.utils.tqdm")
    enabled, states = logging.is_progress_bar_enabled(), dict(hub.progress_bar_states)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an environment variable may forbid changes
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
def errors_only() -> Iterator[None]:
    """Hide warnings of transformers, among them its table of parameters that files lack."""
    logging = needed("transformers").utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def one_bar(progress: bool) -> Iterator[None]:
    """Show a single bar over the tensors of a GGUF file, if any, in place of several."""

    def ours(tensors: Iterable[Any], *_: Any, **__: Any) -> Any:
        return tracked(list(tensors), "dequantise, once", unit="tensors", progress=progress)

    # transformers shows this bar regardless of its own settings.
    reader = needed("transformers.modeling_gguf_pytorch_utils")
    before = reader.tqdm
    reader.tqdm = ours
    try:
        with silenced():
            yield
    finally:
        reader.tqdm = before
