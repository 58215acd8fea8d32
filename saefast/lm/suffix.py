"""The rest of a language model, from a site on: run again and again, the layers before it once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saefast.lm.sites import Site, main_tensor, with_main_tensor


class Suffix:
    """Logits for other activations at a site, of the contexts that `begin` was last given.

    The layers before that of the site are computed by `begin`, and afterwards only answer. Where
    a site is in no layer, the whole model runs every time.
    """

    def __init__(self, model: nn.Module, site: Site):
        self._model, self._site = model, site
        self._before = site.layers[:-1]
        self._device = next(model.parameters()).device
        self._ids = torch.zeros(0, 0, dtype=torch.int64)
        self._returned: dict[nn.Module, Any] = {}

    @torch.no_grad()
    def begin(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The activations [contexts, length, d] at the site and the logits, undisturbed."""
        self._ids = ids.to(self._device)
        self._returned = {}
        needed = {*self._before[-1:], self._site.module}

        def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
            # A copy, since later modules may write into it; of most layers the form is enough.
            main = self._main(output).clone() if module in needed else ids
            self._returned[module] = with_main_tensor(output, main)

        with ExitStack() as stack:
            for module in {*self._before, self._site.module}:
                stack.callback(module.register_forward_hook(keep).remove)
            logits = self._logits(self._ids)
        if self._site.module not in self._returned:
            raise ValueError(f"the model does not run {self._site.name}; choose another module")
        return self._main(self._returned[self._site.module]), logits

    def logits(self, activations: Tensor, contexts: Tensor | None = None) -> Tensor:
        """The logits [contexts, length, vocabulary] where these are the activations.

        `contexts` [n] says which of them are run, in which order, if not all.
        """
        chosen = slice(None) if contexts is None else contexts.to(self._device)

        def same(output: Any, *_inputs: Any) -> Any:
            return with_main_tensor(output, self._main(output)[chosen].clone())

        def replaced(output: Any, *_inputs: Any) -> Any:
            like = self._main(output)
            here = activations.to(like.device, like.dtype, copy=True)
            return with_main_tensor(output, here)

        with ExitStack() as stack:
            for layer in self._before[:-1]:
                stack.enter_context(_answering(layer, self._returned[layer], with_main_tensor))
            for layer in self._before[-1:]:
                stack.enter_context(_answering(layer, self._returned[layer], same))
            module = self._site.module
            stack.enter_context(_answering(module, self._returned[module], replaced))
            return self._logits(self._ids[chosen])

    def _main(self, output: Any) -> Tensor:
        return main_tensor(output, self._site, self._ids)

    def _logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits


@contextmanager
def _answering(
    module: nn.Module, returned: Any, answer: Callable[[Any, Tensor], Any]
) -> Iterator[None]:
    """While it lasts, the module computes nothing, but answers from what it returned before.

    `answer` gets that, and what the module is called with first.
    """

    def forward(*inputs: Any, **named: Any) -> Any:
        return answer(returned, inputs[0] if inputs else next(iter(named.values())))

    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
