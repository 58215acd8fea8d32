"""Activations that are computed during a training: the rows of a harvest."""

import itertools
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers.tiny_lm import TEXTS, D, llama

import saefast
from saefast.activations import StoreActivations
from saefast.lm import (
    LMActivations,
    harvest,
)
from saefast.lm.sites import capture

pytestmark = pytest.mark.usefixtures("light")


class TestStreaming:
    SETTINGS: ClassVar[dict[str, Any]] = {"corpus": TEXTS * 3, "context": 16, "batch_size": 3}

    def test_rows_match_the_store(self, tmp_path: Path) -> None:
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
                    # Contexts in the same batches as a harvest: bit for bit.
                    assert torch.equal(x, store.read("activations", row, row + 1)[0])
                    assert torch.equal(target, targets.read("activations", row, row + 1)[0])
                seen += batch.rows.tolist()
            assert sorted(seen[: stream.rows]) == list(range(stream.rows))
            assert seen[:50] != sorted(seen[:50])

    def test_it_starts_anywhere_and_computes_only_new_rows(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passes = []

        def counted(*arguments: Any) -> Any:
            passes.append(arguments)
            return capture(*arguments)

        stream = LMActivations(llama(), 1, window_rows=90, progress=False, **self.SETTINGS)
        whole = list(itertools.islice(stream.batches(32, seed=5), 70))
        assert 2 * stream.rows < len(whole) * 32  # and epochs
        for start in (1, 7, 60):
            monkeypatch.setattr("saefast.lm.padded.capture", counted)
            passes.clear()
            batch = next(stream.batches(32, seed=5, start=start))
            assert len(passes) <= 4  # one or two windows, of two passes each
            assert torch.equal(batch.x, whole[start].x)
            assert batch.rows.tolist() == whole[start].rows.tolist()
        other = next(stream.batches(32, seed=6))
        assert not torch.equal(other.x, whole[0].x)

    @pytest.mark.parametrize("ahead", [False, True])
    def test_rows_that_fit_one_window_are_computed_once(
        self, monkeypatch: pytest.MonkeyPatch, ahead: bool
    ) -> None:
        stream = LMActivations(
            llama(), 1, tokens=90, window_rows=90, progress=False, **self.SETTINGS
        )
        passes = []

        def counted(*arguments: Any) -> Any:
            passes.append(arguments)
            return capture(*arguments)

        monkeypatch.setattr("saefast.lm.padded.capture", counted)
        memory = (lambda name, shape, dtype: torch.empty(shape, dtype=dtype)) if ahead else None
        batches = stream.batches(30, seed=0, memory=memory)
        first = {}
        for _ in range(3):
            batch = next(batches)
            first |= dict(zip(batch.rows.tolist(), batch.x, strict=True))
        assert sorted(first) == list(range(90))
        for batch in itertools.islice(batches, 16):
            for row, x in zip(batch.rows.tolist(), batch.x, strict=True):
                assert torch.equal(x, first[row])
        # Two passes of 45 rows each, by each of two readers that work in turn.
        assert len(passes) == (4 if ahead else 2)

    def test_batches_stay_on_the_device_of_the_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A device whose values cannot be read: nothing may be copied or waited for."""
        stream = LMActivations(
            llama(), 1, target=2, window_rows=90, progress=False, **self.SETTINGS
        )

        def elsewhere(*arguments: Any) -> Any:
            return [seen.to("meta") for seen in capture(*arguments)]

        monkeypatch.setattr("saefast.lm.padded.capture", elsewhere)
        batch = next(stream.batches(32, seed=5))
        assert (batch.x.device.type, batch.x.shape) == ("meta", (32, D))
        assert batch.target is not None
        assert batch.target.device.type == "meta"

    def test_a_training_uses_it_and_resumes(self, tmp_path: Path) -> None:
        def stream(seed: int = 0) -> LMActivations:
            model = llama()
            model.model.model.norm.weight.data += seed
            return LMActivations(model, 1, window_rows=90, progress=False, **self.SETTINGS)

        config = saefast.TrainConfig(latents=64, k=4, batch_size=128, tokens=9600, lr=1e-3)
        settings: dict[str, Any] = {"progress": False, "checkpoint_minutes": 0.0}
        (whole,) = saefast.train_saes(stream(), config, out=tmp_path / "whole", **settings)

        # A training reads 8192 rows ahead, 64 batches, before its first step.
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

    def test_separate_documents_and_places(self, tmp_path: Path) -> None:
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

    def test_too_little_text_raises(self) -> None:
        with pytest.raises(ValueError, match=r"has only 60 tokens, but 900 were"):
            LMActivations(llama(), 0, corpus=TEXTS[:1], context=12, tokens=900, progress=False)
        with pytest.raises(ValueError, match="has only 0 tokens, but at least one"):
            LMActivations(llama(), 0, corpus=[], progress=False)
        for tokens in (0, -1):
            with pytest.raises(ValueError, match="tokens must be"):
                LMActivations(llama(), 0, corpus=TEXTS, tokens=tokens, progress=False)
