"""The encoder of an SAE in training, kept packed for the screen from step to step."""

from torch import Tensor

from saefast.ops.encode_packed import Packed, encode_packed, repacked
from saefast.ops.topk_encode import topk_encode_op
from saefast.sae import SAE
from saefast.types import SparseCode


class PackedEncoder:
    """Encodes with the weights as they are; packs them again if somebody else changed them."""

    def __init__(self, sae: SAE, precision: str) -> None:
        self.sae, self.precision = sae, precision
        self.packed: Packed | None = None
        self._version = -1

    @property
    def fresh(self) -> bool:
        """Whether the packed weights are those of the SAE."""
        return self._version == self.sae.W_enc._version

    def refreshed(self) -> None:
        """Says that an update has just packed what it wrote."""
        self._version = self.sae.W_enc._version

    def largest(self, inputs: Tensor, k: int, scale: Tensor | None = None) -> SparseCode:
        """The k largest pre-activations of each row, chosen by their size times `scale` [m]."""
        sae = self.sae
        if scale is not None:
            code = SparseCode(
                *topk_encode_op(inputs, sae.W_enc, sae.b_enc, scale, k, self.precision)
            )
            return SparseCode(code.values / scale[code.indices], code.indices)
        self._pack(inputs, k)
        return encode_packed(inputs, sae.W_enc, sae.b_enc, k, self.precision, self.packed)

    def _pack(self, inputs: Tensor, k: int) -> None:
        weight = self.sae.W_enc
        self.packed = repacked(self.packed, self.fresh, inputs, weight, k, self.precision)
        self.refreshed()
