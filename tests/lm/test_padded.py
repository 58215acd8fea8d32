"""Activations of contexts of different lengths do not depend on the batch that they are in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_lm import TEXTS, encoder, gpt2, llama
from torch import Tensor

from saefast.activations import StoreActivations
from saefast.activations.joiner import PlannedShard
from saefast.evaluation.probing.rows import task_rows
from saefast.evaluation.probing.tasks.labelled import LabelledTask
from saefast.lm import LanguageModel, LMActivations, find_site, harvest, harvest_part
from saefast.lm.corpus import as_corpus
from saefast.lm.harvest_part import PartOfStore
from saefast.lm.packing import Packing, token_batch
from saefast.lm.padded import BatchCapture
from saefast.lm.stored_tokens import write_tokens

CONTEXT = 64
MODELS = (encoder, gpt2)


def harvested(model: LanguageModel, out: Path, batch_size: int) -> Tensor:
    (store,) = harvest(
        model,
        1,
        out=out,
        corpus=TEXTS,
        context=CONTEXT,
        batch_size=batch_size,
        packed=False,
        dtype=torch.float32,
        progress=False,
    )
    return rows_of(StoreActivations(store))


def rows_of(store: StoreActivations) -> Tensor:
    return store.read("activations", 0, store.rows)


@pytest.mark.parametrize("make", MODELS)
def test_harvests_of_short_contexts(make: Callable[[], LanguageModel], tmp_path: Path) -> None:
    model = make()
    alone = harvested(model, tmp_path / "alone", 1)
    torch.testing.assert_close(harvested(model, tmp_path / "padded", 5), alone)


def test_streamed_rows_of_an_encoder(tmp_path: Path) -> None:
    model = encoder()
    alone = harvested(model, tmp_path / "alone", 1)
    streamed = LMActivations(
        model, 1, corpus=TEXTS, context=CONTEXT, batch_size=5, packed=False, progress=False
    )
    rows = torch.cat([x for x, *_ in streamed._run(0, streamed.rows)])
    torch.testing.assert_close(rows, alone)


def test_parts_of_a_harvest_of_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder()
    alone = harvested(model, tmp_path / "alone", 1)
    batches = Packing(CONTEXT, 5, packed=False).batches(as_corpus(TEXTS), model.tokenizer)
    about = write_tokens(tmp_path / "tokens", batches, None)
    written: list[Tensor] = []
    monkeypatch.setattr(
        harvest_part,
        "write_planned",
        lambda _path, _shard, _about, columns: written.append(columns["activations"]),
    )
    part = PartOfStore(tmp_path, "resid.1", [PlannedShard(0, 0, len(alone))])
    settings: dict[str, Any] = {"drop_bos": True, "dtype": torch.float32}
    harvest_part.write_part(model, [part], tmp_path / "tokens", about, **settings)
    torch.testing.assert_close(torch.cat(written), alone)


@pytest.mark.parametrize("make", MODELS)
def test_rows_of_a_task(make: Callable[[], LanguageModel]) -> None:
    model = make()
    texts = tuple(TEXTS) * 8
    labels = tuple(number % 2 == 0 for number in range(len(texts)))
    task = LabelledTask(name="some", texts=texts, labels=labels)
    settings: dict[str, Any] = {"pool": "mean", "context": CONTEXT, "drop_bos": True}
    one, all_ = (
        task_rows(model, find_site(model.model, 1), [task], batch_size=size, **settings)[0].rows
        for size in (1, 16)
    )
    torch.testing.assert_close(all_, one)


@pytest.mark.parametrize(
    ("make", "dtype", "masks"),
    [
        (encoder, torch.float32, True),
        (encoder, torch.bfloat16, True),
        (llama, torch.float32, False),
        (llama, torch.bfloat16, False),
        (gpt2, torch.float32, False),
    ],
)
def test_only_padding_of_encoders_is_masked(
    make: Callable[..., LanguageModel], dtype: torch.dtype, masks: bool
) -> None:
    model = make(dtype=dtype)
    captured = BatchCapture(model, [find_site(model.model, 1)])
    given: list[bool] = []
    model.model.register_forward_pre_hook(
        lambda _module, _inputs, named: given.append("attention_mask" in named),
        with_kwargs=True,
    )
    full = token_batch([[5, 6, 7], [8, 9, 10]], model.tokenizer, False)
    captured(full)
    assert given == [False]
    captured(token_batch([[5, 6, 7], [8, 9]], model.tokenizer, False))
    assert given[-1] is masks
