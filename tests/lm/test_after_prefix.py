"""Tokens after one prefix, which is read once: the same activations as in whole contexts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import tiny_lm

from saefast.lm import LanguageModel, after_prefix, find_site
from saefast.lm.after_prefix import capture_after
from saefast.lm.sites import capture

PREFIX = torch.tensor([5, 80, 41, 9, 200, 17])


@pytest.mark.parametrize("make", [tiny_lm.llama, tiny_lm.gpt2])
@pytest.mark.parametrize("where", [0, 1, "mlp.1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_match_whole_contexts(
    make: Callable[..., LanguageModel], where: Any, dtype: torch.dtype
) -> None:
    model = make(dtype=dtype)
    site = find_site(model.model, where)
    tokens = torch.arange(3, 40)
    rows = capture_after(model, site, PREFIX, tokens, batch_size=16, progress=False)
    whole = torch.cat([PREFIX.expand(len(tokens), -1), tokens[:, None]], 1)
    (seen,) = capture(model.model, [site], whole)
    exact = dtype == torch.float32
    torch.testing.assert_close(
        rows, seen[:, -1].float(), atol=1e-5 if exact else 0.1, rtol=1e-4 if exact else 0.1
    )
    assert rows.dtype == torch.float32
    assert not torch.allclose(rows[0], rows[1], atol=0.1)


def test_the_prefix_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm.llama()
    lengths = []

    def counting(*args: Any, **named: Any) -> Any:
        lengths.append(args[2].shape)
        return capture(*args, **named)

    monkeypatch.setattr(after_prefix, "capture", counting)
    tokens = torch.arange(3, 103)
    capture_after(model, find_site(model.model, 1), PREFIX, tokens, batch_size=50, progress=False)
    # The prefix, the comparison of the first few tokens in both ways, two batches.
    assert sorted(map(tuple, lengths)) == [(1, 4), (1, 6), (1, 50), (1, 50), (4, 7)]


def test_models_whose_results_differ_run_whole_contexts() -> None:
    model = tiny_lm.llama()
    site = find_site(model.model, 1)
    tokens = torch.arange(3, 40)
    whole = torch.cat([PREFIX.expand(len(tokens), -1), tokens[:, None]], 1)
    (seen,) = capture(model.model, [site], whole)
    forward = model.model.forward

    def without_masks(input_ids: Any, attention_mask: Any = None, **named: Any) -> Any:
        return forward(input_ids, **named)

    model.model.forward = without_masks
    rows = capture_after(model, site, PREFIX, tokens, progress=False)
    torch.testing.assert_close(rows, seen[:, -1], atol=1e-5, rtol=1e-4)
