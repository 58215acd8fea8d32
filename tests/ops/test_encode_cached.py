"""SAE.encode keeps its packed weight until the weight changes, and never uses a stale one."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from helpers.tolerance import assert_same_bits
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import saefast
from saefast import SAE
from saefast.ops import encode_cached, encode_packed
from saefast.ops.encode_cached import CachedEncoder
from saefast.ops.encode_cpu import Screen

D, M, K = 24, 160, 6
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@pytest.fixture(autouse=True)
def native_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the native screen, the only one that packs, even if torch's is faster."""
    monkeypatch.setattr(encode_packed, "screen_at", lambda _: Screen("native", "float32"))


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that records packed weights."""
    seen: list[Tensor] = []
    original = encode_cached.repacked

    def counted(
        packed: object, fresh: bool, x: Tensor, weight: Tensor, *more: object, **settings: object
    ) -> object:
        seen.append(weight.detach().clone())
        return original(packed, fresh, x, weight, *more, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(encode_cached, "repacked", counted)
    return seen


def rows(n: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(n)).to(dtype)


def expected(sae: SAE, x: Tensor) -> saefast.SparseCode:
    """Return the code of x by an SAE without a cache."""
    return copy.deepcopy(sae).encode(x)


def make(variant: str = "topk", **options: object) -> SAE:
    sae = SAE(D, M, k=K, variant=variant, seed=0, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        sae.b_dec.normal_(generator=torch.Generator().manual_seed(1))
        sae.b_enc.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return sae


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 7, 130])
def test_codes_have_the_bits_of_topk_encode(
    n: int, dtype: torch.dtype, packings: list[Tensor]
) -> None:
    sae, x = make(dtype=dtype), rows(n, dtype)
    with torch.no_grad():
        plain = saefast.topk_encode(sae.inputs(x), sae.W_enc, sae.b_enc, k=K)
        for _ in range(2):
            code = sae.encode(x)
            assert_same_bits(code.values, plain.values.relu())
            assert torch.equal(code.indices, plain.indices)
    assert len(packings) == 1


@pytest.mark.parametrize("variant", saefast.sae.VARIANTS)
def test_every_variant_packs_once(variant: str, packings: list[Tensor]) -> None:
    sae = make(variant)
    codes = [sae.encode(rows(n)) for n in (3, 64, 3)]
    assert len(packings) == 1
    assert torch.equal(codes[0].values, codes[2].values)


def test_by_norm_packs_the_scaled_weight_once(packings: list[Tensor]) -> None:
    sae = make(by_norm=True)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, M)[:, None])
        norms = sae.W_dec.norm(dim=1)
        plain = saefast.topk_encode(sae.inputs(rows()), sae.W_enc, sae.b_enc, k=K, scale=norms)
        first, second = sae.encode(rows()), sae.encode(rows())
        assert torch.equal(first.indices, plain.indices)
        assert torch.equal(second.indices, plain.indices)
        assert len(packings) == 1
        sae.W_dec.mul_(torch.linspace(4, 0.1, M)[:, None])
        assert torch.equal(sae.encode(rows()).indices, expected(sae, rows()).indices)


def test_a_scale_made_for_each_call_packs_once(packings: list[Tensor]) -> None:
    sae = make(by_norm=True)
    for _ in range(3):
        sae.encode(rows()).values.sum().backward()  # the norms are part of the graph
    assert len(packings) == 1


def replaced(sae: SAE) -> None:
    sae.W_enc = torch.nn.Parameter(-sae.W_enc.detach())


def loaded(sae: SAE) -> None:
    sae.load_state_dict(SAE(D, M, k=K, variant=sae.variant, seed=5).state_dict())


def assigned(sae: SAE) -> None:
    sae.W_enc.data = -sae.W_enc.data


def assigned_with_one_row_changed(sae: SAE) -> None:
    weight = sae.W_enc.detach().clone()
    weight[7] *= 50
    sae.W_enc.data = weight


def one_row(sae: SAE) -> None:
    with torch.no_grad():
        sae.W_enc[7] *= 50


def trained_by(optimizer: Callable[..., torch.optim.Optimizer], **options: object):  # type: ignore[no-untyped-def]
    def train(sae: SAE) -> None:
        stepper = optimizer([sae.W_enc], lr=0.5, **options)
        sae(rows()).square().sum().backward()
        stepper.step()

    return train


def one_row_by_fused_adam(sae: SAE) -> None:
    stepper = torch.optim.Adam([sae.W_enc], lr=5.0, fused=True)
    sae.W_enc.grad = torch.zeros_like(sae.W_enc)
    sae.W_enc.grad[7] = 1.0
    stepper.step()


CHANGES: dict[str, Callable[[SAE], object]] = {
    "in place": lambda sae: sae.W_enc.detach().mul_(-1),
    "one row": one_row,
    "through .data": lambda sae: sae.W_enc.data.mul_(-1),
    "replaced": replaced,
    "assigned to .data": assigned,
    "assigned to .data, one row": assigned_with_one_row_changed,
    "loaded": loaded,
    "SGD": trained_by(torch.optim.SGD),
    "Adam": trained_by(torch.optim.Adam),
    "Adam, foreach": trained_by(torch.optim.Adam, foreach=True),
    "Adam, fused": trained_by(torch.optim.Adam, fused=True),
    "Adam, fused, one row": one_row_by_fused_adam,
    "FusedStep": lambda sae: saefast.FusedStep(sae, lr=0.5)(rows(20)),
    "another dtype": lambda sae: sae.double(),
    "forgotten": lambda sae: sae.forget(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_weight_is_noticed(change: str, packings: list[Tensor]) -> None:
    sae = make()
    sae.encode(rows())
    before = len(packings)
    CHANGES[change](sae)
    x = rows().to(sae.W_enc.dtype)
    code = sae.encode(x)
    assert len(packings) > before
    assert torch.equal(packings[-1], sae.W_enc)
    assert torch.equal(code.indices, expected(sae, x).indices)


def test_a_weight_at_the_address_of_a_freed_one_is_noticed() -> None:
    """Rows that differ are not among those that are compared; torch reuses memory at once."""
    sae, x, addresses = SAE(64, 4096, k=K, seed=0).requires_grad_(False), torch.eye(64), set()

    def indices(changed: int) -> Tensor:
        weight = sae.W_enc.clone()
        weight[changed] *= 50
        addresses.add(weight.data_ptr())
        code = functional_call(sae, {"W_enc": weight}, (x,))
        assert torch.equal(code.indices, saefast.topk_encode(x, weight, sae.b_enc, k=K).indices)
        return code.indices

    sae.forward = sae.encode  # type: ignore[method-assign]
    numbers = range(1, 30)
    for number in numbers:
        assert (indices(number) == number).any()
    assert len(addresses) < len(numbers)


def test_gradients_match_the_op() -> None:
    results = []
    for encode in (CachedEncoder().topk, saefast.topk_encode):
        operands = [part.double().requires_grad_() for part in (rows(), rows(M), rows(M)[:, 0])]
        scale = (rows(M)[:, 1].double().abs() + 1).requires_grad_()
        values, _ = encode(*operands, k=K, scale=scale)
        values.square().sum().backward()
        results.append([operand.grad for operand in (*operands, scale)])
    for ours, theirs in zip(*results, strict=True):
        assert_same_bits(ours, theirs)


def test_gradients_above_a_threshold_match_the_op() -> None:
    results = []
    for encode in (CachedEncoder().above, saefast.threshold_encode):
        operands = [part.double().requires_grad_() for part in (rows(), rows(M), rows(M)[:, 0])]
        threshold = torch.tensor(2.0, dtype=torch.float64)
        values, _, counts = encode(*operands, threshold=threshold, width=M)
        assert 0 < counts.sum() < counts.numel() * M
        (values + 1).square().sum().backward()  # has a gradient where rows are filled with zeros
        results.append([operand.grad for operand in operands])
    for ours, theirs in zip(*results, strict=True):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_both_precisions_match_the_ops(precision: str) -> None:
    """Inside SAELens, the precision follows autocast."""
    encoder, operands = CachedEncoder(), (rows(), rows(M), rows(M)[:, 0])
    code = encoder.topk(*operands, k=K, precision=precision)
    expected = saefast.topk_encode(*operands, k=K, precision=precision)
    assert_same_bits(code.values, expected.values)
    assert torch.equal(code.indices, expected.indices)
    settings = {"threshold": torch.tensor(2.0), "width": M, "precision": precision}
    above = encoder.above(*operands, **settings)
    assert_same_bits(above.values, saefast.threshold_encode(*operands, **settings).values)


def test_gradcheck_passes() -> None:
    encoder = CachedEncoder()
    operands = [part.double().requires_grad_() for part in (rows(3), rows(40), rows(40)[:, 0])]
    assert torch.autograd.gradcheck(lambda *given: encoder.topk(*given, k=4).values, operands)


def test_copies_and_pickles_omit_the_packed_weight() -> None:
    sae = make()
    bare, x = len(pickle.dumps(sae)), rows()
    code = sae.encode(x)
    assert len(pickle.dumps(sae)) == bare
    again = pickle.loads(pickle.dumps(sae))
    assert torch.equal(again.encode(x).values, code.values)
    file = io.BytesIO()
    torch.save(sae.state_dict(), file)
    assert set(sae.state_dict()) == {"W_enc", "b_enc", "W_dec", "b_dec"}


def test_forget_frees_the_packed_weight() -> None:
    sae = make()
    sae.encode(rows())
    assert sae._encoder._packed._kept is not None
    sae.forget()
    assert sae._encoder._packed._kept is None


def test_weights_without_a_version_counter_are_not_cached(packings: list[Tensor]) -> None:
    with torch.inference_mode():
        sae = make()
        sae.encode(rows())
        sae.W_enc.mul_(-1)
        assert torch.equal(sae.encode(rows()).indices, expected(sae, rows()).indices)
    assert not packings


def test_inference_mode_uses_the_cache(packings: list[Tensor]) -> None:
    sae = make()
    code = sae.encode(rows())
    with torch.inference_mode():
        assert torch.equal(sae.encode(rows().clone()).indices, code.indices)
        sae.encode(sae.W_enc.detach()[:3])
    assert len(packings) == 1


def test_bad_rows_raise() -> None:
    sae = make()
    sae.encode(rows())
    with pytest.raises(ValueError, match="x must be finite"):
        sae.encode(rows().fill_(torch.nan))
    with torch.no_grad():
        sae.W_enc[1, 2] = torch.inf
    with pytest.raises(ValueError, match="weight must be finite"):
        sae.encode(rows())


def test_steps_of_other_parameters_keep_the_packed_weight(packings: list[Tensor]) -> None:
    sae, other = make(), torch.nn.Parameter(torch.ones(3))
    sae.encode(rows())
    other.grad = torch.ones(3)
    torch.optim.Adam([other], fused=True).step()
    sae.encode(rows())
    assert len(packings) == 1


def test_a_traced_sae_encodes_other_rows() -> None:
    """The encode is in the graph; a call of the kernel would leave the code of the example."""
    sae, x = make().requires_grad_(False), rows(4)
    traced = make_fx(sae)(x)
    assert torch.equal(traced(-x), sae(-x))


def test_vmap_of_an_sae() -> None:
    sae = make().requires_grad_(False)
    x = rows(3)
    each = torch.func.vmap(lambda row: sae(row[None])[0])(x)
    torch.testing.assert_close(each, sae(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("variant", ["topk", "relu"])
def test_forward_mode_is_refused(variant: str) -> None:
    """Custom ops drop tangents: the derivative would be missing without an error."""
    sae, x = make(variant).requires_grad_(False), rows()
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(sae, (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        sae.encode(forward_ad.make_dual(x, x))
    with forward_ad.dual_level():
        assert torch.equal(sae.encode(x).values, sae.encode(x.clone()).values)


@pytest.mark.parametrize("variant", ["topk", "relu"])
def test_derivatives_by_torch_func_are_refused(variant: str) -> None:
    """Torch's error would be about the autograd.Function that it makes of a custom op."""
    sae, x = make(variant).requires_grad_(False), rows()
    for transform in (torch.func.grad, torch.func.jacrev, each_with_gradient):
        with pytest.raises(NotImplementedError, match=r"derivatives by torch\.func"):
            transform(lambda y: sae(y).sum())(x)


def each_with_gradient(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return torch.func.vmap(torch.func.grad(lambda row: function(row[None])))


def test_other_operands_may_be_differentiated_by_torch_func() -> None:
    sae, x = make().requires_grad_(False), rows()
    gradient = torch.func.grad(lambda factor: (factor * sae(x)).sum())(torch.ones(()))
    torch.testing.assert_close(gradient, sae(x).sum())


@pytest.mark.parametrize("by_norm", [False, True])
def test_devices_without_kernels_use_the_reference(by_norm: bool) -> None:
    """The meta device stands for others, such as the GPUs of Apple."""
    code = make(by_norm=by_norm).to("meta").encode(rows().to("meta"))
    assert code.indices.shape == (len(rows()), K)
