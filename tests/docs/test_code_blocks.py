"""The code blocks of README and documentation run, and their commands have the options shown.

Blocks that are marked "run smaller" need something that tests do not have, such as a large model: a
stand-in is made before, and `SMALLER` replaces numbers and names in them.
"""

import ast
import functools
import importlib
import itertools
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.documentation import DOCS, PAGES, Block, blocks, name
from helpers.hub_server import TOKEN, Hub, register_releases
from helpers.swept_table import swept_table

import saefast
from saefast.cli import COMMANDS, call
from saefast.lm import harvest
from saefast.pipeline.settings_file import settings_from
from saefast.sweep import sweep_from
from saefast.synthetic import PlantedWorld

WITH_CODE = [page for page in PAGES if blocks(page, "python")]
GUIDES = DOCS / "guides"
LANGUAGE_MODELS = GUIDES / "language_models.md"

Constants = dict[int | float | str, int | float | str]


class Smaller(NamedTuple):
    """Changes by which a marked block runs in a test."""

    prepare: Callable[[dict[str, Any], pytest.FixtureRequest], None]
    """function that makes stand-ins in the current folder and in the namespace of the block"""
    constants: Constants
    """replacements of constants"""


def _prepare_model(names: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Save a small model, and shorten the text that is tokenised whole to train without a store."""
    from helpers import tiny_lm

    tiny_lm.saved(Path("tiny"))
    text = importlib.import_module("saefast.lm.builtin_corpus")
    documents = text._documents
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setattr(text, "_documents", lambda kinds: itertools.islice(documents(kinds), 400))


def _prepare_trained(names: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Make a model and SAEs, as the page on language models does."""
    from helpers import tiny_lm

    names["model"] = tiny_lm.llama()
    harvest(names["model"], 1, out="activations", tokens=500)
    config = saefast.TrainConfig(latents=64, k=4, seeds=(0, 1, 2), tokens=2000, batch_size=256)
    names["saes"] = saefast.train_saes("activations", config)
    names["groups"] = saefast.score_stability(names["saes"]).groups()


def _prepare_run(names: dict[str, Any], request: pytest.FixtureRequest) -> None:
    for seed in range(2):
        saefast.save_sae(saefast.SAE(16, 32, k=4, seed=seed), f"runs/mine/seed-{seed}")


def _prepare_hub(names: dict[str, Any], request: pytest.FixtureRequest) -> None:
    hub: Hub = request.getfixturevalue("hub")
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    saefast.save_sae(saefast.SAE(16, 32, k=4, seed=0), "sae")
    for branch in ("main", "v1.0"):
        hub.add("organisation/name", Path("sae"), "layer_3/width_16k", branch)
    hub.add("lab/small", Path("sae"), "eight")
    entry = "{repo_id: lab/small, saes: [{id: blocks.8.hook_resid_pre, path: eight}]}"
    register_releases(Path("site").resolve(), f"gpt2-small-res-jb: {entry}", monkeypatch)


SMALLER = {
    LANGUAGE_MODELS: Smaller(
        _prepare_model,
        {"smollm2": "tiny", 12: 1, 1_000_000: 500, 700_000: 2000, 4096: 64, 32: 4, 1024: 256},
    ),
    GUIDES / "evaluate.md": Smaller(_prepare_trained, {4: 1, 12: 1, 4096: 200}),
    GUIDES / "match.md": Smaller(_prepare_run, {4: 2}),
    GUIDES / "files.md": Smaller(_prepare_hub, {}),
}


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_python_runs(
    page: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    light: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    world = PlantedWorld.create(96, 32, active=4)
    names = {"rows": world.sample(4096, 0), "held_out": world.sample(1024, 1)}
    if page.name == "sweeps.md":
        swept_table(tmp_path / "sweeps" / "first")
    _run_page(page, names, request)


def _run_page(page: Path, names: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Run all blocks of a page in order, in one namespace."""
    for block in blocks(page, "python"):
        tree = ast.parse(block.code)
        if block.reason is not None:
            smaller = SMALLER[page]
            smaller.prepare(names, request)
            tree = replaced(tree, smaller.constants)
        exec(compile(tree, str(page), "exec"), names)


def replaced(tree: ast.Module, constants: Constants) -> ast.Module:
    """Replace constants of a module, each of which must occur."""
    unused = set(constants)

    class Replace(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.Constant:
            if isinstance(node.value, bool) or node.value not in constants:
                return node
            unused.discard(node.value)
            return ast.copy_location(ast.Constant(constants[node.value]), node)

    found = Replace().visit(tree)
    assert not unused
    return found


def test_constants_that_do_not_occur_are_found() -> None:
    tree = replaced(ast.parse("f(4, True, 'a')"), {4: 2, "a": "b"})
    assert ast.unparse(tree) == "f(2, True, 'b')"
    with pytest.raises(AssertionError):
        replaced(tree, {5: 1})


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=name)
def test_settings_are_valid(page: Path) -> None:
    for block in blocks(page, "toml"):
        printed = tomllib.loads(block.code)
        _ = sweep_from(printed, page.parent) if "grid" in printed else settings_from(printed)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    for command in re.findall(r"(?:^|`)saefast ([a-z]+)", page.read_text(), re.MULTILINE):
        assert command in COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_have_the_options_shown(page: Path) -> None:
    """Parses every command in the blocks of a page, without running it."""
    for block in (*blocks(page, ""), *blocks(page, "bash")):
        for arguments in commands_in(block):
            parsed: list[str] = []
            call(
                {command: _recorder(function, parsed) for command, function in COMMANDS.items()},
                arguments,
            )
            assert parsed == arguments[:1]


def commands_in(block: Block) -> Iterator[list[str]]:
    """Yield the arguments of each call of saefast, by its name or by `-m saefast`."""
    for line in block.code.replace("\\\n", " ").splitlines():
        found = re.match(r"(?:srun |\S*/)?saefast (.*)|torchrun .*-m saefast (.*)", line)
        if found:
            yield shlex.split(re.sub(r"\s#.*", "", found[1] or found[2]))


def _recorder(function: Callable[..., Any], parsed: list[str]) -> Callable[..., Any]:
    """Return a function with the same arguments that only notes its name."""

    @functools.wraps(function)
    def record(*_: Any, **__: Any) -> None:
        parsed.append(function.__name__)

    return record


def test_options_that_do_not_exist_are_found() -> None:
    (arguments,) = commands_in(Block("", "saefast info --jsn  # not --json\n", None))
    assert arguments == ["info", "--jsn"]
    with pytest.raises(SystemExit):
        call({"info": COMMANDS["info"]}, arguments[1:])
