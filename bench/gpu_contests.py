"""Who is timed on a GPU: encode, decode, update and whole steps, ours and everybody else's."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from torch import Tensor

import saefast
from bench import peers
from bench.cases import Shape
from bench.gpu_checks import drawn_on, model
from bench.gpu_times import Contestant, Run
from saefast import FusedStep, SparseCode, reference
from saefast.batch_topk import batch_topk
from saefast.ops import gpu
from saefast.ops.encode_gpu import encode_rounded, screen_for
from saefast.ops.encode_packed import repacked
from saefast.ops.gpu_screens import CANDIDATES, GpuScreen
from saefast.ops.latent_update import latent_update

_LR = 1e-4
_ROUNDED = 2.0**-6
"""Scores of operands and results in bfloat16 are off by some of its roundings, 2^-9 each."""
RIVALS = ("SAELens", "sparsify")


class Contest:
    """One shape's data, and its contestants by case."""

    def __init__(self, shape: Shape, device: str = "cuda") -> None:
        self.shape, self.device = shape, device
        self.x, self.weights = drawn_on(shape, device)
        self.centred = self.x - self.weights.b_dec
        half, half_weight = self.centred.bfloat16(), self.weights.w_enc.bfloat16()
        self.unit: Run = lambda: torch.mm(half, half_weight.T)
        code = saefast.topk_encode(self.centred, self.weights.w_enc, self.weights.b_enc, k=shape.k)
        self.code = SparseCode(code.values.relu(), code.indices)
        self.sample = slice(None, None, max(1, shape.n // 64))
        """the rows of which the truth is computed"""

    def near(self, tolerance: float, truth: Tensor) -> Callable[[Tensor], bool]:
        """Whether the sampled rows of a result are `truth`, relative to 1 + |truth|."""
        allowed = tolerance * (1 + truth.abs())
        return lambda out: bool(((out[self.sample] - truth).abs() <= allowed).all())

    def contestants(self, case: str, *, peers: bool) -> Iterator[Contestant]:
        """The peers in one of `CASES`, or all others: torch.compile must come first."""
        return (one for one in CASES[case](self) if (one.rival in RIVALS) == peers)


def _encodes(contest: Contest) -> Iterator[Contestant]:
    shape, x, weights = contest.shape, contest.centred, contest.weights
    operands = [t.double() for t in (x[contest.sample], weights.w_enc, weights.b_enc)]
    truth = reference.topk_encode(*operands, k=shape.k).values.relu()
    del operands
    exact, rounded = contest.near(1e-4, truth), contest.near(_ROUNDED, truth)

    def ours(precision: str, screen: GpuScreen | None, impl: str = "auto") -> Callable[[], Run]:
        """As the public op does it, but by a given screen."""
        is_exact = precision == "exact"

        def run() -> Tensor:
            if screen is None:
                return saefast.topk_encode(
                    x, weights.w_enc, weights.b_enc, k=shape.k, precision=precision
                ).values
            left = gpu.launch("round_rows.rounded_rows", x, screen.product)
            right = gpu.launch("round_rows.rounded_rows", weights.w_enc, screen.product)
            operands = (x, weights.w_enc, weights.b_enc, None, shape.k)
            return encode_rounded(*operands, is_exact, screen, left, right, impl).values.relu()

        return lambda: run

    def entry(mode: str, agrees: Callable[[Any], bool], build: Callable[[], Run]) -> Contestant:
        return Contestant("encode", "saefast", mode, build, lambda values: agrees(values.relu()))

    yield entry("exact", exact, ours("exact", None))
    yield entry("bf16", rounded, ours("bf16", None))
    for screen in CANDIDATES:
        yield entry(f"exact {screen}", exact, ours("exact", screen))
    if gpu.has_cuda():
        chosen = screen_for(x, weights.w_enc, shape.k, exact=True)
        yield entry(f"exact {chosen} triton", exact, ours("exact", chosen, "triton"))
    # By these `suggested` in saefast/ops/gpu_screens.py is set.
    for engine in ("fused", "chunked"):
        screen = GpuScreen(engine, "bfloat16")
        yield entry(f"bf16 {engine}", rounded, ours("bf16", screen))

    def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values: Tensor = torch.addmm(bias, x, weight.T).relu().topk(shape.k).values
        return values

    halves = [t.bfloat16() for t in (x, weights.w_enc, weights.b_enc)]
    wholes = [x, weights.w_enc, weights.b_enc]
    yield Contestant("encode", "torch", "bf16 dense", lambda: partial(dense, *halves), rounded)
    yield Contestant("encode", "torch", "fp32 dense", lambda: partial(dense, *wholes), exact)
    yield Contestant(
        "encode",
        "torch.compile",
        "bf16 dense",
        lambda: partial(torch.compile(dense, dynamic=False), *halves),
        rounded,
    )
    for name, mode in product(installed(), ("default", "autocast")):
        near = exact if mode == "default" else rounded
        build = partial(_peer_encode, name, contest, mode)
        yield Contestant("encode", name, mode, build, partial(_same_code, contest, near))


def _batches(contest: Contest) -> Iterator[Contestant]:
    """The n k largest of a batch; the threshold of the step before is known, as in training."""
    shape, x, weights = contest.shape, contest.centred, contest.weights
    wanted = shape.n * shape.k

    def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values: Tensor = torch.addmm(bias, x, weight.T).relu().flatten().topk(wanted).values
        return values

    def near(tolerance: float) -> Callable[[Tensor], bool]:
        return lambda values: abs(float(values.double().sum()) / truth - 1) <= tolerance

    def ours(precision: str) -> Run:
        settings: dict[str, Any] = {"precision": precision}
        settings["packed"] = repacked(None, False, x, weights.w_enc, shape.k, precision)
        found = batch_topk(x, weights.w_enc, weights.b_enc, shape.k, **settings)
        settings["guess"] = 0.9 * float(found.threshold)
        settings["width"] = 2 * int(found.counts.amax())
        return lambda: batch_topk(x, weights.w_enc, weights.b_enc, shape.k, **settings).code.values

    exact = batch_topk(x, weights.w_enc, weights.b_enc, shape.k)
    truth = float(exact.code.values.double().sum())
    for precision in ("exact", "bf16"):
        yield Contestant("batch_topk", "saefast", precision, partial(ours, precision), near(1e-3))
    halves = [t.bfloat16() for t in (x, weights.w_enc, weights.b_enc)]
    yield Contestant(
        "batch_topk", "torch", "bf16 dense", lambda: partial(dense, *halves), near(1e-2)
    )


def installed() -> list[str]:
    """Which of the peers that run on a GPU are here; nothing is imported, see bench/peers.py."""
    return [name for name in RIVALS if find_spec(peers.PACKAGES[name])]


def _peer_encode(name: str, contest: Contest, mode: str) -> Run:
    peer = peers.CODERS[name](contest.shape, contest.weights)

    def run() -> tuple[peers.Peer, Any]:
        with torch.no_grad(), _autocast(mode, contest.device):
            return peer, peer.encode(contest.x)

    return run


def _same_code(
    contest: Contest, near: Callable[[Tensor], bool], result: tuple[peers.Peer, Any]
) -> bool:
    peer, code = result
    return near(peer.dense_code(code).topk(contest.shape.k).values)


def _autocast(mode: str, device: str) -> AbstractContextManager[object]:
    return torch.autocast(device, torch.bfloat16) if mode == "autocast" else nullcontext()


def _decodes(contest: Contest) -> Iterator[Contestant]:
    """Forward alone, and with the gradients of values and weight."""
    shape, weights, indices = contest.shape, contest.weights, contest.code.indices
    values, places = (t[contest.sample] for t in contest.code)
    truth = reference.sparse_decode(values, places, weights.w_dec)

    def ours(values: Tensor, weight: Tensor) -> Tensor:
        return saefast.sparse_decode(values, indices, weight)

    def dense(values: Tensor, weight: Tensor) -> Tensor:
        return values.new_zeros(shape.n, shape.m).scatter(1, indices, values) @ weight

    def embedding_bag(values: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.embedding_bag(
            indices, weight, per_sample_weights=values, mode="sum"
        )

    def by_sparsify(values: Tensor, weight: Tensor) -> Tensor:
        utils = importlib.import_module("sparsify.utils")
        out: Tensor = utils.decoder_impl(indices, values, weight.mT)
        return out

    runs: list[tuple[str, str, Callable[[Tensor, Tensor], Tensor]]] = [
        ("saefast", "", ours),
        ("torch", " dense", dense),
        ("torch", " embedding_bag", embedding_bag),
        ("torch.compile", " dense", dense),
    ]
    if "sparsify" in installed():
        runs.append(("sparsify", "", by_sparsify))
    for dtype, short in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        near = contest.near(1e-3 if dtype == torch.float32 else 2.0**-4, truth)
        for rival, mode, decode in runs:
            for case in ("decode", "decode+backward"):
                yield Contestant(
                    case,
                    rival,
                    short + mode,
                    partial(
                        _decode,
                        decode,
                        contest,
                        dtype,
                        backward=case != "decode",
                        compiled=rival == "torch.compile",
                    ),
                    near,
                )


def _decode(
    decode: Callable[[Tensor, Tensor], Tensor],
    contest: Contest,
    dtype: torch.dtype,
    *,
    backward: bool,
    compiled: bool,
) -> Run:
    if compiled:
        decode = torch.compile(decode, dynamic=False)
    leaves = [
        tensor.to(dtype, copy=True).requires_grad_(backward)
        for tensor in (contest.code.values, contest.weights.w_dec)
    ]
    upstream = torch.ones(contest.shape.n, contest.shape.d, dtype=dtype, device=contest.device)

    def run() -> Tensor:
        out = decode(*leaves)
        if backward:
            torch.autograd.grad(out, leaves, upstream)
        return out.detach()

    return run


def _updates(contest: Contest) -> Iterator[Contestant]:
    """The pass over the latents alone; torch's fused Adam is given its gradients for nothing."""
    shape, x, code = contest.shape, contest.x, contest.code

    def ours() -> Run:
        sae = model(shape, contest.weights)
        parameters = [p.detach() for p in (sae.W_enc, sae.b_enc, sae.W_dec)]
        moments = [torch.zeros_like(p) for p in parameters for _ in range(2)]
        rounded = gpu.launch("round_rows.rounded_rows", parameters[0], "bfloat16")
        lr, first = torch.tensor([_LR, 1.0], dtype=torch.float64, device=contest.device)
        rates = reference.adam_rates(lr, first, 0.9, 0.999)
        residual, grads, _ = torch.ops.saefast.decode_residual(
            code.values, code.indices, sae.W_dec.detach(), sae.b_dec.detach(), x, 2.0 / shape.n
        )
        return lambda: latent_update(
            *(code.indices, code.values, grads, residual, contest.centred),
            *(*parameters, *moments, rounded.units, rounded.norm, rounded.lost, "bfloat16"),
            *(None, None, None, None, rates, 0.9, 0.999, 1e-8, True),
        )[1]

    fired = torch.zeros(shape.m, dtype=torch.int64, device=contest.device)
    active = code.indices[code.values > 0]
    fired.scatter_add_(0, active, torch.ones_like(active))
    yield Contestant("update", "saefast", "exact", ours, lambda seen: torch.equal(seen, fired))

    def adam() -> Run:
        sae = model(shape, contest.weights)
        for parameter in sae.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return torch.optim.Adam(sae.parameters(), _LR, fused=contest.device == "cuda").step

    yield Contestant("update", "torch", "fused Adam alone", adam, lambda _: True)


def _steps(contest: Contest) -> Iterator[Contestant]:
    """Whole training steps; a result is the loss that the step saw."""
    shape, x = contest.shape, contest.x
    decoded = saefast.sparse_decode(*contest.code, contest.weights.w_dec, contest.weights.b_dec)
    truth = float((decoded - x).double().square().sum() / shape.n)

    def near(loss: Any) -> bool:
        """Who rounds scores to bfloat16 selects another latent here and there."""
        return abs(float(loss) / truth - 1) <= 2e-2

    def ours(precision: str, *, graph: bool) -> Run:
        step = FusedStep(model(shape, contest.weights), lr=_LR, precision=precision)
        if graph:
            step(x)
            replay = step.capture(x)
            return lambda: replay(x).loss
        return lambda: step(x).loss

    for precision in ("exact", "bf16"):
        for graph in (False, True):
            mode = f"{precision} graph" if graph else precision
            build = partial(ours, precision, graph=graph)
            yield Contestant("step", "saefast", mode, build, near)
    for rival, compiled in (("torch", False), ("torch.compile", True)):
        build = partial(_dense_step, contest, compiled=compiled)
        yield Contestant("step", rival, "bf16 dense", build, near)
    for name in installed():
        # sparsify's forward pass is always under autocast.
        for autocast in (False, True) if name == "SAELens" else (True,):
            mode = "autocast" if autocast else "default"
            build = partial(_peer_step, name, contest, autocast=autocast)
            yield Contestant("step", name, mode, build, near)


def _dense_step(contest: Contest, *, compiled: bool) -> Run:
    """Autocast, TopK by scatter, torch's fused Adam; no unit norm, which would cost it more."""
    shape, x = contest.shape, contest.x
    sae = model(shape, contest.weights)
    optimiser = torch.optim.Adam(sae.parameters(), _LR, fused=contest.device == "cuda")

    def loss_of(x: Tensor) -> Tensor:
        with torch.autocast(contest.device, torch.bfloat16):
            scores = torch.nn.functional.linear(x - sae.b_dec, sae.W_enc, sae.b_enc)
            values, indices = scores.topk(shape.k, sorted=False)
            acts = torch.zeros_like(scores).scatter(1, indices, values.relu())
            out = acts @ sae.W_dec + sae.b_dec
        return (out.float() - x).square().sum(1).mean()

    function = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def step() -> Tensor:
        optimiser.zero_grad()
        loss = function(x)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step


def _peer_step(name: str, contest: Contest, *, autocast: bool) -> Run:
    """A peer's own step, which returns the loss of its reconstruction before the first."""
    make = peers.TRAININGS[name]
    if name == "SAELens":
        make = partial(peers.sae_lens_training, autocast=autocast)
    training = make(contest.shape, contest.weights, _LR)
    with torch.no_grad(), _autocast("autocast" if autocast else "default", contest.device):
        error = training.reconstruct(contest.x).float() - contest.x
    before = error.square().sum() / contest.shape.n

    def step() -> Tensor:
        training.step(contest.x)
        return before

    return step


CASES: dict[str, Callable[[Contest], Iterator[Contestant]]] = {
    "encode": _encodes,
    "batch_topk": _batches,
    "decode": _decodes,
    "update": _updates,
    "step": _steps,
}
