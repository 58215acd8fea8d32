"""The rest of a model: wanted positions and cached keys do not change logits."""

import pytest
import torch
from helpers import tiny_lm

from saefast.lm import find_site
from saefast.lm.suffix import Suffix

MODELS = {"llama": tiny_lm.llama, "gpt2": tiny_lm.gpt2}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("where", ["resid.1", "mlp.1", "attn.0", "resid.0"])
@pytest.mark.parametrize("first", [0, 1, 4])
def test_cached_keys_and_wanted_positions_do_not_change_logits(name, where, first):
    model = MODELS[name](dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(258, (3, 9), generator=generator)
    site = find_site(model.model, where)
    plain, kept = Suffix(model.model, site), Suffix(model.model, site)
    positions = torch.tensor([5, 8])
    activations, logits = plain.begin(ids)
    same, at_positions = kept.begin(ids, positions, first=first)
    torch.testing.assert_close(same, activations)
    torch.testing.assert_close(at_positions, logits[:, positions])
    contexts = torch.tensor([2, 0, 2, 1])
    changed = activations[contexts].clone()
    changed[:, 4:] += torch.randn(4, 5, changed.shape[2], generator=generator, dtype=changed.dtype)
    expected = plain.logits(changed, contexts)[:, positions]
    assert not torch.allclose(expected, logits[contexts][:, positions])
    for _ in range(2):  # the cache is not consumed
        torch.testing.assert_close(kept.logits(changed, contexts), expected)
    assert (kept._first, plain._first) == (first, 0)


def test_gradients_pass_through_cached_keys():
    model = tiny_lm.llama(dtype=torch.float64)
    ids = torch.arange(10)[None]
    found = []
    for first in (0, 4):
        rest = Suffix(model.model, find_site(model.model, 1))
        activations, _ = rest.begin(ids, torch.tensor([9]), first=first)
        row = activations[:, 4].clone().requires_grad_()
        put = activations.index_put((torch.tensor([0]), torch.tensor([4])), row)
        found.append(torch.autograd.grad(rest.logits(put)[0, 0, 7], row)[0])
    torch.testing.assert_close(found[0], found[1])
    assert found[0].abs().max() > 0
