"""Settings of a run as tables and in files: TOML, YAML or JSON.

Names of tables and of settings are those of `saefast.pipeline.settings`. A name that is not known
raises an error that suggests similar ones.
"""

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal

from saefast.pipeline.settings import SOURCES, RunSettings

_MOST_ALIASES, _DEEPEST = 16, 50  # in a YAML file


def read_settings(path: Path) -> RunSettings:
    """Read settings from a file, TOML, YAML or JSON.

    Args:
        path: file, whose name ends in .toml, .yaml, .yml or .json.

    Returns:
        Settings of a run.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        given = _parsed(text, path.suffix)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        return settings_from(given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def _parsed(text: str, suffix: str) -> Any:
    if suffix == ".toml":
        import tomllib

        return tomllib.loads(text)
    if suffix == ".json":
        return json.loads(text)
    if suffix in (".yaml", ".yml"):
        try:
            import yaml
        except ImportError as error:
            raise ImportError(
                "YAML files need the package pyyaml; run: pip install pyyaml"
            ) from error
        try:
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            aliases = depth = 0
            for event in yaml.parse(text, Loader=loader):
                aliases += isinstance(event, yaml.AliasEvent)
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                # Anchors that refer to anchors grow exponentially; nesting takes quadratic time.
                if aliases > _MOST_ALIASES or depth > _DEEPEST:
                    raise ValueError(
                        f"more than {_MOST_ALIASES} aliases, or more than {_DEEPEST} levels"
                    )
            return yaml.load(text, Loader=loader)
        except yaml.YAMLError as error:
            raise ValueError(str(error).replace("\n", " ")) from error
    raise ValueError(f"the name of the file must end in .toml, .yaml or .json, got {suffix!r}")


def settings_from(given: Any) -> RunSettings:
    """Build settings from tables: one for each part, exactly one of them a source of rows."""
    if not isinstance(given, dict):
        raise TypeError(f"settings must be tables such as [train], got {type(given).__name__}")
    parts = {part.name: part for part in dataclasses.fields(RunSettings) if part.name != "data"}
    _check_names("the file", given, [*SOURCES, *parts])
    named = [name for name in SOURCES if name in given]
    if len(named) != 1:
        raise ValueError(
            f"settings must have exactly one of {', '.join(f'[{name}]' for name in SOURCES)}, the "
            f"source of activations or of SAEs, got {len(named)} of them"
        )
    if "train" not in given:
        raise ValueError("settings must have a table [train] with at least latents = ...")
    values = {"data": from_dict(SOURCES[named[0]], given[named[0]], named[0])}
    kinds = typing.get_type_hints(RunSettings)
    for name in parts:
        if name in given:
            values[name] = from_dict(kinds[name], given[name], name)
    return RunSettings(**values)


def from_dict(kind: Any, given: Any, name: str, default: Any = None) -> Any:
    """Build a dataclass from a table; keys without a field raise an error.

    Args:
        kind: dataclass to build.
        given: table of values by name.
        name: name of the table, for errors.
        default: instance with the values of fields that the table leaves out; None: each field's
            own default.

    Returns:
        The dataclass.
    """
    if not isinstance(given, dict):
        raise TypeError(f"{name} must be a table, got {type(given).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind) if each.name != "loss"}
    _check_names(name, given, list(fields))
    defaults = {} if default is None else {each: getattr(default, each) for each in fields}
    for key, each in fields.items():
        if key in given:
            nested = None if each.default_factory is dataclasses.MISSING else each.default_factory()
            defaults[key] = _value(hints[key], given[key], f"{name}.{key}", nested)
        elif each.default is each.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} must have {key}")
    return kind(**defaults)


def source_table(settings: RunSettings) -> dict[str, Any]:
    """Return the table of the source of rows, by its name, without the device.

    Finished rows and what follows from them are kept when the device is another one.
    """
    tables = settings.to_dict()
    return without_device({name: tables[name] for name in tables if name in SOURCES})


def without_device(tables: dict[str, Any]) -> dict[str, Any]:
    """Return tables of settings without the device of the language model."""
    if "harvest" not in tables:
        return tables
    kept = {name: value for name, value in tables["harvest"].items() if name != "device"}
    return {**tables, "harvest": kept}


def _value(hint: Any, value: Any, name: str, default: Any = None) -> Any:
    """Return `value` in the type of an annotation: tables become dataclasses, lists tuples.

    TOML has no null: where a setting may be None, "none" stands for it.
    """
    choices = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if type(None) in choices and value in (None, "none"):
            return None
        nested = [each for each in choices if dataclasses.is_dataclass(each)]
        if nested:
            return _value(nested[0], value, name, default)
        for each in choices:
            if typing.get_origin(each) is Literal and value in typing.get_args(each):
                return value
        plain = [
            each
            for each in choices
            if each in (int, float, str) or typing.get_origin(each) is tuple
        ]
        return _value(plain[0], value, name) if plain else value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, name, default)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name} must be a list, got {value!r}")
        return tuple(_value(choices[0], each, f"{name}[{i}]") for i, each in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise TypeError(f"{name} must be of type {hint.__name__}, got {value!r}")
    return value


def _check_names(name: str, given: dict[str, Any], known: list[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 3)
            words = " or ".join(filter(None, (", ".join(near[:-1]), *near[-1:])))
            hint = f"did you mean {words}?" if near else f"known settings are {', '.join(known)}"
            raise ValueError(f"{name} has no setting {key!r}; {hint}")
