"""Adam's memory of an SAE, and its step where gradients are stored."""

import torch
from torch import Tensor

from saefast import reference
from saefast.rules import Rules
from saefast.sae import SAE


class Adam:
    """Moments of every parameter; the learning rate and the number of steps lie on the device.

    There a captured step finds what has become of them.
    """

    def __init__(self, sae: SAE, lr: float, rules: Rules) -> None:
        self._sae, self._rules = sae, rules
        self.lr = torch.tensor(lr, dtype=torch.float64, device=sae.W_enc.device)
        self.steps = torch.zeros_like(self.lr)
        self.moments = {
            name: (torch.zeros_like(parameter), torch.zeros_like(parameter))
            for name, parameter in sae.named_parameters()
        }

    @property
    def state(self) -> dict[str, Tensor]:
        """The moments and the number of steps; the tensors themselves."""
        state = {"steps": self.steps}
        for name, (first, second) in self.moments.items():
            state[f"{name}.first"], state[f"{name}.second"] = first, second
        return state

    def next_rates(self) -> Tensor:
        """What corrections make of the learning rate at the next step, which is counted."""
        self.steps += 1
        return reference.adam_rates(self.lr, self.steps, *self._rules.betas)

    def update(self, name: str, gradient: Tensor, rates: Tensor) -> None:
        """Move one parameter."""
        first, second = self.moments[name]
        beta1, beta2 = self._rules.betas
        reference.adam(
            getattr(self._sae, name),
            first,
            second,
            gradient,
            rates,
            beta1=beta1,
            beta2=beta2,
            eps=self._rules.eps,
        )
