"""Choice of the strength of each latent, and texts along latents and controls."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from saefast.evaluation.steering.outcomes import SELF
from saefast.evaluation.steering.results import Results, Trials
from saefast.evaluation.steering.runs import LATENT, UNSTEERED, Job, Plan, write
from saefast.evaluation.steering.tokens import token_scores
from saefast.progress import ProgressBar


def steered(
    plan: Plan,
    primary: str,
    strengths: Sequence[float],
    levels: Tensor,
    directions: tuple[str, ...],
    progress: bool,
) -> Results:
    """Choose the strength of each latent, then steer along it and along the controls.

    Args:
        plan: model, openers, latents and outcomes.
        primary: outcome that decides.
        strengths: strengths to choose from.
        levels: [items, strengths] level of each.
        directions: names of the directions, the latent's own first.
        progress: show a progress bar on stderr.

    Returns:
        Outcomes at the chosen strengths, along every direction.
    """
    items = plan.items
    numbers = list(range(len(plan.openers)))
    choosing, reporting = (numbers[::2], numbers[1::2]) if len(strengths) > 1 else ([], numbers)
    everyone = torch.arange(len(items))
    total = len(items) * (len(choosing) * len(strengths) + len(reporting) * len(directions))
    total += UNSTEERED * len(numbers)
    with ProgressBar("steer", total=total, unit="texts", progress=progress) as bar:

        def trials(openers: Sequence[int], direction: Tensor, level: Tensor) -> Trials:
            ways = level.shape[1]
            job = Job(
                item=everyone.repeat_interleave(ways),
                direction=direction.flatten(0, 1),
                level=level.flatten(),
            )
            written = [write(plan, number, job, bar.update) for number in openers]
            return Trials.of(written, ways, plan.settings)

        tried, best = None, torch.zeros_like(everyone)
        if choosing:
            along = items.directions[LATENT][:, None].expand(-1, len(strengths), -1)
            tried = trials(choosing, along, levels)
            best = _best(tried, primary)
        along = torch.stack([items.directions[way] for way in directions], 1)
        level = levels[everyone, best][:, None].expand(-1, len(directions))
        reported = trials(reporting, along, level)
    input_score, output_score = token_scores(plan)
    return Results(
        items=items,
        outcomes=tuple(plan.outcomes),
        primary=primary,
        strengths=tuple(strengths),
        best=best,
        choosing=tried,
        reported=reported,
        directions=directions,
        input_score=input_score,
        output_score=output_score,
    )


def _best(tried: Trials, primary: str) -> Tensor:
    """Return the index [items] of the strength with the largest gain.

    Where the primary outcome is not defined, the gain of the latent's own firing decides.
    """
    gain = tried.gain(primary)
    unknown = np.isnan(gain).any(1)
    gain[unknown] = tried.gain(SELF)[unknown]
    return torch.from_numpy(gain.argmax(1))
