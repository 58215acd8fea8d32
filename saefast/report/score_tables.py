"""Tables of evaluation scores on the page, with noise and notes below."""

from collections.abc import Iterator
from html import escape

from saefast.evaluation.scores import Score
from saefast.report.run_data import RunData
from saefast.report.score_rows import (
    TITLES,
    interval,
    is_difference,
    least_difference,
    number,
    overall,
)

_HEADS = (
    "measure",
    "condition",
    "latents",
    "value",
    "95 % interval",
    "floor",
    "best trivial rival",
    "ceiling",
    "items",
)
_NOTES_SHOWN = 6


def score_tables(data: RunData) -> str:
    """Return a table of the overall scores of each evaluation that has any."""
    return "".join(_part(data, name, scores) for name in TITLES if (scores := overall(data, name)))


def _part(data: RunData, name: str, scores: list[Score]) -> str:
    heads = "".join(f'<th scope="col">{head}</th>' for head in _HEADS)
    rows = "".join(f"<tr>{_cells(score)}</tr>" for score in scores)
    return (
        f'<h3>{TITLES[name]}</h3><details class="scores"><summary>All scores over all tasks and '
        f"SAEs ({len(scores)})</summary><div><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>{_notes(data, name, scores)}"
    )


def _cells(score: Score) -> str:
    rival = f"{score.rival} {number(score.rival_value)}" if score.rival else "-"
    cells = (
        score.measure,
        score.condition,
        score.group or "all",
        number(score.value),
        interval(score).removeprefix("95 % interval "),
        number(score.floor),
        rival,
        number(score.ceiling),
        f"{score.n:,}",
    )
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def _notes(data: RunData, name: str, scores: list[Score]) -> str:
    summary = data.summaries.get(name)
    notes = [*_noise(data, name, scores), *(summary.notes if summary else ())]
    items = [f"<li>{escape(note)}</li>" for note in notes]
    if not items:
        return ""
    shown = f'<ul class="note">{"".join(items[:_NOTES_SHOWN])}</ul>'
    more = items[_NOTES_SHOWN:]
    if not more:
        return shown
    return (
        f"{shown}<details><summary>More notes ({len(more)})</summary>"
        f'<ul class="note">{"".join(more)}</ul></details>'
    )


def _noise(data: RunData, name: str, scores: list[Score]) -> Iterator[str]:
    """Yield notes on the smallest differences beyond the noise."""
    for measure in dict.fromkeys(score.measure for score in scores if not is_difference(score)):
        least = least_difference(data, name, measure)
        if least is not None:
            yield (
                f"{measure}: the smallest meaningful difference of two SAEs is {least:.3f}; "
                f"smaller ones are within the noise of the evaluation."
            )
