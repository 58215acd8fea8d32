"""Sequences that continue a prompt while activations are edited."""

from typing import Any

import pytest
import torch
from helpers.tiny_lm import D, gpt2, llama
from torch import Tensor

from saefast.lm import LanguageModel, find_site
from saefast.lm.generation import Opening, added, sampling_noise, unedited
from saefast.lm.sites import layer_list

pytestmark = pytest.mark.usefixtures("light")

PROMPT = "The quick brown"


def noise(sequences: int, tokens: int = 6, sample: int = 0) -> Tensor:
    return sampling_noise(0, 0, sample, tokens).expand(sequences, -1)


def vectors(sequences: int, d: int = D) -> Tensor:
    return 2 * torch.randn(sequences, d, generator=torch.Generator().manual_seed(5))


def written_slowly(
    model: LanguageModel, site: int | str, change: Tensor, noise: Tensor, top_p: float
) -> list[int]:
    """Write one sequence by definition: run the whole text for each token, and sort the logits."""
    prompt = model.tokenizer(PROMPT)["input_ids"]
    module, ids = find_site(model.model, site).module, list(prompt)

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        x = (output if isinstance(output, Tensor) else output[0]).clone()
        x[:, len(prompt) - 1 :] += change
        return x if isinstance(output, Tensor) else (x, *output[1:])

    handle = module.register_forward_hook(hook)
    for uniform in noise.tolist():
        logits = model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[model.tokenizer.eos_token_id] = -torch.inf
        order = logits.argsort(descending=True)
        until = (logits[order] / 0.7).softmax(0).cumsum(0).double()
        kept = int((until < top_p).sum()) + 1
        ids.append(int(order[int((until < uniform * until[:kept][-1]).sum())]))
    handle.remove()
    return ids[len(prompt) :]


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("site", [1, "mlp.1"])
@pytest.mark.parametrize("top_p", [0.5, 0.999])
def test_tokens_match_the_definition(make: Any, site: int | str, top_p: float) -> None:
    model = make()
    opening = Opening(model, site, PROMPT, batch_size=3)
    change = vectors(4, opening.activations.shape[1])
    numbers = torch.stack([sampling_noise(0, 0, sample, 6) for sample in range(4)])
    got = opening.sample(added(change), numbers, top_p=top_p)
    want = [
        written_slowly(model, site, its, its_noise, top_p)
        for its, its_noise in zip(change, numbers, strict=True)
    ]
    assert got.tokens.tolist() == want


def test_strength_zero_equals_no_edit() -> None:
    opening = Opening(llama(), 1, PROMPT, batch_size=4)
    steered = opening.sample(added(0.0 * vectors(4)), noise(4)).tokens
    assert steered.equal(opening.sample(unedited, noise(4)).tokens)
    (_, changed), (_, plain) = (
        next(opening.next_logits(edit, 4)) for edit in (added(0.0 * vectors(4)), unedited)
    )
    assert changed.equal(plain)
    assert not opening.sample(unedited, noise(4, sample=1)).tokens.equal(steered)


def test_sequences_do_not_depend_on_their_batch() -> None:
    opening = Opening(llama(), 1, PROMPT, batch_size=4)
    change = vectors(9)
    every = opening.sample(added(change), noise(9)).tokens
    assert len(set(map(tuple, every.tolist()))) > 1
    for chosen in ([8], [3, 1], [0, 2, 4, 6, 8]):
        got = opening.sample(added(change[chosen]), noise(len(chosen))).tokens
        assert got.equal(every[chosen])
        logits = torch.cat([part for _, part in opening.next_logits(added(change), 9)])
        some = torch.cat(
            [part for _, part in opening.next_logits(added(change[chosen]), len(chosen))]
        )
        assert some.equal(logits[chosen])


def test_models_without_cached_keys_write_the_same() -> None:
    model = llama()
    kept = Opening(model, 2, PROMPT, batch_size=4)
    slow = Opening(model, 2, PROMPT, batch_size=4)
    slow.memory = slow._rest = None
    change = vectors(5)
    tokens = kept.sample(added(change), noise(5)).tokens
    assert slow.sample(added(change), noise(5)).tokens.equal(tokens)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("site", [1, "mlp.1"])
def test_texts_read_from_the_site_on_give_the_same_loss(make: Any, site: int | str) -> None:
    model = make(dtype=torch.float64)
    opening = Opening(model, site, PROMPT, batch_size=3)
    change = vectors(5, opening.activations.shape[1])
    tokens, activations = opening.sample(added(change), noise(5))
    whole = list(opening.read(tokens))
    calls: list[int] = []
    _, layers = layer_list(model.model)
    first = next(iter(layers[0].children()))
    hook = first.register_forward_hook(lambda *_: calls.append(1))
    rest = list(opening.read(tokens, activations))
    hook.remove()
    assert bool(calls) == (site != 1)  # after a layer, nothing before it runs again
    assert (activations is None) == (site != 1)
    for mine, its in zip(
        map(torch.cat, zip(*rest, strict=True)),
        map(torch.cat, zip(*whole, strict=True)),
        strict=True,
    ):
        torch.testing.assert_close(mine, its)


def test_losses_match_the_model() -> None:
    model = llama()
    opening = Opening(model, 1, PROMPT, batch_size=2)
    tokens = torch.randint(2, 250, (5, 7), generator=torch.Generator().manual_seed(1))
    readings = list(opening.read(tokens))
    assert torch.cat([reading.sequences for reading in readings]).tolist() == list(range(5))
    prompt = torch.tensor(model.tokenizer(PROMPT)["input_ids"])
    for number in range(5):
        ids = torch.cat([prompt, tokens[number]])[None]
        output = model.model(input_ids=ids, output_hidden_states=True)
        logits = output.logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, tokens[number], reduction="none")
        torch.testing.assert_close(torch.cat([r.loss for r in readings])[number], loss)
        hidden = output.hidden_states[2][0, len(prompt) :]
        torch.testing.assert_close(torch.cat([r.activations for r in readings])[number], hidden)


def test_a_prompt_of_one_token_is_continued() -> None:
    opening = Opening(llama(), 0, [7], batch_size=2)
    assert opening.sample(unedited, noise(2)).tokens.shape == (2, 6)


def test_errors_name_bad_input() -> None:
    model = llama()
    with pytest.raises(ValueError, match="prompt must hold at least one token, got ''"):
        Opening(model, 0, "")
    opening = Opening(model, 0, PROMPT)
    with pytest.raises(ValueError, match="top_p must be above 0 and at most 1, got 0"):
        opening.sample(unedited, noise(1), top_p=0)
    with pytest.raises(ValueError, match=r"noise must be \[sequences, tokens\]"):
        opening.sample(unedited, noise(1) + 1)
