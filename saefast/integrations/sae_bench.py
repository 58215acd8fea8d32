"""Adapter of `saefast.SAE` to the interface that SAEBench's evaluations expect.

    selected = [("mine", SaeBenchSae(saefast.load_sae(path), "pythia-70m-deduped", hook_layer=3))]
    run_evals("pythia-70m-deduped", selected, ...)

SAEBench itself is not imported.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saefast.integrations.autoencoder import check_autoencoder
from saefast.sae import K_PER_ROW, SAE


class _Metadata(dict[str, Any]):
    """Metadata of a config as in SAELens 6: entries as attributes, None where unknown."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)


@dataclass
class SaeBenchConfig:
    """Config of an SAE as SAEBench reads it; its results hold `dataclasses.asdict` of it.

    Fields are those of SAEBench's `CustomSAEConfig`.
    """

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    context_size: int | None = None
    hook_head_index: int | None = None
    architecture: str = ""
    apply_b_dec_to_input: bool = True
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    prepend_bos: bool = True
    normalize_activations: str = "none"
    dtype: str = ""
    device: str = ""
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = True
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -1
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    @property
    def metadata(self) -> _Metadata:
        """Same settings, where SAELens 6 keeps them."""
        return _Metadata(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict of plain values."""
        return asdict(self)


class SaeBenchSae(nn.Module):
    """SAE with encode, decode, forward, W_enc [d, m], W_dec [m, d], b_enc [m], b_dec [d] and cfg.

    Rows of W_dec have norm one: other norms are moved into the values of latents, so that
    reconstructions are those of the SAE. Weights are a copy and must not be trained.

    Args:
        sae: any SAE that reconstructs its input and does not normalise rows.
        model_name: SAEBench's name of the language model.
        hook_layer: number of the layer whose output the SAE was trained on.
        hook_name: name of the hook; None: the residual stream after the layer.
        **settings: other fields of `SaeBenchConfig`, such as context_size and training_tokens.
    """

    W_enc: nn.Parameter
    """[d, m] encoder"""
    b_enc: nn.Parameter
    """[m] bias of the encoder"""
    W_dec: nn.Parameter
    """[m, d] decoder, with rows of norm one"""
    b_dec: nn.Parameter
    """[d] bias of the decoder"""
    norms: Tensor
    """[m] norms of the SAE's decoder rows"""
    device: torch.device
    """device of the weights"""
    dtype: torch.dtype
    """dtype of the weights"""

    def __init__(
        self,
        sae: SAE,
        model_name: str,
        hook_layer: int,
        hook_name: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        check_autoencoder(sae)
        norms = sae.W_dec.detach().norm(dim=1)
        self.register_buffer("norms", torch.where(norms > 0, norms, 1.0))
        self.sae = sae
        frozen = {
            "W_enc": (sae.W_enc.detach() * self.norms[:, None]).T.contiguous(),
            "b_enc": sae.b_enc.detach() * self.norms,
            "W_dec": sae.W_dec.detach() / self.norms[:, None],
            "b_dec": sae.b_dec.detach().clone(),
        }
        for name, value in frozen.items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))
        self.cfg = SaeBenchConfig(
            model_name,
            sae.d,
            sae.m,
            hook_layer,
            hook_name or f"blocks.{hook_layer}.hook_resid_post",
            architecture=sae.variant,
            activation_fn_str=sae.variant,
            activation_fn_kwargs={"k": sae.k} if sae.variant in K_PER_ROW else {},
            **settings,
        )
        self._note_kind()

    def encode(self, x: Tensor) -> Tensor:
        """Return the values of all latents, dense [..., m].

        Args:
            x: [..., d] rows.
        """
        values, indices = self.sae.encode(self._rows(x))
        dense = values.new_zeros(len(values), self.sae.m)
        dense.scatter_add_(1, indices, values * self.norms[indices])
        return dense.view(*x.shape[:-1], self.sae.m)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Return the reconstruction [..., d] of dense values.

        Args:
            feature_acts: [..., m] values of all latents.
        """
        return feature_acts @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction of rows.

        Args:
            x: [..., d] rows.
        """
        return self.sae(self._rows(x)).view(x.shape)  # type: ignore[no-any-return]

    def to(self, *args: Any, **kwargs: Any) -> "SaeBenchSae":
        """Move the module; `device`, `dtype` and `cfg` follow.

        Args:
            *args: arguments of `torch.nn.Module.to`.
            **kwargs: its keyword arguments.

        Returns:
            This module.
        """
        super().to(*args, **kwargs)
        self._note_kind()
        return self

    @torch.no_grad()
    def check_decoder_norms(self) -> bool:
        """Return whether decoder rows have norm one, up to the precision of the dtype."""
        tolerance = 1e-5 if self.dtype in (torch.float32, torch.float64) else 1e-2
        norms = self.W_dec.float().norm(dim=1)
        zero = norms == 0
        return bool(((norms - 1).abs() < tolerance).logical_or(zero).all())

    def _rows(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.sae.d).to(self.dtype)

    def _note_kind(self) -> None:
        self.device, self.dtype = self.W_dec.device, self.W_dec.dtype
        self.cfg.device, self.cfg.dtype = str(self.device), str(self.dtype).removeprefix("torch.")
