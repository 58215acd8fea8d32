"""Every mistake raises a TypeError or ValueError that names the argument, and none crashes."""

from collections.abc import Callable

import pytest
import torch

import saefast
from saefast import SAE, FusedStep
from saefast.ops.batch_topk import batch_topk
from saefast.ops.latent_update import latent_update

X, W, B = torch.randn(4, 6), torch.randn(10, 6), torch.randn(10)
V, I = torch.randn(4, 3), torch.zeros(4, 3, dtype=torch.int64)  # noqa: E741
RATES = torch.tensor([1e-3, 0.5], dtype=torch.float64)
NAN, INF = float("nan"), float("inf")


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """Return a copy with one bad entry, in row 2 if there are rows."""
    out = tensor.clone()
    out[2] = value
    return out


encode = saefast.topk_encode
above = saefast.threshold_encode
decode = saefast.sparse_decode
match = saefast.match_features

MISTAKES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "x no tensor": (lambda: encode([[1.0]], W, k=1), TypeError, "x must be a torch.Tensor"),
    "x integer": (lambda: encode(X.long(), W, k=1), TypeError, "x must be float32.*int64"),
    "x half": (lambda: encode(X.half(), W.half(), k=1), TypeError, r"float16.*\.float\(\)"),
    "x sparse": (lambda: encode(X.to_sparse(), W, k=1), TypeError, r"x must be.*x\.to_dense"),
    "weight sparse": (lambda: decode(V, I, W.to_sparse()), TypeError, r"weight must be a dense"),
    "rows sparse": (lambda: SAE(6, 9, k=1).encode(X.to_sparse()), TypeError, "x must be a dense"),
    "rows sparse, forward": (lambda: SAE(6, 9, k=1)(X.to_sparse()), TypeError, "x must be a dense"),
    "activations sparse": (
        lambda: saefast.activation_covariance(X.to_sparse(), progress=False),
        TypeError,
        "activations must be a dense tensor, got one of layout sparse_coo",
    ),
    "x vector": (lambda: encode(X[0], W, k=1), ValueError, r"x must have shape \[n, d\]"),
    "x too wide": (lambda: encode(X.repeat(1, 2), W, k=1), ValueError, r"x must have size 6"),
    "x NaN": (lambda: encode(with_value(X, NAN), W, k=1), ValueError, "x must be finite.*row 2"),
    "x inf": (lambda: encode(with_value(X, INF), W, k=1), ValueError, "x must be finite.*row 2"),
    "x -inf": (lambda: encode(with_value(X, -INF), W, k=1), ValueError, "x must be finite.*row 2"),
    "weight NaN": (lambda: encode(X, with_value(W, NAN), k=1), ValueError, "weight must.*row 2"),
    "weight inf": (lambda: encode(X, with_value(W, INF), k=1), ValueError, "weight must.*row 2"),
    "bias NaN": (lambda: encode(X, W, with_value(B, NAN), k=1), ValueError, "bias must be finite"),
    "bias inf": (lambda: encode(X, W, with_value(B, INF), k=1), ValueError, "bias must be finite"),
    "bias short": (lambda: encode(X, W, B[:9], k=1), ValueError, "bias must have size 10"),
    "bias matrix": (lambda: encode(X, W, W, k=1), ValueError, r"bias must have shape \[m\]"),
    "scale inf": (
        lambda: encode(X, W, B, k=1, scale=with_value(B, -INF)),
        ValueError,
        "scale must be finite",
    ),
    "scale long": (lambda: encode(X, W, k=1, scale=B.repeat(2)), ValueError, "scale must have"),
    "dtypes": (lambda: encode(X.double(), W, k=1), TypeError, "x must have the dtype of weight"),
    "devices": (lambda: encode(X.to("meta"), W, k=1), ValueError, "x must be on the device"),
    "k zero": (lambda: encode(X, W, k=0), ValueError, "k must be from 1 to 10"),
    "k negative": (lambda: encode(X, W, k=-1), ValueError, "k must be from 1 to 10"),
    "k large": (lambda: encode(X, W, k=11), ValueError, "k must be from 1 to 10.*got 11"),
    "k float": (lambda: encode(X, W, k=2.0), TypeError, "k must be an int, got float"),
    "k bool": (lambda: encode(X, W, k=True), TypeError, "k must be an int, got bool"),
    "no latents": (lambda: encode(X, W[:0], k=1), ValueError, "k must be from 1 to 0"),
    "no width": (lambda: encode(X[:, :0], W[:, :0], k=1), ValueError, r"weight.shape\[1\]"),
    "precision": (lambda: encode(X, W, k=1, precision="fp8"), ValueError, "precision must be one"),
    "impl": (lambda: encode(X, W, k=1, impl="magic"), ValueError, "impl must be one of auto"),
    "impl triton": (lambda: encode(X, W, k=1, impl="triton"), ValueError, "not available.*auto"),
    "impl cpp": (
        lambda: encode(X.to("meta"), W.to("meta"), k=1, impl="cpp"),
        ValueError,
        "runs on CPU tensors",
    ),
    "threshold NaN": (
        lambda: above(X, W, threshold=with_value(B, NAN), width=1),
        ValueError,
        "threshold must be finite or infinity.* 2 ",
    ),
    "threshold -inf": (
        lambda: above(X, W, threshold=-INF, width=1),
        ValueError,
        "threshold must be finite or infinity.* 0 ",
    ),
    "threshold below float32": (
        lambda: above(X, W, threshold=-1e300, width=1),
        ValueError,
        "threshold must be finite or infinity",
    ),
    "threshold short": (
        lambda: above(X, W, threshold=B[:9], width=1),
        ValueError,
        "threshold must have size 10",
    ),
    "threshold matrix": (
        lambda: above(X, W, threshold=W, width=1),
        ValueError,
        r"threshold must have shape \[m\] or a number",
    ),
    "threshold text": (
        lambda: above(X, W, threshold="0", width=1),
        TypeError,
        r"threshold must be a torch.Tensor \[m\] or a number, got str",
    ),
    "threshold bool": (
        lambda: above(X, W, threshold=True, width=1),
        TypeError,
        "threshold must be.*got bool",
    ),
    "threshold dtype": (
        lambda: above(X, W, threshold=B.double(), width=1),
        TypeError,
        "threshold must have the dtype of weight, float32, got float64",
    ),
    "threshold integers": (
        lambda: above(X, W, threshold=B.long(), width=1),
        TypeError,
        "threshold must be float32.*int64",
    ),
    "threshold device": (
        lambda: above(X, W, threshold=B.to("meta"), width=1),
        ValueError,
        "threshold must be on the device",
    ),
    "above x NaN": (
        lambda: above(with_value(X, NAN), W, threshold=0.0, width=1),
        ValueError,
        "x must be finite.*row 2",
    ),
    "above bias": (
        lambda: above(X, W, B[:9], threshold=0.0, width=1),
        ValueError,
        "bias must have size 10",
    ),
    "width zero": (
        lambda: above(X, W, threshold=0.0, width=0),
        ValueError,
        "width must be from 1 to 10",
    ),
    "width large": (
        lambda: above(X, W, threshold=0.0, width=11),
        ValueError,
        "width must be from 1 to 10",
    ),
    "width float": (
        lambda: above(X, W, threshold=0.0, width=2.0),
        TypeError,
        "width must be an int",
    ),
    "above precision": (
        lambda: above(X, W, threshold=0.0, width=1, precision="fp8"),
        ValueError,
        "precision must be one",
    ),
    "above triton": (
        lambda: above(X, W, threshold=0.0, width=1, impl="triton"),
        ValueError,
        "not available.*; use impl='auto'",
    ),
    "batch k": (lambda: batch_topk(X, W, B, 11), ValueError, "k must be from 1 to 10"),
    "batch guess": (
        lambda: batch_topk(X, W, B, 2, guess=NAN),
        ValueError,
        "guess must be a number",
    ),
    "batch width": (
        lambda: batch_topk(X, W, B, 2, width=0),
        ValueError,
        "width must be from 1",
    ),
    "batch dtype": (
        lambda: batch_topk(X.bfloat16(), W.bfloat16(), B.bfloat16(), 2),
        TypeError,
        "weight must be float32 or float64",
    ),
    "batch x NaN": (
        lambda: batch_topk(with_value(X, NAN), W, B, 2),
        ValueError,
        "x must be finite.*row 2",
    ),
    "index high": (lambda: decode(V, I + 10, W), ValueError, r"indices must be in \[0, 10\)"),
    "index low": (lambda: decode(V, I - 1, W), ValueError, "row 0, column 0 is -1"),
    "index int32": (lambda: decode(V, I.int(), W), TypeError, r"indices must be int64.*\.long"),
    "index shape": (lambda: decode(V, I[:, :2], W), ValueError, "indices must have size 3"),
    "values dtype": (lambda: decode(V.double(), I, W), TypeError, "values must have the dtype"),
    "values shape": (lambda: decode(V[0], I, W), ValueError, "values must have shape"),
    "decode bias": (lambda: decode(V, I, W, B), ValueError, "bias must have size 6"),
    "decode device": (lambda: decode(V, I.to("meta"), W), ValueError, "indices must be on"),
    "SAE k": (lambda: SAE(4, 8, k=9), ValueError, "k must be from 1 to 8"),
    "SAE d": (lambda: SAE(0, 8, k=1), ValueError, "d must be from 1"),
    "SAE variant": (lambda: SAE(4, 8, k=1, variant="relu6"), ValueError, "variant must be one of"),
    "step dtype": (
        lambda: FusedStep(SAE(4, 8, k=1, dtype=torch.bfloat16)),
        TypeError,
        "sae must be float32 or float64",
    ),
    "step kind": (
        lambda: FusedStep(SAE(6, 8, k=1))(X.tolist()),
        TypeError,
        r"x must be a torch.Tensor \[n, d\], got list",
    ),
    "step x dtype": (
        lambda: FusedStep(SAE(6, 8, k=1))(X.double()),
        TypeError,
        "x must have the dtype of the SAE, float32, got float64",
    ),
    "step lr": (
        lambda: FusedStep(SAE(6, 8, k=1), lr=-1.0),
        ValueError,
        "lr must be at least 0, got -1.0",
    ),
    "step precision": (
        lambda: FusedStep(SAE(6, 8, k=1), precision="fp8"),
        ValueError,
        "precision must be one of exact, bf16, bf16_weights",
    ),
    "step width": (lambda: FusedStep(SAE(4, 8, k=1))(X), ValueError, "x must have size 4"),
    "step empty": (lambda: FusedStep(SAE(6, 8, k=1))(X[:0]), ValueError, "at least one row"),
    "step NaN": (
        lambda: FusedStep(SAE(6, 8, k=1))(with_value(X, NAN)),
        ValueError,
        "x must be finite",
    ),
    "match a": (
        lambda: match(W.numpy(), W),
        TypeError,
        r"a must be a tensor \[m, d\], a saefast.SAE",
    ),
    "match b vector": (lambda: match(W, W[0]), ValueError, r"b must have shape \[m, d\]"),
    "match backend": (lambda: match(W, W, backend="annoy"), ValueError, "backend must be one of"),
    "match memory": (lambda: match(W, W, memory=-1), ValueError, "memory must be at least 0"),
    "match side": (lambda: match(W, W, side="left"), ValueError, "side must be one of decoder"),
    "match width": (lambda: match(W, W[:, :5]), ValueError, "b must have the width of a, 6, got 5"),
    "match no width": (lambda: match(W[:, :0], W[:, :0]), ValueError, r"a.shape\[1\] must be"),
    "match NaN": (lambda: match(W, with_value(W, NAN)), ValueError, "b must be finite.*row 2"),
    "match device": (lambda: match(W, W.to("meta")), ValueError, "b must hold numbers.*meta"),
    "match neighbours": (lambda: match(W, W, neighbours=0), ValueError, "neighbours must be at"),
    "match half": (lambda: match(W, W, neighbours=2.5), TypeError, "neighbours must be an int"),
    "match floor": (lambda: match(W, W, floor=NAN), ValueError, "floor must be at least -1"),
    "match floor low": (lambda: match(W, W, floor=-2), ValueError, "floor must be at least -1"),
    "match seconds": (lambda: match(W, W, seconds=-1), ValueError, "seconds must be at least 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise(mistake: str) -> None:
    call, kind, message = MISTAKES[mistake]
    with pytest.raises(kind, match=message):
        call()


ops = torch.ops.saefast
MISFITS: dict[str, Callable[[], object]] = {
    "topk_encode": lambda: ops.topk_encode(X[:, :4], W, None, None, 2, "exact"),
    "topk_encode bias": lambda: ops.topk_encode(X, W, B[:3], None, 2, "exact"),
    "threshold_encode": lambda: ops.threshold_encode(X, W, None, None, B[:3], 2, "exact"),
    "threshold_encode x": lambda: ops.threshold_encode(X[:, :4], W, None, None, B, 2, "exact"),
    "sparse_decode": lambda: ops.sparse_decode(V, I[:2], W, None),
    "sparse_decode bias": lambda: ops.sparse_decode(V, I, W, B[:3]),
    "gather_dots": lambda: ops.gather_dots(X[:, :4], W, I),
    "gather_dots rows": lambda: ops.gather_dots(X, W, I[:2]),
    "latent_sum": lambda: ops.latent_sum(V, I, X[:2], 10),
    "latent_sum latents": lambda: ops.latent_sum(V, I + 9, X, 5),
    "decode_residual": lambda: ops.decode_residual(V, I, W, None, X[:2], 1.0),
    "latent_update": lambda: update(residual=X[:2]),
    "latent_update state": lambda: update(b_enc=B[:3].clone()),
    "latent_update packed": lambda: update(units=torch.zeros(3, dtype=torch.int32), norm=B, lost=B),
    "latent_update extra": lambda: update(
        extra_latents=I[0], extra_w_enc=X, extra_b_enc=B[:2], extra_w_dec=X
    ),
    "latent_update half extra": lambda: update(extra_latents=I[0]),
    "latent_update rates": lambda: update(rates=RATES[:1]),
    "latent_update sign": lambda: update(sign=RATES[:1]),
    "latent_update factor": lambda: update(factor=RATES),
    "latent_update half packed": lambda: update(norm=B.clone()),
}


def update(**changes: torch.Tensor) -> object:
    """Call a valid latent_update with some changes."""
    arguments: dict[str, object] = {
        **dict.fromkeys(("values", "value_grads"), V),
        **dict.fromkeys(("residual", "inputs"), X),
        "indices": I,
        "w_enc": W.clone(),
        "b_enc": B.clone(),
        "w_dec": W.clone(),
        **{
            f"{name}_{moment}": torch.zeros_like(like)
            for name, like in (("w_enc", W), ("b_enc", B), ("w_dec", W))
            for moment in ("first", "second")
        },
        **dict.fromkeys(("units", "norm", "lost")),
        "product": "float32",
        **dict.fromkeys(("extra_latents", "extra_w_enc", "extra_b_enc", "extra_w_dec")),
        "rates": RATES,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "unit_norm": False,
    }
    return latent_update(**{**arguments, **changes})


@pytest.mark.parametrize("misfit", MISFITS)
def test_ops_called_directly_read_nothing_out_of_bounds(misfit: str) -> None:
    update()  # fits
    with pytest.raises(ValueError, match=r"must have|must be in|given together"):
        MISFITS[misfit]()


@pytest.mark.parametrize(
    "mistake",
    [
        "x NaN",
        "weight NaN",
        "weight inf",
        "bias NaN",
        "scale inf",
        "index high",
        "above x NaN",
        "threshold NaN",
        "threshold -inf",
    ],
)
def test_the_reference_raises_the_same(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, kind, message = MISTAKES[mistake]

    def on_reference(function: Callable[..., object]) -> Callable[..., object]:
        return lambda *a, **k: function(*a, **k, impl="reference")

    monkeypatch.setitem(globals(), "encode", on_reference(saefast.topk_encode))
    monkeypatch.setitem(globals(), "above", on_reference(saefast.threshold_encode))
    monkeypatch.setitem(globals(), "decode", on_reference(saefast.sparse_decode))
    with pytest.raises(kind, match=message):
        call()


def test_overlapping_outputs_raise() -> None:
    sae = SAE(6, 8, k=1)
    sae.b_enc = torch.nn.Parameter(torch.zeros(1).expand(8))
    with pytest.raises(ValueError, match="b_enc is updated in place and must be contiguous"):
        FusedStep(sae)
    state = [torch.zeros(10, 6), torch.zeros(10), torch.zeros(10, 6)]
    moments = [torch.zeros_like(t) for t in state for _ in range(2)]
    moments[0] = torch.zeros(1, 6).expand(10, 6)
    adam = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "unit_norm": False}
    packed, extra = (None, None, None, "float32"), (None,) * 4
    with pytest.raises(ValueError, match="w_enc_first is updated in place"):
        latent_update(I, V, V, X, X, *state, *moments, *packed, *extra, RATES, **adam)


def test_a_failed_call_does_not_affect_later_ones() -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="x must be finite"):
            encode(with_value(X, NAN), W, k=2)
        assert encode(X, W, k=2).values.isfinite().all()
