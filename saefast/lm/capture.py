"""Activations of some modules from one forward pass that ends with the last of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saefast.lm.sites import Site, main_tensor


class _Enough(BaseException):
    """All is seen. No Exception: nothing on the way out may take it for a failure."""


def capture(model: nn.Module, sites: Sequence[Site], ids: Tensor) -> list[Tensor]:
    """What the modules return [contexts, length, d] for these tokens; nothing later is computed."""
    seen: dict[str, Tensor] = {}

    def keep(site: Site) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # A copy, unless it ends here: a later module may write into what this one returned.
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
            model(input_ids=ids.to(device), use_cache=False)
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    missing = [site.name for site in sites if site.name not in seen]
    if missing:
        raise ValueError(f"the model does not run {', '.join(missing)}; choose another module")
    return [seen[site.name] for site in sites]
