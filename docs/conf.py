"""Configuration of Sphinx. `make docs` builds the site with warnings as errors."""

import importlib
import os
from importlib.metadata import version as _version
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

project = "saefast"
author = "The saefast developers"
copyright = "The saefast developers, MIT licence"
release = version = _version("saefast")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
# .rst first: autosummary writes its pages with the first suffix that may be reStructuredText.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = "saefast"
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Notebooks of the gallery run in every build. The build fails at an exception, and at anything on
# stderr, such as a warning. Kernels run beside other processes of the build, hence one thread each.
nb_execution_mode = "force"
nb_execution_timeout = 300  # seconds for a cell
nb_execution_raise_on_error = True
nb_output_stderr = "warn"
nb_merge_streams = True
os.environ.setdefault("OMP_NUM_THREADS", "1")

smartquotes = False  # quotes in docstrings are those of strings, such as "" for an empty one
highlight_language = "none"  # blocks without a language are commands, folders and diagrams

default_role = "py:obj"  # single backquotes: a link to a public name, else code
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_mock_imports = [
    "delphi",
    "dictionary_learning",
    "faiss",
    "sae_bench",
    "sae_lens",
    "sparsify",
    "transformers",
]

_PACKAGES = (
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
"""Packages whose `__all__` lists public names, which tests read from here, too"""
_LINKED = {name for package in _PACKAGES for name in importlib.import_module(package).__all__}


def _link_public_names_only(_app: Sphinx, tree: nodes.document) -> None:
    """Print arguments and fields in backquotes as code: `m` is a field of several classes."""
    for link in list(tree.findall(pending_xref)):
        parts = link.get("reftarget", "").split(".")
        if link.get("refdomain") == "py" and not _LINKED.intersection(parts):
            link.replace_self(nodes.literal("", link.astext()))


_FIELDS: dict[str, list[str]] = {}
"""Docstring of each field before napoleon, which takes the text before a colon for a type."""


def _save_fields(
    _app: Sphinx, what: str, name: str, _what: Any, _options: Any, lines: list[str]
) -> None:
    if what in ("attribute", "property"):
        _FIELDS[name] = lines.copy()


def _restore_fields(
    _app: Sphinx, what: str, name: str, _what: Any, _options: Any, lines: list[str]
) -> None:
    if what in ("attribute", "property"):
        lines[:] = _FIELDS.pop(name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers above."""
    app.connect("doctree-read", _link_public_names_only)
    app.connect("autodoc-process-docstring", _save_fields, priority=400)
    app.connect("autodoc-process-docstring", _restore_fields, priority=600)  # napoleon: 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
