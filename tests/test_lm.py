"""Language models: tiny ones with random weights, and a tokenizer made on the spot."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny_lm import TEXTS, D, gpt2, llama, saved, tokenizer
from torch import Tensor

import saefast
from saefast.activations import StoreActivations, StoreWriter, verify_store
from saefast.lm import (
    Corpus,
    Document,
    LanguageModel,
    LMActivations,
    as_corpus,
    builtin_corpus,
    contexts,
    evaluate_patched,
    find_site,
    first_order_effects,
    harvest,
    hugging_face,
    json_lines,
    load_model,
    marginal_effects,
    text_files,
    weights_cache,
)
from saefast.lm.capture import capture
from saefast.lm.packing import Packing
from saefast.ops.cpu import native


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch, torch_threads: None) -> None:
    """One thread is enough for tiny models, and what a kill leaves does not hang on fsync."""
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def write_in_place(model: LanguageModel) -> None:
    """Every layer begins by writing into what the one before returned, as some models do."""

    def write(_layer: Any, inputs: Any) -> None:
        inputs[0].mul_(1.1)

    for layer in find_site(model.model, -1).layers:
        layer.register_forward_pre_hook(write)


def outputs(model: LanguageModel, names: list[str], ids: Tensor) -> dict[str, Tensor]:
    """What modules return in a forward pass that nobody disturbs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            seen[name] = (output if isinstance(output, Tensor) else output[0]).clone()

        return hook

    hooks = [model.model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        model.model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


LLAMA_NAMES = {
    "resid.1": "model.layers.1",
    "mlp.2": "model.layers.2.mlp",
    "attn.0": "model.layers.0.self_attn",
    "model.layers.2.self_attn.o_proj": "model.layers.2.self_attn.o_proj",
    "model.embed_tokens": "model.embed_tokens",
    "lm_head": "lm_head",
}
GPT2_NAMES = {
    "resid.1": "transformer.h.1",
    "mlp.2": "transformer.h.2.mlp",
    "attn.0": "transformer.h.0.attn",
    "transformer.ln_f": "transformer.ln_f",
}


class TestHarvest:
    @pytest.mark.parametrize(("make", "names"), [(llama, LLAMA_NAMES), (gpt2, GPT2_NAMES)])
    @pytest.mark.parametrize("bos", [False, True])
    def test_rows_are_those_of_a_plain_forward_pass(
        self, tmp_path: Path, make: Any, names: dict[str, str], bos: bool
    ) -> None:
        model = make()
        write_in_place(model)
        paths = harvest(
            *(model, list(names)),
            out=tmp_path,
            corpus=TEXTS,
            context=16,
            batch_size=3,
            dtype=torch.float32,
            drop_bos=not bos,
            prepend_bos=bos,
            progress=False,
        )
        assert paths == [tmp_path / name for name in names]
        # By hand: all documents, an empty line behind each, cut into contexts.
        letters = list(model.tokenizer("".join(text + "\n\n" for text in TEXTS))["input_ids"])
        room = 15 if bos else 16
        contexts = [letters[i : i + room] for i in range(0, len(letters), room)]
        contexts = [[0] * bos + one for one in contexts]
        assert len(contexts[-1]) < 16  # a filled up one is among them
        for path, name in zip(paths, names.values(), strict=True):
            store = StoreActivations(path)
            rows = torch.cat(
                [
                    outputs(model, [name], torch.tensor([one]))[name][0, not bos :]
                    for one in contexts
                ]
            )
            tokens = [token for one in contexts for token in one[not bos :]]
            positions = [i for one in contexts for i in range(not bos, len(one))]
            assert store.rows == len(rows)
            assert store.read("tokens", 0, store.rows).tolist() == tokens
            assert store.read("positions", 0, store.rows).tolist() == positions
            torch.testing.assert_close(
                store.read("activations", 0, store.rows), rows, rtol=1e-4, atol=1e-5
            )
            verify_store(path)

    def test_nothing_behind_the_last_module_is_computed(self) -> None:
        model = llama()
        ran = []
        for name, module in model.model.named_modules():
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
        sites = [find_site(model.model, where) for where in ("mlp.1", 0)]
        for _ in range(2):  # and the model is as it was
            ran.clear()
            capture(model.model, sites, torch.zeros(1, 4, dtype=torch.int64))
            assert "model.layers.1.mlp.down_proj" in ran
            assert not {"model.layers.1", "model.norm", "lm_head", ""} & set(ran)
            assert not any(name.startswith("model.layers.2") for name in ran)
        model.model(input_ids=torch.zeros(1, 4, dtype=torch.int64))
        assert "" in ran
        assert len(model.model.model.layers[1].mlp._forward_hooks) == 1

    @pytest.mark.parametrize("drop_bos", [True, False])
    def test_a_document_for_itself_is_filled_up_and_the_filling_left_out(
        self, tmp_path: Path, drop_bos: bool
    ) -> None:
        model = llama(bos=True)
        (path,) = harvest(
            *(model, [2]),
            out=tmp_path,
            corpus=TEXTS,
            context=20,
            batch_size=4,
            packed=False,
            drop_bos=drop_bos,
            progress=False,
        )
        store = StoreActivations(path)
        expected = []
        for text in TEXTS:
            letters = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            for first in range(0, len(letters), 19):
                expected += [0] * (not drop_bos) + letters[first : first + 19]
        assert store.read("tokens", 0, store.rows).tolist() == expected
        assert store.read("positions", 0, store.rows).max() == 19
        assert store.index.dtype == torch.bfloat16

    def test_bos_in_the_middle_is_left_out(self) -> None:
        batch = next(Packing(8, 2).batches(as_corpus(["ab<s>cd"]), tokenizer()))
        assert batch.ids[0].tolist()[2] == 0
        assert batch.kept[0].tolist() == [False, True, False, True, True, True, True]
        assert next(
            Packing(8, 2, drop_bos=False).batches(as_corpus(["ab<s>"]), tokenizer())
        ).kept.all()

    def test_a_killed_harvest_goes_on_to_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings: dict[str, Any] = {"tokens": 301, "corpus": TEXTS * 4, "context": 16}
        settings |= {"batch_size": 3, "rows_per_shard": 50, "progress": False}
        sites = [1, "mlp.3"]
        whole = harvest(llama(), sites, out=tmp_path / "whole", **settings)
        out = tmp_path / "stopped"
        # Killed: the process ends without a word in the middle of the work, with two shards of the
        # one store and one of the other.
        script = textwrap.dedent(f"""
            import os, signal, sys
            sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
            import tiny_lm, torch
            from saefast.activations import StoreWriter
            from saefast.lm import harvest
            torch.set_num_threads(1)
            os.fsync = lambda descriptor: None
            write, written = StoreWriter._write_shard, []
            def write_or_die(self):
                write(self)
                written.append(self)
                if len(written) == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
            StoreWriter._write_shard = write_or_die
            harvest(tiny_lm.llama(), {sites!r}, out={str(out)!r}, **{settings!r})
        """)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert sorted(len(list(store.glob("*.safetensors"))) for store in out.iterdir()) == [1, 2]
        # Interrupted, in the middle of a forward pass.
        passes: list[int] = []

        def interrupted(*arguments: Any) -> Any:
            passes.append(len(passes))
            if len(passes) == 5:
                raise KeyboardInterrupt
            return capture(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr("saefast.lm.harvesting.capture", interrupted)
            with pytest.raises(KeyboardInterrupt):
                harvest(llama(), sites, out=out, **settings, resume=True)
        resumed = harvest(llama(), sites, out=out, **settings, resume=True)
        for mine, other in zip(resumed, whole, strict=True):
            files = sorted(path.name for path in other.iterdir())
            assert sorted(path.name for path in mine.iterdir()) == files
            assert len(files) == 8
            for name in files:
                assert (mine / name).read_bytes() == (other / name).read_bytes(), name
        # What is finished is not computed again.
        with monkeypatch.context() as patch:
            passes[:] = [0, 1, 2]
            patch.setattr("saefast.lm.harvesting.capture", interrupted)
            harvest(llama(), sites, out=out, **settings, resume=True)
        with pytest.raises(FileExistsError, match="resume=True"):
            harvest(llama(), sites, out=out, **settings)

    def test_a_harvest_goes_on_only_as_it_was_begun(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"out": tmp_path / "store", "context": 16, "batch_size": 2}
        settings |= {"progress": False, "rows_per_shard": 20}
        model = llama()
        harvest(model, 1, tokens=60, corpus=TEXTS, **settings)
        again = {**settings, "resume": True, "tokens": 100}
        with pytest.raises(ValueError, match="context was 16, is 8"):
            harvest(model, 1, corpus=TEXTS, **{**again, "context": 8})
        with pytest.raises(ValueError, match=r"site was 'resid.1', is 'resid.2'"):
            harvest(model, 2, corpus=TEXTS, **again)
        with pytest.raises(ValueError, match="of other text, from row 30"):
            harvest(model, 1, corpus=[TEXTS[0][:40], *TEXTS], **again)
        other = llama()
        other.model.model.norm.weight.data[3] += 1
        with pytest.raises(ValueError, match="weights was"):
            harvest(other, 1, corpus=TEXTS, **again)
        harvest(model, 1, corpus=TEXTS, **{**again, "batch_size": 3})
        assert StoreActivations(tmp_path / "store").rows == 100

    def test_too_little_text_is_told_and_what_there_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"holds 60 tokens.*, and 1000 were") as error:
            harvest(llama(), 0, out=tmp_path / "s", corpus=TEXTS[:1], tokens=1000, context=12)
        assert "tokens=60" in str(error.value)
        assert StoreActivations(tmp_path / "s").rows == 60

    def test_the_store_says_where_it_comes_from(self, tmp_path: Path) -> None:
        model = llama()
        harvest(model, -1, out=tmp_path / "s", corpus=TEXTS, context=16, progress=False)
        metadata = StoreActivations(tmp_path / "s").index.metadata
        assert metadata["site"] == "resid.3"
        assert metadata["model"] == "tiny llama"
        assert metadata["text"] == {"corpus": "given in memory"}
        assert metadata["context"] == 16
        assert metadata["model_dtype"] == "float32"
        assert len(metadata["tokenizer"]) == len(metadata["weights"]) == 32


def write_gguf(path: Path) -> None:
    """Two layers of Llama, quantised to eight bits."""
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


class TestLoading:
    @pytest.mark.parametrize("progress", [True, False])
    def test_silence_is_kept_and_settings_of_transformers_stay(
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
        file, folder = tmp_path / "tiny.gguf", saved(tmp_path / "folder")
        write_gguf(file)
        capsys.readouterr()
        disable_progress_bars("mine")
        try:
            for place in (file, folder):
                load_model(place, progress=progress)
                told = capsys.readouterr().err
                words = "dequantise, once" if place == file else "Loading weights"
                assert (words in told) == progress
                assert "de-quantizing" not in told
                assert "Writing" not in told
                assert progress or not told
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
        # A file cut short, one that is missing, and a copy that was never finished.
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

    def test_a_folder_and_half_precision(self, tmp_path: Path) -> None:
        tiny = llama()
        tiny.model.save_pretrained(tmp_path)
        tiny.tokenizer.save_pretrained(tmp_path)
        model = load_model(tmp_path, dtype=torch.bfloat16)
        assert next(model.model.parameters()).dtype == torch.bfloat16
        assert model.description["tokenizer"] == tiny.description["tokenizer"]
        again = load_model(tmp_path)
        assert again.description["weights"] == tiny.description["weights"]

    def test_a_model_that_is_none_is_told(self, tmp_path: Path) -> None:
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
        with pytest.raises(TypeError, match="of transformers, got str; load_model takes names"):
            LanguageModel("smollm2", tiny.tokenizer)
        with pytest.raises(ValueError, match=r"use model.eval\(\)"):
            LanguageModel(tiny.model.train(), tiny.tokenizer)

    @pytest.mark.parametrize(
        ("levels", "expected"),
        [(["avx2", "avx512_bf16"], torch.bfloat16), (["avx2", "avx512"], torch.float32)],
    )
    def test_fast_is_what_the_processor_multiplies(
        self, levels: list[str], expected: torch.dtype, tmp_path: Path, monkeypatch: Any
    ) -> None:
        folder = saved(tmp_path / "folder")
        monkeypatch.setattr(native, "usable_levels", lambda: levels)
        for dtype, its in (("fast", expected), ("float16", torch.float16)):
            model = load_model(folder, dtype=dtype).model
            assert next(model.parameters()).dtype == its
        with pytest.raises(ValueError, match=r"dtype must be one of.*fast"):
            load_model(folder, dtype="quick")

    def test_what_cannot_be_loaded_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(OSError, match=r"name must be 'smollm2', a folder.*got '.*/none'"):
            load_model(tmp_path / "none")
        with pytest.raises(ValueError, match=r"config.json or one .gguf file"):
            load_model(tmp_path)
        with pytest.raises(TypeError, match="name must be a str or a path, got int"):
            load_model(3)  # type: ignore[arg-type]
        monkeypatch.setattr("saefast.lm.model.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"pip install 'saefast\[lm\]'"):
            load_model("smollm2")
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ImportError, match=r"transformers: pip install 'saefast\[lm\]'"):
            load_model("smollm2")


class TestStreaming:
    SETTINGS: ClassVar[dict[str, Any]] = {"corpus": TEXTS * 3, "context": 16, "batch_size": 3}

    def test_it_has_the_rows_of_the_store(self, tmp_path: Path) -> None:
        model = llama()
        (path, other) = harvest(
            model, ["mlp.1", 2], out=tmp_path, dtype=torch.float32, progress=False, **self.SETTINGS
        )
        store, targets = StoreActivations(path), StoreActivations(other)
        for window_rows, tokens in ((100, 333), (45, None)):
            stream = LMActivations(
                *(model, "mlp.1"),
                target=2,
                window_rows=window_rows,
                tokens=tokens,
                progress=False,
                **self.SETTINGS,
            )
            assert (stream.d, stream.rows) == (D, tokens or store.rows)
            seen = []
            batches = stream.batches(50, seed=3)
            for _ in range(-(-stream.rows // 50)):
                batch = next(batches)
                for row, x, target in zip(batch.rows, batch.x, batch.target, strict=True):
                    # As harvest runs them, contexts in the same batches: bit for bit.
                    assert torch.equal(x, store.read("activations", row, row + 1)[0])
                    assert torch.equal(target, targets.read("activations", row, row + 1)[0])
                seen += batch.rows.tolist()
            assert sorted(seen[: stream.rows]) == list(range(stream.rows))
            assert seen[:50] != sorted(seen[:50])

    def test_it_goes_on_anywhere_and_computes_only_what_is_new(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passes = []

        def counted(*arguments: Any) -> Any:
            passes.append(arguments)
            return capture(*arguments)

        stream = LMActivations(llama(), 1, window_rows=90, progress=False, **self.SETTINGS)
        whole = list(itertools.islice(stream.batches(32, seed=5), 70))
        assert 2 * stream.rows < len(whole) * 32  # epochs, too
        for start in (1, 7, 60):
            monkeypatch.setattr("saefast.lm.streaming.capture", counted)
            passes.clear()
            batch = next(stream.batches(32, seed=5, start=start))
            assert len(passes) <= 4  # a window or two, of two passes each
            assert torch.equal(batch.x, whole[start].x)
            assert batch.rows.tolist() == whole[start].rows.tolist()
        other = next(stream.batches(32, seed=6))
        assert not torch.equal(other.x, whole[0].x)

    def test_a_training_takes_it_and_goes_on(self, tmp_path: Path) -> None:
        def stream(seed: int = 0) -> LMActivations:
            model = llama()
            model.model.model.norm.weight.data += seed
            return LMActivations(model, 1, window_rows=90, progress=False, **self.SETTINGS)

        config = saefast.TrainConfig(latents=64, k=4, batch_size=128, tokens=9600, lr=1e-3)
        settings: dict[str, Any] = {"progress": False, "checkpoint_minutes": 0.0}
        (whole,) = saefast.train_saes(stream(), config, out=tmp_path / "whole", **settings)

        # A training looks 8192 rows ahead, 64 batches, before its first step.
        class Stopped(LMActivations):
            def batches(self, *arguments: Any, **named: Any) -> Any:
                for number, batch in enumerate(super().batches(*arguments, **named)):
                    if number == 71:
                        raise OSError("the machine is taken away")
                    yield batch

        broken = Stopped(llama(), 1, window_rows=90, progress=False, **self.SETTINGS)
        with pytest.raises(OSError, match="taken away"):
            saefast.train_saes(broken, config, out=tmp_path / "stopped", **settings)
        with pytest.raises(ValueError, match=r"data.fingerprint was"):
            saefast.train_saes(stream(1), config, out=tmp_path / "stopped", resume=True, **settings)
        (resumed,) = saefast.train_saes(
            stream(), config, out=tmp_path / "stopped", resume=True, **settings
        )
        assert torch.equal(resumed.W_dec, whole.W_dec)
        assert torch.equal(resumed.W_enc, whole.W_enc)

    def test_documents_for_themselves_and_places(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {**self.SETTINGS, "packed": False, "progress": False}
        model = llama(bos=True)
        stream = LMActivations(model, 0, **settings)
        harvest(model, 0, out=tmp_path / "s", dtype=torch.float32, **settings)
        store = StoreActivations(tmp_path / "s")
        batch = next(stream.batches(stream.rows, seed=0))
        x = store.read("activations", 0, store.rows)
        assert torch.equal(batch.x, x[batch.rows])
        # The first document has 64 letters: four contexts of 15, and the last 4 of it.
        assert stream.locate(59) == "resid.0 of tiny llama, context 3, token 15"
        assert stream.locate(60) == "resid.0 of tiny llama, context 4, token 1"

    def test_too_little_text_is_told(self) -> None:
        with pytest.raises(ValueError, match=r"holds 60 tokens.*, and 900 were"):
            LMActivations(llama(), 0, corpus=TEXTS[:1], context=12, tokens=900, progress=False)
        with pytest.raises(ValueError, match="holds 0 tokens"):
            LMActivations(llama(), 0, corpus=[], progress=False)


SITES = [0, "mlp.2", "attn.1", 3, "model.layers.1.self_attn.o_proj", "model.embed_tokens"]


def random_sae(d: int = D, dtype: torch.dtype = torch.float32, **settings: Any) -> saefast.SAE:
    """An SAE whose parts are all used."""
    sae = saefast.SAE(d, 48, seed=3, dtype=dtype, **{"k": 6, **settings})
    with torch.no_grad():
        generator = torch.Generator().manual_seed(4)
        for parameter in (sae.W_dec, sae.W_enc, sae.b_dec):
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return sae.requires_grad_(False)


def pages(model: LanguageModel, context: int = 12) -> list[Tensor]:
    """All texts cut into contexts: [n, context] whole ones, and the last, shorter one."""
    letters = model.tokenizer("".join(text + "\n\n" for text in TEXTS))["input_ids"]
    whole = len(letters) // context * context
    return [torch.tensor(letters[:whole]).view(-1, context), torch.tensor([letters[whole:]])]


def plainly(model: LanguageModel, site: int | str, change: Any) -> tuple[float, float]:
    """Mean cross entropy and divergence, from the definition.

    `change` gets the activations [n, d] behind first positions and returns others.
    """
    module = find_site(model.model, site).module
    found = []

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        behind = x[:, 1:]
        x = torch.cat([x[:, :1], change(behind.flatten(0, 1)).view_as(behind)], dim=1)
        return x if isinstance(output, Tensor) else (x, *output[1:])

    for ids in pages(model):
        clean = model.model(input_ids=ids).logits[:, 1:-1].log_softmax(-1)
        handle = module.register_forward_hook(hook)
        logits = model.model(input_ids=ids).logits[:, 1:-1].log_softmax(-1)
        handle.remove()
        ce = torch.nn.functional.nll_loss(
            logits.flatten(0, 1), ids[:, 2:].flatten(), reduction="none"
        )
        kl = torch.nn.functional.kl_div(logits, clean, log_target=True, reduction="none").sum(-1)
        found.append((ce, kl.flatten()))
    ce, kl = (torch.cat(values).double().mean() for values in zip(*found, strict=True))
    return float(ce), float(kl)


def activations(model: LanguageModel, site: int | str) -> Tensor:
    """Those of all texts behind first positions, [n, d]."""
    chosen = [find_site(model.model, site)]
    return torch.cat(
        [capture(model.model, chosen, ids)[0][:, 1:].flatten(0, 1) for ids in pages(model)]
    )


class TestPatching:
    SETTINGS: ClassVar[dict[str, Any]] = {
        "corpus": TEXTS,
        "context": 12,
        "batch_size": 3,
        "progress": False,
    }

    @pytest.mark.parametrize("site", SITES)
    def test_every_variant_is_what_its_definition_says(self, site: int | str) -> None:
        model = llama()
        write_in_place(model)
        sae = random_sae()
        mask = torch.rand(48, generator=torch.Generator().manual_seed(0)) < 0.4
        nothing = torch.zeros(48, dtype=torch.bool)
        found = evaluate_patched(model, site, sae, {"some": mask, "none": nothing}, **self.SETTINGS)
        rows = activations(model, site)

        def masked(keep: Tensor) -> Any:
            def change(x: Tensor) -> Tensor:
                dense = sae.encode(x).to_dense(48) * keep
                return dense @ sae.W_dec + sae.b_dec

            return change

        changes = {
            "clean": lambda x: x,
            "zero": torch.zeros_like,
            "mean": lambda x: rows.mean(0).expand_as(x),
            "full": masked(~nothing),
        }
        for name, change in changes.items():
            effect = getattr(found, name)
            ce, kl = plainly(model, site, change)
            assert effect.ce.value == pytest.approx(ce, rel=1e-5)
            assert effect.kl.value == pytest.approx(kl, rel=1e-4, abs=1e-7)
        for masks, kept in (
            (found.keep, {"some": mask, "none": nothing}),
            (found.drop, {"some": ~mask, "none": ~nothing}),
        ):
            assert list(masks) == ["some", "none"]
            for name, keep in kept.items():
                ce, kl = plainly(model, site, masked(keep))
                assert masks[name].ce.value == pytest.approx(ce, rel=1e-5)
                assert masks[name].kl.value == pytest.approx(kl, rel=1e-4)
        assert found.predictions == sum(ids[:, 2:].numel() for ids in pages(model))
        assert found.drop["none"] == found.full
        # The model is as it was.
        again = evaluate_patched(model, site, sae, **self.SETTINGS)
        assert again.full == found.full
        assert not any("forward" in module.__dict__ for module in model.model.modules())

    def test_scores_and_their_ends(self) -> None:
        found = evaluate_patched(llama(), 1, random_sae(), **self.SETTINGS)
        clean, zero, mean, full = found.clean, found.zero, found.mean, found.full
        assert clean.kl.value == 0
        assert clean.ce_increase == (0, 0)
        assert clean.ce_score == clean.kl_score == clean.ce_score_mean == clean.kl_score_mean
        assert clean.kl_score == (1, 0)
        assert zero.ce_score.value == zero.kl_score.value == 0
        assert mean.ce_score_mean.value == mean.kl_score_mean.value == 0
        span = zero.ce.value - clean.ce.value
        assert full.ce_score.value == pytest.approx((zero.ce.value - full.ce.value) / span)
        assert full.kl_score.value == pytest.approx(1 - full.kl.value / zero.kl.value)
        assert full.ce_score_mean.value == pytest.approx(
            (mean.ce.value - full.ce.value) / (mean.ce.value - clean.ce.value)
        )
        assert full.kl_score_mean.value == pytest.approx(1 - full.kl.value / mean.kl.value)

    def test_errors_are_those_of_a_mean_over_contexts(self) -> None:
        # Contexts of equal length: then leaving one out is the textbook's standard error.
        corpus = ["".join(chr(97 + (i * i + j * 7) % 26) for i in range(119)) for j in range(6)]
        settings = {**self.SETTINGS, "corpus": ["".join(corpus)[:600]]}
        model = llama()
        found = evaluate_patched(model, 1, random_sae(), **settings)
        batches = Packing(12, 1).batches(as_corpus(settings["corpus"]), model.tokenizer)
        means = []
        for batch in batches:
            logits = model.model(input_ids=batch.ids).logits[0, 1:-1].log_softmax(-1)
            means.append(-logits.gather(1, batch.ids[0, 2:, None]).double().mean())
        whole = torch.stack(means[:50])
        assert found.contexts == 51  # the last holds the empty line behind the text
        assert found.clean.ce.value == pytest.approx(float(whole.mean()), rel=1e-2)
        assert found.clean.ce.error == pytest.approx(float(whole.std() / 50**0.5), rel=0.05)

    def test_layers_before_the_site_run_once_a_batch(self) -> None:
        model = llama()
        ran: dict[str, int] = {}
        for name, module in model.model.named_modules():
            if name.endswith(("down_proj", "o_proj")):
                module.register_forward_hook(
                    lambda *_, name=name: ran.update({name: ran.get(name, 0) + 1})
                )
        mask = torch.ones(48, dtype=torch.bool)
        zero = torch.zeros(D)
        for site, inside in (("mlp.2", 1), ("resid.2", 0)):
            ran.clear()
            evaluate_patched(model, site, random_sae(), {"all": mask}, mean=zero, **self.SETTINGS)
            batches = ran["model.layers.0.mlp.down_proj"]
            # Undisturbed, zero, mean, full, keep and drop.
            assert ran["model.layers.3.mlp.down_proj"] == 6 * batches
            assert ran["model.layers.1.self_attn.o_proj"] == batches
            assert ran["model.layers.2.mlp.down_proj"] == batches
            assert ran["model.layers.2.self_attn.o_proj"] == (1 + 5 * inside) * batches

    def test_gpt2_and_bfloat16(self) -> None:
        model = gpt2()
        found = evaluate_patched(model, 1, random_sae(24), **self.SETTINGS)
        ce, kl = plainly(model, 1, random_sae(24))
        assert found.full.ce.value == pytest.approx(ce, rel=1e-5)
        assert found.full.kl.value == pytest.approx(kl, rel=1e-4)
        half = llama(dtype=torch.bfloat16)
        found = evaluate_patched(half, 1, random_sae(), **self.SETTINGS)
        whole = evaluate_patched(llama(), 1, random_sae(), **self.SETTINGS)
        assert found.full.ce.value == pytest.approx(whole.full.ce.value, rel=0.02)

    def test_what_does_not_fit_is_told(self) -> None:
        model = llama()
        for masks, error in (
            ({"a": torch.ones(48)}, "must be a bool tensor"),
            ({"a": [True]}, "must be a bool tensor"),
        ):
            with pytest.raises(TypeError, match=error):
                evaluate_patched(model, 1, random_sae(), masks, **self.SETTINGS)
        with pytest.raises(ValueError, match=r"masks\['a'\] must have shape \(48,\)"):
            evaluate_patched(model, 1, random_sae(), {"a": torch.ones(47) > 0}, **self.SETTINGS)
        with pytest.raises(ValueError, match="got a transcoder"):
            evaluate_patched(model, 1, saefast.SAE(D, 48, d_out=D), **self.SETTINGS)
        with pytest.raises(ValueError, match="of several tokens"):
            evaluate_patched(model, 1, random_sae(), **{**self.SETTINGS, "corpus": []})


class TestMarginalEffects:
    SETTINGS = TestPatching.SETTINGS

    @pytest.mark.parametrize("site", [1, "mlp.2", "model.embed_tokens"])
    def test_one_feature_after_the_other(self, site: int | str) -> None:
        model, sae = llama(), random_sae()
        write_in_place(model)
        features = torch.tensor([5, 0, 41, 17])
        found = marginal_effects(model, site, sae, features, **self.SETTINGS)
        base = plainly(model, site, sae)
        rows = activations(model, site)
        dense = sae.encode(rows).to_dense(48)
        for i, feature in enumerate(features.tolist()):

            def without(x: Tensor, feature: int = feature) -> Tensor:
                dense = sae.encode(x).to_dense(48)
                dense[:, feature] = 0
                return dense @ sae.W_dec + sae.b_dec

            ce, kl = plainly(model, site, without)
            assert float(found.ce[i]) == pytest.approx(ce - base[0], rel=1e-3, abs=1e-6)
            assert float(found.kl[i]) == pytest.approx(kl - base[1], rel=1e-3, abs=1e-6)
            assert int(found.fired[i]) == int((dense[:, feature] > 0).sum())
            assert found.ce_error[i] > 0

    def test_a_feature_that_never_fires_costs_nothing(self) -> None:
        sae = random_sae()
        sae.b_enc[7] = -1e6
        found = marginal_effects(llama(), 1, sae, torch.tensor([7]), **self.SETTINGS)
        assert found.ce.tolist() == found.kl.tolist() == found.fired.tolist() == [0]
        empty = torch.zeros(0, dtype=torch.int64)
        assert len(marginal_effects(llama(), 1, sae, empty, **self.SETTINGS).ce) == 0
        with pytest.raises(ValueError, match=r"features must be in \[0, 48\)"):
            marginal_effects(llama(), 1, sae, torch.tensor([48]), **self.SETTINGS)

    @pytest.mark.parametrize("site", [1, "mlp.2", "attn.0", "transformer.wte"])
    def test_the_first_order_is_the_limit_of_differences(self, site: int | str) -> None:
        model, sae = gpt2(torch.float64), random_sae(24, torch.float64)
        found = first_order_effects(model, site, sae, **self.SETTINGS)
        active = activations(model, site)
        fired = (sae.encode(active).to_dense(48) > 0).sum(0)
        assert found.fired.tolist() == fired.tolist()
        for feature in fired.argsort(descending=True)[:5].tolist():
            step = 1e-4

            def less(x: Tensor, by: float, feature: int = feature) -> Tensor:
                dense = sae.encode(x).to_dense(48)
                dense[:, feature] *= 1 - by
                return dense @ sae.W_dec + sae.b_dec

            low, high = (plainly(model, site, lambda x, by=by: less(x, by)) for by in (-step, step))
            for slope, a, b in zip((found.ce, found.kl), low, high, strict=True):
                assert float(slope[feature]) == pytest.approx((b - a) / (2 * step), rel=1e-5)
        never = (fired == 0).nonzero()[:, 0]
        assert found.ce[never].tolist() == [0] * len(never)

    def test_small_features_have_the_effect_of_first_order(self) -> None:
        sae = random_sae(24, torch.float64)
        sae.W_dec.mul_(1e-4)
        model = gpt2(torch.float64)
        features = torch.arange(48)
        exact = marginal_effects(model, 1, sae, features, **self.SETTINGS)
        slope = first_order_effects(model, 1, sae, **self.SETTINGS)
        for a, b in ((exact.ce, slope.ce), (exact.kl, slope.kl)):
            torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3 * float(b.abs().max()))
        torch.testing.assert_close(
            exact.ce_error, slope.ce_error, rtol=0.05, atol=5e-3 * float(slope.ce_error.max())
        )


class TestTopContexts:
    def test_the_token_stands_in_its_text_and_no_other(self, tmp_path: Path) -> None:
        model = llama()
        harvest(model, 0, out=tmp_path / "s", corpus=["0123456789abcdefghij"], context=10)
        # Two contexts, 0 to 9 and a to j, and the empty line; first positions are not written.
        found = contexts(tmp_path / "s", model.tokenizer, [0, 4, 8, 9, 12, 18], 4, 3)
        assert [one[:3] for one in found] == [
            ("", "1", "234"),
            ("1234", "5", "678"),
            ("5678", "9", ""),
            ("", "b", "cde"),
            ("bcd", "e", "fgh"),
            ("", "\n", ""),
        ]
        assert [(one.row, one.position) for one in found[3:5]] == [(9, 1), (12, 4)]
        rows = torch.tensor([12])
        (alone,) = contexts(tmp_path / "s", model.tokenizer, rows, 0, 0)
        assert alone[:3] == ("", "e", "")
        with pytest.raises(ValueError, match="rows must be from 0 to 18"):
            contexts(tmp_path / "s", model.tokenizer, [19])

    def test_a_letter_of_several_tokens_is_one(self, tmp_path: Path) -> None:
        model = llama()
        harvest(model, 0, out=tmp_path / "s", corpus=["ab日本cd"], context=40, progress=False)
        found = contexts(tmp_path / "s", model.tokenizer, [1, 2, 3, 4, 6], 9, 9)
        assert [one.token for one in found] == ["日", "日", "日", "本", "本"]
        assert [one.before for one in found] == ["b", "b", "b", "b日", "b日"]
        assert {one.after for one in found[:3]} == {"本cd\n\n"}

    def test_stores_of_others_are_told(self, tmp_path: Path) -> None:
        with StoreWriter(tmp_path / "s", 2) as writer:
            writer.append(torch.zeros(3, 2))
        with pytest.raises(ValueError, match=r"lacks positions, tokens; saefast.lm.harvest writes"):
            contexts(tmp_path / "s", tokenizer(), [0])


class TestSites:
    def test_what_does_not_exist_is_told(self) -> None:
        model = llama().model
        with pytest.raises(ValueError, match=r"from 0 to 3, got resid.4"):
            find_site(model, 4)
        with pytest.raises(ValueError, match=r"did you mean model.layers.1.mlp"):
            find_site(model, "model.layers.1.mpl")
        with pytest.raises(TypeError, match="number of a layer or a name, got bool"):
            find_site(model, True)
        with pytest.raises(TypeError, match="causal language model of transformers, got Linear"):
            find_site(torch.nn.Linear(2, 2), 0)
        model.model.layers[1].machine = model.model.layers[1]._modules.pop("mlp")
        with pytest.raises(ValueError, match=r"name one of them as 'model.layers.1.self_attn'"):
            find_site(model, "mlp.1")

    def test_modules_that_do_not_run_or_return_no_rows(self) -> None:
        model = llama().model
        ids = torch.zeros(2, 4, dtype=torch.int64)
        model.model.spare = torch.nn.Linear(2, 2)
        with pytest.raises(ValueError, match=r"does not run model.spare"):
            capture(model, [find_site(model, "model.spare")], ids)
        with pytest.raises(ValueError, match=r"model.rotary_emb must return activations"):
            capture(model, [find_site(model, "model.rotary_emb")], ids)
        assert not model.model.rotary_emb._forward_hooks


class TestText:
    def test_the_built_in_corpus_is_the_same_every_time_and_in_balance(self) -> None:
        def beginning(count: int) -> list[Document]:
            return [d for d, _ in zip(builtin_corpus(), range(count), strict=False)]

        first = beginning(60)
        assert first == beginning(60)
        lengths = {"prose": 0, "code": 0}
        for document in first:
            assert 0 < len(document.text) <= 8192
            lengths[document.source.partition(":")[0]] += len(document.text)
        assert abs(lengths["prose"] - lengths["code"]) <= 8192

    def test_another_process_reads_the_same_corpus(self, tmp_path: Path) -> None:
        script = (
            "import itertools, json, sys; from saefast.lm import builtin_corpus\n"
            "assert not {'transformers', 'tokenizers', 'datasets'} & set(sys.modules)\n"
            "print(json.dumps(list(itertools.islice(builtin_corpus().train(), 40))))"
        )
        other = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,  # where no saefast/ without its kernels lies
            env={**os.environ, "PYTHONHASHSEED": "7"},
            capture_output=True,
            text=True,
            check=True,
        )
        mine = itertools.islice(builtin_corpus().train(), 40)
        assert json.loads(other.stdout) == [list(document) for document in mine]

    def test_what_is_held_out_is_nowhere_else(self) -> None:
        documents = list(itertools.islice(builtin_corpus(), 250))
        assert len({d.text for d in documents}) == 250
        whole = Corpus(lambda: documents)
        train, held_out = list(whole.train()), list(whole.held_out())
        assert sorted(train + held_out) == sorted(documents)
        assert not {d.group for d in train} & {d.group for d in held_out}
        assert 12 < len(held_out) < 50
        # Prose and code of one module are of one group, and both are there.
        kinds = {(d.source.partition(":")[0], d.group) for d in documents}
        assert any(("code", group) in kinds for kind, group in kinds if kind == "prose")
        first = next(iter(builtin_corpus(("prose",)).held_out()))
        assert first.source.startswith("prose: ")
        with pytest.raises(ValueError, match="split the whole"):
            builtin_corpus().train().held_out()

    def test_files_lines_and_rows(self, tmp_path: Path) -> None:
        (tmp_path / "b.txt").write_text("second")
        (tmp_path / "a.txt").write_text("first")
        (tmp_path / "c.jsonl").write_text('{"body": "x"}\n\n{"body": "y"}\n')
        corpus = text_files(tmp_path)
        assert [d.text for d in corpus] == [d.text for d in corpus] == ["first", "second"]
        assert [d.text for d in text_files(tmp_path / "b.txt")] == ["second"]
        lines = list(json_lines(tmp_path / "c.jsonl", "body"))
        assert [(d.text, d.source[-6:]) for d in lines] == [("x", "line 1"), ("y", "line 3")]
        rows = hugging_face([{"text": "u"}, {"text": "v"}])
        assert [d.text for d in rows] == ["u", "v"]
        json.dumps([corpus.description, rows.description])

    def test_text_that_is_none_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
            text_files(tmp_path / "nowhere")
        with pytest.raises(ValueError, match=r"holds no file \*\*/\*.txt"):
            text_files(tmp_path)
        (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
        with pytest.raises(ValueError, match=r"x.txt is not text in UTF-8"):
            list(text_files(tmp_path))
        (tmp_path / "l").write_text('{"text": "a"}\n{"tex')
        with pytest.raises(ValueError, match="line 2 is not JSON"):
            list(json_lines(tmp_path / "l"))
        with pytest.raises(ValueError, match=r"line 1 must have a text under 'body'.*holds text"):
            list(json_lines(tmp_path / "l", "body"))
        for wrong in ("one string", 3):
            with pytest.raises(
                TypeError, match=r"must be a saefast.lm.Corpus or a list of strings"
            ):
                as_corpus(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="read again, got an iterator"):
            as_corpus(iter(["a"]))
        with pytest.raises(ValueError, match="kinds must be one of prose, code"):
            builtin_corpus(("poems",))
