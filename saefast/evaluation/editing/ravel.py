"""Facts of RAVEL, with the answers that its string rule accepts."""

from pathlib import Path
from typing import Any

from saefast.disk.tables import read_json
from saefast.evaluation.editing.facts import PLACE, TEST, TRAIN, VALIDATION, Facts

_RAVEL = ("entity_attributes", "attribute_to_prompts", "prompt_to_split", "entity_to_split")
_RAVEL_SPLITS = {"train": TRAIN, "val": VALIDATION, "test": TEST}


def ravel_facts(folder: str | Path) -> tuple[Facts, ...]:
    """Read the data of RAVEL: facts of each kind of entity in a folder.

    Texts that RAVEL's string rule accepts as the same value are aliases: "Korea" of South Korea,
    "Chinese" of Mandarin, each language of a list. Its special cases for numbers and time zones,
    which accept approximate answers, have no counterpart: first tokens of values are compared.

    Args:
        folder: folder with the files ravel_KIND_entity_attributes.json,
            ravel_KIND_attribute_to_prompts.json, ravel_KIND_prompt_to_split.json and
            ravel_KIND_entity_to_split.json.

    Returns:
        Facts of each kind, sorted by its name. Templates of the split "val" count as test
        templates.
    """
    folder = Path(folder)
    end = f"_{_RAVEL[0]}.json"
    kinds = sorted(
        path.name.removeprefix("ravel_").removesuffix(end) for path in folder.glob(f"ravel_*{end}")
    )
    if not kinds:
        raise FileNotFoundError(
            f"folder must hold files ravel_KIND{end} of RAVEL's data, but {folder} holds none; "
            f"unpack data.tgz of github.com/explanare/ravel and give the folder with its files"
        )
    return tuple(_ravel_kind(folder, kind) for kind in kinds)


def _ravel_kind(folder: Path, kind: str) -> Facts:
    of_entity, prompts, prompt_split, entity_split = (
        _ravel_file(folder / f"ravel_{kind}_{part}.json") for part in _RAVEL
    )
    entities = tuple(of_entity)
    # RAVEL's placeholder of the entity is %s; templates without a split are not used.
    templates = {
        attribute: tuple(
            text
            for text in texts
            if text in prompt_split and text.replace("%s", PLACE).count(PLACE) == 1
        )
        for attribute, texts in prompts.items()
    }
    templates = {attribute: texts for attribute, texts in templates.items() if texts}
    return Facts(
        kind=kind,
        entities=entities,
        values={
            attribute: tuple(
                accepted(str(of_entity[entity].get(attribute, "")).strip(), attribute)
                for entity in entities
            )
            for attribute in templates
        },
        templates={
            attribute: tuple(text.replace("%s", PLACE) for text in texts)
            for attribute, texts in templates.items()
        },
        template_splits={
            attribute: tuple(TRAIN if prompt_split[text] == "train" else TEST for text in texts)
            for attribute, texts in templates.items()
        },
        entity_splits=tuple(
            _RAVEL_SPLITS[entity_split.get(entity, "train")] for entity in entities
        ),
    )


def _ravel_file(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        problem = "is missing" if content is None else f"holds a {type(content).__name__}"
        raise ValueError(f"{path} must hold a JSON object, as in RAVEL's data, but it {problem}")
    return content


_ALIASES = {
    "South Korea": ("Korea",),
    "United Kingdom": ("England",),
    "North America": ("America",),
    "Mandarin": ("Chinese",),
}
"""Aliases for texts that occur in a value"""


def accepted(value: str, attribute: str) -> tuple[str, ...]:
    """Return a value and its aliases, () for an empty one.

    Args:
        value: value from RAVEL's data.
        attribute: name of its attribute there.
    """
    if not value:
        return ()
    found = [value, *(alias for part, its in _ALIASES.items() if part in value for alias in its)]
    if "language" in attribute.lower():
        found += [each.strip() for each in value.split(",")]
    return tuple(dict.fromkeys(found))
