"""Language models: harvest their activations, patch reconstructions back, read what fires."""

from saefast.lm.builtin_corpus import builtin_corpus
from saefast.lm.corpus import Corpus, Document, as_corpus
from saefast.lm.harvesting import harvest
from saefast.lm.model import LanguageModel, load_model
from saefast.lm.sites import Site, find_site
from saefast.lm.text_sources import hugging_face, json_lines, text_files

__all__ = [
    "Corpus",
    "Document",
    "LanguageModel",
    "Site",
    "as_corpus",
    "builtin_corpus",
    "find_site",
    "harvest",
    "hugging_face",
    "json_lines",
    "load_model",
    "text_files",
]
