"""Tiny language models with random weights, in which a letter is a token."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs saefast[lm]")

from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import saefast
from saefast.lm import LanguageModel, find_site

D, LAYERS = 32, 4

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "def add(a, b):\n    return a + b\n",
    "Nothing is so painful to the human mind as a great and sudden change.",
    "x",
    "for i in range(10):\n    print(i)  # ten numbers, one a line\n" * 3,
]


def tokenizer(*, bos: bool = False) -> Any:
    """Return a tokenizer by letters; with `bos`, texts start with <s> as for Llama."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<s>", "</s>", *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def llama(*, bos: bool = False, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Return a Llama of four layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=D,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    return LanguageModel(model, tokenizer(bos=bos), "tiny llama")


def gpt2(dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Return a GPT-2 of three layers, which keeps its dtype; Llama computes norms in float32."""
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=258, n_embd=24, n_layer=3, n_head=2, n_positions=128)
    config.initializer_range = 0.3
    model = GPT2LMHeadModel(config).to(dtype).eval().requires_grad_(False)
    return LanguageModel(model, tokenizer(), "tiny gpt2")


def encoder(dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Return a BERT of two layers, in which tokens attend to later ones."""
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=258,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    model = BertLMHeadModel(config).to(dtype).eval().requires_grad_(False)
    return LanguageModel(model, tokenizer(), "tiny encoder")


def saved(folder: Path) -> Path:
    """Save the Llama to a folder for `load_model`."""
    tiny = llama()
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


def write_in_place(model: LanguageModel) -> None:
    """Make each layer first write into the output of the previous one, as some models do."""

    def write(_layer: Any, inputs: Any) -> None:
        inputs[0].mul_(1.1)

    for layer in find_site(model.model, -1).layers:
        layer.register_forward_pre_hook(write)


def random_sae(d: int = D, dtype: torch.dtype = torch.float32, **settings: Any) -> saefast.SAE:
    """Return an SAE whose parts are all used."""
    sae = saefast.SAE(d, 48, seed=3, dtype=dtype, **{"k": 6, **settings})
    with torch.no_grad():
        generator = torch.Generator().manual_seed(4)
        for parameter in (sae.W_dec, sae.W_enc, sae.b_dec):
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return sae.requires_grad_(False)


def write_gguf(path: Path) -> None:
    """Write two layers of Llama, quantised to eight bits."""
    gguf = pytest.importorskip("gguf", reason="needs saefast[lm]")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(D)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D // 4)
    letters = sorted(tokenizer().get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    letters.append(("ab", len(letters)))
    writer.add_token_list([letter for letter, _ in letters])
    writer.add_token_types([3, 3] + [1] * (len(letters) - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    generator = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = 0.3 * generator.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(letters), D)
    add("output_norm.weight", D)
    for layer in range(2):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", D, D)
        for part, shape in (("gate", (64, D)), ("up", (64, D)), ("down", (D, 64))):
            add(f"blk.{layer}.ffn_{part}.weight", *shape)
        add(f"blk.{layer}.attn_norm.weight", D)
        add(f"blk.{layer}.ffn_norm.weight", D)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_texts(folder: Path, count: int = 40) -> None:
    """Write short texts into a new folder."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"Text number {number}. " * 9)


def harvest_of(folder: Path, *, tokens: int, held_out: int) -> dict[str, Any]:
    """Return settings to harvest rows of `folder`/model on the texts in `folder`/texts."""
    return {
        "model": str(folder / "model"),
        "site": "resid.1",
        "text": str(folder / "texts"),
        "tokens": tokens,
        "held_out": held_out,
        "context": 32,
    }
