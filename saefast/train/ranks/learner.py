"""Weight updates of an SAE of which this rank has a share."""

from collections.abc import Callable

import torch
from torch import Tensor

from saefast import reference
from saefast.ops.latent_pass import LatentPass
from saefast.ops.row_norms import row_norms
from saefast.sae import SAE
from saefast.train import optimizer
from saefast.train.auxk import AuxGradients
from saefast.train.auxk_products import AuxProducts
from saefast.train.learner import Learner
from saefast.train.objectives import Loss
from saefast.train.optimizer import Gradients
from saefast.train.ranks.auxk import SharedProducts
from saefast.train.ranks.encoder import SharedEncoder
from saefast.train.ranks.share import gathered
from saefast.train.ranks.update import SharedPass
from saefast.train.settings import AuxK, Rules
from saefast.types import Update


class SharedLearner(Learner):
    """A `Learner` of a share of an SAE; its rules hold for the whole."""

    def __init__(
        self, sae: SAE, rules: Rules, lr: float, encoder: SharedEncoder, precision: str
    ) -> None:
        super().__init__(sae, rules, lr, encoder, precision)
        self._share, self._norms = encoder.share, encoder.decoder_norms

    def _auxk_products(self, dead: Tensor) -> AuxProducts:
        return SharedProducts(self._share, dead)

    def _latent_pass(self, update: Update) -> LatentPass:
        return SharedPass(self._share, update)

    def _gradients(
        self, loss_of: Callable[[SAE], Loss], x: Tensor, idle: Tensor, auxk: AuxK | None
    ) -> tuple[Loss, Gradients, AuxGradients | None]:
        """Compute the gradients of the whole SAE on every rank; return this rank's share.

        The order of sums in dense products is that of the BLAS library for the whole matrices, so
        that products of parts would have other bits.

        Returns:
            Loss, gradients of this rank's share, and those of AuxK if there are any.
        """
        whole = gathered(self.sae, self._share)
        loss, gradients, extra = self._gradients_of(whole, loss_of, x, idle, auxk)
        own = {name: self._share.of(name, gradient) for name, gradient in gradients.items()}
        return (
            loss,
            {name: part.clone(memory_format=torch.contiguous_format) for name, part in own.items()},
            extra,
        )

    def _normalise_decoder(self) -> None:
        whole = self._share.whole("W_dec", self.sae.W_dec.detach())
        reference.normalise_rows(whole)
        self.sae.W_dec.copy_(self._share.of("W_dec", whole))

    def _square_of(self, side: str) -> Tensor:
        if side == "decoder":
            return optimizer.square_of(self._norms())
        return optimizer.square_of(self._share.joined_rows(row_norms(self.sae.W_enc)))
