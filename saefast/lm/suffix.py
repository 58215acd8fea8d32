"""The rest of a language model, from a site on: run again and again, the layers before it once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saefast.lm.logits import for_contexts, logits_and_cache, logits_at
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
        self._positions: Tensor | None = None
        self._first = 0
        self._cache: Any = None
        self._returned: dict[nn.Module, Any] = {}

    @torch.no_grad()
    def begin(
        self, ids: Tensor, positions: Tensor | None = None, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the activations [contexts, length, d] at the site and the logits, undisturbed.

        `positions` [p] says where logits are wanted, here and in `logits`, if not everywhere. None
        of them is before `first`, the first position at which activations may change: of what
        stands before, keys and values are kept, if that is all that the model keeps.
        """
        self._ids, self._positions = ids.to(self._device), positions
        self._first, self._cache, self._returned = 0, None, {}
        needed = {*self._before[-1:], self._site.module}

        def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
            # A copy, since later modules may write into it; of most layers the form is enough.
            main = self._main(output).clone() if module in needed else ids
            self._returned[module] = with_main_tensor(output, main)

        with ExitStack() as stack:
            for module in {*self._before, self._site.module}:
                stack.callback(module.register_forward_hook(keep).remove)
            if first:
                logits, self._cache = logits_and_cache(self._model, self._ids, positions)
            else:
                logits = logits_at(self._model, self._ids, positions)
        if self._site.module not in self._returned:
            raise ValueError(f"the model does not run {self._site.name}; choose another module")
        if self._cache is not None:
            self._cache.crop(first - self._ids.shape[1])  # negative: tokens to take off the end
            self._first = first
        return self._main(self._returned[self._site.module]), logits

    def logits(self, activations: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Return the logits [n, length or p, vocabulary] for other activations at the site.

        `contexts` [n] says which of them are run, in which order, if not all; `activations`
        [n, length, d] are theirs.
        """
        every = torch.arange(len(self._ids)) if contexts is None else contexts
        chosen, tail = every.to(self._device), slice(self._first, None)

        def same(output: Any, *_inputs: Any) -> Any:
            return with_main_tensor(output, self._main(output)[chosen][:, tail].clone())

        def replaced(output: Any, *_inputs: Any) -> Any:
            like = self._main(output)
            here = activations[:, tail].to(like.device, like.dtype, copy=True)
            return with_main_tensor(output, here)

        with ExitStack() as stack:
            for layer in self._before[:-1]:
                stack.enter_context(_answering(layer, self._returned[layer], with_main_tensor))
            for layer in self._before[-1:]:
                stack.enter_context(_answering(layer, self._returned[layer], same))
            module = self._site.module
            stack.enter_context(_answering(module, self._returned[module], replaced))
            return logits_at(
                self._model,
                self._ids[chosen][:, tail],
                None if self._positions is None else self._positions - self._first,
                None if self._cache is None else for_contexts(self._cache, chosen),
            )

    def _main(self, output: Any) -> Tensor:
        return main_tensor(output, self._site, self._ids)


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
