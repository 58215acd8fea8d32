"""Public functions, methods and fields are described, tensors with their shapes.

Ruff's rules for docstrings compare sections with the function. They pass where a docstring has no
section Args or only one line, and they do not read shapes.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cached_property

import pytest
from helpers.documentation import PUBLIC_PACKAGES

ARRAYS = re.compile(r"\b(Tensor|ndarray)\b")
WITHOUT_SHAPE = {"loss", "state_dict"}
"""A function whose tensors are described where it is called, and a dict of tensors of any shape."""


def public_objects(package: str) -> Iterator[object]:
    """Yield the functions and classes that a package exports."""
    public = importlib.import_module(package)
    for name in public.__all__:
        if inspect.isclass(item := getattr(public, name)) or inspect.isfunction(item):
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
                if not name.startswith("_") and inspect.isfunction(function):
                    yield f"{item.__qualname__}.{name}", function, attribute


def followed(function: Callable[..., object]) -> str:
    """Return a docstring, or of "See `Class.method`" the docstring that it names."""
    text = inspect.getdoc(function) or ""
    if link := re.match(r"See `Activations\.(\w+)`", text):
        protocol = importlib.import_module("saefast.activations").Activations
        return inspect.getdoc(getattr(protocol, link[1])) + "\n\n" + text
    return text


def arguments(text: str) -> dict[str, str]:
    """Return the description of each argument in the section Args of a docstring."""
    section = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
    heads = re.split(r"^    (\S[^:]*):", section, flags=re.MULTILINE)[1:]
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
        ARRAYS.search(str(annotation)) and name not in WITHOUT_SHAPE and "[" not in description
    )


@pytest.mark.parametrize("package", PUBLIC_PACKAGES)
def test_arguments_are_described_with_shapes(package: str) -> None:
    faults = []
    for name, function, _ in functions(package):
        described = arguments(followed(function))
        for parameter in inspect.signature(function).parameters.keys() - {"self", "cls"}:
            if parameter not in described:
                faults.append(f"{name}({parameter}) is not described")
            elif lacks_shape(
                parameter, function.__annotations__.get(parameter), described[parameter]
            ):
                faults.append(f"{name}({parameter}) has no shape")
    assert not faults


@pytest.mark.parametrize("package", PUBLIC_PACKAGES)
def test_results_are_described_with_shapes(package: str) -> None:
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
    assert not faults


@pytest.mark.parametrize("package", PUBLIC_PACKAGES)
def test_fields_are_described_with_shapes(package: str) -> None:
    faults = []
    for item in filter(inspect.isclass, public_objects(package)):
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
    assert not faults
