"""Grid of a sweep file: lists, ranges, sets of settings and exclusions."""

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saefast.pipeline.settings import SOURCES

MOST_CELLS = 100_000
_RANGE = ("from", "to", "step", "factor")

Settings = dict[str, Any]
"""Values of settings by dotted name, such as train.latents"""


def setting(settings: Mapping[str, Any], name: str) -> Any:
    """Return the value of a dotted name in nested settings.

    Args:
        settings: nested settings.
        name: dotted name, such as train.latents.

    Returns:
        The value.

    Raises:
        KeyError: there is no such setting.
    """
    value: Any = settings
    for part in name.split("."):
        if not isinstance(value, Mapping):
            raise KeyError(name)
        value = value[part]
    return value


def read_sets(given: Any) -> dict[str, dict[str, Settings]]:
    """Read the sets of a sweep file: the settings of each choice by set and choice."""
    if not isinstance(given, Mapping):
        raise TypeError(f"sets must be tables such as [sets.size.small], got {given!r}")
    found = {}
    for name, choices in given.items():
        if "." in name:
            raise ValueError(f"the name of a set must have no dot, got {name!r}")
        if not isinstance(choices, Mapping) or not choices:
            raise TypeError(
                f"sets.{name} must have a table for each choice, such as [sets.{name}.small], got "
                f"{choices!r}"
            )
        found[name] = {
            choice: dotted(f"sets.{name}.{choice}", values) for choice, values in choices.items()
        }
    return found


def read_axes(grid: Any, sets: Mapping[str, Mapping[str, Settings]]) -> dict[str, list[Any]]:
    """Read the grid of a sweep file: the list of values of each axis by its name."""
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(
            f'grid must be a table with one axis at least, such as "train.k" = [4, 8], got '
            f"{'nothing' if grid is None else repr(grid)}"
        )
    axes = {}
    given: dict[str, str] = {}
    for name, table in _flat(grid, "grid", sets):
        values = axes[name] = _values(name, table)
        if name in sets:
            for value in values:
                if value not in sets[name]:
                    raise ValueError(
                        f"grid.{name} must list choices of [sets.{name}], "
                        f"{', '.join(sets[name])}, got {value!r}"
                    )
        elif "." not in name:
            near = difflib.get_close_matches(name, sets, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"grid must have dotted settings such as train.k, or names of [sets], got "
                f"{name!r}{hint}"
            )
        chosen = sets[name].values() if name in sets else [{name: None}]
        for key in dict.fromkeys(key for each in chosen for key in each):
            if given.setdefault(key, name) != name:
                raise ValueError(f"{key} must be set by one axis only, got {given[key]} and {name}")
    for table, part in _parts(given):
        if given[table] != given[part]:
            raise ValueError(
                f"grid must not have both a table and a setting of it, got {table} of "
                f"{given[table]} and {part} of {given[part]}; write the setting into the table"
            )
    unused = [name for name in sets if name not in axes]
    if unused:
        raise ValueError(f"sets.{unused[0]} must be an axis of grid, but grid has no {unused[0]}")
    return axes


def _values(name: str, given: Any) -> list[Any]:
    """Return the values of a list or a range, and raise a ValueError for duplicates."""
    if isinstance(given, Mapping):
        values = _range(name, given)
    elif isinstance(given, list) and given:
        values = given
    else:
        raise TypeError(
            f"grid.{name} must be a list of values or a range such as "
            f"{{from = 8, to = 64, factor = 2}}, got {given!r}"
        )
    seen = set()
    for value in values:
        text = json.dumps(value, default=str)
        if text in seen:
            raise ValueError(f"grid.{name} must list each value once, got {text} twice")
        seen.add(text)
    return values


def _range(name: str, given: Mapping[str, Any]) -> list[Any]:
    """Return the values of a range, which includes its end if a step reaches it."""
    check_names(f"the range grid.{name}", given, _RANGE)
    numbers = {key: value for key, value in given.items() if _is_number(value)}
    by = [key for key in ("step", "factor") if key in given]
    if len(numbers) < len(given) or not {"from", "to"} <= set(given) or len(by) != 1:
        raise ValueError(
            f"the range grid.{name} must have numbers from and to, and one of step and factor, got "
            f"{dict(given)}"
        )
    first, last, move = given["from"], given["to"], given[by[0]]
    if by == ["step"]:
        fits = move != 0 and (last - first) * move >= 0
        count = int((last - first) / move + 1e-9) + 1 if fits else 0
        values = [first + i * move for i in range(min(count, MOST_CELLS + 1))]
    else:
        fits = (
            first > 0 and last > 0 and move > 0 and move != 1 and (last - first) * (move - 1) >= 0
        )
        values = []
        while fits and len(values) <= MOST_CELLS:
            value = first * move ** len(values)
            if (value - last) * (move - 1) > 1e-9 * last:
                break
            values.append(value)
    if not fits:
        raise ValueError(
            f"the range grid.{name} must reach {last} from {first}, got {by[0]} = {move}"
        )
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass
class Exclusion:
    """Combination of settings whose cells are excluded from the grid."""

    number: int
    """position in the list of exclusions"""
    given: Mapping[str, Any]
    """excluded value, or list of values, by the dotted name of a setting or axis"""
    cells: int = 0
    """number of cells excluded so far"""

    def leaves_out(self, at: Settings, settings: Mapping[str, Any]) -> bool:
        """Return whether a cell is excluded, and count it if so.

        Args:
            at: value of the cell on each axis, and its settings by dotted name.
            settings: nested settings of the cell.

        Returns:
            Whether the cell has all of the excluded values.
        """
        for name, wanted in self.given.items():
            try:
                value = at[name] if name in at else setting(settings, name)
            except KeyError:  # in a table that is None in this cell
                return False
            if value != wanted and not (isinstance(wanted, list) and value in wanted):
                return False
        self.cells += 1
        return True


def read_exclusions(
    given: Any, axes: Mapping[str, Sequence[Any]], base: Mapping[str, Any]
) -> list[Exclusion]:
    """Read the exclusions of a sweep file, whose names have to be axes or settings of the base."""
    if not isinstance(given, list) or not all(isinstance(each, Mapping) and each for each in given):
        raise TypeError(f"exclude must be tables [[exclude]] with settings, got {given!r}")
    found = []
    for number, each in enumerate(given):
        flat = dict(_flat(each, f"exclude[{number}]", {}))
        for name in flat:
            if name in axes:
                continue
            try:
                setting(base, name)
            except KeyError:
                near = difflib.get_close_matches(name, axes, 1)
                hint = f"did you mean {near[0]}?" if near else f"the axes are {', '.join(axes)}"
                raise ValueError(
                    f"exclude[{number}] must have axes of grid or settings, got {name!r}; {hint}"
                ) from None
        found.append(Exclusion(number, flat))
    return found


def _flat(
    table: Mapping[str, Any], name: str, sets: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values: [grid.train] with k = [4] is the same as "train.k" = [4]."""
    sections = {*SOURCES, "train", "trainer", "stability", "subspace", "pool", "evaluate"}
    for key, value in table.items():
        if key in sections and key not in sets and isinstance(value, Mapping):
            for inner, its in _flat(value, f"{name}.{key}", {}):
                yield f"{key}.{inner}", its
        else:
            yield key, value


def dotted(name: str, table: Any) -> Settings:
    """Flatten a table of settings to dotted names."""
    if not isinstance(table, Mapping):
        raise TypeError(f'{name} must be a table of settings such as "train.k" = 4, got {table!r}')
    found = dict(_flat(table, name, {}))
    for key in found:
        if "." not in key:
            raise ValueError(f"{name} must have dotted settings such as train.k, got {key!r}")
    for whole, part in _parts(found):
        raise ValueError(
            f"{name} must not have both a table and a setting of it, got {whole} and {part}; write "
            f"the setting into the table"
        )
    return found


def _parts(names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield each table and setting of it that are both among dotted names."""
    for name in names:
        for place, letter in enumerate(name):
            if letter == "." and name[:place] in names:
                yield name[:place], name


def check_names(name: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise a ValueError, with the closest known name, if a table has an unknown name."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name} must have {', '.join(known)} only, got {key!r}{hint}")
