"""Weight updates of an SAE of which this rank has a share."""

from torch import Tensor

from saefast.ops.latent_pass import LatentPass
from saefast.ops.row_norms import row_norms
from saefast.sae import SAE
from saefast.train import optimizer
from saefast.train.auxk import AuxProducts
from saefast.train.learner import Learner
from saefast.train.ranks.auxk import SharedProducts
from saefast.train.ranks.encoder import SharedEncoder
from saefast.train.ranks.update import SharedPass
from saefast.train.settings import Rules
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

    def _square_of(self, side: str) -> Tensor:
        if side == "decoder":
            return optimizer.square_of(self._norms())
        return optimizer.square_of(self._share.joined_rows(row_norms(self.sae.W_enc)))
