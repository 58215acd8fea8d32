"""Configuration of Sphinx: `make docs` builds the site with warnings as errors."""

from importlib.metadata import version as _version

project = "saefast"
author = "The saefast developers"
copyright = "The saefast developers, MIT licence"
release = version = _version("saefast")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = "saefast"
html_static_path: list[str] = []
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Single backquotes of docstrings are code, and links where the name is known.
default_role = "py:obj"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
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
    "triton",
]
