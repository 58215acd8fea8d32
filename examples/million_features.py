"""Match a million features one to one with a million others, with a certificate, on one machine.

    python examples/million_features.py
    python examples/million_features.py --m 1048576 --d 32 --neighbours 16
    python examples/million_features.py --saes wide-sae-seed-0 wide-sae-seed-1

First prints the plan: blocks, memory, and the expected time at a speed measured now. Then matches,
and prints the time, the sum of the cosines, the upper bound for any matching of the m x m pairs,
and whether they are equal. The matrix of all cosines is not computed: for a million features it
would take 4 terabytes.

Without SAEs, both sides are synthetic: 40 % of the features of one side are in the other, in
another order and with noise, so that the number of true pairs is known.
"""

import argparse
import time
from pathlib import Path

import torch

import saefast

SHARED, NOISE = 0.4, 0.35


def main() -> None:
    """Plan a matching, run it, and print its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--m", type=int, default=8192, help="features on each side")
    parser.add_argument("--d", type=int, default=32, help="their width")
    parser.add_argument("--saes", nargs=2, type=Path, help="two SAEs on disk instead")
    parser.add_argument("--neighbours", type=int, default=16, help="length of the first lists")
    parser.add_argument("--memory", type=float, default=2.0, help="gigabytes for blocks")
    options = parser.parse_args()

    if options.saes:  # mapped from disk: blocks are read when they are compared
        a, b = (each.W_dec for each in saefast.load_dictionaries(*options.saes))
        truth = None
    else:
        a, b, truth = made_up(options.m, options.d)
    size = {"neighbours": options.neighbours, "memory": options.memory}
    print(saefast.plan_matching(max(len(a), len(b)), a.shape[1], **size).sentences(), flush=True)

    start = time.perf_counter()
    found = saefast.match_features(a, b, one_to_one=True, **size)
    print(f"took {time.perf_counter() - start:.1f} s, solved {found.rounds} times")
    print(f"cosines sum to {found.value:.6f}; no matching has more than {found.upper_bound:.6f}")
    print("proven optimal" if found.certified else "not proven: the bound limits the possible gain")
    if truth is not None:
        known = truth >= 0
        right = (found.partner == truth)[known].double().mean()
        print(f"of {int(known.sum()):,} features that are in both, {right:.1%} have each other")


def made_up(m: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return two dictionaries, and the index in the second of each feature of the first or -1."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(m, d, generator=generator) for _ in range(2))
    shared, place = (torch.randperm(m, generator=generator)[: int(SHARED * m)] for _ in range(2))
    b[place] = a[shared] + NOISE * torch.randn(len(shared), d, generator=generator)
    return a, b, torch.full((m,), -1).index_copy(0, shared, place)


if __name__ == "__main__":
    main()
