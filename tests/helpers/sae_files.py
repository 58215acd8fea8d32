"""An SAE of given weights, its results in plain float64, and its files in some layouts.

Files of other libraries are built by hand here and in test_format_*.py from their documented
layouts; the libraries themselves are compared in tests/peers.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from saefast import SAE

D, M, D_OUT, K = 10, 33, 14, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ENC, DEC = draw(M, D, seed=1) / 3, draw(M, D, seed=2)  # a row is a feature
B_ENC, B_DEC = draw(M, seed=3) / 2, draw(D, seed=4) / 2
THRESHOLD = draw(M, seed=5).abs() / 2
X = draw(40, D, seed=6) + 0.2


def values(
    x: Tensor, enc: Tensor = ENC, b_enc: Tensor = B_ENC, *, centre: Tensor | None = B_DEC
) -> Tensor:
    """Return pre-activations in float64."""
    x = x.double() if centre is None else x.double() - centre.double()
    return x @ enc.double().T + b_enc.double()


def top(pre: Tensor, k: int = K) -> Tensor:
    kept = pre.relu().topk(k)
    return torch.zeros_like(pre).scatter(1, kept.indices, kept.values)


def top_in_size(pre: Tensor, k: int = K) -> Tensor:
    kept = pre.abs().topk(k).indices
    return torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept))


def above(pre: Tensor, threshold: Tensor | float) -> Tensor:
    return torch.where(pre > threshold, pre, 0.0)


def layer_norm(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.double()
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    return (x - mean) / (std + 1e-5), mean, std


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    scale = expected.abs().max()
    assert scale > 0
    assert (actual.double() - expected).abs().max() <= 16 * torch.finfo(torch.float32).eps * scale


@torch.no_grad()
def assert_computes(
    sae: SAE, code: Tensor, dec: Tensor = DEC, b_dec: Tensor = B_DEC, extra: Tensor | None = None
) -> None:
    """Assert these codes of X, and their reconstruction."""
    assert 0 < (code != 0).float().mean() < 1
    assert_close(sae.encode(X).to_dense(sae.m), code)
    expected = code @ dec.double() + b_dec.double()
    assert_close(sae(X), expected if extra is None else expected + extra)


def write_config(folder: Path, name: str, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config))


def of_own_storage(tensors: dict[str, Any]) -> dict[str, Any]:
    return {n: v.contiguous() if isinstance(v, Tensor) else v for n, v in tensors.items()}


def safe(folder: Path, name: str, tensors: dict[str, Tensor], **config: Any) -> Path:
    """Write a folder with a safetensors file and cfg.json."""
    write_config(folder, "cfg.json", config)
    save_file(of_own_storage(tensors), folder / name)
    return folder


def torch_folder(folder: Path, name: str, contents: dict[str, Any], **config: Any) -> Path:
    """Write a folder with a torch file and config.json."""
    write_config(folder, "config.json", config)
    torch.save(of_own_storage(contents), folder / name)
    return folder


LENS = {"W_enc": ENC.T, "W_dec": DEC, "b_enc": B_ENC, "b_dec": B_DEC}
SIX = {"d_in": D, "d_sae": M, "metadata": {"sae_lens_version": "6.2.0"}}


def lens(folder: Path, more: dict[str, Tensor] | None = None, **config: Any) -> Path:
    return safe(folder, "sae_weights.safetensors", LENS | (more or {}), **SIX | config)


OPENAI = {
    "encoder.weight": ENC,
    "decoder.weight": DEC.T,
    "pre_bias": B_DEC,
    "latent_bias": B_ENC,
    "stats_last_nonzero": torch.zeros(M, dtype=torch.int64),
    "latents_activation_frequency": torch.linspace(0, 0.5, M),
    "latents_mean_square": torch.zeros(M),
}


HOLDS = {
    "sae_lens": ("topk", "abstopk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"),
    "sparsify": ("topk",),
    "dictionary_learning": ("topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"),
    "openai": ("relu",),
    "llamascopium": ("topk", "batchtopk", "matryoshka", "relu", "jumprelu"),
    "batch_topk": ("topk", "batchtopk", "relu", "jumprelu"),
    "gemma_scope": ("batchtopk", "matryoshka", "relu", "jumprelu"),
    "qwen_scope": ("topk",),
}


def some_sae(variant: str, seed: int = 0, **settings: Any) -> SAE:
    sae = SAE(D, M, variant=variant, k=K, seed=seed, **settings)
    with torch.no_grad():
        for i, value in enumerate(sae.state_dict().values()):
            drawn = draw(*value.shape, seed=100 + i) / 2
            value.copy_(drawn if value.ndim == 2 else drawn.abs())
    return sae
