"""Table of the CPU's encode and training steps in units of their bfloat16 product."""

from bench.committed import load, markdown
from bench.cpu_step import SHAPES

_MODES = ("encode", "bare step", "default step")


def table() -> str:
    """Return a row for each shape: milliseconds of the product, and multiples of it."""
    ratios, product = {}, {}
    for row in load("cpu_step")["rows"]:
        shape = tuple(row["shape"].values())
        ratios[shape, row["mode"]] = f"{row['gemm_ratio']:.2f}"
        if row["rival"] == "torch.mm":
            product[shape] = f"{row['ms']:.1f} ms"
    lines = [["(d, m, k, n)", "bfloat16 product", *_MODES], ["---", *["---:"] * 4]]
    lines += [
        [shape.text, product[tuple(shape)], *(ratios[tuple(shape), mode] for mode in _MODES)]
        for shape in SHAPES
    ]
    return markdown(lines)


def caption() -> str:
    """Return the caption: meaning of the columns, machine and commit."""
    result = load("cpu_step")
    machine = result["machine"]
    return (
        "Multiples of one bfloat16 `torch.mm` of the encode, timed in the same rounds. The bare "
        "step neither clips gradients nor has AuxK; the default step does, and no latent is dead. "
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['versions']['torch']}; at "
        f"commit {result['commit']}."
    )
