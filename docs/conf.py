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
    "saefast.sweep",
    "saefast.synthetic",
)
_LINKED = {name for package in _PACKAGES for name in importlib.import_module(package).__all__}


def _link_public_names_only(_app: Sphinx, tree: nodes.document) -> None:
    """Print arguments and fields in backquotes as code: `m` is a field of several classes."""
    for link in list(tree.findall(pending_xref)):
        parts = link.get("reftarget", "").split(".")
        if link.get("refdomain") == "py" and not _LINKED.intersection(parts):
            link.replace_self(nodes.literal("", link.astext()))


def _keep_colons_of_fields(
    _app: Sphinx, what: str, _name: str, _what: Any, _options: Any, lines: list[str]
) -> None:
    """Restore the text before a colon in a field's docstring, which napoleon takes for its type."""
    if what in ("attribute", "property"):
        for at, line in enumerate(lines):
            if line.startswith(":type: "):
                lines[0] = f"{line.removeprefix(':type: ')}: {lines[0]}"
                del lines[at]
                break


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers above."""
    app.connect("doctree-read", _link_public_names_only)
    app.connect("autodoc-process-docstring", _keep_colons_of_fields, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
