"""A `saefast.SAE` as SAEBench's evaluations expect one.

    selected = [("mine", SaeBenchSae(saefast.load_sae(path), "pythia-70m-deduped", hook_layer=3))]
    run_evals("pythia-70m-deduped", selected, ...)

SAEBench itself is not imported.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saefast.sae import SAE


class _Metadata(dict[str, Any]):
    """What SAEBench reads of a config that follows SAELens 6: attributes, None where unknown."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)


@dataclass
class SaeBenchConfig:
    """What SAEBench reads of an SAE's config; `dataclasses.asdict` of it goes into its results."""

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
        """The same in SAELens's place for it."""
        return _Metadata(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class SaeBenchSae(nn.Module):
    """encode, decode, forward, W_enc [d, m], W_dec [m, d] with rows of norm one, biases, cfg.

    Decoder rows of another norm are scaled, and activations with them: reconstructions are the
    SAE's. Weights are a copy, and not to be trained.

    Args:
        sae: any SAE that reconstructs its input.
        model_name: the language model, by SAEBench's name for it.
        hook_layer: the layer whose output the SAE was trained on.
        hook_name: where exactly; None: the residual stream after the layer.
        **settings: other fields of `SaeBenchConfig`, such as context_size and training_tokens.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    norms: Tensor
    device: torch.device
    dtype: torch.dtype

    def __init__(
        self,
        sae: SAE,
        model_name: str,
        hook_layer: int,
        hook_name: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if sae.transcodes:
            raise ValueError("sae must reconstruct its input, got a transcoder")
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
            activation_fn_kwargs={"k": sae.k} if sae.variant == "topk" else {},
            **settings,
        )
        self._note_kind()

    def encode(self, x: Tensor) -> Tensor:
        """The activations of x [..., d], dense [..., m]."""
        values, indices = self.sae.encode(self._rows(x))
        dense = values.new_zeros(len(values), self.sae.m)
        dense.scatter_add_(1, indices, values * self.norms[indices])
        return dense.view(*x.shape[:-1], self.sae.m)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """The reconstruction [..., d] of dense activations."""
        return feature_acts @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x [..., d]."""
        return self.sae(self._rows(x)).view(x.shape)  # type: ignore[no-any-return]

    def to(self, *args: Any, **kwargs: Any) -> "SaeBenchSae":
        """As of any module; `device`, `dtype` and `cfg` follow."""
        super().to(*args, **kwargs)
        self._note_kind()
        return self

    @torch.no_grad()
    def check_decoder_norms(self) -> bool:
        """Whether decoder rows have norm one, as far as the dtype can tell."""
        tolerance = 1e-5 if self.dtype in (torch.float32, torch.float64) else 1e-2
        norms = self.W_dec.float().norm(dim=1)
        zero = norms == 0
        return bool(((norms - 1).abs() < tolerance).logical_or(zero).all())

    def _rows(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.sae.d).to(self.dtype)

    def _note_kind(self) -> None:
        self.device, self.dtype = self.W_dec.device, self.W_dec.dtype
        self.cfg.device, self.cfg.dtype = str(self.device), str(self.dtype).removeprefix("torch.")
