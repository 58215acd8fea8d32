"""Layers of a language model after a site, run repeatedly; the layers before it run once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from saefast.lm.logits import for_contexts, logits_and_cache, logits_at
from saefast.lm.sites import Site, main_tensor, with_main_tensor


class Suffix:
    """Logits for other activations at a site, of the contexts that were last passed to `begin`.

    `begin` computes the layers before the site's layer; later calls return their stored outputs. If
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
        """Return the activations [contexts, length, d] at the site and the logits, unmodified.

        `positions` [p] are the positions at which logits are returned, here and by `logits`; None:
        all. They must not lie before `first`, the first position at which activations may change:
        for earlier ones, keys and values are kept, if the model's cache has nothing else.
        """
        self._ids, self._positions = ids.to(self._device), positions
        self._first, self._cache, self._returned = 0, None, {}
        needed = {*self._before[-1:], self._site.module}

        def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
            # Copy, since later modules may write into it; for most layers the structure is enough.
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
            raise ValueError(
                f"the forward pass does not call {self._site.name}; choose another module"
            )
        if self._cache is not None:
            self._cache.crop(first - self._ids.shape[1])  # negative: tokens to remove at the end
            self._first = first
        return self._main(self._returned[self._site.module]), logits

    def logits(self, activations: Tensor, contexts: Tensor | None = None) -> Tensor:
        """Return the logits [n, length or p, vocabulary] for other activations at the site.

        `contexts` [n] are the indices of the contexts to run, in this order; None: all. Their
        activations are `activations` [n, length, d].
        """
        every = torch.arange(len(self._ids)) if contexts is None else contexts
        chosen, tail = every.to(self._device), slice(self._first, None)

        def same(output: Any, *_inputs: Any) -> Any:
            return with_main_tensor(output, self._main(output)[chosen][:, tail].clone())

        return self._run(
            self._ids[chosen][:, tail],
            activations[:, tail],
            None if self._positions is None else self._positions - self._first,
            chosen,
            same,
        )

    def continuations(self, ids: Tensor, activations: Tensor) -> Tensor:
        """Return the logits [n, length, vocabulary] of other tokens from position `first` on.

        `begin` was given one context, whose tokens before `first` all continuations share, and
        `keeps_keys` or a `first` of 0. The site is a whole layer, so that the activations are the
        whole input of the layers after it.

        Args:
            ids: [n, length] int64.
            activations: [n, length, d] at the site.
        """
        contexts = torch.zeros(len(ids), dtype=torch.int64, device=self._device)
        return self._run(ids.to(self._device), activations, None, contexts, with_main_tensor)

    @property
    def keeps_keys(self) -> bool:
        """Whether keys and values of the tokens before `first` are kept."""
        return self._cache is not None

    def _run(
        self,
        ids: Tensor,
        activations: Tensor,
        positions: Tensor | None,
        contexts: Tensor,
        before: Callable[[Any, Tensor], Any],
    ) -> Tensor:
        """Run the rest; `before` answers for the last layer before the site's layer."""

        def replaced(output: Any, *_inputs: Any) -> Any:
            like = self._main(output)
            here = activations.to(like.device, like.dtype, copy=True)
            return with_main_tensor(output, here)

        with ExitStack() as stack:
            for layer in self._before[:-1]:
                stack.enter_context(_answering(layer, self._returned[layer], with_main_tensor))
            for layer in self._before[-1:]:
                stack.enter_context(_answering(layer, self._returned[layer], before))
            module = self._site.module
            stack.enter_context(_answering(module, self._returned[module], replaced))
            cache = None if self._cache is None else for_contexts(self._cache, contexts)
            return logits_at(self._model, ids, positions, cache)

    def _main(self, output: Any) -> Tensor:
        return main_tensor(output, self._site, self._ids)


@contextmanager
def _answering(
    module: nn.Module, returned: Any, answer: Callable[[Any, Tensor], Any]
) -> Iterator[None]:
    """Replace the module's computation, inside the `with`, by an answer from its earlier output.

    `answer` takes that output and the first argument of the call.
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
