"""Settings of evaluations, from the table [evaluate] of a run or from the command line.

None stands for a default, which for most numbers depends on the budget and is smaller for `quick`.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar
from urllib.parse import urlsplit

RULES, EMBEDDING, LOCAL = "rules", "embedding", "local:"
"""Names of judges; a language model's name begins with `LOCAL`, all others are endpoints"""

Budget = Literal["quick", "full"]
T = TypeVar("T")


def of_budget(budget: Budget, given: T | None, quick: T, full: T) -> T:
    """Return a given value, or the budget's if it is None."""
    if given is not None:
        return given
    return quick if budget == "quick" else full


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of sparse probing."""

    tasks: str = ""
    """table of texts and labels (.csv, .parquet or .jsonl); empty: tasks of the package
    sae-probes"""
    names: tuple[str, ...] = ()
    """names of tasks of the package; empty: varied and short ones"""
    k: tuple[int, ...] = (1, 5)
    """numbers of latents of a probe"""
    method: Literal["saefast", "saebench", "sae-probes"] = "saefast"
    """rule of choosing latents and fitting probes"""
    limit: int | None = None
    """number of tasks; None: the budget's"""


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of a judge of explanations."""

    judge: str = "rules"
    """rules; embedding; local:NAME, a language model; or URL#MODEL, an endpoint for chat
    completions"""
    key_env: str = "OPENAI_API_KEY"
    """environment variable that holds the key of an endpoint"""

    def __post_init__(self) -> None:
        of_model = self.judge.startswith(LOCAL) and self.judge != LOCAL
        url, _, model = self.judge.partition("#")
        of_endpoint = model and urlsplit(url).netloc and urlsplit(url).scheme in ("http", "https")
        if not (self.judge in (RULES, EMBEDDING) or of_model or of_endpoint):
            raise ValueError(
                f"judge must be {RULES}, {EMBEDDING}, {LOCAL}NAME for a language model, or "
                f"URL#MODEL for an endpoint, such as http://localhost:8000/v1#my-model; got "
                f"{self.judge!r}"
            )


@dataclass(frozen=True)
class ExplainSettings(JudgeSettings):
    """Settings of explaining latents by rules, and of judging explanations."""

    features: int | None = None
    """number of judged latents of each SAE, and of each stability group at most half as many, while
    rules are found for all; None: the budget's"""


@dataclass(frozen=True)
class SteerSettings(JudgeSettings):
    """Settings of steering; judges other than rules also compare texts."""

    features: int | None = None
    """number of latents of each SAE; None: 8, and with the full budget 16 of each of the run's own
    SAEs"""
    openers: int | None = None
    """number of prompts to continue, at most 8, half of which choose strengths; None: the
    budget's"""
    strengths: tuple[float, ...] = (0.8, 1.6, 3.2)
    """multiples of the 99 % quantile of a latent's activation"""
    new_tokens: int = 30
    """number of tokens of each text"""


@dataclass(frozen=True)
class EditSettings:
    """Settings of causal editing."""

    facts: str = ""
    """folder with the data of RAVEL; empty: built-in facts about countries, and about cities with
    the full budget"""
    selector: Literal["attribution", "mask"] = "attribution"
    """choice of latents: by their first-order effect, or by a trained mask"""
    mdas: bool = False
    """whether to train a subspace for each attribute as a supervised ceiling, which takes longer
    than all other edits together"""
    pairs: int | None = None
    """number of cause pairs and of isolation pairs of each attribute; None: the budget's"""
    saes: int | None = None
    """number of SAEs, and of SAEs of each condition, to edit with, from the first; None: the
    budget's"""


@dataclass(frozen=True)
class AbsorbSettings:
    """Settings of absorption."""

    words: int | None = None
    """maximum number of words; None: the budget's"""
