"""Scores of latents by the tokens that their decoder rows promote, without generated text.

Input and output score are defined in arXiv:2505.20063.
"""

import numpy as np
import torch
from torch import Tensor

from saefast.evaluation.intervals import Floats
from saefast.evaluation.steering.runs import LATENT, Items, Plan
from saefast.lm.generation import added
from saefast.lm.unembedding import unembed
from saefast.sae import code_of

_PROMOTED = 20
_AMPLIFIED = 10.0  # times the largest activation at the position


def token_scores(plan: Plan) -> tuple[Floats, Floats]:
    """Return the input and the output score of each latent, [items] each; NaN where unknown.

    Both use the 20 tokens that the decoder row promotes most. They are unknown if the site is not
    as wide as the residual stream.

    - The input score is the share of contexts whose most active token is promoted.
    - The output score is (1 - best rank / vocabulary) * largest probability of promoted tokens,
      after the first opener with the latent raised at its last position, by ten times the largest
      activation of any latent there.

    Args:
        plan: latents, model and openers.
    """
    items, model = plan.items, plan.model
    directions = items.directions[LATENT] * items.norm[:, None]
    if model.model.get_output_embeddings().weight.shape[1] != directions.shape[1]:
        unknown = np.full(len(items), np.nan)
        return unknown, unknown
    logits = unembed(model, directions.float())
    promoted = logits.topk(min(_PROMOTED, logits.shape[1])).indices.cpu()
    return _input_scores(items, promoted), _output_scores(plan, promoted)


def _input_scores(items: Items, promoted: Tensor) -> Floats:
    shares = [
        float(torch.isin(peaks, tokens).double().mean()) if len(peaks) else np.nan
        for peaks, tokens in zip(items.peaks, promoted, strict=True)
    ]
    return np.array(shares)


def _output_scores(plan: Plan, promoted: Tensor) -> Floats:
    items = plan.items
    opening = plan.opening(0, len(items))
    here = opening.activations[-1:]
    largest = torch.cat(
        [
            torch.full((len(its),), float(code_of(its.sae, here).values.max()))
            for _, _, its in items.parts
        ]
    )
    length = _AMPLIFIED * largest.double() * items.norm
    vectors = (length[:, None] * items.directions[LATENT]).float().to(here.device)
    found = []
    for numbers, logits in opening.next_logits(added(vectors), len(items)):
        probabilities = logits.float().softmax(1)
        best = probabilities.gather(1, promoted.to(logits.device)[numbers]).amax(1)
        rank = (probabilities > best[:, None]).sum(1)
        found.append((1 - rank / logits.shape[1]) * best)
    scores: Floats = torch.cat(found).double().cpu().numpy()
    return scores
