"""Weights of an SAE between file and model, in saefast's orientation but not yet read."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefast.sae import SAE

_OURS = {"threshold": ("jump_threshold", "batch_threshold")}
_SAME_ONCE_TRAINED = {"matryoshka": "batchtopk", "batchtopk": "jumprelu", "relu": "jumprelu"}
"""Variant that computes the same as another one with suitable thresholds."""


@dataclass(frozen=True)
class SAEWeights:
    """All parts of an SAE; tensors may lie in a file that is mapped into memory."""

    variant: str
    W_enc: Tensor
    """[m, d]"""
    W_dec: Tensor
    """[m, d_out]"""
    b_enc: Tensor
    """[m]"""
    b_dec: Tensor
    """[d_out]"""
    k: int | None = None
    threshold: Tensor | None = None
    """[] or [m]"""
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    W_skip: Tensor | None = None
    """[d_out, d]"""
    transcodes: bool = False
    centred: bool = True
    normalise: str = "none"
    by_norm: bool = False
    firing_rate: Tensor | None = None
    """[m]"""
    metadata: dict[str, Any] = field(default_factory=dict)
    """further settings of the file, by the name of its format"""
    dtype: torch.dtype | None = None
    """dtype of the model; None: the dtype of W_dec"""

    @property
    def m(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    @property
    def d(self) -> int:
        """Width of the input."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the reconstruction."""
        return self.W_dec.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors that are not None, by name."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag", "W_skip")
        named = {name: getattr(self, name) for name in names}
        return {name: value for name, value in named.items() if value is not None}

    def metadata_of(self, name: str) -> dict[str, Any]:
        """Return the further settings that a file of this format gave."""
        stored = self.metadata.get(name)
        return dict(stored) if isinstance(stored, dict) else {}

    def as_sae(self, path: Path) -> SAE:
        """Return the model, after checking that every weight is finite.

        Args:
            path: path of the file, for error messages.

        Returns:
            SAE on the CPU, in the dtype of the file; float32 for float16.
        """
        for name, value in self.tensors.items():
            low, high = value.aminmax() if value.numel() else (value.new_zeros(()),) * 2
            if not (low.isfinite() and high.isfinite()):
                raise ValueError(f"{path}: {name} holds NaN or infinity")
        if self.k is not None and not 1 <= self.k <= self.m:
            raise ValueError(
                f"{path}: k must be from 1 to {self.m} (the number of latents), got {self.k}"
            )
        with torch.device("meta"):  # avoids drawing random directions, which would be overwritten
            sae = SAE(
                self.d,
                self.m,
                variant=self.variant,
                k=min(32, self.m) if self.k is None else self.k,
                d_out=self.d_out if self.transcodes else None,
                centred=self.centred,
                skip=self.W_skip is not None,
                normalise=self.normalise,
                by_norm=self.by_norm,
                dtype=_usable(self.W_dec.dtype if self.dtype is None else self.dtype),
                device="meta",
            )
        sae = sae.to_empty(device="cpu")
        state = sae.state_dict()
        with torch.no_grad():
            for name, value in self.tensors.items():
                mine = next((state[own] for own in _OURS.get(name, (name,)) if own in state), None)
                if mine is None:
                    raise ValueError(f"{path}: {name} is not part of a {self.variant} SAE")
                mine.copy_(value)
        if self.firing_rate is not None:
            sae.firing_rate = self.firing_rate.clone()
        sae.metadata = self.metadata
        return sae


def weights_of(sae: SAE) -> SAEWeights:
    """Return the weights of a model; the tensors are shared with it."""
    threshold = None if sae.variant in ("relu", "gated") else sae.threshold
    rest = {name: getattr(sae, name, None) for name in ("r_mag", "b_mag", "W_skip")}
    optional: dict[str, Any] = {n: None if v is None else v.detach() for n, v in rest.items()}
    shared = {name: getattr(sae, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    return SAEWeights(
        variant=sae.variant,
        k=sae.k,
        threshold=None if threshold is None else threshold.detach(),
        transcodes=sae.transcodes,
        centred=sae.centred,
        normalise=sae.normalise,
        by_norm=sae.by_norm,
        firing_rate=sae.firing_rate,
        metadata=sae.metadata,
        **shared,
        **optional,
    )


def scaled_inputs(parts: SAEWeights, scale_in: float, scale_out: float | None = None) -> SAEWeights:
    """Return the SAE of raw activations, given one of x * scale_in and y * scale_out.

    Active latents and their values stay the same: W_enc takes the scale.
    """
    scale_out = scale_in if scale_out is None else scale_out
    skip = parts.W_skip
    return replace(
        parts,
        W_enc=_folded(parts.W_enc, scale_in),
        W_dec=_folded(parts.W_dec, 1 / scale_out),
        b_dec=_folded(parts.b_dec, 1 / scale_out),
        W_skip=None if skip is None else _folded(skip, scale_in / scale_out),
    )


def scaled_values(parts: SAEWeights, factor: float) -> SAEWeights:
    """Return the same SAE with all values of latents multiplied by `factor`."""
    changed: dict[str, Any] = {
        name: _folded(value, 1 / factor if name == "W_dec" else factor)
        for name, value in parts.tensors.items()
        if name in ("W_enc", "b_enc", "W_dec", "threshold", "b_mag")
    }
    return replace(parts, **changed)


def whitened_inputs(parts: SAEWeights, mean: Tensor, matrix: Tensor, inverse: Tensor) -> SAEWeights:
    """Return the SAE of raw activations, given one of (x - mean) @ matrix."""
    mean, matrix, inverse = (value.double() for value in (mean, matrix, inverse))
    encoder = parts.W_enc.double() @ matrix.T
    moved = replace(
        parts,
        W_enc=encoder.to(parts.W_enc.dtype),
        W_dec=(parts.W_dec.double() @ inverse).to(parts.W_dec.dtype),
        b_dec=(parts.b_dec.double() @ inverse + mean).to(parts.b_dec.dtype),
    )
    # A centred SAE subtracts the mean with b_dec.
    return moved if parts.centred else _shifted(moved, -(encoder @ mean))


def unit_decoder(parts: SAEWeights) -> SAEWeights:
    """Return the same SAE with decoder rows of norm one; latents' values take the norms.

    Thresholds stay unchanged, for callers that compare them with values times norms. Latents with
    decoder rows of zeros are never active.
    """
    norms = torch.linalg.vector_norm(parts.W_dec.double(), dim=1)
    return replace(
        parts,
        W_enc=_folded(parts.W_enc, norms[:, None]),
        b_enc=_folded(parts.b_enc, norms),
        W_dec=_folded(parts.W_dec, 1 / norms.where(norms > 0, 1.0)[:, None]),
    )


def fitted(
    parts: SAEWeights,
    name: str,
    variants: Collection[str],
    *,
    centred: bool | None = None,
    transcodes: bool = False,
    skip: bool = False,
    normalise: Collection[str] = ("none",),
    by_norm: bool = False,
) -> SAEWeights:
    """Return an SAE that computes the same and that the format `name` can hold.

    If the format cannot select by norm, an SAE that does gets a decoder of norm one: the same
    active latents and reconstructions, with values multiplied by the norms.

    Args:
        parts: SAE to fit.
        name: name of the format, for error messages.
        variants: variants that the format has.
        centred: whether the format subtracts b_dec from x; None: it can express both.
        transcodes: whether input and reconstruction may differ in width.
        skip: whether the format has skip connections.
        normalise: supported normalisations of rows.
        by_norm: whether the format can select latents by values times decoder norms.

    Returns:
        Equivalent SAE.

    Raises:
        ValueError: if the format cannot express the SAE.
    """
    lacks = [
        (parts.normalise not in normalise, f"normalise={parts.normalise!r}"),
        (parts.W_skip is not None and not skip, "a skip connection"),
        (parts.d_out != parts.d and not transcodes, "a transcoder's second width"),
    ]
    for missing, what in lacks:
        if missing:
            raise _not_in(name, what)
    if parts.by_norm and not by_norm:
        parts = replace(unit_decoder(parts), by_norm=False)
    if centred is not None and parts.centred != centred:
        if parts.d_out != parts.d:
            raise _not_in(name, "a transcoder")
        shift = parts.W_enc.double() @ parts.b_dec.double()
        parts = replace(_shifted(parts, shift if centred else -shift), centred=centred)
    given = parts.variant
    while parts.variant not in variants:
        if parts.variant not in _SAME_ONCE_TRAINED:
            raise _not_in(name, f"variant={given!r}")
        threshold = parts.b_enc.new_zeros(()) if parts.threshold is None else parts.threshold
        parts = replace(parts, variant=_SAME_ONCE_TRAINED[parts.variant], threshold=threshold)
    if parts.threshold is not None and parts.variant == "jumprelu":
        parts = replace(parts, threshold=parts.threshold * torch.ones_like(parts.b_enc))
    return parts


def _not_in(name: str, what: str) -> ValueError:
    remedy = "" if name == "sae_lens" else "; sae_lens is the format that holds most SAEs"
    return ValueError(f"sae cannot be stored as {name}, which does not support {what}{remedy}")


def _shifted(parts: SAEWeights, shift: Tensor) -> SAEWeights:
    """Return the SAE with pre-activations raised by `shift` [m] float64, those of a gate, too."""
    changed: dict[str, Any] = {"b_enc": (parts.b_enc.double() + shift).to(parts.b_enc.dtype)}
    if parts.b_mag is not None and parts.r_mag is not None:
        magnitude = parts.b_mag.double() + shift * parts.r_mag.double().exp()
        changed["b_mag"] = magnitude.to(parts.b_mag.dtype)
    return replace(parts, **changed)


def _folded(values: Tensor, factor: Tensor | float) -> Tensor:
    """Multiply in float64 and round once."""
    return (values.double() * factor).to(values.dtype)


def _usable(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of computation: float32 for float16, which it represents exactly."""
    return torch.float32 if dtype == torch.float16 else dtype
