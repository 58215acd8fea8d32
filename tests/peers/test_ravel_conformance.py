"""The string rule of RAVEL, as SAEBench has it, on values and their aliases."""

import warnings

import pytest

from saefast.evaluation.editing.ravel import accepted

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("sae_bench", reason="needs sae-bench 0.6.0")
    from sae_bench.evals.ravel.validation import evaluate_completion

VALUES = {
    "Country": (
        *("Italy", "United Kingdom", "United States", "South Korea", "Norway", "Niger", "Nigeria"),
        *("Korea, North", "Ireland", "Guinea", "Papua New Guinea"),
    ),
    "Continent": ("Africa", "Asia", "Europe", "North America", "South America", "Oceania"),
    "Language": ("English", "Mandarin Chinese", "Malay", "English,Malay", "Spanish", "Japanese"),
}
TEMPLATES = {
    "Country": "{} is in the country of",
    "Continent": "{} is on the continent of",
    "Language": "People in {} speak the language",
}
LOOSER = {
    "Country": {
        ("United States", "England"),  # one rule for both
        ("South Korea", "Korea, North"),
        ("Korea, North", "Korea"),
        ("Niger", "Nigeria"),  # what the value begins is right, too
        ("Nigeria", "Niger"),  # and so is what begins the value
    },
    "Continent": set(),
    "Language": {("English", "English,Malay")},
}
"""Values and what else counts as them there; here first tokens decide"""


@pytest.mark.parametrize("attribute", VALUES)
def test_answers_that_are_right(attribute: str) -> None:
    looser = set()
    for value in VALUES[attribute]:
        for answer in {each for other in VALUES[attribute] for each in accepted(other, attribute)}:
            theirs = evaluate_completion(TEMPLATES[attribute], value, f" {answer}")
            if answer in accepted(value, attribute):
                assert theirs
            elif theirs:
                looser.add((value, answer))
    assert looser == LOOSER[attribute]
