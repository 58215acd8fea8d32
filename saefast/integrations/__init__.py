"""Adapters for other packages; each module imports its package when it is accessed."""

from importlib import import_module
from typing import Any

_PEERS = ("delphi", "dictionary_learning", "sae_bench", "sae_lens", "sparsify")


def __getattr__(name: str) -> Any:
    if name in _PEERS:
        return import_module(f"saefast.integrations.{name}")
    raise AttributeError(f"module 'saefast.integrations' has no attribute {name!r}")
