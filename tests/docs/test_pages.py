"""The reference lists every public name, and links between pages exist."""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.documentation import DOCS, PAGES, name, prose

PACKAGES = (
    "saefast",
    "saefast.activations",
    "saefast.evaluation",
    "saefast.lm",
    "saefast.match",
    "saefast.pipeline",
    "saefast.pool",
    "saefast.report",
    "saefast.stability",
    "saefast.studies",
    "saefast.subspace",
    "saefast.sweep",
    "saefast.synthetic",
    "saefast.train",
)
WITHOUT_PAGE = {
    "__version__",
    "ActivationSource",  # a union of types, described on the protocol's page
    "EVALUATIONS",
    "NAMES",
    "PRESETS",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_lists_every_public_name(package: str) -> None:
    listed = set()
    for page in (DOCS / "reference").glob("*.md"):
        for directive in page.read_text().split(".. currentmodule:: ")[1:]:
            module, names = directive.split("\n", 1)
            listed |= {(module, name) for name in re.findall(r"^   (\w+)$", names, re.MULTILINE)}
    public = importlib.import_module(package)
    objects = {getattr(importlib.import_module(module), name) for module, name in listed}
    missing = {
        each
        for each in set(public.__all__) - WITHOUT_PAGE - {"reference"}
        if getattr(public, each) not in objects
    }
    assert not missing


@pytest.mark.parametrize("package", PACKAGES)
def test_public_functions_describe_every_argument(package: str) -> None:
    """The linter compares names only where a docstring has a section Args; D417 passes without."""
    public = importlib.import_module(package)
    undescribed = {
        f"{each}({parameter})"
        for each in public.__all__
        if inspect.isfunction(function := getattr(public, each))
        for parameter in inspect.signature(function).parameters
        if parameter not in described_arguments(function)
    }
    assert not undescribed


def described_arguments(function: Callable[..., object]) -> set[str]:
    """Return the words before the colons in the section Args of a docstring."""
    section = (inspect.getdoc(function) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    heads = re.findall(r"^    (\S[^:]*):", section, re.MULTILINE)
    return {word for head in heads for word in re.findall(r"\w+", head)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", prose(page)):
        assert (page.parent / target).exists(), target
