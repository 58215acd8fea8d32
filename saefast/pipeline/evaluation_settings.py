"""Settings of evaluations, which a run's [evaluate] and the command line give.

A number that is None is that of the budget; that of `quick` is the smaller one.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

Budget = Literal["quick", "full"]
T = TypeVar("T")


def of_budget(budget: Budget, given: T | None, quick: T, full: T) -> T:
    """Return a value that was given, else that of the budget."""
    if given is not None:
        return given
    return quick if budget == "quick" else full


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of sparse probing."""

    tasks: str = ""
    """a table of texts and labels (.csv, .parquet or .jsonl); empty: those of the package
    sae-probes"""
    names: tuple[str, ...] = ()
    """which tasks of the package; none: varied and short ones"""
    k: tuple[int, ...] = (1, 5)
    """numbers of latents of a probe"""
    method: Literal["saefast", "saebench", "sae-probes"] = "saefast"
    """rule by which latents are chosen and probes fitted"""
    limit: int | None = None
    """number of tasks"""


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of a judge of explanations."""

    judge: str = "rules"
    """rules; embedding; local:NAME, a language model; or URL#MODEL, an endpoint that serves chat
    completions"""
    key_env: str = "OPENAI_API_KEY"
    """environment variable that holds the key of an endpoint"""


@dataclass(frozen=True)
class ExplainSettings(JudgeSettings):
    """Settings of explaining latents by rules, and of judging explanations."""

    features: int | None = None
    """latents of each SAE that are judged; rules are found for all"""


@dataclass(frozen=True)
class SteerSettings(JudgeSettings):
    """Settings of steering; with another judge than rules, it compares texts, too."""

    features: int | None = None
    """latents of each SAE"""
    openers: int | None = None
    """prompts to continue, half of which choose strengths; 8 at most"""
    strengths: tuple[float, ...] = (0.8, 1.6, 3.2)
    """multiples of the 99 % quantile of a latent's activation"""
    new_tokens: int = 30
    """tokens of each text"""


@dataclass(frozen=True)
class EditSettings:
    """Settings of causal editing."""

    facts: str = ""
    """a folder with the data of RAVEL; empty: cities and countries"""
    selector: Literal["attribution", "mask"] = "attribution"
    """how latents are chosen: by their first-order effect, or by a trained mask"""
    pairs: int | None = None
    """pairs of entities of each kind"""
    saes: int | None = None
    """number of the SAEs, and of those of each condition, that are edited with; the first ones"""


@dataclass(frozen=True)
class AbsorbSettings:
    """Settings of absorption."""

    words: int | None = None
    """the most words"""
