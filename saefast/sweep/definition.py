"""Sweep files: a base, axes of settings, and the cells of their grid."""

import difflib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saefast.pipeline.presets import PRESETS
from saefast.pipeline.settings import SOURCES, HarvestSettings, RunSettings, TrainedSettings
from saefast.pipeline.settings_file import read_settings, settings_from
from saefast.sweep.grid import (
    MOST_CELLS,
    Settings,
    check_names,
    dotted,
    read_axes,
    read_exclusions,
    read_sets,
)

_TABLES = ("base", "settings", "sets", "grid", "exclude")
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    """name of the cell and of the folder of its run"""
    axes: Settings
    """value on each axis of the grid, by the name of the axis"""
    settings: RunSettings
    """settings of the run"""


@dataclass(frozen=True)
class Sweep:
    """Axes and cells of a sweep file."""

    axes: tuple[str, ...]
    """names of the axes, in the order of the file"""
    cells: tuple[Cell, ...]
    """cells in the order of the grid, whose last axis varies fastest"""


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Args:
        path: path of a TOML file.

    Returns:
        The sweep.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not TOML, or its settings are invalid.
        TypeError: a setting has a wrong type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give a sweep file (.toml) with a [grid]")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as TOML: {error}") from error
    try:
        return sweep_from(content, path.parent)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def sweep_from(content: Mapping[str, Any], folder: Path) -> Sweep:
    """Build a sweep from the tables of a sweep file.

    Args:
        content: content of the file: base, settings, sets, grid and exclude.
        folder: folder that a relative path of `base` refers to.

    Returns:
        The sweep.

    Raises:
        ValueError: the settings are invalid, or the grid is empty or too large.
        TypeError: a setting has a wrong type.
    """
    check_names("the file", content, _TABLES)
    base = _base(content.get("base"), folder)
    common = dotted("settings", content.get("settings", {}))
    _assign(base, common)
    tables = {name for name, value in common.items() if isinstance(value, dict)}
    sets = read_sets(content.get("sets", {}))
    axes = read_axes(content.get("grid"), sets)
    excluded = read_exclusions(content.get("exclude", []), axes, base)
    number = 1
    for values in axes.values():
        number *= len(values)
    if number > MOST_CELLS:
        raise ValueError(f"grid must span at most {MOST_CELLS:,} cells, got {number:,}")
    cells = []
    for chosen in itertools.product(*axes.values()):
        at = dict(zip(axes, chosen, strict=True))
        settings = json.loads(json.dumps(base))
        given = _given(at, sets)
        _assign(settings, given, tables)
        if not any(each.leaves_out(at | given, settings) for each in excluded):
            cells.append(_cell(at, settings))
    for each in excluded:
        if not each.cells:
            raise ValueError(
                f"exclude[{each.number}] must match at least one cell of the grid, got "
                f"{each.given}, which matches none"
            )
    if not cells:
        raise ValueError("exclude must leave at least one cell, but excludes all cells")
    _check_names_differ(cells)
    return Sweep(tuple(axes), tuple(cells))


def _base(base: Any, folder: Path) -> dict[str, Any]:
    """Return the settings that all cells are based on."""
    if not isinstance(base, str):
        raise ValueError(
            f"base must be a preset ({', '.join(PRESETS)}) or the path of a run's TOML, got "
            f"{'nothing' if base is None else repr(base)}"
        )
    if base in PRESETS:
        return PRESETS[base].to_dict()
    path = folder / base
    if not path.is_file():
        raise ValueError(
            f"base must be a preset ({', '.join(PRESETS)}) or the path of a run's TOML, got "
            f"{base!r}, and there is no file {path}"
        )
    settings = read_settings(path)
    if isinstance(settings.data, TrainedSettings):
        raise ValueError(
            f"base must be the settings of a run with a training, got {base!r} with SAEs that are "
            f"trained already"
        )
    return settings.to_dict()


def _given(at: Settings, sets: Mapping[str, Mapping[str, Settings]]) -> Settings:
    """Return the settings that correspond to the values on the axes."""
    given: Settings = {}
    for name, value in at.items():
        given |= sets[name][value] if name in sets else {name: value}
    return given


def _assign(settings: dict[str, Any], given: Settings, tables: Set[str] = frozenset()) -> None:
    """Assign values to nested settings; raise a ValueError for unknown names.

    `tables` are names of tables that lack settings with a default.
    """
    created = set(tables)  # with tables that were None, so their settings are unknown
    for name, value in given.items():
        *parents, last = name.split(".")
        place: Any = settings
        for depth, part in enumerate(parents):
            path = ".".join(parents[: depth + 1])
            if part not in place:
                raise ValueError(_unknown(name, path, place))
            if place[part] is None:
                place[part] = {}
                created.add(path)
            place = place[part]
            if not isinstance(place, dict):
                raise ValueError(
                    f"{name} must be a setting, but {path} is {place!r} and has no settings"
                )
        if last not in place and ".".join(parents) not in created:
            raise ValueError(_unknown(name, name, place))
        place[last] = value


def _unknown(name: str, part: str, place: Mapping[str, Any]) -> str:
    last = part.rpartition(".")[2]
    if part in SOURCES:
        own = next(source for source in SOURCES if source in place)
        return f"{name} must be a setting of base, whose source of rows is [{own}], got [{part}]"
    near = difflib.get_close_matches(last, place, 1)
    before = part.removesuffix(last)
    hint = f"did you mean {before}{near[0]}?" if near else f"known settings are {', '.join(place)}"
    return f"{name} must be a setting, but there is no {part}; {hint}"


def _cell(at: Settings, content: dict[str, Any]) -> Cell:
    name = cell_name(at)
    try:
        settings = settings_from(content)
        _check_device(settings)
        return Cell(name, at, settings)
    except (TypeError, ValueError) as error:
        words = ", ".join(f"{key} = {json.dumps(value)}" for key, value in at.items())
        raise type(error)(f"the cell with {words} is not valid: {error}") from error


def _check_device(settings: RunSettings) -> None:
    """Raise a ValueError if a language model is on another GPU than the first of its worker."""
    data = settings.data
    if isinstance(data, HarvestSettings) and torch.device(data.device).index:
        raise ValueError(
            f"device must be cpu or cuda in a sweep, whose workers have one GPU each, got "
            f"{data.device!r}"
        )


def cell_name(at: Settings) -> str:
    """Return the name of a cell's folder, made of its values and the last parts of axis names.

    Args:
        at: value on each axis.

    Returns:
        The name, at most 200 characters.
    """
    short = [name.rpartition(".")[2] for name in at]
    names = [last if short.count(last) == 1 else full for last, full in zip(short, at, strict=True)]
    parts = [
        f"{_as_name(name, '_')}-{_as_name(value)}"
        for name, value in zip(names, at.values(), strict=True)
    ]
    return "_".join(parts)[:_LONGEST_NAME]


def is_cell_name(name: str) -> bool:
    """Return whether a name can name a cell: a folder directly in the folder of the cells.

    Args:
        name: any text.

    Returns:
        Whether it has the characters of `cell_name` only, and does not begin with a dot.
    """
    return re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*", name) is not None


def _as_name(value: Any, kept: str = "") -> str:
    """Return a value as a part of a folder's name; `kept` are characters beyond the usual ones."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(rf"[^A-Za-z0-9.+{kept}-]+", "-", text).strip("-.") or "empty"


def _check_names_differ(cells: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.name.lower(), cell)
        if other is not cell:
            raise ValueError(
                f"the cells {other.axes} and {cell.axes} must have folders of different names, got "
                f"{cell.name} for both; give the values names as choices of [sets]"
            )
