"""Trained masks and subspaces of editing beside SAEBench's own training, on the same tensors."""

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from helpers import tiny_lm
from helpers.silent_bar import silent
from torch import Tensor

import saefast
from saefast.evaluation.editing import annealing
from saefast.evaluation.editing.annealing import EPOCHS, schedule_of
from saefast.evaluation.editing.fact_prompts import Answers, Prompt
from saefast.evaluation.editing.interchange import Interchange, Swap
from saefast.evaluation.editing.masks import trained_mask
from saefast.evaluation.editing.pairs import Pair, Question
from saefast.evaluation.editing.subspace import trained_subspace
from saefast.integrations.sae_bench import SaeBenchSae
from saefast.lm import find_site
from saefast.nulls.permutations import generator_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("sae_bench", reason="needs sae-bench 0.6.0")
    from sae_bench.evals.ravel import mdbm
    from sae_bench.sae_bench_utils import activation_collection

SITE, M, LENGTH, PROMPTS, PAIRS, BATCH, SEED = 1, 96, 9, 40, 60, 6, 3


class _Layer:
    """A layer as it was when it returned tuples, which SAEBench's hooks take."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self._layer = layer

    def register_forward_hook(self, hook: Any) -> Any:
        def with_tuple(module: Any, inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return hook(module, inputs, output)
            return hook(module, inputs, (output,))[0]

        return self._layer.register_forward_hook(with_tuple)


class World(NamedTuple):
    """Prompts of random tokens, pairs among them, and an SAE."""

    runs: Interchange
    pairs: list[Pair]
    sae: saefast.SAE
    model: Any


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    model = tiny_lm.llama()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 258, (PROMPTS, LENGTH), generator=generator)
    values = torch.randint(2, 258, (PROMPTS,), generator=generator).tolist()
    place = torch.randint(2, LENGTH - 2, (PROMPTS,), generator=generator).tolist()
    known = Answers(
        torch.tensor(sorted(set(values))),
        torch.zeros(PROMPTS, len(set(values)), dtype=torch.bool),
        tuple(((value,),) for value in values),
    )
    questions = [Question(n, Prompt(ids[n].tolist(), place[n]), known) for n in range(PROMPTS)]
    drawn = torch.randint(PROMPTS, (PAIRS, 2), generator=generator).tolist()
    pairs = [Pair(number % 2 == 0, *each) for number, each in enumerate(drawn)]
    sae = saefast.SAE(tiny_lm.D, M, k=8, seed=0).requires_grad_(False)
    runs = Interchange(model, find_site(model.model, SITE), questions, 16)
    layers = model.model.model.layers
    monkeypatch.setattr(activation_collection, "get_module", lambda _, n: _Layer(layers[n]))
    return World(runs, pairs, sae, model)


class _Loader:
    """The batches of a schedule as SAEBench's loader gives them, epoch by epoch."""

    def __init__(self, world: World, schedule: list[list[Pair]]) -> None:
        self._batches = [_batch(world.runs, pairs) for pairs in schedule]
        self._epoch = -1

    def __len__(self) -> int:
        return len(self._batches) // EPOCHS

    def __iter__(self) -> Iterator[Any]:
        self._epoch += 1
        return iter(self._batches[self._epoch * len(self) : (self._epoch + 1) * len(self)])


def _batch(runs: Interchange, pairs: list[Pair]) -> tuple[Any, ...]:
    base, source = ([runs.questions[getattr(p, end)] for p in pairs] for end in ("base", "source"))
    encoded = [{"input_ids": torch.tensor([q.prompt.ids for q in each])} for each in (base, source)]
    places = [torch.tensor([q.prompt.position for q in each]) for each in (base, source)]
    of_base = torch.tensor([q.token for q in base])
    wanted = [s.token if p.cause else b.token for p, b, s in zip(pairs, base, source, strict=True)]
    return (*encoded, *places, of_base, torch.tensor(wanted), None, None)


class Trained(NamedTuple):
    """A training of SAEBench's, and the losses of its steps and of ours."""

    theirs: Any
    losses: list[float]
    ours: list[float]


def train_theirs(
    world: World, monkeypatch: pytest.MonkeyPatch, purpose: str, *, mdas: bool
) -> Trained:
    losses: list[float] = []
    ours: list[float] = []
    compute, loss_of = mdbm.compute_loss, annealing.loss_of

    def computed(logits: Tensor, target: Tensor) -> Any:
        found = compute(logits, target)
        losses.append(found[0].item())
        return found

    def recorded(*arguments: Any) -> Tensor:
        found = loss_of(*arguments)
        ours.append(found.item())
        return found

    monkeypatch.setattr(mdbm, "compute_loss", computed)
    monkeypatch.setattr(annealing, "loss_of", recorded)
    schedule = schedule_of(world.pairs, BATCH, generator_of(SEED, purpose), EPOCHS)
    config = SimpleNamespace(llm_batch_size=BATCH, learning_rate=1e-3, num_epochs=EPOCHS)
    theirs = mdbm.train_mdbm(
        world.model.model,
        world.model.tokenizer,
        config,
        SaeBenchSae(world.sae, "model", hook_layer=SITE),
        _Loader(world, schedule),
        None,
        train_mdas=mdas,
    )
    return Trained(theirs, losses, ours)


def test_masks_are_trained_alike(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses within 1e-4, and exactly the same latents at the end."""
    trained = train_theirs(world, monkeypatch, "trained mask", mdas=False)
    mask = trained_mask(
        world.runs,
        Swap(world.sae, world.runs.rows),
        world.pairs,
        batch_size=BATCH,
        seed=SEED,
        bar=silent(),
    )
    assert len(trained.ours) == EPOCHS * PAIRS // BATCH
    assert trained.ours == pytest.approx(trained.losses, abs=1e-4)
    assert max(trained.losses) - min(trained.losses) > 0.1
    chosen = trained.theirs.binary_mask.detach() > 0
    assert mask.tolist() == chosen.tolist()
    assert 5 < int(mask.sum()) < M - 5


def test_subspaces_are_trained_alike_but_for_reversed_axes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With signs of the QR decomposition fixed, losses agree within 1e-4, projections 1e-3."""
    loose = train_theirs(world, monkeypatch, "subspace", mdas=True).theirs
    assert bool((loose.transform_matrix.diagonal() < 0).any())  # axes that a step has reversed
    monkeypatch.undo()
    layers = world.model.model.model.layers
    monkeypatch.setattr(activation_collection, "get_module", lambda _, n: _Layer(layers[n]))
    decompose = torch.linalg.qr

    def signed(matrix: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
        q, r = decompose(matrix, mode=mode)
        signs = r.diagonal().sign()
        return q * signs, r * signs[:, None]

    monkeypatch.setattr(torch.linalg, "qr", signed)
    trained = train_theirs(world, monkeypatch, "subspace", mdas=True)
    monkeypatch.setattr(torch.linalg, "qr", decompose)
    ours = trained_subspace(
        world.runs, world.pairs, epochs=EPOCHS, batch_size=BATCH, seed=SEED, bar=silent()
    )
    assert trained.ours == pytest.approx(trained.losses, abs=1e-4)
    theirs = trained.theirs.transform_matrix.detach().double()
    chosen = trained.theirs.binary_mask.detach() > 0
    assert ours.chosen.tolist() == chosen.tolist()
    assert 3 < int(chosen.sum()) < tiny_lm.D - 3
    axes = ours.axes[ours.chosen]
    torch.testing.assert_close(
        axes.T @ axes, theirs[:, chosen] @ theirs[:, chosen].T, atol=1e-3, rtol=0
    )
    assert not torch.allclose(ours.axes, torch.eye(tiny_lm.D).double(), atol=1e-3)
