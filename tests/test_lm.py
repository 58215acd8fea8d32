"""Language models: tiny ones with random weights, and a tokenizer made on the spot."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="needs saefast[lm]")

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from saefast.activations import StoreActivations, verify_store
from saefast.lm import (
    Corpus,
    Document,
    LanguageModel,
    as_corpus,
    builtin_corpus,
    find_site,
    harvest,
    hugging_face,
    json_lines,
    text_files,
)
from saefast.lm.capture import capture
from saefast.lm.packing import Packing

D, LAYERS = 32, 4


def tokenizer(*, bos: bool = False) -> Any:
    """A letter is a token; with `bos`, texts begin with <s> as those of Llama do."""
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
    """Four layers of Llama."""
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


def gpt2() -> LanguageModel:
    """Three layers of GPT-2."""
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=258, n_embd=24, n_layer=3, n_head=2, n_positions=128)
    config.initializer_range = 0.3
    return LanguageModel(GPT2LMHeadModel(config).eval().requires_grad_(False), tokenizer())


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch, torch_threads: None) -> None:
    """One thread is enough for tiny models, and what a kill leaves does not hang on fsync."""
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


TEXTS = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "def add(a, b):\n    return a + b\n",
    "Nothing is so painful to the human mind as a great and sudden change.",
    "x",
    "for i in range(10):\n    print(i)  # ten numbers, one a line\n" * 3,
]


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

    def test_a_document_for_itself_is_filled_up_and_the_filling_left_out(
        self, tmp_path: Path
    ) -> None:
        model = llama(bos=True)
        (path,) = harvest(
            *(model, [2]),
            out=tmp_path,
            corpus=TEXTS,
            context=20,
            batch_size=4,
            packed=False,
            progress=False,
        )
        store = StoreActivations(path)
        tokens = [
            token
            for text in TEXTS
            for token in model.tokenizer(text, add_special_tokens=False)["input_ids"]
        ]
        assert store.read("tokens", 0, store.rows).tolist() == tokens
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
            import test_lm, torch
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
            harvest(test_lm.llama(), {sites!r}, out={str(out)!r}, **{settings!r})
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
        assert metadata["context"] == 16
        assert metadata["model_dtype"] == "float32"
        assert len(metadata["tokenizer"]) == len(metadata["weights"]) == 32


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

    def test_another_process_reads_the_same_corpus(self) -> None:
        script = (
            "import itertools, json; from saefast.lm import builtin_corpus\n"
            "print(json.dumps(list(itertools.islice(builtin_corpus().train(), 40))))"
        )
        other = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": "7"},
            capture_output=True,
            text=True,
            check=True,
        )
        mine = itertools.islice(builtin_corpus().train(), 40)
        assert json.loads(other.stdout) == [list(document) for document in mine]

    def test_what_is_held_out_is_nowhere_else(self) -> None:
        documents = list(itertools.islice(builtin_corpus(), 500))
        assert len({d.text for d in documents}) == 500
        whole = Corpus(lambda: documents)
        train, held_out = list(whole.train()), list(whole.held_out())
        assert sorted(train + held_out) == sorted(documents)
        assert not {d.group for d in train} & {d.group for d in held_out}
        assert 25 < len(held_out) < 100
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
