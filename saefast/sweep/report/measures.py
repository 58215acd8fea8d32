"""Measures that the report of a sweep shows, with the columns of their bands and nulls."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from saefast.report.score_rows import TITLES

RECURRENCE = "Which features recur"
RECONSTRUCTION = "Reconstruction"
LANGUAGE_MODEL = "Loss of the language model"
SUBSPACES = "Subspaces"
EVALUATIONS = "Evaluations"

_OVER_SAES = "95 % interval over the SAEs of a cell"
_OVER_PAIRS = "range over the pairs of SAEs of a cell"
RANGE_OVER_SAES = "range over the SAEs of a cell"
_ENDS = ("_low", "_high")


@dataclass(frozen=True)
class Measure:
    """Column of results.parquet that is drawn over the axes of the grid."""

    column: str
    """name of the column"""
    title: str
    section: str
    """heading that it is below"""
    about: str
    """definition in a sentence"""
    band: str = RANGE_OVER_SAES
    """meaning of its band"""
    ends: tuple[str, str] | None = None
    """columns of the lower and upper end of the band; None: least and largest value of its SAEs"""
    error: str = ""
    """column of the standard error, whose 95 % interval is the band in place of `ends`"""
    nulls: Mapping[str, str] = field(default_factory=dict)
    """words for each column of a null or other comparison"""
    from_zero: bool = True
    """whether the y axis begins at zero"""


_DIRECTIONS = "random directions"
_MASS = "random features of equal activation mass"

_MEASURES = (
    Measure(
        "stable_share",
        "Stable share",
        RECURRENCE,
        "Share of the alive features that recur in most other SAEs.",
        _OVER_SAES,
        ("stable_share_low", "stable_share_high"),
    ),
    Measure(
        "unstable_share",
        "Unstable share",
        RECURRENCE,
        "Share of the alive features that recur in few or no other SAEs.",
        _OVER_SAES,
        ("unstable_share_low", "unstable_share_high"),
    ),
    Measure(
        "stability",
        "Stability score",
        RECURRENCE,
        "Mean share of the other SAEs that have a feature.",
        _OVER_SAES,
        ("stability_low", "stability_high"),
        nulls={"stability_null": _DIRECTIONS},
    ),
    Measure(
        "shared",
        "Shared features of pairs",
        RECURRENCE,
        "Share of the features of an SAE whose nearest one in another SAE has a cosine of at least "
        "0.7.",
        _OVER_PAIRS,
        ("shared_min", "shared_max"),
        nulls={"shared_null": _DIRECTIONS},
    ),
    Measure(
        "mmcs",
        "MMCS",
        RECURRENCE,
        "Mean cosine of a feature and its nearest one in another SAE.",
        _OVER_PAIRS,
        ("mmcs_min", "mmcs_max"),
        nulls={"mmcs_null": _DIRECTIONS},
    ),
    Measure(
        "pw_mcc",
        "PW-MCC",
        RECURRENCE,
        "Mean cosine of features matched one to one with another SAE.",
        _OVER_PAIRS,
        ("pw_mcc_min", "pw_mcc_max"),
        nulls={"pw_mcc_null": _DIRECTIONS},
    ),
    Measure(
        "explained_variance",
        "Explained variance",
        RECONSTRUCTION,
        "Share of the variance of the activations that an SAE reconstructs.",
        from_zero=False,
    ),
    Measure(
        "stable_keep",
        "Explained variance of stable features",
        RECONSTRUCTION,
        "Share of the variance that the stable features explain alone.",
        nulls={"stable_keep_mass": _MASS},
    ),
    Measure(
        "unstable_keep",
        "Explained variance of unstable features",
        RECONSTRUCTION,
        "Share of the variance that the unstable features explain alone.",
        nulls={"unstable_keep_mass": _MASS},
    ),
    Measure("l0", "L0", RECONSTRUCTION, "Mean number of active latents per row."),
    Measure("dead_share", "Dead share", RECONSTRUCTION, "Share of the latents that never fire."),
    Measure(
        "ce",
        "CE",
        LANGUAGE_MODEL,
        "Cross-entropy with the reconstructions of one SAE in place of the activations, in nats.",
        "95 % interval over texts",
        error="ce_error",
        nulls={"ce_clean": "unmodified model"},
        from_zero=False,
    ),
    Measure(
        "kl",
        "KL",
        LANGUAGE_MODEL,
        "Divergence from the predictions of the unmodified model, in nats.",
    ),
    *(
        Measure(
            f"ce_{group}",
            f"CE with {group} features",
            LANGUAGE_MODEL,
            f"Cross-entropy with the {group} features alone, in nats.",
            nulls={f"ce_{group}_mass": _MASS, "ce_clean": "unmodified model"},
            from_zero=False,
        )
        for group in ("stable", "unstable")
    ),
)


def measures_of(columns: Collection[str]) -> list[Measure]:
    """Return the measures that a table of results has columns of, in the order of the report."""
    known = set(columns)
    found = [*_MEASURES, *_overlaps(columns), *_evaluations(columns)]
    return [measure for measure in found if measure.column in known]


def _overlaps(columns: Collection[str]) -> Iterator[Measure]:
    for group in ("stable", "unstable"):
        name = f"{group}_overlap"
        before = f"{name}_"
        nulls = {each: each.removeprefix(before) for each in columns if each.startswith(before)}
        yield Measure(
            name,
            f"Overlap of {group} subspaces",
            SUBSPACES,
            f"Overlap of the subspaces that the {group} features of two SAEs span.",
            nulls=nulls,
        )


def _evaluations(columns: Collection[str]) -> Iterator[Measure]:
    for column in columns:
        evaluation, _, measure = column.partition(".")
        low, high = (f"{column}{end}" for end in _ENDS)
        if evaluation in TITLES and low in columns and high in columns:
            yield Measure(
                column,
                f"{TITLES[evaluation]}: {measure.replace('_', ' ')}",
                EVALUATIONS,
                "Primary measure of the evaluation for the trained SAEs.",
                "95 % interval of the evaluation",
                (low, high),
                nulls={f"{column}_floor": "value without information"},
                from_zero=False,
            )
