"""The code blocks of README and documentation run.

Those that need a language model or the hub have a mark with the reason; their imports are run, and
the arguments of their calls compared with the signatures.
"""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import torch
from helpers.documentation import PAGES, blocks, name
from helpers.swept_table import swept_table

from saefast.cli import COMMANDS
from saefast.pipeline.settings_file import settings_from
from saefast.sweep import sweep_from
from saefast.synthetic import PlantedWorld

WITH_CODE = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_python_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_threads: None
) -> None:
    """Run all blocks of a page in order, in one namespace that starts with `rows` [n, d]."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    world = PlantedWorld.create(96, 32, active=4)
    names = {"rows": world.sample(4096, 0), "held_out": world.sample(1024, 1)}
    if page.name == "sweeps.md":
        swept_table(tmp_path / "sweeps" / "first")
    for block in blocks(page, "python"):
        code = compile(block.code, str(page), "exec")
        if block.reason is None:
            exec(code, names)
        else:
            assert calls_that_fit(block.code) > 0


def calls_that_fit(code: str) -> int:
    """Run the imports of a block, and bind the arguments of its calls of imported functions.

    Returns:
        Number of calls.
    """
    names: dict[str, object] = {}
    tree = ast.parse(code)
    imports = [line for line in tree.body if isinstance(line, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "imports", "exec"), names)
    calls = 0
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        path = ast.unparse(call.func)
        if re.fullmatch(r"[\w.]+", path) and path.partition(".")[0] in names:
            function = eval(path, names)
            named = {each.arg: each for each in call.keywords if each.arg}
            inspect.signature(function).bind(*call.args, **named)
            calls += 1
    return calls


def test_a_call_that_does_not_fit_is_found() -> None:
    assert calls_that_fit("import saefast\nsaefast.load_sae('a', revision='b')\nprint(1)") == 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'version'"):
        calls_that_fit("import saefast\nsaefast.load_sae('a', version='b')")
    with pytest.raises(AttributeError):
        calls_that_fit("import saefast\nsaefast.load_all('a')")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=name)
def test_settings_are_valid(page: Path) -> None:
    for block in blocks(page, "toml"):
        printed = tomllib.loads(block.code)
        _ = sweep_from(printed, page.parent) if "grid" in printed else settings_from(printed)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    for command in re.findall(r"(?:^|`)saefast ([a-z]+)", page.read_text(), re.MULTILINE):
        assert command in COMMANDS
