"""The sparse autoencoder: its parameters, and how it encodes and decodes."""

import torch
from torch import Tensor, nn

from saefast.ops import checks
from saefast.ops.sparse_decode import sparse_decode
from saefast.ops.threshold_encode import threshold_encode
from saefast.ops.topk_encode import topk_encode
from saefast.types import SparseCode

VARIANTS = ("topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated")

_FIRST_WIDTH = 128  # room for the active latents of a row, doubled until all fit


class SAE(nn.Module):
    """A sparse autoencoder: x is approximately decode(encode(x)).

    A row of W_enc and of W_dec is a feature. A latent's pre-activation is
    (x - b_dec) . W_enc[j] + b_enc[j]; decode is the sum of the active rows of W_dec, weighted, plus
    b_dec. What is active depends on the variant:

    - topk: the k largest pre-activations of each row, if positive;
    - batchtopk, matryoshka: those above `threshold`, one number, which training estimates; in
      training, the k largest per row on average over a batch;
    - relu: the positive ones;
    - jumprelu: those above `threshold` [m], which is learned;
    - gated: those that are positive, with values (pre-activation - b_enc[j]) * exp(r_mag[j]) +
      b_mag[j] where that is positive, too.

    Args:
        d: width of the activations.
        m: number of latents.
        variant: one of those above.
        k: active latents per row; of relu, jumprelu and gated only a target.
        seed: of the initial decoder directions; None draws from torch's global generator.
        d_out: width of what is reconstructed, if that is not x but something else (a transcoder);
            then b_dec is not taken from x.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    jump_threshold: nn.Parameter
    r_mag: nn.Parameter
    b_mag: nn.Parameter
    batch_threshold: Tensor

    def __init__(
        self,
        d: int,
        m: int,
        *,
        variant: str = "topk",
        k: int = 32,
        seed: int | None = None,
        d_out: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.d_out = d if d_out is None else d_out
        for name, value in (("d", d), ("m", m), ("k", k), ("d_out", self.d_out)):
            checks.whole(name, value)
        checks.between("d", d, 1, 2**31 - 1, "the width")
        checks.between("d_out", self.d_out, 1, 2**31 - 1, "the width")
        checks.between("m", m, 1, 2**31 - 1, "the number of latents")
        checks.between("k", k, 1, m, "the number of latents")
        checks.one_of("variant", variant, VARIANTS)
        self.d, self.m, self.k, self.variant = d, m, k, variant
        self.transcodes = d_out is not None
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        decoder = _directions(m, self.d_out, generator)
        # An encoder that starts as the decoder's transpose leaves few latents dead.
        encoder = decoder.clone() if self.d_out == d else _directions(m, d, generator)
        zeros = torch.zeros(m)
        parameters = {"W_enc": encoder, "b_enc": zeros, "W_dec": decoder}
        parameters["b_dec"] = torch.zeros(self.d_out)
        if variant == "jumprelu":
            parameters["jump_threshold"] = zeros + 0.01
        if variant == "gated":
            parameters |= {"r_mag": zeros, "b_mag": zeros}
        for name, values in parameters.items():
            on_device = values.to(dtype=dtype, device=device, copy=True)
            self.register_parameter(name, nn.Parameter(on_device))
        if variant in ("batchtopk", "matryoshka"):
            zero = torch.zeros((), dtype=dtype, device=device)
            self.register_buffer("batch_threshold", zero)

    @property
    def threshold(self) -> Tensor | None:
        """What a pre-activation must exceed: [m], [] for all latents, or None where k decides."""
        if self.variant == "topk":
            return None
        if self.variant == "jumprelu":
            return self.jump_threshold
        if self.variant in ("batchtopk", "matryoshka"):
            return self.batch_threshold
        return self.b_enc.new_zeros(())

    def inputs(self, x: Tensor) -> Tensor:
        """What the encoder multiplies."""
        return x if self.transcodes else x - self.b_dec

    def encode(self, x: Tensor) -> SparseCode:
        """The active latents of x [n, d]; values are not negative."""
        inputs, threshold = self.inputs(x), self.threshold
        if threshold is None:
            code = topk_encode(inputs, self.W_enc, self.b_enc, k=self.k)
            return SparseCode(code.values.relu(), code.indices)
        code = self._above(inputs, threshold.detach())
        if self.variant != "gated":
            return code
        magnitude = (code.values - self.b_enc[code.indices]) * self.r_mag.exp()[code.indices]
        magnitude = (magnitude + self.b_mag[code.indices]).relu()
        return SparseCode(torch.where(code.values > 0, magnitude, 0.0), code.indices)

    def _above(self, inputs: Tensor, threshold: Tensor) -> SparseCode:
        width = min(_FIRST_WIDTH, self.m)
        while True:
            found = threshold_encode(
                inputs, self.W_enc, self.b_enc, threshold=threshold, width=width
            )
            largest = int(found.counts.amax()) if len(inputs) else 0
            if largest <= width:
                break
            width = min(2 * largest, self.m)
        used = max(largest, 1)
        return SparseCode(found.values[:, :used], found.indices[:, :used])

    def decode(self, code: SparseCode) -> Tensor:
        """The reconstruction [n, d_out] of a code."""
        return sparse_decode(code.values, code.indices, self.W_dec, self.b_dec)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x [..., d]."""
        rows = x.reshape(-1, x.shape[-1])
        return self.decode(self.encode(rows)).reshape(*x.shape[:-1], self.d_out)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"d={self.d}, m={self.m}, k={self.k}, variant={self.variant!r}"


def _directions(m: int, d: int, generator: torch.Generator | None) -> Tensor:
    directions = torch.randn(m, d, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    return directions
