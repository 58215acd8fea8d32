"""Define the sparse autoencoder: its parameters, encoder and decoder."""

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

VARIANTS = ("topk", "abstopk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated")
K_PER_ROW = ("topk", "abstopk")
"""Variants that select k latents of each row, without a threshold."""

UP_TO_SIGN = ("abstopk",)
"""Variants in which a latent and its negation are the same latent: opposite directions match."""

NORMALISATIONS = ("none", "layer_norm", "norm")

FIRST_THRESHOLD = 0.01
"""Threshold of every latent of a new JumpReLU SAE."""
_EPSILON = 1e-5  # added to a row's standard deviation, as the libraries that normalise do
_FIRST_WIDTH = 128  # initial capacity for the active latents of a row, doubled until all fit


class SAE(nn.Module):
    """A sparse autoencoder: x is approximately decode(encode(x)).

    Row j of W_enc and of W_dec is feature j. The pre-activation of latent j is
    (x - b_dec) . W_enc[j] + b_enc[j]; decoding sums the active rows of W_dec, weighted by their
    values, and adds b_dec. The variant determines which latents are active:

    - topk: the k largest pre-activations of each row, if positive;
    - abstopk: the k pre-activations of each row that are largest in absolute value, with their
      sign. A latent is active where its value is not zero, so it may be active in two directions;
    - batchtopk, matryoshka: pre-activations above the scalar `threshold`, which training
      estimates; during training, the k largest per row on average over a batch;
    - relu: positive pre-activations;
    - jumprelu: pre-activations above the learned `threshold` [m];
    - gated: positive pre-activations, with values (pre-activation - b_enc[j]) * exp(r_mag[j]) +
      b_mag[j], clamped at zero.

    Args:
        d: width of the activations.
        m: number of latents.
        variant: one of the variants above.
        k: number of active latents per row; only a target for relu, jumprelu and gated.
        seed: seed of the initial decoder directions; None draws from torch's global generator.
        d_out: width of the output of a transcoder, which reconstructs something other than x;
            b_dec is then not subtracted from x by default. None: an autoencoder, with width d.
        centred: whether b_dec is subtracted from x before encoding. None: only if `d_out` is not
            given.
        skip: whether a linear map of x, W_skip [d_out, d], is added to the reconstruction.
        normalise: transform of each row before encoding, inverted after decoding: "layer_norm"
            subtracts the row's mean and divides by its standard deviation, "norm" scales the row
            to norm sqrt(d).
        by_norm: whether topk and abstopk rank latents by pre-activation times the norm of their
            row of W_dec, that is, by the size of their contribution. The values remain the
            pre-activations.
        dtype: dtype of the parameters.
        device: device of the parameters.

    SAEs that normalise or have a skip connection are loaded from files of other libraries; saefast
    does not train them.

    `encode` caches a packed copy of W_enc for the screening product: 2 bytes per entry of W_enc
    where the product uses bfloat16 or 16-bit integers, as on most processors and GPUs, otherwise 4.
    The copy is rebuilt when the weight has changed. `forget` frees the memory.
    """

    W_enc: nn.Parameter
    """[m, d] encoder, a row for each latent"""
    b_enc: nn.Parameter
    """[m] bias of the pre-activations"""
    W_dec: nn.Parameter
    """[m, d_out] decoder, a row for each latent: its feature"""
    b_dec: nn.Parameter
    """[d_out] bias of the reconstruction"""
    jump_threshold: nn.Parameter
    """[m] thresholds of a jumprelu SAE"""
    r_mag: nn.Parameter
    """[m] logarithms of the scale of a gated SAE's values"""
    b_mag: nn.Parameter
    """[m] bias of a gated SAE's values"""
    W_skip: nn.Parameter
    """[d_out, d] linear map of x to the reconstruction, with `skip`"""
    batch_threshold: Tensor
    """[] threshold of a batchtopk or matryoshka SAE"""
    firing_rate: Tensor | None
    """[m] share of tokens on which each latent fires, from training or from a file; a training step
    resets it to None"""
    metadata: dict[str, Any]
    """further contents of the file, by the name of its format"""

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
        if by_norm and variant not in K_PER_ROW:
            raise ValueError(
                f"by_norm must be False unless variant is one of {', '.join(K_PER_ROW)}, got "
                f"{variant!r}"
            )
        if self.d_out != d and (self.centred or normalise != "none"):
            raise ValueError(
                f"d_out must be d, {d}, for an SAE that is centred or normalises, got {d_out}"
            )
        generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
        # Drawn on the CPU, so that a seed gives the same directions on every device.
        where = "meta" if torch.device(device).type == "meta" else "cpu"
        decoder = _directions(m, self.d_out, generator, where)
        # An encoder that starts as the decoder's transpose leaves few latents dead.
        encoder = decoder.clone() if self.d_out == d else _directions(m, d, generator, where)
        zeros = decoder.new_zeros(m)
        parameters = {"W_enc": encoder, "b_enc": zeros, "W_dec": decoder}
        parameters["b_dec"] = decoder.new_zeros(self.d_out)
        if variant == "jumprelu":
            parameters["jump_threshold"] = zeros + FIRST_THRESHOLD
        if variant == "gated":
            parameters |= {"r_mag": zeros, "b_mag": zeros}
        if skip:
            parameters["W_skip"] = decoder.new_zeros(self.d_out, d)
        for name, values in parameters.items():
            on_device = values.to(dtype=dtype, device=device, copy=True)
            self.register_parameter(name, nn.Parameter(on_device))
        if variant in ("batchtopk", "matryoshka"):
            zero = torch.zeros((), dtype=dtype, device=device)
            self.register_buffer("batch_threshold", zero)
        self._encoder, self._norms = CachedEncoder(), Derived[Tensor]()
        # Known for some SAEs only, so it is not part of the state dict.
        self.register_buffer("firing_rate", None, persistent=False)

    @property
    def threshold(self) -> Tensor | None:
        """Activation threshold: [m], or [] if shared by all latents; None for topk and abstopk."""
        if self.variant in K_PER_ROW:
            return None
        if self.variant == "jumprelu":
            return self.jump_threshold
        if self.variant in ("batchtopk", "matryoshka"):
            return self.batch_threshold
        return self.b_enc.new_zeros(())

    def inputs(self, x: Tensor) -> Tensor:
        """Return the encoder's inputs: rows normalised and centred as configured.

        Args:
            x: [n, d] activations.

        Returns:
            [n, d].
        """
        if self.normalise != "none":
            shift, scale = self._levels(x)
            x = (x - shift) / (scale + _EPSILON if self.normalise == "layer_norm" else scale)
        return x - self.b_dec if self.centred else x

    def _levels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shift and the scale of each row's normalisation, [..., 1] or []."""
        if self.normalise == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            return mean, (x - mean).std(dim=-1, keepdim=True)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x.new_zeros(()), norm / self.d**0.5

    def encode(self, x: Tensor) -> SparseCode:
        """Encode rows as their active latents.

        Args:
            x: [n, d] activations, with the dtype and device of the SAE.

        Returns:
            Code with values [n, w], nonnegative except for abstopk, and int64 indices [n, w]; w is
            k for topk and abstopk, otherwise it is large enough for every row.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor [n, d], got {type(x).__name__}")
        checks.dense("x", x)
        if x.shape[-1:] != (self.d,):
            raise ValueError(f"x must have the width of the SAE, {self.d}, got {tuple(x.shape)}")
        inputs, threshold = self.inputs(x), self.threshold
        if threshold is None:
            norms = self._decoder_norms() if self.by_norm else None
            absolute = self.variant == "abstopk"
            code = self._encoder.topk(
                inputs,
                self.W_enc,
                self.b_enc,
                k=self.k,
                scale=norms,
                scale_source=self.W_dec,
                absolute=absolute,
            )
            values = activations(code.values, absolute=absolute)
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
        """Free the packed weights cached by `encode`; the next call rebuilds them.

        Required after a write through `W_enc.data` that changes only some of its rows, which
        neither torch nor saefast can detect.
        """
        self._encoder.forget()
        self._norms.forget()

    def _decoder_norms(self) -> Tensor:
        """Return the norms of the rows of W_dec [m], differentiable if gradients are enabled."""

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
        """Reconstruct rows from a code.

        Args:
            code: values and indices [n, w], as returned by `encode`.
            x: [n, d] the encoded rows. Required by an SAE that normalises; without them the skip
                connection, if any, is omitted.

        Returns:
            [n, d_out] reconstruction.

        Raises:
            ValueError: the SAE normalises rows and `x` is None.
        """
        if not isinstance(code, SparseCode | ThresholdCode):
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

    def contributions(self, code: SparseCode, x: Tensor) -> SparseCode:
        """Return a code with the weights of decoder rows in the reconstruction of `x`.

        They are the values of the code; an SAE that normalises rows multiplies them by the scale of
        each row.

        Args:
            code: values and indices [n, w], as returned by `encode`.
            x: [n, d] the encoded rows.

        Returns:
            Code of weights [n, w] and the same indices.
        """
        if self.normalise == "none":
            return code
        return SparseCode(code.values * self._levels(x)[1], code.indices)

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode activations.

        Args:
            x: [..., d] activations.

        Returns:
            Reconstruction [..., d_out].
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor [..., d], got {type(x).__name__}")
        checks.dense("x", x)
        if x.shape[-1:] != (self.d,):
            raise ValueError(f"x must have the width of the SAE, {self.d}, got {tuple(x.shape)}")
        rows = x.reshape(-1, x.shape[-1])
        return self.decode(self.encode(rows), rows).reshape(*x.shape[:-1], self.d_out)

    def extra_repr(self) -> str:
        """Return the settings shown by `print`."""
        return f"d={self.d}, m={self.m}, k={self.k}, variant={self.variant!r}"


def activations(selected: Tensor, *, absolute: bool) -> Tensor:
    """Return the activations of latents selected by topk, or by abstopk if `absolute`.

    Pre-activations are rectified for topk. For abstopk they keep their sign, and latents masked by
    -infinity, which are selected where fewer than k are left, become zero.
    """
    return selected.masked_fill(selected == -torch.inf, 0.0) if absolute else selected.relu()


def _directions(m: int, d: int, generator: torch.Generator | None, device: str) -> Tensor:
    directions = torch.randn(m, d, generator=generator, dtype=torch.float32, device=device)
    directions /= directions.norm(dim=1, keepdim=True)
    return directions


def as_saes(saes: SAE | Sequence[SAE], d: int, least: int = 1) -> list[SAE]:
    """Return one or several SAEs as a list, after checking that all encode rows of width d.

    Args:
        saes: one SAE or several, on any device.
        d: width of the rows.
        least: minimum number of SAEs.
    """
    each: list[Any] = list(saes) if isinstance(saes, Iterable) else [saes]
    if len(each) < least:
        kind = " of different seeds" if least > 1 else ""
        raise ValueError(
            f"saes must hold at least {least} SAE{'s' * (least > 1)}{kind}, got {len(each)}"
        )
    for number, sae in enumerate(each):
        if not isinstance(sae, SAE):
            raise TypeError(f"saes[{number}] must be a saefast.SAE, got {type(sae).__name__}")
        if sae.d != d:
            raise ValueError(
                f"saes[{number}] must have the width of the activations, d={d}, got d={sae.d}"
            )
    return each


def code_of(sae: SAE, x: Tensor) -> SparseCode:
    """Encode rows [n, d] of any device and dtype on the SAE's device and in its dtype."""
    return sae.encode(x.to(sae.W_enc.device, sae.W_enc.dtype))
