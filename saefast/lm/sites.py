"""Modules of a language model as sites, and capture of their activations."""

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

KINDS = {
    "resid": (),
    "mlp": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "ff"),
    "attn": ("self_attn", "attn", "attention", "self_attention"),
}
"""Names of the parts of a layer in different families of models; "resid" is the whole layer."""


class Site(NamedTuple):
    """Module of a model, whose output is the activations."""

    name: str
    """name of the site, such as "resid.12", or the path of the module in the model"""
    module: nn.Module
    """the module itself"""
    layers: tuple[nn.Module, ...]
    """layers of the model up to the one that holds the module; empty if none does"""


def find_site(model: nn.Module, where: int | str) -> Site:
    """Find a module of a Hugging Face model.

    Args:
        model: a causal language model.
        where: number of a layer or "resid.3" for the residual stream after it, "mlp.3" or "attn.3"
            for the output of that part of it, or the module's name as in `model.named_modules()`.
            Negative numbers count from the last layer.

    Returns:
        Module with its name and the layers up to it.
    """
    if isinstance(where, bool) or not isinstance(where, int | str):
        raise TypeError(
            f"a site must be the number of a layer or a name, got {type(where).__name__}"
        )
    name = f"resid.{where}" if isinstance(where, int) else where
    kind, _, number = name.partition(".")
    if kind in KINDS and number.removeprefix("-").isdigit():
        return _part(model, kind, int(number))
    return _named(model, name)


def find_sites(model: nn.Module, where: Sequence[int | str]) -> list[Site]:
    """Find several modules, as `find_site` does; all must differ."""
    sites = [find_site(model, one) for one in where]
    if not sites:
        raise ValueError("sites must name at least one module, got none")
    names = [site.name for site in sites]
    if len(set(names)) < len(names):
        raise ValueError(f"sites must differ, got {', '.join(names)}")
    return sites


def main_tensor(output: Any, site: Site, ids: Tensor) -> Tensor:
    """Return the activations [contexts, length, d] of a module's output: it, or its first item."""
    tensor = output if isinstance(output, Tensor) else output[0]
    if not isinstance(tensor, Tensor) or tensor.ndim != 3 or tensor.shape[:2] != ids.shape:
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(
            f"the module {site.name} must return activations [contexts, length, d], got {got}; "
            f"choose another module"
        )
    return tensor


def with_main_tensor(output: Any, tensor: Tensor) -> Any:
    """Return the output of a module with other activations in it."""
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


def _part(model: nn.Module, kind: str, number: int) -> Site:
    name, layers = layer_list(model)
    if not -len(layers) <= number < len(layers):
        raise ValueError(
            f"the layer of a site must be from 0 to {len(layers) - 1}, got {kind}.{number}"
        )
    number %= len(layers)
    layer = layers[number]
    before = tuple(layers[: number + 1])
    if kind == "resid":
        return Site(f"resid.{number}", layer, before)
    children = dict(layer.named_children())
    found = [children[child] for child in KINDS[kind] if child in children]
    if not found:
        raise ValueError(
            f"{kind}.{number} does not exist in this model: {name}.{number} holds "
            f"{', '.join(children)}; give one of them, such as "
            f"'{name}.{number}.{next(iter(children))}'"
        )
    return Site(f"{kind}.{number}", found[0], before)


def _named(model: nn.Module, name: str) -> Site:
    modules = dict(model.named_modules())
    if name not in modules or not name:
        near = difflib.get_close_matches(name, modules, 3, 0.5)
        raise ValueError(
            f"the model has no module {name!r}; "
            + (f"did you mean {', '.join(near)}? " if near else "")
            + "resid.3, mlp.3 and attn.3 name parts of layer 3"
        )
    prefix, layers = layer_list(model)
    inside = name.removeprefix(f"{prefix}.").partition(".")[0]
    if name.startswith(f"{prefix}.") and inside.isdigit():
        return Site(name, modules[name], tuple(layers[: int(inside) + 1]))
    return Site(name, modules[name], ())


def layer_list(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return the name and the content of the list of all layers."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise TypeError(
            f"model must be a causal language model of transformers, got {type(model).__name__}"
        )
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, list(module)
    raise ValueError(f"{type(model).__name__} has no list of {count} layers to choose a site from")


class _Enough(BaseException):
    """Raised when all outputs are captured.

    Not an Exception, so that no handler treats it as a failure.
    """


def capture(model: nn.Module, sites: Sequence[Site], ids: Tensor, **forward: Any) -> list[Tensor]:
    """Capture the outputs [contexts, length, d] of modules; later modules are not computed.

    Tokens are `ids` [contexts, length]; `forward` are further arguments of the model.

    Returns:
        Outputs [contexts, length, d], one for each site.
    """
    seen: dict[str, Tensor] = {}

    def keep(site: Site) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # Copy unless the pass ends here: a later module may write into this output.
            last = len(seen) == len(sites) - 1
            tensor = main_tensor(output, site, ids).detach()
            seen[site.name] = tensor if last else tensor.clone()
            if len(seen) == len(sites):
                raise _Enough

        return hook

    hooks = [site.module.register_forward_hook(keep(site)) for site in sites]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            model(input_ids=ids.to(device), **{"use_cache": False, **forward})
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    missing = [site.name for site in sites if site.name not in seen]
    if missing:
        raise ValueError(
            f"the forward pass does not call {', '.join(missing)}; choose another module"
        )
    return [seen[site.name] for site in sites]
