"""Metrics of a training run: sums over steps, and the definitions of the reported numbers."""

import torch
from torch import Tensor

from saefast.train.step_result import StepResult

CONVENTIONS = {
    "loss": "loss of the variant on scaled activations, mean over the interval, without auxk and "
    "penalties",
    "mse": "squared error, mean over rows and width, in the units of the unscaled activations",
    "fvu": "sum of squared errors / sum of squared distances to the mean row of the batch, both "
    "summed over the batches of the interval",
    "explained_variance": "1 - fvu",
    "l0": "active latents per row, mean over the interval",
    "dead_share": "latents that have not fired for auxk.dead_after rows (without auxk its default, "
    "a tenth of the tokens, 10 million at most), at the end of the interval",
    "input_wait": "share of the interval's wall time in which training waited for activations",
}


class Meter:
    """Sums over the steps of one SAE since the last report, kept on the device."""

    NAMES = ("steps", "loss", "squares", "variance", "fired", "auxk", "rows")

    def __init__(self, device: torch.device | str) -> None:
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64, device=device)

    def add(self, result: StepResult, variance: Tensor, rows: int) -> None:
        """Add a step; `variance` [] is the sum of squared distances to the batch's mean row."""
        zero = self.sums.new_zeros(())
        auxk = zero if result.auxk is None else result.auxk
        fired = result.fired.sum()
        parts = (zero + 1, result.loss, result.squares, variance, fired, auxk, zero + rows)
        self.sums += torch.stack([part.double() for part in parts])

    def report(self) -> dict[str, float]:
        """Return the means and reset the sums."""
        steps, loss, squares, variance, fired, auxk, rows = self.sums.tolist()
        self.sums.zero_()
        fvu = squares / variance if variance > 0 else float("nan")
        return {
            "loss": loss / steps,
            "squared_error": squares / rows,
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "l0": fired / rows,
            "auxk": auxk / steps,
        }
