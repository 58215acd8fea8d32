"""Find out which features of sparse autoencoders to trust, on your own tensors.

    python examples/own_tensors.py
    python examples/own_tensors.py rows.npy --held-out more.npy --latents 16384 --k 32 \
        --tokens 50_000_000 --out runs/mine

Trains four SAEs that differ only in their seed, and looks for each feature in the other three.
Prints the explained variance of each SAE, how many features recur (and how many would by chance),
and the explained variance on held-out rows with only stable features, and with random features of
equal activation mass. The folder OUT gets the SAEs, which SAELens loads, and features.parquet, a
row for each feature of each SAE.

Without a file, the rows are synthetic: 64 frequent directions, which all SAEs should find, and 512
rare ones in a subspace of 16 dimensions, where each seed finds different mixtures.
"""

import argparse
from pathlib import Path

import pyarrow.parquet
import torch

import saefast
from saefast.activations import open_activations
from saefast.synthetic import LowRankWorld


def main() -> None:
    """Train, score, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="?", help=".npy, .pt, .safetensors [n, d], or a store")
    parser.add_argument("--held-out", help="other rows, to evaluate on; best of other documents")
    parser.add_argument("--latents", type=int, default=192)
    parser.add_argument("--k", type=int, default=4, help="features active per row")
    parser.add_argument("--tokens", type=int, default=300_000, help="rows to train on")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/own-tensors"))
    options = parser.parse_args()

    if options.rows is None:
        world = LowRankWorld.create(
            d=64, stable=64, stable_rate=0.04, rank=16, rare=512, rare_rate=0.002
        )
        train, held_out = world.sample(100_000, seed=0).x, world.sample(10_000, seed=1).x
    else:  # opened instead of read, so that files may be larger than memory
        train = open_activations(options.rows)
        held_out = open_activations(options.held_out or options.rows)

    config = saefast.TrainConfig(
        latents=options.latents,
        k=options.k,
        seeds=(0, 1, 2, 3),
        tokens=options.tokens,
        batch_size=options.batch_size,
        lr=options.lr,
    )
    saes = saefast.train_saes(train, config, out=options.out, resume=True)  # resumes after Ctrl-C

    stability = saefast.score_stability(saes)
    print("features that recur in the other three SAEs, by how many of them:")
    support = torch.cat(stability.support)
    for others in range(4):
        share = (support == others + 1).double().sum() / (support > 0).sum()
        print(f"  in {others}: {share:6.1%}")
    print(f"mean score {stability.mean():.2f}; random directions: {stability.chance.mean():.1g}")

    # With the mass of each feature, groups are compared with random features of equal mass.
    mass = [each.mass for each in saefast.feature_statistics(saes, held_out)]
    groups = stability.groups()
    worth = saefast.feature_function(saes, held_out, groups, mass=mass)
    print("explained variance      all   stable alone (random)   unstable alone (random)")
    for seed, of_sae in zip(config.seeds, worth, strict=True):
        line = f"  SAE of seed {seed:<6}  {of_sae.explained_variance:.3f}"
        keep = {(each.group, each.control): each.keep for each in of_sae.summary()}
        for name in groups[0]:
            line += f"   {keep[name, '']:.3f} ({keep[name, 'mass']:.3f})       "
        print(line.rstrip())

    trusted = groups[0]["stable"].nonzero()[:, 0].tolist()
    print(f"features of the first SAE that are in all others, {len(trusted)}: {trusted[:20]}")
    table = options.out / "features.parquet"
    pyarrow.parquet.write_table(stability.to_table(config.seeds), table)
    print(f"wrote {table}, and the SAEs beside it")


if __name__ == "__main__":
    main()
