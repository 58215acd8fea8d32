"""Harvested activations equal those of a plain forward pass, also after kills."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkout import CHECKOUT
from helpers.tiny_lm import TEXTS, gpt2, llama, random_sae, tokenizer, write_in_place
from torch import Tensor

from saefast.activations import StoreActivations, verify_store
from saefast.lm import (
    LanguageModel,
    LMActivations,
    as_corpus,
    evaluate_patched,
    find_site,
    harvest,
)
from saefast.lm.packing import Packing
from saefast.lm.sites import capture

pytestmark = pytest.mark.usefixtures("light")


def outputs(model: LanguageModel, names: list[str], ids: Tensor) -> dict[str, Tensor]:
    """Return the outputs of modules in a plain forward pass."""
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
    def test_rows_match_a_plain_forward_pass(
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
        # By hand: all documents, an empty line after each, cut into contexts.
        letters = list(model.tokenizer("".join(text + "\n\n" for text in TEXTS))["input_ids"])
        room = 15 if bos else 16
        contexts = [letters[i : i + room] for i in range(0, len(letters), room)]
        contexts = [[0] * bos + one for one in contexts]
        assert len(contexts[-1]) < 16  # a padded one is among them
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

    def test_nothing_after_the_last_module_is_computed(self) -> None:
        model = llama()
        ran = []
        for name, module in model.model.named_modules():
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
        sites = [find_site(model.model, where) for where in ("mlp.1", 0)]
        for _ in range(2):  # and the model is unchanged
            ran.clear()
            capture(model.model, sites, torch.zeros(1, 4, dtype=torch.int64))
            assert "model.layers.1.mlp.down_proj" in ran
            assert not {"model.layers.1", "model.norm", "lm_head", ""} & set(ran)
            assert not any(name.startswith("model.layers.2") for name in ran)
        model.model(input_ids=torch.zeros(1, 4, dtype=torch.int64))
        assert "" in ran
        assert len(model.model.model.layers[1].mlp._forward_hooks) == 1

    @pytest.mark.parametrize("drop_bos", [True, False])
    def test_separate_documents_are_padded_without_rows_for_padding(
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

    def test_bos_inside_a_context_is_left_out(self) -> None:
        batch = next(Packing(8, 2).batches(as_corpus(["ab<s>cd"]), tokenizer()))
        assert batch.ids[0].tolist()[2] == 0
        assert batch.kept[0].tolist() == [False, True, False, True, True, True, True]
        assert next(
            Packing(8, 2, drop_bos=False).batches(as_corpus(["ab<s>"]), tokenizer())
        ).kept.all()

    def test_a_killed_harvest_resumes_to_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings: dict[str, Any] = {"tokens": 301, "corpus": TEXTS * 4, "context": 16}
        settings |= {"batch_size": 3, "rows_per_shard": 50, "progress": False}
        sites = [1, "mlp.3"]
        whole = harvest(llama(), sites, out=tmp_path / "whole", **settings)
        out = tmp_path / "stopped"
        # Killed: the process ends during the work, with two shards of one store and one of the
        # other.
        script = textwrap.dedent(f"""
            import os, signal, sys
            sys.path[:0] = {[str(CHECKOUT / "tests"), *sys.path]!r}
            import torch
            from helpers import tiny_lm
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
        # Interrupted during a forward pass.
        passes: list[int] = []

        def interrupted(*arguments: Any) -> Any:
            passes.append(len(passes))
            if len(passes) == 5:
                raise KeyboardInterrupt
            return capture(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr("saefast.lm.padded.capture", interrupted)
            with pytest.raises(KeyboardInterrupt):
                harvest(llama(), sites, out=out, **settings, resume=True)
        resumed = harvest(llama(), sites, out=out, **settings, resume=True)
        for mine, other in zip(resumed, whole, strict=True):
            files = sorted(path.name for path in other.iterdir())
            assert sorted(path.name for path in mine.iterdir()) == files
            assert len(files) == 8
            for name in files:
                assert (mine / name).read_bytes() == (other / name).read_bytes(), name
        # Finished rows are not computed again.
        with monkeypatch.context() as patch:
            passes[:] = [0, 1, 2]
            patch.setattr("saefast.lm.padded.capture", interrupted)
            harvest(llama(), sites, out=out, **settings, resume=True)
        with pytest.raises(FileExistsError, match="resume=True"):
            harvest(llama(), sites, out=out, **settings)

    def test_a_harvest_resumes_only_with_the_same_settings(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"out": tmp_path / "store", "context": 16, "batch_size": 2}
        settings |= {"progress": False, "rows_per_shard": 20}
        model = llama()
        harvest(model, 1, tokens=60, corpus=TEXTS, **settings)
        again = {**settings, "resume": True, "tokens": 100}
        with pytest.raises(ValueError, match="context was 16 and is now 8"):
            harvest(model, 1, corpus=TEXTS, **{**again, "context": 8})
        with pytest.raises(ValueError, match=r"site was 'resid.1' and is now 'resid.2'"):
            harvest(model, 2, corpus=TEXTS, **again)
        with pytest.raises(ValueError, match="of other text from row 30"):
            harvest(model, 1, corpus=[TEXTS[0][:40], *TEXTS], **again)
        other = llama()
        other.model.model.norm.weight.data[3] += 1
        with pytest.raises(ValueError, match="weights was"):
            harvest(other, 1, corpus=TEXTS, **again)
        harvest(model, 1, corpus=TEXTS, **{**again, "batch_size": 3})
        assert StoreActivations(tmp_path / "store").rows == 100
        with pytest.raises(ValueError, match="holds 100 rows, more than the 80 that are requested"):
            harvest(model, 1, corpus=TEXTS, **{**again, "tokens": 80})
        assert StoreActivations(tmp_path / "store").rows == 100

    def test_a_repaired_store_is_continued_while_its_error_is_kept(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"out": tmp_path / "store", "corpus": TEXTS, "context": 16}
        settings |= {"progress": False, "rows_per_shard": 20}
        (store,) = harvest(llama(), 1, tokens=60, **settings)
        moved = (store / "activations-00001.safetensors").rename(tmp_path / "moved")
        with pytest.raises(FileNotFoundError) as kept:
            harvest(llama(), 1, tokens=100, resume=True, **settings)
        moved.rename(store / "activations-00001.safetensors")
        harvest(llama(), 1, tokens=100, resume=True, **settings)
        assert kept.value.__traceback__ is not None
        assert StoreActivations(store).rows == 100

    def test_contexts_fit_the_positions_that_a_model_has_learned(self, tmp_path: Path) -> None:
        model, settings = gpt2(), {"corpus": TEXTS * 4, "progress": False}
        (path,) = harvest(model, 1, out=tmp_path / "s", tokens=127, context=128, **settings)
        assert StoreActivations(path).rows == 127
        words = r"context must be at most 128, .* learned \(transformer.wpe\), got 129"
        with pytest.raises(ValueError, match=words):
            harvest(model, 1, out=tmp_path / "t", context=129, **settings)
        assert not (tmp_path / "t").exists()
        with pytest.raises(ValueError, match=words):
            LMActivations(model, 1, context=129, **settings)
        with pytest.raises(ValueError, match=words):
            evaluate_patched(model, 1, random_sae(), context=129, **settings)
        harvest(llama(), 1, out=tmp_path / "u", tokens=600, context=600, **settings)

    def test_too_little_text_raises_after_writing_it(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has only 60 of the 1000 requested") as error:
            harvest(llama(), 0, out=tmp_path / "s", corpus=TEXTS[:1], tokens=1000, context=12)
        assert "tokens=60" in str(error.value)
        assert StoreActivations(tmp_path / "s").rows == 60

    def test_the_store_records_its_provenance(self, tmp_path: Path) -> None:
        model = llama()
        harvest(model, -1, out=tmp_path / "s", corpus=TEXTS, context=16, progress=False)
        metadata = StoreActivations(tmp_path / "s").index.metadata
        assert metadata["site"] == "resid.3"
        assert metadata["model"] == "tiny llama"
        assert metadata["text"] == {"corpus": "given in memory"}
        assert metadata["context"] == 16
        assert metadata["model_dtype"] == "float32"
        assert len(metadata["tokenizer"]) == len(metadata["weights"]) == 32


class TestSites:
    def test_errors_name_missing_models_and_modules(self) -> None:
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
        with pytest.raises(
            ValueError, match=r"give one of them, such as 'model.layers.1.self_attn'"
        ):
            find_site(model, "mlp.1")

    def test_modules_without_activations_raise(self) -> None:
        model = llama().model
        ids = torch.zeros(2, 4, dtype=torch.int64)
        model.model.spare = torch.nn.Linear(2, 2)
        with pytest.raises(ValueError, match=r"does not call model.spare"):
            capture(model, [find_site(model, "model.spare")], ids)
        with pytest.raises(ValueError, match=r"model.rotary_emb must return activations"):
            capture(model, [find_site(model, "model.rotary_emb")], ids)
        assert not model.model.rotary_emb._forward_hooks
