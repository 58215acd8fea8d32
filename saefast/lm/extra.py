"""Packages that only language models need, and what is told where one is missing."""

from importlib import import_module
from typing import Any


def needed(package: str, extra: str = "'saefast[lm]'") -> Any:
    """The package of that name, or an ImportError that says how to get it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"language models need the package {package}: pip install {extra} ({error})"
        ) from error
