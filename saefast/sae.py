"""The sparse autoencoder: its parameters, and how it encodes and decodes."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saefast import checks
from saefast.ops.derived import Derived
from saefast.ops.encode_cached import CachedEncoder
from saefast.ops.sparse_decode import sparse_decode
from saefast.ops.threshold_encode import all_above
from saefast.types import SparseCode, ThresholdCode

VARIANTS = ("topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated")

NORMALISATIONS = ("none", "layer_norm", "norm")

_EPSILON = 1e-5  # added to a row's standard deviation, as those do who normalise so
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
        centred: whether b_dec is taken from x before it is encoded; None: unless d_out is given.
        skip: whether a linear map of x, W_skip [d_out, d], is added to what is reconstructed.
        normalise: what is done to each row before it is encoded, and undone afterwards:
            "layer_norm" takes off its mean and divides by its standard deviation, "norm" scales it
            to a norm of the root of d.
        by_norm: whether topk chooses by pre-activations times the norms of the rows of W_dec: by
            what latents add. The values are the pre-activations all the same.

    SAEs that normalise or have a skip connection come from files of others; they are not trained
    here.

    `encode` keeps W_enc packed for the product that screens it, from call to call: 2 more bytes for
    each entry of W_enc where the product is one of bfloat16 or of 16-bit integers, as on most
    processors and GPUs, else 4. The weight is packed again when it has changed. `forget` frees the
    memory.

    `firing_rate` [m] is on which share of tokens each latent fires, as training or a file said, or
    None; a step of training forgets it. `metadata` is what the file said besides, by the name of
    the file's format.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    jump_threshold: nn.Parameter
    r_mag: nn.Parameter
    b_mag: nn.Parameter
    W_skip: nn.Parameter
    batch_threshold: Tensor
    firing_rate: Tensor | None
    metadata: dict[str, Any]

    def __init__(
        self,
        d: int,
        m: int,
        *,
        variant: str = "topk",
        k: int = 32,
        seed: int | None = None,
        d_out: int | None = None,
        centred: bool | None = None,
        skip: bool = False,
        normalise: str = "none",
        by_norm: bool = False,
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
        checks.one_of("normalise", normalise, NORMALISATIONS)
        self.transcodes = d_out is not None
        self.centred = not self.transcodes if centred is None else centred
        self.skip, self.normalise, self.by_norm, self.metadata = skip, normalise, by_norm, {}
        if by_norm and variant != "topk":
            raise ValueError(f"by_norm must be False unless variant is 'topk', got {variant!r}")
        if self.d_out != d and (self.centred or normalise != "none"):
            raise ValueError(
                f"d_out must be d, {d}, for an SAE that is centred or normalises, got {d_out}"
            )
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
        if skip:
            parameters["W_skip"] = torch.zeros(self.d_out, d)
        for name, values in parameters.items():
            on_device = values.to(dtype=dtype, device=device, copy=True)
            self.register_parameter(name, nn.Parameter(on_device))
        if variant in ("batchtopk", "matryoshka"):
            zero = torch.zeros((), dtype=dtype, device=device)
            self.register_buffer("batch_threshold", zero)
        self._encoder, self._norms = CachedEncoder(), Derived[Tensor]()
        # Known of some SAEs only, so it is no part of the state.
        self.register_buffer("firing_rate", None, persistent=False)

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
        if self.normalise != "none":
            shift, scale = self._levels(x)
            x = (x - shift) / (scale + _EPSILON if self.normalise == "layer_norm" else scale)
        return x - self.b_dec if self.centred else x

    def _levels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What was taken off each row, and what it was divided by."""
        if self.normalise == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            return mean, (x - mean).std(dim=-1, keepdim=True)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x.new_zeros(()), norm / self.d**0.5

    def encode(self, x: Tensor) -> SparseCode:
        """The active latents of x [n, d]; values are not negative."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor [n, d], got {type(x).__name__}")
        checks.dense("x", x)
        if x.shape[-1:] != (self.d,):
            raise ValueError(f"x must have the width of the SAE, {self.d}, got {tuple(x.shape)}")
        inputs, threshold = self.inputs(x), self.threshold
        if threshold is None:
            norms = self._decoder_norms() if self.by_norm else None
            code = self._encoder.topk(
                inputs, self.W_enc, self.b_enc, k=self.k, scale=norms, scale_source=self.W_dec
            )
            values = code.values.relu()
            if norms is not None:
                values = values / norms.clamp(min=torch.finfo(norms.dtype).tiny)[code.indices]
            return SparseCode(values, code.indices)
        code = self._above(inputs, threshold.detach())
        if self.variant != "gated":
            return code
        magnitude = (code.values - self.b_enc[code.indices]) * self.r_mag.exp()[code.indices]
        magnitude = (magnitude + self.b_mag[code.indices]).relu()
        return SparseCode(torch.where(code.values > 0, magnitude, 0.0), code.indices)

    def forget(self) -> None:
        """Free what `encode` keeps of the weights; the next call makes it again.

        Needed after a write through `W_enc.data` that changes some of its rows only, which neither
        torch nor saefast can notice.
        """
        self._encoder.forget()
        self._norms.forget()

    def _decoder_norms(self) -> Tensor:
        """The norms of the rows of W_dec [m], differentiable where gradients are wanted."""

        def norms() -> Tensor:
            found: Tensor = torch.linalg.vector_norm(self.W_dec, dim=1)
            return found

        wanted = torch.is_grad_enabled() and self.W_dec.requires_grad
        if wanted or not Derived.tracks(self.W_dec):
            return norms()
        return self._norms.get([self.W_dec], norms)

    def _above(self, inputs: Tensor, threshold: Tensor) -> SparseCode:
        def encode(width: int) -> ThresholdCode:
            return self._encoder.above(
                inputs, self.W_enc, self.b_enc, threshold=threshold, width=width
            )

        found = all_above(encode, _FIRST_WIDTH, self.m)
        return SparseCode(found.values, found.indices)

    def decode(self, code: SparseCode, x: Tensor | None = None) -> Tensor:
        """The reconstruction [n, d_out] of a code.

        Where rows are normalised or skipped to the output, the code alone does not say it all: `x`
        [n, d] are the rows that were encoded. An SAE that normalises needs them; without them, a
        skip connection is left out.
        """
        if not isinstance(code, tuple):
            raise TypeError(
                f"code must be a SparseCode, as encode returns, got {type(code).__name__}"
            )
        y = sparse_decode(code.values, code.indices, self.W_dec, self.b_dec)
        if self.normalise != "none":
            if x is None:
                raise ValueError(
                    "x must be given to decode with an SAE that normalises rows: decode(code, x)"
                )
            shift, scale = self._levels(x)
            y = y * scale + shift
        return y if x is None or not self.skip else y + x @ self.W_skip.T

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x [..., d]."""
        checks.dense("x", x)
        rows = x.reshape(-1, x.shape[-1])
        return self.decode(self.encode(rows), rows).reshape(*x.shape[:-1], self.d_out)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"d={self.d}, m={self.m}, k={self.k}, variant={self.variant!r}"


def _directions(m: int, d: int, generator: torch.Generator | None) -> Tensor:
    directions = torch.randn(m, d, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    return directions


def as_saes(saes: SAE | Sequence[SAE], d: int, least: int = 1) -> list[SAE]:
    """Return one or several SAEs as a list; all must encode rows of width d.

    Args:
        saes: one SAE or several, on any device.
        d: width of the rows.
        least: the fewest SAEs that make sense.
    """
    each: list[Any] = list(saes) if isinstance(saes, Iterable) else [saes]
    if len(each) < least:
        kind = ", of different seeds" if least > 1 else ""
        raise ValueError(f"saes must be at least {least}{kind}, got {len(each)}")
    for number, sae in enumerate(each):
        if not isinstance(sae, SAE):
            raise TypeError(f"saes[{number}] must be a saefast.SAE, got {type(sae).__name__}")
        if sae.d != d:
            raise ValueError(
                f"saes[{number}] must take the activations, whose width is {d}, got d={sae.d}"
            )
    return each


def code_of(sae: SAE, x: Tensor) -> SparseCode:
    """Encode rows [n, d] of any device and dtype on the device and in the dtype of the SAE."""
    return sae.encode(x.to(sae.W_enc.device, sae.W_enc.dtype))
