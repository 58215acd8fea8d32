"""Bars of transformers and of the hub: none where silence is asked for, or where ours is."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from saefast.lm.extra import needed


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
    from tqdm import tqdm

    def ours(tensors: Iterable[Any], *_: Any, **__: Any) -> Any:
        return tqdm(tensors, desc="dequantise, once", unit="tensor", disable=not progress)

    # The one bar that transformers does not ask its own settings for.
    reader = needed("transformers.modeling_gguf_pytorch_utils")
    before = reader.tqdm
    reader.tqdm = ours
    try:
        with silenced():
            yield
    finally:
        reader.tqdm = before
