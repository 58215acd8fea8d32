"""Language models: harvesting activations, patching in reconstructions, and reading contexts."""

from saefast.lm.builtin_corpus import builtin_corpus
from saefast.lm.corpus import Corpus, Document, as_corpus, hugging_face, json_lines, text_files
from saefast.lm.harvesting import harvest
from saefast.lm.losses import Estimate
from saefast.lm.marginal import Marginal, first_order_effects, marginal_effects
from saefast.lm.model import LanguageModel, load_model
from saefast.lm.patch import PatchEffect, Patching, evaluate_patched
from saefast.lm.sites import Site, find_site
from saefast.lm.streaming import LMActivations
from saefast.lm.top_contexts import TokenInContext, contexts

__all__ = [
    "Corpus",
    "Document",
    "Estimate",
    "LMActivations",
    "LanguageModel",
    "Marginal",
    "PatchEffect",
    "Patching",
    "Site",
    "TokenInContext",
    "as_corpus",
    "builtin_corpus",
    "contexts",
    "evaluate_patched",
    "find_site",
    "first_order_effects",
    "harvest",
    "hugging_face",
    "json_lines",
    "load_model",
    "marginal_effects",
    "text_files",
]
