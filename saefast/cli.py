"""The command line: one command per function."""

import json
import sys
from pathlib import Path
from typing import Annotated

import tyro


def demo(
    out: Path | None = None,
    d: int = 128,
    features: int = 512,
    k: int = 8,
    steps: int = 2000,
    batch_size: int = 512,
    lr: float = 2e-3,
    seed: int = 0,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Train a small TopK SAE on planted data and tell how many true features it recovered.

    Args:
        out: Folder to write to: the SAE as sae/, a table of the true features as features.parquet.
        d: Width of the activations.
        features: How many true features there are; the SAE has twice as many latents.
        k: Active features per row, and of the SAE.
        steps: Training steps.
        batch_size: Rows per step.
        lr: Learning rate of Adam, decaying linearly to zero over the last half.
        seed: Of the world and of the SAE.
        json_output: Print one JSON object instead of text.
    """
    from saefast.demo import run_demo

    result = run_demo(
        out=out,
        d=d,
        features=features,
        k=k,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        progress=sys.stderr.isatty() and not json_output,
    )
    if json_output:
        print(json.dumps(result.summary()))
        return
    print(result.sentence())
    for path in result.written:
        print(f"wrote {path}")


def info(json_output: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """Print version, instruction sets, the chosen screening engine and the backends.

    Args:
        json_output: Print one JSON object instead of text.
    """
    from saefast.info import build_info

    facts = build_info()
    if json_output:
        print(json.dumps(facts))
        return
    for key, value in facts.items():
        if not isinstance(value, dict):
            print(f"{key}: {value}")
            continue
        print(f"{key}:")
        for name, fact in value.items():
            print(f"  {name}: {fact}")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `saefast`."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"demo": demo, "info": info},
            prog="saefast",
            description="Fast sparse autoencoders, and which of their features to trust.",
            args=arguments,
        )
    except (ValueError, TypeError, OSError) as error:
        print(f"saefast: {error}", file=sys.stderr)
        return 1
    return 0
