"""Logits of directions of the residual stream by the model's own unembedding."""

from typing import Any

import torch
from torch import Tensor, nn

from saefast.lm.model import LanguageModel, check_model
from saefast.lm.sites import layer_list


@torch.no_grad()
def unembed(model: LanguageModel, directions: Tensor) -> Tensor:
    """Return the logits [n, vocabulary] of directions [n, d] after the model's last norm.

    The last norm is the module beside the list of layers with "norm" in the name of its type,
    except a norm of embeddings; without one, directions are multiplied as they are.

    Args:
        model: model from `load_model`.
        directions: [n, d], as wide as the residual stream.
    """
    check_model(model)
    unembedding: Any = model.model.get_output_embeddings()
    width = unembedding.weight.shape[1]
    if directions.ndim != 2 or directions.shape[1] != width:
        raise ValueError(
            f"directions must be [n, {width}], the width of the residual stream, got "
            f"{tuple(directions.shape)}"
        )
    rows = directions.to(unembedding.weight.device, unembedding.weight.dtype)
    norm = _last_norm(model.model)
    logits: Tensor = unembedding(rows if norm is None else norm(rows))
    return logits


def _last_norm(model: nn.Module) -> nn.Module | None:
    name, _ = layer_list(model)
    beside = model.get_submodule(name.rpartition(".")[0]).named_children()
    norms = [
        module
        for child, module in beside
        if "norm" in type(module).__name__.lower() and "emb" not in child
    ]
    return norms[-1] if norms else None
