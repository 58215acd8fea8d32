"""SAELens and sparsify on a GPU, alone and with saefast inside."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from torch import Tensor

from bench import inside, peers
from bench.gpu.contest import Contest
from bench.gpu.decodes import decodes_by
from bench.gpu.encodes import encode_agreements
from bench.gpu.steps import LR, is_near
from bench.gpu.times import Contestant, Run, ceilings_item, ceilings_of, raced
from bench.gpu.worker import Item
from bench.shapes import gpu_shape

RIVALS = ("SAELens", "sparsify")


def items(argument: str, facts: dict[str, Any]) -> Iterator[Item]:
    """Yield the contests of the installed peers at the shape `argument`, or C2."""
    shape = gpu_shape(argument or "C2")
    ceilings = ceilings_of(facts)
    yield ceilings_item(ceilings)
    contest = Contest(shape)
    for case, contestants in PEER_CASES.items():
        yield from raced(shape, contest.unit, case, contestants(contest), ceilings)


def installed() -> list[str]:
    """Return the installed peers that run on a GPU, without importing them, see bench/peers.py."""
    return [name for name in RIVALS if find_spec(peers.PACKAGES[name])]


def _steps(contest: Contest) -> Iterator[Contestant]:
    """Yield training steps of peers, with and without autocast, alone and with saefast inside."""
    for name in installed():
        # sparsify's forward pass always runs under autocast.
        for autocast, ours in product(
            (False, True) if name == "SAELens" else (True,), (False, True)
        ):
            mode = ("autocast" if autocast else "default") + (", saefast inside" if ours else "")
            build = partial(_step, name, contest, autocast=autocast, ours=ours)
            near = partial(is_near, contest, contest.code.values, contest.code.indices)
            yield Contestant("step", name, mode, build, near)


def _step(name: str, contest: Contest, *, autocast: bool, ours: bool) -> Run:
    """Return a peer's own step, which returns the squared error before its first update."""
    if name == "SAELens":
        training = peers.sae_lens_training(
            contest.shape, contest.weights, LR, autocast=autocast, inside=ours
        )
    else:
        training = peers.sparsify_training(contest.shape, contest.weights, LR)
    take: Callable[[Tensor], object] = training.step
    if ours and name == "sparsify":
        take = partial(inside.with_sparsify_enabled, training)
    with torch.no_grad(), _autocast(autocast, contest.device):
        error = training.reconstruct(contest.x).float() - contest.x
    before = error.square().sum()

    def step() -> Tensor:
        take(contest.x)
        return before

    return step


def _encodes(contest: Contest) -> Iterator[Contestant]:
    exact, rounded = encode_agreements(contest)
    for name, autocast in product(installed(), (False, True)):
        near = rounded if autocast else exact
        build = partial(_encode, name, contest, autocast=autocast)
        mode = "autocast" if autocast else "default"
        yield Contestant("encode", name, mode, build, partial(_same_code, contest, near))


def _encode(name: str, contest: Contest, *, autocast: bool) -> Run:
    peer = peers.CODERS[name](contest.shape, contest.weights)

    def run() -> tuple[peers.Peer, Any]:
        with torch.no_grad(), _autocast(autocast, contest.device):
            return peer, peer.encode(contest.x)

    return run


def _same_code(
    contest: Contest, near: Callable[[Tensor], bool], result: tuple[peers.Peer, Any]
) -> bool:
    peer, code = result
    return near(peer.dense_code(code).topk(contest.shape.k).values)


def _decodes(contest: Contest) -> Iterator[Contestant]:
    """Yield sparsify's Triton decoder."""

    def by_sparsify(indices: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        utils = importlib.import_module("sparsify.utils")
        out: Tensor = utils.decoder_impl(indices, values, weight.mT)
        return out

    if "sparsify" in installed():
        yield from decodes_by(contest, "sparsify", "", by_sparsify)


def _autocast(on: bool, device: str) -> AbstractContextManager[object]:
    return torch.autocast(device, torch.bfloat16) if on else nullcontext()


PEER_CASES: dict[str, Callable[[Contest], Iterator[Contestant]]] = {
    "step": _steps,
    "encode": _encodes,
    "decode": _decodes,
}
