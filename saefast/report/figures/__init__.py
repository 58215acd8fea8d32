"""All figures of the report by section."""

from collections.abc import Callable

from saefast.report.figures import features, groups, runs
from saefast.report.figures.evaluations import SECTION as EVALUATIONS
from saefast.report.figures.evaluations import evaluation_figures
from saefast.report.figures.figure import Figure, Missing
from saefast.report.run_data import RunData

Draw = Callable[[RunData], Figure]

SECTIONS: dict[str, tuple[Draw, ...]] = {
    "Training": (runs.training_curves,),
    "Which features recur": (
        features.score_histogram,
        features.similarity_histogram,
        runs.membership_donut,
        runs.only_in_one,
        runs.threshold_curves,
        runs.shared_curves,
        runs.pair_heat_map,
        features.decoder_encoder,
    ),
    "Properties of stable and unstable features": (
        features.similarity_frequency,
        features.surface_form,
        features.effect_by_rate,
    ),
    "Explained variance and loss by group": (groups.keep_drop, groups.keep_drop_ce),
    "Subspaces": (
        groups.overlap_unstable,
        groups.overlap_stable,
        groups.contributions,
        groups.angles,
        groups.spectra,
    ),
    "Pooling": (groups.pooling_frontier,),
}


def draw_all(data: RunData) -> tuple[dict[str, list[Figure]], list[str]]:
    """Draw all figures of a run.

    Args:
        data: files of the run.

    Returns:
        Figures by section, and for missing figures the files that the run lacks.
    """
    drawn: dict[str, list[Figure]] = {}
    missing: list[str] = []
    for section, several in SECTIONS.items():
        for draw in several:
            try:
                drawn.setdefault(section, []).append(draw(data))
            except Missing as reason:
                missing.append(str(reason))
    drawn = {name: figures for name, figures in drawn.items() if figures}
    if data.scores:
        drawn[EVALUATIONS] = list(evaluation_figures(data))
    return drawn, list(dict.fromkeys(missing))


__all__ = ["EVALUATIONS", "SECTIONS", "Figure", "draw_all"]
