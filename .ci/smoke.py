"""Use the installed saefast a little, away from the checkout; exits with 1 if a result is wrong.

`make wheel` and the release workflow run it with nothing installed but the wheel and its
dependencies.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import saefast
from saefast import reference


def check(holds: bool, what: str) -> None:
    """End with a message unless a statement holds."""
    if not holds:
        sys.exit(f"the installed saefast fails: {what}")


def main() -> None:
    """Encode, train, match, score, save, load and run the command line."""
    source = Path(__file__).resolve().parent.parent / "saefast"
    check(source not in Path(saefast.__file__).resolve().parents, "the checkout was imported")
    x = torch.randn(2000, 24, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(300, 24, generator=torch.Generator().manual_seed(1))
    code = saefast.topk_encode(x, weight, k=5)
    expected = reference.topk_encode(x, weight, k=5)
    check(torch.equal(code.indices, expected.indices), "topk_encode differs from its reference")

    config = saefast.TrainConfig(latents=64, k=4, seeds=(0, 1), tokens=20_000, batch_size=500)
    saes = saefast.train_saes(x, config, progress=False)
    with torch.no_grad():
        rebuilt = saes[0](x)
    error = float((rebuilt - x).square().mean() / x.square().mean())
    check(error < 0.8, f"a training leaves {error:.2f} of the variance")
    scores = saefast.score_stability(saes, progress=False).score[0]
    check(scores.shape == (64,), f"stability scores have shape {tuple(scores.shape)}")
    with tempfile.TemporaryDirectory() as folder:
        loaded = saefast.load_sae(saefast.save_sae(saes[0], Path(folder) / "sae"))
        check(torch.equal(loaded(x), rebuilt), "a saved SAE computes something else")
        finished = subprocess.run(
            [sys.executable, "-m", "saefast", "info"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    check(finished.returncode == 0, f"saefast info: {finished.stderr}")
    print(finished.stdout.strip())
    print(f"saefast {saefast.__version__} works in {Path(saefast.__file__).parent}")


if __name__ == "__main__":
    main()
