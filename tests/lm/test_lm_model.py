"""Models by name, folder and GGUF file are loaded once, without output."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_lm import TEXTS, D, llama, random_sae, saved, tokenizer, write_gguf
from safetensors.torch import load_file, save_file

from saefast.lm import (
    LanguageModel,
    LMActivations,
    evaluate_patched,
    first_order_effects,
    harvest,
    load_model,
    marginal_effects,
    weights_cache,
)
from saefast.lm.unembedding import unembed
from saefast.ops.cpu import native

pytestmark = pytest.mark.usefixtures("light")


class TestLoading:
    @pytest.mark.parametrize("progress", [True, False])
    def test_loading_is_silent_and_keeps_settings_of_transformers(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
        progress: bool,
    ) -> None:
        pytest.importorskip("accelerate", reason="needs saefast[lm]")
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
        from transformers import modeling_gguf_pytorch_utils as reader
        from transformers.utils import logging

        bar = reader.tqdm
        monkeypatch.setenv("SAEFAST_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("saefast.progress.DELAY", 0.0)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        file, folder = tmp_path / "tiny.gguf", saved(tmp_path / "folder")
        write_gguf(file)
        capsys.readouterr()
        disable_progress_bars("mine")
        try:
            for place in (file, folder):
                load_model(place, progress=progress)
                printed = capsys.readouterr().err
                words = "dequantise, once" if place == file else "Loading weights"
                assert (words in printed) == progress
                assert "de-quantizing" not in printed
                assert "Writing" not in printed
                assert progress or not printed
                assert logging.is_progress_bar_enabled()
                assert not are_progress_bars_disabled()
                assert are_progress_bars_disabled("mine")
            file.write_bytes(b"GGUF")
            with pytest.raises(Exception, match=r".+"):
                load_model(file, progress=progress)
            assert reader.tqdm is bar
            assert logging.is_progress_bar_enabled()
            assert not are_progress_bars_disabled()
        finally:
            sys.modules["huggingface_hub.utils.tqdm"].progress_bar_states.clear()

    def test_weights_of_a_gguf_file_are_dequantised_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SAEFAST_CACHE", str(tmp_path / "cache"))
        from transformers import LlamaForCausalLM

        file = tmp_path / "tiny.gguf"
        write_gguf(file)
        plain = LlamaForCausalLM.from_pretrained(
            tmp_path, gguf_file=file.name, dtype=torch.float32
        ).eval()
        ids = torch.arange(20)[None]
        with torch.no_grad():
            logits = plain(input_ids=ids).logits
        opened = []
        fill = weights_cache._fill

        def counted(*arguments: Any) -> None:
            opened.append(arguments)
            fill(*arguments)

        monkeypatch.setattr(weights_cache, "_fill", counted)
        for name in (file, tmp_path, str(file)):
            model = load_model(name)
            assert torch.equal(model.model(input_ids=ids).logits, logits)
            spelt = tokenizer()(" c")["input_ids"]
            assert model.tokenizer("ab c")["input_ids"] == [258, *spelt]
            assert not any(parameter.requires_grad for parameter in model.model.parameters())
        assert len(opened) == 1
        (folder,) = (tmp_path / "cache").iterdir()
        # A truncated file, a missing file, and an unfinished copy.
        weights = folder / "model.safetensors"
        for damage in (
            lambda: weights.write_bytes(weights.read_bytes()[:-9]),
            weights.unlink,
            (folder / "complete.json").unlink,
        ):
            before = len(opened)
            damage()
            assert torch.equal(load_model(file).model(input_ids=ids).logits, logits)
            assert len(opened) == before + 1
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
        load_model(file)
        assert len(list((tmp_path / "cache").iterdir())) == 2

    def test_a_folder_is_loaded_in_half_precision(self, tmp_path: Path) -> None:
        tiny = llama()
        tiny.model.save_pretrained(tmp_path)
        tiny.tokenizer.save_pretrained(tmp_path)
        model = load_model(tmp_path, dtype=torch.bfloat16)
        assert next(model.model.parameters()).dtype == torch.bfloat16
        assert model.description["tokenizer"] == tiny.description["tokenizer"]
        again = load_model(tmp_path)
        assert again.description["weights"] == tiny.description["weights"]

    def test_a_model_without_its_head_is_harvested_and_has_no_logits(
        self, tmp_path: Path, capfd: Any
    ) -> None:
        """A head whose weights the files lack is random, and differs in every process."""
        tiny = llama()
        folder = saved(tmp_path / "whole")
        weights = load_file(folder / "model.safetensors")
        without = {key: value for key, value in weights.items() if not key.startswith("lm_head")}
        save_file(without, folder / "model.safetensors", {"format": "pt"})
        capfd.readouterr()
        first, second = load_model(folder), load_model(folder)
        assert capfd.readouterr() == ("", "")
        assert first.absent == ("lm_head.weight",)
        assert not torch.equal(first.model.lm_head.weight, second.model.lm_head.weight)
        assert first.description == second.description
        assert first.description["weights"] != tiny.description["weights"]
        few = {"corpus": TEXTS, "tokens": 64, "context": 16, "progress": False}
        assert harvest(first, 0, out=tmp_path / "rows", **few) == [tmp_path / "rows"]
        for needing in (
            lambda: evaluate_patched(first, 0, random_sae(), **few),
            lambda: unembed(first, torch.zeros(1, D)),
            lambda: first.model(input_ids=torch.zeros(1, 3, dtype=torch.int64)),
        ):
            with pytest.raises(ValueError, match=r"lack its .* head \(lm_head.weight\)"):
                needing()

    def test_a_model_without_some_of_its_layers_raises(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "whole")
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"lack 1 parameters .* model.layers.1.mlp.up_proj"):
            load_model(folder)

    def test_objects_that_are_not_models_raise(self, tmp_path: Path) -> None:
        tiny = llama()
        calls: list[Any] = [
            lambda model: harvest(model, 0, out=tmp_path / "s"),
            lambda model: LMActivations(model, 0),
            lambda model: evaluate_patched(model, 0, random_sae()),
            lambda model: marginal_effects(model, 0, random_sae(), torch.tensor([0])),
            lambda model: first_order_effects(model, 0, random_sae()),
        ]
        for call in calls:
            for wrong in ("smollm2", tiny.model):
                with pytest.raises(TypeError, match=r"saefast.lm.LanguageModel, got .*load_model"):
                    call(wrong)
        with pytest.raises(TypeError, match="of transformers, got str; use load_model for a name"):
            LanguageModel("smollm2", tiny.tokenizer)
        with pytest.raises(ValueError, match=r"call model.eval\(\)"):
            LanguageModel(tiny.model.train(), tiny.tokenizer)

    @pytest.mark.parametrize(
        ("levels", "expected"),
        [(["avx2", "avx512_bf16"], torch.bfloat16), (["avx2", "avx512"], torch.float32)],
    )
    def test_fast_is_the_dtype_that_the_processor_multiplies(
        self, levels: list[str], expected: torch.dtype, tmp_path: Path, monkeypatch: Any
    ) -> None:
        folder = saved(tmp_path / "folder")
        monkeypatch.setattr(native, "usable_levels", lambda: levels)
        for dtype, its in (("fast", expected), ("float16", torch.float16)):
            model = load_model(folder, dtype=dtype).model
            assert next(model.parameters()).dtype == its
        with pytest.raises(ValueError, match=r"dtype must be one of.*fast"):
            load_model(folder, dtype="quick")

    def test_errors_name_models_that_cannot_be_loaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(OSError, match=r"/none is neither the folder of a model nor a"):
            load_model(tmp_path / "none")
        with pytest.raises(ValueError, match=r"config.json or exactly one .gguf file"):
            load_model(tmp_path)
        with pytest.raises(TypeError, match="name must be a str or a path, got int"):
            load_model(3)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ImportError, match=r"transformers;.* pip install 'saefast\[lm\]'"):
            load_model("none")
