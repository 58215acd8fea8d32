"""Match the features of two downloaded SAEs of any format.

    python examples/match_two_saes.py
    python examples/match_two_saes.py layer_12/width_16k my-sae --out partners.parquet

Each is a folder or a file of SAELens, sparsify, dictionary_learning, Gemma Scope and others (see
`saefast.load_sae`), as written by `huggingface_hub.snapshot_download`; their width must be equal,
but not their number of latents. Prints the share of features that the other SAE has, by decoder, by
encoder and by both, with the expectation for random directions; then the one-to-one pairs of
greatest total similarity, and whether they are certified as optimal. OUT gets a row for each
feature of the first SAE: its nearest in the second, whether they are mutually nearest, and its
one-to-one partner.

Without arguments, it trains two small SAEs from different seeds and saves them in two formats.
"""

import argparse
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet

import saefast
from saefast.synthetic import PlantedWorld


def main() -> None:
    """Match the SAEs, and print the features that they share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("saes", nargs="*", type=Path, help="two SAEs on disk")
    parser.add_argument("--threshold", type=float, default=0.7, help="minimum cosine of a match")
    parser.add_argument("--out", type=Path, default=Path("partners.parquet"))
    options = parser.parse_args()
    if len(options.saes) not in (0, 2):
        parser.error("give two SAEs, or none")
    with tempfile.TemporaryDirectory() as folder:
        match(*(options.saes or two_small_saes(Path(folder))), options.threshold, options.out)


def match(a: Path, b: Path, threshold: float, out: Path) -> None:
    """Print the shares of common features, and write the partners."""
    # Mapped from disk instead of read, so that files may be larger than memory.
    one, other = saefast.load_dictionaries(a, b, encoder=True)
    for path, dictionary in ((a, one), (b, other)):
        dead = int((~dictionary.alive).sum())
        print(f"{path}: {dictionary.m} features, {dead} of which never fire according to the file")

    overlap = saefast.measure_overlap(one, other, thresholds=[threshold], signs=["signed"])
    print(f"features of the first SAE with a cosine of {threshold:g} or more in the second:")
    for side in ("decoder", "encoder", "both"):
        shared = overlap.find("shared", match="nearest", side=side, of="a")
        print(f"  by {side:8} {shared.value:.3f}   (random directions: {shared.null:.1g})")
    mean = overlap.find("mmcs", match="nearest", side="decoder", of="a")
    print(f"mean cosine of the nearest: {mean.value:.3f}   (random directions: {mean.null:.3f})")

    near = saefast.match_features(one, other)
    best = saefast.match_features(one, other, one_to_one=True)
    pairs = int((best.partner >= 0).sum())
    proof = "no matching is better" if best.certified else f"at most {best.upper_bound:.3f}"
    print(f"one to one: {pairs} pairs, cosines sum to {best.value:.3f}; {proof}")
    for feature in best.similarity.topk(min(3, pairs)).indices.tolist():
        partner, cosine = int(best.partner[feature]), float(best.similarity[feature])
        print(f"  {feature} is {partner} of the second, cosine {cosine:.3f}")

    columns = {
        "nearest": near.partner,
        "cosine": near.similarity,
        "mutual": near.mutual,
        "one_to_one": best.partner,
        "one_to_one_cosine": best.similarity,
    }
    table = pyarrow.table({name: values.numpy() for name, values in columns.items()})
    pyarrow.parquet.write_table(table, out)
    print(f"wrote {out}")


def two_small_saes(folder: Path) -> tuple[Path, Path]:
    """Train SAEs on 128 planted features, and save them in the formats of SAELens and sparsify."""
    rows = PlantedWorld.create(128, 32, active=4).sample(20_000, 0)
    config = saefast.TrainConfig(
        latents=160, k=4, seeds=(0, 1), tokens=200_000, batch_size=256, lr=3e-3
    )
    saes = saefast.train_saes(rows, config)
    paths = folder / "seed-0-sae_lens", folder / "seed-1-sparsify"
    for sae, path, format in zip(saes, paths, ("sae_lens", "sparsify"), strict=True):
        saefast.save_sae(sae, path, format=format)
    return paths


if __name__ == "__main__":
    main()
