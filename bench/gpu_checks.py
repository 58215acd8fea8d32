"""What the GPU's kernels compute at small and odd shapes, against float64; the same bits twice."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

import saefast
from bench.cases import Shape, Weights, draw
from saefast import AuxK, FusedStep, SparseCode, ThresholdCode, reference
from saefast.ops import gpu
from saefast.ops.decode_residual import decode_residual
from saefast.ops.encode_gpu import encode_rounded, threshold_rounded
from saefast.ops.gpu_screens import GpuScreen

SHAPES = (
    Shape(16, 64, 1, 1),
    Shape(40, 127, 5, 33),
    Shape(63, 128, 128, 7),
    Shape(100, 1025, 32, 70),
    Shape(257, 4095, 17, 129),
    Shape(768, 4096, 64, 255),
    Shape(1001, 16385, 100, 31),
)
"""m one below, at and one above a power of two, widths that fill no vector, k = 1 and k = m."""
SCREENS = tuple(
    GpuScreen(engine, units)
    for engine, units in product(("chunked", "fused"), ("bfloat16", "tfloat32", "float32"))
)
_UNIT = 2.0**-24
"""Half the distance of float32 neighbours: what one rounding takes of a number."""


class Finding(NamedTuple):
    """One statement about the kernels, and whether it holds."""

    check: str
    shape: Shape
    holds: bool
    figures: dict[str, float]

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**self._asdict(), "shape": self.shape._asdict()}


def findings(shape: Shape, device: str) -> Iterator[Finding]:
    """Every check at one shape."""
    x, weights = drawn_on(shape, device)
    for check in CHECKS:
        yield from check(shape, x, weights)


def drawn_on(shape: Shape, device: str) -> tuple[Tensor, Weights]:
    """`draw`, moved."""
    x, weights = draw(shape)
    return x.to(device), Weights(*(weight.to(device) for weight in weights))


def _selects() -> list[str]:
    """Who can keep the lists here."""
    return ["triton", "cuda"] if gpu.has_cuda() else ["triton"]


def _encode(
    x: Tensor, weights: Weights, scale: Tensor, k: int, screen: GpuScreen, by: str, *, exact: bool
) -> SparseCode:
    left = gpu.launch("round_rows.rounded_rows", x, screen.product)
    right = gpu.launch("round_rows.rounded_rows", weights.w_enc, screen.product, scale)
    bias = weights.b_enc
    return encode_rounded(x, weights.w_enc, bias, scale, k, exact, screen, left, right, by)


def exact_encodes(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Whoever screens, the result is the top k in float32, and the same bits."""
    scale = 0.5 + weights.w_enc.norm(dim=1)
    first = None
    for screen, by in product(SCREENS, _selects()):
        codes = [_encode(x, weights, scale, shape.k, screen, by, exact=True) for _ in range(2)]
        first = first or codes[0]
        same = all(map(torch.equal, *codes)) and all(map(torch.equal, first, codes[0]))
        apart = _apart(codes[0], x, weights.w_enc, weights.b_enc, scale, 1.0)
        figures = {"apart": apart, "same_bits": float(same)}
        yield Finding(f"exact {screen} {by}", shape, apart <= 1.0 and same, figures)


def rounded_encodes(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """The top k of the product of rounded operands; tensor cores may truncate when they add."""
    scale = torch.ones_like(weights.b_enc)
    rounded = x.bfloat16().float(), weights.w_enc.bfloat16().float()
    for screen, by in product(SCREENS, _selects()):
        if screen.product != "bfloat16":
            continue
        codes = [_encode(x, weights, scale, shape.k, screen, by, exact=False) for _ in range(2)]
        same = all(map(torch.equal, *codes))
        apart = _apart(codes[0], *rounded, weights.b_enc, scale, 2.5)
        figures = {"apart": apart, "same_bits": float(same)}
        yield Finding(f"bf16 {screen.engine} {by}", shape, apart <= 1.0 and same, figures)


def _apart(
    code: SparseCode, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, roundings: float
) -> float:
    """How far values and choices are from float64's, in units of what float32 sums may be off.

    A value may differ from its score by that much, a choice from the k-th best by twice as much;
    the float64 score of a code's entry is what its index says it is.
    """
    values, indices = code.values.double(), code.indices
    ordered = indices.sort(dim=1).values
    sound = values.isfinite().all() and (values[:, 1:] <= values[:, :-1]).all()
    sound = sound and (ordered[:, 1:] > ordered[:, :-1]).all()
    if not (sound and indices.min() >= 0 and indices.max() < weight.shape[0]):
        return float("inf")
    wide_x, wide_weight = x.double(), weight.double()
    truth = reference.scores(wide_x, wide_weight, bias.double(), scale.double())
    allowed = _allowed(wide_x, wide_weight, bias, scale, roundings)
    kept = truth.gather(1, indices)
    of_values = (values - kept).abs() / allowed.gather(1, indices)
    worst = truth.topk(indices.shape[1], dim=1).values[:, -1:]
    of_choices = (worst - kept) / (2 * allowed.amax(1, keepdim=True))
    return float(torch.maximum(of_values.amax(), of_choices.amax()))


def _allowed(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, roundings: float) -> Tensor:
    """[n, m] what float32 sums of float64 operands may be off."""
    sizes: Tensor = x.norm(dim=1, keepdim=True) * (weight.norm(dim=1) * scale)
    return roundings * (x.shape[1] + 32) * _UNIT * sizes + 16 * _UNIT * (bias * scale).abs()


def integer_encodes(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Where every sum is exact, ties included, the result is the reference's bit for bit."""
    generator = torch.Generator().manual_seed(1)
    x, w_enc, b_enc, scale = (
        torch.randint(-3, 4, like.shape, generator=generator).to(like)
        for like in (x, weights.w_enc, weights.b_enc, weights.b_enc)
    )
    scale = scale.abs()
    expected = reference.topk_encode(x, w_enc, b_enc, k=shape.k, scale=scale)
    weights = Weights(w_enc, b_enc, w_enc, b_enc)
    for screen, by, exact in product(SCREENS, _selects(), (True, False)):
        code = _encode(x, weights, scale, shape.k, screen, by, exact=exact)
        same = torch.equal(code.indices, expected.indices)
        same = same and torch.equal(code.values, expected.values)
        name = f"integers {'exact' if exact else 'rounded'} {screen} {by}"
        yield Finding(name, shape, same, {})


def thresholds(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Who is above is float64's opinion, where that can be sure; same bits whoever screens.

    A code with less room is the beginning of the one with room for all.
    """
    scale = 0.5 + weights.w_enc.norm(dim=1)
    best = saefast.topk_encode(x, weights.w_enc, weights.b_enc, k=shape.k, scale=scale).values
    limit = best[:, -1].median().expand(shape.m)
    wide = x.double(), weights.w_enc.double(), weights.b_enc.double(), scale.double()
    truth, allowed = reference.scores(*wide), _allowed(*wide, 1.0)
    first = None
    for screen in SCREENS:
        codes = [_above(x, weights, scale, limit, room, screen) for room in (shape.m, 2 * shape.k)]
        first = first or codes[0]
        values, indices, counts = codes[0]
        room = codes[1].values.shape[1]
        same = all(map(torch.equal, first, codes[0])) and torch.equal(counts, codes[1].counts)
        same = same and torch.equal(values[:, :room], codes[1].values)
        same = same and torch.equal(indices[:, :room], codes[1].indices)
        filled = torch.arange(shape.m, device=x.device) < counts[:, None]
        row, place = filled.nonzero(as_tuple=True)
        column = indices[row, place]
        found = torch.zeros_like(truth, dtype=torch.bool)
        found[row, column] = True
        wrong = int((found & (truth < limit - allowed)).sum())
        wrong += int((~found & (truth > limit + allowed)).sum())
        wrong += int(((values[row, place] - truth[row, column]).abs() > allowed[row, column]).sum())
        figures = {"wrong": float(wrong), "same_bits": float(same), "above": float(counts.sum())}
        yield Finding(f"threshold {screen}", shape, wrong == 0 and same, figures)


def _above(
    x: Tensor, weights: Weights, scale: Tensor, limit: Tensor, room: int, screen: GpuScreen
) -> ThresholdCode:
    left = gpu.launch("round_rows.rounded_rows", x, screen.product)
    right = gpu.launch("round_rows.rounded_rows", weights.w_enc, screen.product, scale)
    operands = (x, weights.w_enc, weights.b_enc, scale, limit, min(room, len(limit)))
    return threshold_rounded(*operands, "exact", screen, left, right)


def integer_thresholds(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """As `integer_encodes`; scores that equal their threshold are not above it."""
    generator = torch.Generator().manual_seed(1)
    x, w_enc, b_enc, limit = (
        torch.randint(-3, 4, like.shape, generator=generator).to(like)
        for like in (x, weights.w_enc, weights.b_enc, weights.b_enc)
    )
    limit = limit * shape.d**0.5 // 1
    rooms = {"some": shape.k, "all": shape.m}
    for precision, (kept, room) in product(("exact", "bf16"), rooms.items()):
        settings: dict[str, Any] = {"threshold": limit, "width": room, "precision": precision}
        expected = reference.threshold_encode(x, w_enc, b_enc, **settings)
        code = saefast.threshold_encode(x, w_enc, b_enc, **settings)
        same = all(map(torch.equal, code, expected))
        yield Finding(f"integers above {precision}, {kept} kept", shape, same, {})


def gradients(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """Encode, decode and everything that their gradients are made of."""
    scale = 0.5 + weights.w_enc.norm(dim=1)
    leaves = [x, weights.w_enc, weights.b_enc, scale, weights.w_dec, weights.b_dec]

    def results(
        encode: Callable[..., SparseCode], decode: Callable[..., Tensor], wide: bool
    ) -> Any:
        wanted = [(t.double() if wide else t.clone()).requires_grad_() for t in leaves]
        rows, w_enc, b_enc, factors, w_dec, b_dec = wanted
        code = encode(rows, w_enc, b_enc, k=shape.k, scale=factors)
        out = decode(code.values.relu(), code.indices, w_dec, b_dec)
        return [out.detach(), *torch.autograd.grad((out - rows.detach()).square().sum(), wanted)]

    ours, again = (results(saefast.topk_encode, saefast.sparse_decode, False) for _ in range(2))
    truth = results(reference.topk_encode, reference.sparse_decode, True)
    names = ("decode", "x", "w_enc", "b_enc", "scale", "w_dec", "b_dec")
    yield _near("decode and gradients", shape, names, ours, again, truth)


def residuals(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """The step's decode, with its loss and the gradients of values."""

    def results(by: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype) -> tuple[Tensor, ...]:
        values, weight, bias, target = (
            t.to(dtype) for t in (code.values, weights.w_dec, weights.b_dec, x)
        )
        return by(values, code.indices, weight, bias, target, 0.5)

    code = reference.topk_encode(x, weights.w_enc, weights.b_enc, k=shape.k)
    ours, again = (results(decode_residual, torch.float32) for _ in range(2))
    truth = results(reference.decode_residual, torch.float64)
    names = ("residual", "value_grads", "square")
    yield _near("decode_residual", shape, names, ours, again, truth)


def _near(
    check: str,
    shape: Shape,
    names: Sequence[str],
    ours: Sequence[Tensor],
    again: Sequence[Tensor],
    truth: Sequence[Tensor],
) -> Finding:
    """A missing term would show: sums of a few hundred numbers are right to a few roundings."""
    figures = {name: _relative(a, e) for name, a, e in zip(names, ours, truth, strict=True)}
    same = all(map(torch.equal, ours, again))
    holds = max(figures.values()) <= 1e-5 and same
    return Finding(check, shape, holds, {**figures, "same_bits": float(same)})


def trainings(shape: Shape, x: Tensor, weights: Weights) -> Iterator[Finding]:
    """By both precisions, without AuxK and with it."""
    for precision, auxk in product(("exact", "bf16"), (False, True)):
        yield _training(shape, x, weights, precision, auxk=auxk)


def _training(shape: Shape, x: Tensor, weights: Weights, precision: str, *, auxk: bool) -> Finding:
    """Three steps against the same in float64, which the reference takes; twice the same bits.

    Adam's steps are as large for the smallest gradient as for any: where one is nearly zero two
    correct sums may differ in sign. Weights that are apart by that much are counted, not bounded.
    """
    lr = 1e-3
    settings = AuxK(min(shape.d, shape.m), dead_after=2 * shape.n) if auxk else None
    batches = [x.roll(i, 0) * (1 + i / 8) for i in range(3)]

    def trained(dtype: torch.dtype) -> tuple[list[float], list[Tensor]]:
        step = FusedStep(model(shape, weights, dtype), lr=lr, precision=precision, auxk=settings)
        results = [step(x.to(dtype)) for x in batches]
        losses = [float(loss) for r in results for loss in (r.loss, r.auxk) if loss is not None]
        return losses, [p.detach() for p in step.sae.parameters()]

    ours, again, truth = (trained(dtype) for dtype in (torch.float32,) * 2 + (torch.float64,))
    loss_apart = max(abs(a - e) / max(abs(e), 1e-3) for a, e in zip(ours[0], truth[0], strict=True))
    moved = [(a - e).abs() > 0.1 * lr for a, e in zip(ours[1], truth[1], strict=True)]
    weights_apart = float(torch.cat([m.flatten() for m in moved]).double().mean())
    same = ours[0] == again[0] and all(map(torch.equal, ours[1], again[1]))
    # In float64 AuxK multiplies unrounded operands; its products in bfloat16 are off by 2^-9.
    close = (5e-3, 1e-2) if auxk and precision == "bf16" else (1e-5, 1e-3)
    return Finding(
        f"three steps {precision}{' auxk' if auxk else ''}",
        shape,
        loss_apart <= close[0] and weights_apart <= close[1] and same,
        {"loss_apart": loss_apart, "weights_apart": weights_apart, "same_bits": float(same)},
    )


def model(shape: Shape, weights: Weights, dtype: torch.dtype = torch.float32) -> saefast.SAE:
    """An SAE that holds these weights, where they are."""
    with torch.device("meta"):  # so that large ones need not be drawn to be overwritten
        sae = saefast.SAE(shape.d, shape.m, k=shape.k, dtype=dtype, device="meta")
    sae.to_empty(device=weights.w_enc.device)
    with torch.no_grad():
        for name, value in zip(("W_enc", "b_enc", "W_dec", "b_dec"), weights, strict=True):
            getattr(sae, name).copy_(value)
    return sae


def _relative(actual: Tensor, truth: Tensor) -> float:
    """The length of the error by the length of the truth; infinite where anything is not finite."""
    error = float((actual.double() - truth).norm() / truth.norm().clamp(min=1e-30))
    return error if error == error else float("inf")


CHECKS = (
    exact_encodes,
    rounded_encodes,
    integer_encodes,
    thresholds,
    integer_thresholds,
    gradients,
    residuals,
    trainings,
)


def graphs_and_far_addresses() -> Iterator[Finding]:
    """What only a GPU has: a captured step, and memory beyond 2^31 elements."""
    shape = Shape(96, 1000, 16, 128)
    x, weights = drawn_on(shape, "cuda")
    eager, captured = (
        FusedStep(model(shape, weights), auxk=AuxK(32, dead_after=256)) for _ in "ab"
    )
    eager(x), captured(x)
    replay = captured.capture(x)
    losses = [(float(eager(x * i).loss), float(replay(x * i).loss)) for i in (1, 2, 3)]
    same = all(a == b for a, b in losses) and all(
        map(torch.equal, eager.sae.parameters(), captured.sae.parameters())
    )
    yield Finding("a captured step is the step", shape, same, {})

    far = Shape(2049, (1 << 20) + 1, 2, 3)
    w_dec = torch.zeros(far.m, far.d, device="cuda")
    w_dec[-1] = torch.arange(far.d)
    values = torch.tensor([[1.0, 2.0]] * far.n, device="cuda")
    indices = torch.tensor([[far.m - 1, 0]] * far.n, device="cuda")
    out = saefast.sparse_decode(values, indices, w_dec)
    yield Finding("decode beyond 2^31", far, bool((out == w_dec[-1]).all()), {})
    sums = torch.ops.saefast.latent_sum(values, indices, out, far.m)
    right = bool((sums[-1] == 3 * w_dec[-1]).all() and (sums[0] == 6 * w_dec[-1]).all())
    yield Finding("sums beyond 2^31", far, right, {})
    code = saefast.topk_encode(w_dec[-1:].expand(far.n, -1), w_dec, k=1)
    yield Finding("encode beyond 2^31", far, bool((code.indices == far.m - 1).all()), {})
