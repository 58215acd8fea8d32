"""Summary of a report: key numbers beside their nulls, and a table of claims with verdicts."""

from collections.abc import Collection, Sequence
from html import escape
from math import isnan

from saefast.report.document import unbroken
from saefast.report.findings.finding import AGREES, DISAGREES, FAILS, HOLDS, UNCLEAR, Finding
from saefast.report.key_numbers import KeyNumber
from saefast.report.scale import Scale

_SIGNS = {HOLDS: ("✓", "agrees"), FAILS: ("✗", "disagrees")}
_OTHER = ("?", "mixed")
_RULES = (
    "A claim about a null holds if the value lies beyond the range of the null in every SAE or "
    "pair of SAEs, and does not hold if it does so in none. A claim about a difference holds if "
    "its 95 % interval lies on the claim's side of zero, and does not hold if it lies on the other "
    "side. In all other cases the run cannot tell."
)
_WIDTH, _HEIGHT, _EDGE = 240, 26, 6


def summary(numbers: Sequence[KeyNumber], found: Sequence[Finding], drawn: Collection[str]) -> str:
    """Return the summary as HTML.

    Args:
        numbers: key numbers of the run.
        found: findings; those with a claim are listed.
        drawn: names of the figures on the page, to which numbers and claims link.
    """
    claims = [each for each in found if each.claim]
    if not numbers and not claims:
        return "<p>Nothing yet: no stage after the training has finished.</p>"
    tiles = "".join(_tile(number, drawn) for number in numbers)
    return f'<div class="tiles">{tiles}</div>{_claims(claims, drawn)}'


def badge(verdict: str) -> str:
    """Return a comparison with published results as HTML, nothing if there is none."""
    kind = {AGREES: "agrees", DISAGREES: "disagrees"}.get(verdict, "mixed")
    return f'<span class="badge {kind}">{escape(verdict)}</span>' if verdict else ""


def _tile(number: KeyNumber, drawn: Collection[str]) -> str:
    ends, null = number.in_words()
    name = _linked(number.name, number.figure, drawn)
    return (
        f'<div class="tile"><h3>{name}</h3>'
        f'<p class="number">{escape(number.shown(number.value.value))}</p>'
        f'{_gauge(number)}<p class="ends">{unbroken(ends)}</p>'
        f'<p class="null"><span class="chance" aria-hidden="true"></span>{unbroken(null)}</p>'
        f'<p class="note">{unbroken(number.scope)}</p></div>'
    )


def _gauge(number: KeyNumber) -> str:
    """Return a line from 0 to 1 with the null in grey and the value with its interval."""
    known = [end for each in (number.value, number.null) for end in each if not isnan(end)]
    scale = Scale(min(0.0, *known), max(1.0, *known))

    def at(value: float) -> float:
        return _EDGE + scale(value) * (_WIDTH - 2 * _EDGE)

    middle = _HEIGHT / 2
    parts = [f'<path class="axis" d="M{_EDGE} {middle}H{_WIDTH - _EDGE}"/>']
    low, high = number.null.low, number.null.high
    if not isnan(low):
        parts.append(
            f'<rect class="f s2" fill-opacity="0.35" x="{at(low):.1f}" y="{middle - 7}" '
            f'width="{max(at(high) - at(low), 1):.1f}" height="14"/>'
        )
    parts.append(f'<path class="l s2" d="M{at(number.null.value):.1f} {middle - 8}v16"/>')
    low, high = number.value.low, number.value.high
    if not isnan(low):
        parts.append(f'<path class="l s0" d="M{at(low):.1f} {middle}H{at(high):.1f}"/>')
    parts.append(f'<circle class="f s0" cx="{at(number.value.value):.1f}" cy="{middle}" r="5"/>')
    return (
        f'<svg class="chart gauge" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">'
        f"{''.join(parts)}</svg>"
    )


def _claims(claims: Sequence[Finding], drawn: Collection[str]) -> str:
    if not claims:
        return ""
    rows = "".join(_row(each, drawn) for each in claims)
    counts = [sum(each.holds == verdict for each in claims) for verdict in (HOLDS, FAILS, UNCLEAR)]
    return (
        '<table class="claims"><caption>'
        f"Of {len(claims)} claims {counts[0]} hold in this run, {counts[1]} do not, and for "
        f"{counts[2]} it cannot tell</caption><thead>"
        '<tr><th scope="col">Verdict</th><th scope="col">Claim</th><th scope="col">Numbers</th>'
        f'<th scope="col">Papers</th></tr></thead><tbody>{rows}</tbody></table>'
        f'<p class="note">{_RULES}</p>'
    )


def _row(each: Finding, drawn: Collection[str]) -> str:
    sign, kind = _SIGNS.get(each.holds, _OTHER)
    papers = badge(each.verdict) if each.verdict != each.holds else ""
    return (
        f'<tr><td class="verdict {kind}"><span aria-hidden="true">{sign}</span> '
        f"{escape(each.holds)}</td><td>{_linked(each.claim, each.figure, drawn)}</td>"
        f"<td>{unbroken(each.evidence)}</td><td>{papers}</td></tr>"
    )


def _linked(words: str, figure: str, drawn: Collection[str]) -> str:
    text = escape(words)
    return f'<a href="#fig-{escape(figure)}">{text}</a>' if figure in drawn else text
