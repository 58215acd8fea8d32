"""The sparse autoencoder: its parameters, and how it encodes and decodes."""

import torch
from torch import Tensor, nn

from saefast.ops import checks
from saefast.ops.sparse_decode import sparse_decode
from saefast.ops.topk_encode import topk_encode
from saefast.types import SparseCode

VARIANTS = ("topk",)


class SAE(nn.Module):
    """A TopK sparse autoencoder: x is approximately decode(encode(x)).

    encode: relu of the k largest of (x - b_dec) @ W_enc.T + b_enc. decode: the sum of the active
    rows of W_dec, weighted, plus b_dec. A row of W_enc and of W_dec is a feature.

    Args:
        d: width of the activations.
        m: number of latents.
        variant: "topk".
        k: active latents per row.
        seed: of the initial decoder directions; None draws from torch's global generator.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init__(
        self,
        d: int,
        m: int,
        *,
        variant: str = "topk",
        k: int = 32,
        seed: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        for name, value in (("d", d), ("m", m), ("k", k)):
            checks.whole(name, value)
        checks.between("d", d, 1, 2**31 - 1, "the width")
        checks.between("m", m, 1, 2**31 - 1, "the number of latents")
        checks.between("k", k, 1, m, "the number of latents")
        checks.one_of("variant", variant, VARIANTS)
        self.d, self.m, self.k, self.variant = d, m, k, variant
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        directions = torch.randn(m, d, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        directions = directions.to(dtype=dtype, device=device)
        # An encoder that starts as the decoder's transpose leaves few latents dead.
        self.W_dec = nn.Parameter(directions)
        self.W_enc = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(m, dtype=dtype, device=device))
        self.b_dec = nn.Parameter(torch.zeros(d, dtype=dtype, device=device))

    def encode(self, x: Tensor) -> SparseCode:
        """The active latents of x [n, d]; values are not negative."""
        code = topk_encode(x - self.b_dec, self.W_enc, self.b_enc, k=self.k)
        return SparseCode(code.values.relu(), code.indices)

    def decode(self, code: SparseCode) -> Tensor:
        """The reconstruction [n, d] of a code."""
        return sparse_decode(code.values, code.indices, self.W_dec, self.b_dec)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x [..., d]."""
        rows = x.reshape(-1, x.shape[-1])
        return self.decode(self.encode(rows)).reshape(x.shape)

    def extra_repr(self) -> str:
        return f"d={self.d}, m={self.m}, k={self.k}, variant={self.variant!r}"
