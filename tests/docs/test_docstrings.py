"""Public functions, methods and fields are described, tensors with their shapes.

Ruff's rules for docstrings compare sections with the function. They pass where a docstring has no
section Args or only one line, and they do not read shapes.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cached_property
from types import ModuleType

import pytest
from helpers.checkout import CHECKOUT
from helpers.documentation import PUBLIC_PACKAGES

ARRAYS = re.compile(r"\b(Tensor|ndarray)\b")
SHAPE = re.compile(r"\[[^\]]*\]|(any|the same|one|its) shape")
WITHOUT_SHAPE = {"loss", "state_dict", "state"}
"""A function whose tensors are described where it is called, and dicts of tensors of any shape."""

INTERFACES = {
    "Activations": "saefast.activations",
    "Objective": "saefast.train.objectives",
    "Ranks": "saefast.train.ranks.group",
}
"""Module of each interface, to whose methods those of implementations refer by "See `...`"."""

PACKAGES = sorted(
    ".".join(file.parent.relative_to(CHECKOUT).parts)
    for file in (CHECKOUT / "saefast").rglob("__init__.py")
    if "\n__all__ =" in file.read_text() and "integrations" not in file.parts
)
"""Packages with a list of exported names, beside those of `INTEGRATIONS`"""

OF_PEERS = re.compile(r"See (SAELens|dictionary_learning|sparsify)\b")
"""Docstring of a method that overrides one of another library, which describes it"""
CONFIGS_OF_PEERS = {"SaeBenchConfig"}
"""Classes whose fields are those of another library, which describes them"""

INTEGRATIONS = ("delphi", "dictionary_learning", "sae_bench", "sae_lens", "sparsify")


class StandIn(ModuleType):
    """Module or function of a package that may not be installed.

    Names in it are classes without members if they begin with a capital, otherwise stand-ins.
    """

    __path__ = ()

    def __call__(self, *arguments: object, **named: object) -> object:
        return arguments[0] if arguments else None

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if not name[0].isupper():
            return StandIn(f"{self.__name__}.{name}")
        subscript = classmethod(lambda cls, _: cls)
        members = {"__init__": lambda *_, **__: None, "__class_getitem__": subscript}
        return type(name, (), members)


@pytest.fixture
def integration(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that imports an integration without its package, and returns its name."""
    loaded = set(sys.modules)
    for name in _imported_by_integrations():
        monkeypatch.setitem(sys.modules, name, StandIn(name))

    def load(name: str) -> str:
        importlib.import_module(f"saefast.integrations.{name}")
        return f"saefast.integrations.{name}"

    yield load
    for name in set(sys.modules) - loaded:
        if name.startswith("saefast.integrations."):
            del sys.modules[name]
            vars(sys.modules["saefast.integrations"]).pop(name.split(".")[2], None)


def _imported_by_integrations() -> set[str]:
    """Return the modules of other SAE libraries that integrations import, and their parents."""
    found = set()
    for file in (CHECKOUT / "saefast/integrations").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                parts = node.module.split(".")
                found |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
            elif isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
    peers = ("sae_lens", "sparsify", "dictionary_learning", "transformer_lens")
    return {name for name in found if name.split(".")[0] in peers}


def public_objects(package: str) -> Iterator[object]:
    """Yield the functions and classes that a module exports; without a list, those it defines."""
    public = importlib.import_module(package)
    for name in getattr(public, "__all__", vars(public)):
        item = getattr(public, name)
        if not (inspect.isclass(item) or inspect.isfunction(item)) or name.startswith("_"):
            continue
        if hasattr(public, "__all__") or item.__module__ == package:
            yield item


def functions(package: str) -> Iterator[tuple[str, Callable[..., object], bool]]:
    """Yield name, function and whether it is a property: functions and methods of classes."""
    for item in public_objects(package):
        if inspect.isfunction(item):
            yield item.__qualname__, item, False
            continue
        for owner in item.__mro__:
            if not owner.__module__.startswith("saefast"):
                continue
            for name, member in vars(owner).items():
                attribute = isinstance(member, (property, cached_property))
                function = next(
                    (
                        getattr(member, at)
                        for at in ("fget", "func", "__func__")
                        if hasattr(member, at)
                    ),
                    member,
                )
                overrides = OF_PEERS.match(inspect.getdoc(function) or "")
                if not name.startswith("_") and inspect.isfunction(function) and not overrides:
                    yield f"{item.__qualname__}.{name}", function, attribute


def followed(function: Callable[..., object]) -> str:
    """Return a docstring, preceded by the method of an interface to which it refers."""
    text = inspect.getdoc(function) or ""
    link = re.search(r"\b[Ss]ee `(\w+)(?:\.(\w+))?`", text)
    if link and link[1] in INTERFACES:
        interface = getattr(importlib.import_module(INTERFACES[link[1]]), link[1])
        method = getattr(interface, link[2] or function.__name__)
        return (inspect.getdoc(method) or "") + "\n\n" + text
    return text


def arguments(text: str) -> dict[str, str]:
    """Return the description of each argument in the section Args of a docstring."""
    sections = (rest.partition("\n\n")[0] for rest in text.split("\nArgs:\n")[1:])
    heads = re.split(r"^    (\S[^:]*):", "\n".join(["", *sections]), flags=re.MULTILINE)[1:]
    return {
        word: described
        for head, described in zip(heads[::2], heads[1::2], strict=True)
        for word in re.findall(r"\w+", head)
    }


def result(text: str) -> str:
    """Return the description of a function's result: a section, or a line such as "Return ..."."""
    for section in ("Returns", "Yields"):
        if found := text.partition(f"\n{section}:\n")[2].partition("\n\n")[0]:
            return found
    return text if re.match(r"(Return|Yield) ", text) else ""


def lacks_shape(name: str, annotation: object, description: str) -> bool:
    """Return whether a tensor or array is described without its shape."""
    return bool(
        ARRAYS.search(str(annotation))
        and name not in WITHOUT_SHAPE
        and not SHAPE.search(description)
    )


def faults_of_arguments(package: str) -> list[str]:
    """Return the arguments of functions and methods without description or shape."""
    faults = []
    for name, function, _ in functions(package):
        faults += faults_of_parameters(name, function, arguments(followed(function)))
    return faults


def faults_of_parameters(
    name: str, function: Callable[..., object], described: dict[str, str]
) -> list[str]:
    """Return the parameters of a function without description or shape."""
    faults = []
    for parameter in inspect.signature(function).parameters.keys() - {"self", "cls"}:
        if parameter not in described:
            faults.append(f"{name}({parameter}) is not described")
        elif lacks_shape(parameter, function.__annotations__.get(parameter), described[parameter]):
            faults.append(f"{name}({parameter}) has no shape")
    return faults


def faults_of_results(package: str) -> list[str]:
    """Return the functions, methods and properties whose result has no description or shape."""
    faults = []
    for name, function, attribute in functions(package):
        kind = str(function.__annotations__.get("return"))
        if kind in ("None", "typing.Self"):
            continue
        text = followed(function)
        described = text if attribute else result(text)
        if not described:
            faults.append(f"{name} does not describe its result")
        elif lacks_shape(name.split(".")[-1], kind, described):
            faults.append(f"{name} has no shape")
    return faults


def faults_of_constructors(package: str) -> list[str]:
    """Return the arguments of constructors that classes write themselves, without description."""
    faults = []
    for item in filter(inspect.isclass, public_objects(package)):
        constructor = vars(item).get("__init__")
        # A protocol has none of its own, and the arguments of a dataclass are its fields.
        if not inspect.isfunction(constructor) or item.__module__ != constructor.__module__:
            continue
        if is_dataclass(item):
            continue
        described = arguments((inspect.getdoc(item) or "") + "\n\n" + (constructor.__doc__ or ""))
        faults += faults_of_parameters(item.__name__, constructor, described)
    return faults


def faults_of_fields(package: str) -> list[str]:
    """Return the annotated fields of classes without description or shape."""
    faults = []
    for item in filter(inspect.isclass, public_objects(package)):
        if item.__name__ in CONFIGS_OF_PEERS:
            continue
        body = ast.parse(inspect.getsource(item)).body[0].body
        in_class = arguments(inspect.getdoc(item) or "")
        for field, after in zip(body, [*body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or field.target.id.startswith("_"):
                continue
            text = in_class.get(field.target.id, "")
            if isinstance(after, ast.Expr):
                text += str(ast.literal_eval(after.value))
            if not text:
                faults.append(f"{item.__name__}.{field.target.id} is not described")
            elif lacks_shape(field.target.id, ast.unparse(field.annotation), text):
                faults.append(f"{item.__name__}.{field.target.id} has no shape")
    return faults


CHECKS = (faults_of_arguments, faults_of_results, faults_of_constructors, faults_of_fields)


def test_documented_packages_are_checked() -> None:
    assert {*PUBLIC_PACKAGES, "saefast.reference"} <= set(PACKAGES)


@pytest.mark.parametrize("faults", CHECKS)
@pytest.mark.parametrize("package", PACKAGES)
def test_exported_names_are_described(package: str, faults: Callable[[str], list[str]]) -> None:
    assert not faults(package)


@pytest.mark.parametrize("faults", CHECKS)
@pytest.mark.parametrize("name", INTEGRATIONS)
def test_integrations_are_described(
    name: str, faults: Callable[[str], list[str]], integration: Callable[[str], str]
) -> None:
    assert not faults(integration(name))
