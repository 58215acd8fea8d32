"""Facts about entities with templates that ask for them, and the built-in facts about places."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from saefast import checks

PLACE = "{}"
"""Placeholder of the entity in a template"""

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Values of attributes of entities of one kind."""

    kind: str
    """noun for the entities, such as "city" """
    entities: tuple[str, ...]
    """names of the entities"""
    values: Mapping[str, tuple[tuple[str, ...], ...]]
    """by attribute, for each entity its value and aliases; () where there is none"""
    templates: Mapping[str, tuple[str, ...]]
    """by attribute, texts that ask for it and end before the value, with "{}" for the entity"""
    template_splits: Mapping[str, tuple[str, ...]]
    """by attribute, "train" or "test" for each template"""
    entity_splits: tuple[str, ...] = ()
    """"train", "validation" or "test" for each entity; (): not yet divided"""

    def __post_init__(self) -> None:
        if len(set(self.entities)) < len(self.entities):
            raise ValueError(f"entities of kind {self.kind!r} must differ, but some are repeated")
        if self.values.keys() != self.templates.keys():
            raise ValueError(
                f"templates must be given for the attributes {', '.join(self.values)}, got "
                f"templates for {', '.join(self.templates) or 'none'}"
            )
        for attribute, values in self.values.items():
            _same_length(f"values[{attribute!r}]", values, "entities", self.entities)
            templates = self.templates[attribute]
            splits = self.template_splits.get(attribute, ())
            _same_length(f"template_splits[{attribute!r}]", splits, "templates", templates)
            for template in templates:
                if template.count(PLACE) != 1:
                    raise ValueError(
                        f"templates[{attribute!r}] must hold {PLACE} once, where the entity goes, "
                        f"got {template!r}"
                    )
        if self.entity_splits:
            _same_length("entity_splits", self.entity_splits, "entities", self.entities)
        for split in {
            *self.entity_splits,
            *(s for its in self.template_splits.values() for s in its),
        }:
            checks.one_of("split", split, SPLITS)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes."""
        return tuple(self.values)

    def select(
        self, *, entities: int | None = None, attributes: Sequence[str] | None = None
    ) -> "Facts":
        """Return the facts restricted to the first entities, or to given attributes.

        Args:
            entities: number of entities to keep, from the first; None: all.
            attributes: names of the attributes to keep; None: all.

        Returns:
            The restricted facts.
        """
        kept = self.attributes if attributes is None else tuple(attributes)
        for attribute in kept:
            checks.one_of("attributes", attribute, self.attributes)
        return Facts(
            kind=self.kind,
            entities=self.entities[:entities],
            values={name: self.values[name][:entities] for name in kept},
            templates={name: self.templates[name] for name in kept},
            template_splits={name: self.template_splits[name] for name in kept},
            entity_splits=self.entity_splits[:entities],
        )


_TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "city": {
        "country": (
            "{} is a large city in the country of",
            "Anyone who travels to {} must have a visa for",
            "Question: in which country is {}? Answer:",
            "On the map, {} lies within the borders of",
            "Vienna is in Austria. Osaka is in Japan. {} is in",
            "Vienna: Austria\nOsaka: Japan\n{}:",
            "City Vienna, country Austria; city Osaka, country Japan; city {}, country",
            "The country of Vienna is Austria, that of Osaka is Japan, and that of {} is",
        ),
        "continent": (
            "{} is a large city on the continent of",
            "A tour that stops in {} is a tour through",
            "Question: on which continent is {}? Answer:",
            "Among the continents of the world, {} belongs to",
            "Vienna is in Europe. Osaka is in Asia. {} is in",
            "Vienna: Europe\nOsaka: Asia\nDakar: Africa\n{}:",
            "City Vienna, continent Europe; city Dakar, continent Africa; city {}, continent",
            "The continent of Vienna is Europe, that of Dakar is Africa, and that of {} is",
        ),
        "language": (
            "Most people who were born in {} speak",
            "Street signs in {} are written in",
            "Question: which language is spoken in {}? Answer:",
            "Schools in {} teach their pupils in",
            "In Vienna they speak German. In Osaka they speak Japanese. In {} they speak",
            "Vienna: German\nOsaka: Japanese\n{}:",
            "City Vienna, language German; city Osaka, language Japanese; city {}, language",
            "The language of Vienna is German, that of Osaka is Japanese, and that of {} is",
        ),
        "currency": (
            "Shops in {} take payment in the local currency, the",
            "A bus ticket in {} is paid for with the",
            "Question: which currency is used in {}? Answer: the",
            "Wages in {} are paid in the national currency, called the",
            "Vienna pays with the euro. Osaka pays with the yen. {} pays with the",
            "Vienna: euro\nOsaka: yen\n{}:",
            "City Vienna, currency euro; city Osaka, currency yen; city {}, currency",
            "The currency of Vienna is the euro, that of Osaka is the yen, and that of {} is the",
        ),
    },
    "country": {
        "capital": (
            "The government of {} sits in the capital city of",
            "Embassies in {} are found in its capital,",
            "Question: what is the capital of {}? Answer:",
            "The parliament of {} meets in",
            "Austria is ruled from Vienna. Japan is ruled from Tokyo. {} is ruled from",
            "Austria: Vienna\nJapan: Tokyo\n{}:",
            "Country Austria, capital Vienna; country Japan, capital Tokyo; country {}, capital",
            "The capital of Austria is Vienna, that of Japan is Tokyo, and that of {} is",
        ),
        "continent": (
            "{} is a country on the continent of",
            "A journey across {} is a journey through",
            "Question: on which continent is {}? Answer:",
            "Among the continents of the world, {} belongs to",
            "Austria is in Europe. Japan is in Asia. {} is in",
            "Austria: Europe\nJapan: Asia\nSenegal: Africa\n{}:",
            "Country Austria, continent Europe; country Senegal, continent Africa; country {}, "
            "continent",
            "The continent of Austria is Europe, that of Senegal is Africa, and that of {} is",
        ),
        "language": (
            "Most people who were born in {} speak",
            "The laws of {} are written in",
            "Question: which language is spoken in {}? Answer:",
            "Schools in {} teach their pupils in",
            "In Austria they speak German. In Japan they speak Japanese. In {} they speak",
            "Austria: German\nJapan: Japanese\n{}:",
            "Country Austria, language German; country Japan, language Japanese; country {}, "
            "language",
            "The language of Austria is German, that of Japan is Japanese, and that of {} is",
        ),
        "currency": (
            "Shops in {} take payment in the local currency, the",
            "A bus ticket in {} is paid for with the",
            "Question: which currency is used in {}? Answer: the",
            "Wages in {} are paid in the national currency, called the",
            "Austria pays with the euro. Japan pays with the yen. {} pays with the",
            "Austria: euro\nJapan: yen\n{}:",
            "Country Austria, currency euro; country Japan, currency yen; country {}, currency",
            "The currency of Austria is the euro, that of Japan is the yen, and that of {} is the",
        ),
    },
}
"""Eight templates for each attribute: four plain ones, then four with solved examples. Every other
template is for training, so that both halves contain both kinds."""


def places(*, cities: int = 120, countries: int = 120) -> tuple[Facts, Facts]:
    """Return facts about large cities and about countries, the most populous first.

    The attributes of cities are country, continent, language and currency; the attributes of
    countries are capital, continent, language and currency. They come from GeoNames (CC BY 4.0)
    through a table in this package; see its header.

    Args:
        cities: number of cities, at most 600.
        countries: number of countries, at most 195.

    Returns:
        Facts about cities, and facts about countries.
    """
    numbers = {"city": cities, "country": countries}
    rows = _rows()
    found = []
    for kind, number in numbers.items():
        there = [row for row in rows if row["kind"] == kind]
        name = "cities" if kind == "city" else "countries"
        checks.whole(name, number)
        checks.between(name, number, 1, len(there), "the number in the table")
        templates = _TEMPLATES[kind]
        found.append(
            Facts(
                kind=kind,
                entities=tuple(row["entity"] for row in there[:number]),
                values={
                    attribute: tuple(_aliases(row[attribute]) for row in there[:number])
                    for attribute in templates
                },
                templates=templates,
                template_splits=dict.fromkeys(templates, (TRAIN, TEST) * 4),
            )
        )
    return found[0], found[1]


def _rows() -> list[dict[str, str]]:
    text = (files("saefast.evaluation.editing") / "places.tsv").read_text("ascii")
    lines = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def _aliases(cell: str) -> tuple[str, ...]:
    return tuple(cell.split(", ")) if cell else ()


def _same_length(name: str, values: Sequence[Any], like: str, others: Sequence[Any]) -> None:
    if len(values) != len(others):
        raise ValueError(
            f"{name} must have as many entries as {like}, {len(others)}, got {len(values)}"
        )
