"""Results of a study of pooling: measurements of each method, and the comparison with controls."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saefast.disk.tables import table_of
from saefast.types import brief

if TYPE_CHECKING:
    import pyarrow as pa


CONTROLS = {
    "pruned": "one SAE cut to its most frequent latents, with the same fine-tuning",
    "scratch": "an SAE of that width, trained from scratch",
    "single": "one SAE, unchanged",
}
"""Descriptions of the controls that pooling is compared with, by name"""


_COMPARED = {
    "explained_variance": "explained variance",
    "match_share": "match share",
    "pw_mcc": "PW-MCC",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Measurements of two SAEs of one method, from disjoint seeds, on held-out activations."""

    explained_variance: float
    """explained variance by `saefast.evaluation.reconstruction.CONVENTIONS`, mean of both SAEs"""
    match_share: float
    """share of the alive latents whose nearest latent of the other SAE has a cosine (of abstopk: an
    absolute cosine) of at least the threshold, mean of both SAEs"""
    pw_mcc: float
    """sum of the cosines of the best one-to-one matching divided by the number of alive latents of
    the SAE with fewer"""
    alive: float
    """number of latents that fire, mean of both SAEs"""
    match_share_error: float
    """standard error of `match_share`, from the number of latents"""
    pw_mcc_error: float
    """standard error of `pw_mcc`; the error of explained variance is far below any margin"""


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """Results of one method."""

    method: str
    """"pooled", or one of `CONTROLS`"""
    latents: int
    """number of latents of each SAE"""
    tokens: int
    """number of tokens of all training that went into one SAE, over all seeds"""
    whole: Outcome
    """measurements of the SAEs as they are"""
    equal: Outcome
    """measurements after the SAEs of all methods are cut to the same number of their most frequent
    latents, the smallest number of alive latents of any SAE"""

    __repr__ = brief


@dataclass(frozen=True, kw_only=True)
class PoolingStudy:
    """Comparison of pooling with its controls."""

    results: tuple[MethodResult, ...]
    """results of pooling, then of the controls"""
    threshold: float
    """minimum cosine of a match"""
    margin: float
    """differences up to this are ignored"""

    __repr__ = brief

    @property
    def beaten(self) -> dict[str, bool]:
        """Whether pooling beats each control, by name, at equal numbers of alive latents.

        It beats a control if it is better on one metric and worse on none.
        """
        return {
            name: bool(better) and not worse
            for name, (better, worse) in (
                (result.method, self._against(result)) for result in self.results[1:]
            )
        }

    @property
    def pays(self) -> bool:
        """Whether pooling beats every control."""
        return all(self.beaten.values())

    @property
    def verdict(self) -> str:
        """The comparison as text."""
        lost = [name for name, beaten in self.beaten.items() if not beaten]
        head = "Pooling beats every control." if not lost else "Pooling does not beat its controls."
        pooled = self.results[0]
        lines = [
            f"{head} Compared at {pooled.equal.alive:g} latents alive; differences of up to "
            f"{self.margin:g} or two standard errors count as none.",
            f"pooled: {_figures(pooled.equal)}.",
        ]
        for result in self.results[1:]:
            better, worse = self._against(result)
            differences = [
                f"pooling is {w} in {' and '.join(names)}"
                for w, names in (("better", better), ("worse", worse))
                if names
            ]
            lines.append(
                f"{result.method} ({CONTROLS[result.method]}): {_figures(result.equal)}; "
                f"{', '.join(differences) or 'pooling makes no difference'}."
            )
        return "\n".join(lines)

    def to_table(self) -> "pa.Table":
        """Return a pyarrow table with a row for each method."""
        return table_of(
            [
                {
                    **{name: getattr(result, name) for name in ("method", "latents", "tokens")},
                    **vars(result.whole),
                    **{f"equal_{name}": value for name, value in vars(result.equal).items()},
                }
                for result in self.results
            ]
        )

    def _against(self, control: MethodResult) -> tuple[list[str], list[str]]:
        """Return the metrics in which pooling is better and worse than a control."""
        pooled = self.results[0].equal
        better: list[str] = []
        worse: list[str] = []
        for name, words in _COMPARED.items():
            gain = getattr(pooled, name) - getattr(control.equal, name)
            error = math.hypot(
                *(getattr(its, f"{name}_error", 0.0) for its in (pooled, control.equal))
            )
            # Ignore differences that a few latents can cause.
            if abs(gain) > max(self.margin, 2 * error):
                (better if gain > 0 else worse).append(words)
        return better, worse


def _figures(outcome: Outcome) -> str:
    return ", ".join(f"{words} {getattr(outcome, name):.3f}" for name, words in _COMPARED.items())
