"""All options of the GPU's pass over the latents, exact on integers."""

from typing import Any, NamedTuple

import pytest
import torch
from helpers.codes import draw_indices
from helpers.strategies import Shape, generator, normal, seeds
from helpers.tolerance import assert_same_bits
from helpers.updates import update_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from saefast import reference
from saefast.kernels.codes import by_latent
from saefast.kernels.round_rows import rounded_rows
from saefast.ops.latent_pass import latent_pass
from saefast.ops.latent_update import gradient_squares, latent_update
from saefast.ops.update_operands import MUTATED
from saefast.types import Learned, Update

ADAM = {"beta1": 0.75, "beta2": 0.75, "eps": 1.0}
"""Powers of two: the moments of integers are exact"""
RATES = torch.tensor([0.5, 1.0], dtype=torch.float64)


def integers(low: int, high: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw integers from low to high, in float32."""
    return torch.randint(low, high + 1, shape, generator=generator(seed)).float()


class Asked(NamedTuple):
    """One update: its sizes, and the switches of `latent_update`."""

    shape: Shape
    d_out: int
    seed: int = 0
    extra: bool = False
    measured: bool = False
    """whether gradients of values belong to another decoder, and only a decay of zero tells"""
    switches: dict[str, Any] = {}  # noqa: RUF012

    def update(self) -> Update:
        """Return the operands, new tensors each time."""
        (n, d, m, k), seed = self.shape, self.seed
        ends = self.switches.get("group_ends")
        groups = () if ends is None else (len(ends),)
        weights = [integers(-1, 1, s, seed + i) for i, s in enumerate([(m, d), (m,)])]
        w_dec = integers(-1, 1, (m, self.d_out), seed + 2)
        indices, values = draw_indices(self.shape, seed), integers(-1, 2, (n, k), seed + 3)
        residual = integers(-1, 1, (*groups, n, self.d_out), seed + 4)
        rows = (
            residual if ends is None else residual[_group(ends, indices), torch.arange(n)[:, None]]
        )
        rows = rows[:, None] if ends is None else rows
        grads = (rows * w_dec[indices]).sum(2) + self.measured
        # Entries whose value is zero must not be read.
        value_grads = torch.where(values != 0, grads, 7.0)
        parameters = [*weights, w_dec]
        moments = [4 * integers(0, 1, p.shape, seed + 5) for p in parameters for _ in range(2)]
        packed = rounded_rows(parameters[0], "tfloat32")
        return update_of(
            (indices, values, value_grads, residual, integers(-1, 1, (n, d), seed + 6)),
            parameters,
            moments,
            packed=(packed.units, packed.norm, packed.lost),
            product="tfloat32",
            extra=self._extra() if self.extra else None,
            rates=RATES,
            **ADAM,
            **self.switches,
        )

    def _extra(self) -> tuple[Tensor, ...]:
        """Draw gradients for some latents, and places without a latent and with unset gradients."""
        m, seed = self.shape.m, self.seed
        some = torch.randperm(m, generator=generator(seed + 7))[: (m + 1) // 2]
        latents = torch.cat([some[:1], torch.tensor([m, m + 9]), some[1:]])
        widths = [(self.shape.d,), (), (self.d_out,)]
        rows = [integers(-1, 1, (len(latents), *w), seed + 8 + i) for i, w in enumerate(widths)]
        for row in rows:
            row[1:3] = torch.nan
        return latents, *rows


def _group(ends: Tensor, indices: Tensor) -> Tensor:
    return torch.searchsorted(ends, indices.contiguous(), right=True)


def check(asked: Asked) -> None:
    """Compare both ops with their references: equal bits except for the rounding of roots."""
    mine, theirs, before = asked.update(), asked.update(), asked.update()
    for actual, expected in zip(
        gradient_squares(*mine), reference.gradient_squares(theirs), strict=True
    ):
        assert_same_bits(actual, expected)
    for name in MUTATED:  # nothing was updated
        assert_same_bits(getattr(mine, name), getattr(before, name))
    for actual, expected in zip(latent_update(*mine), reference.latent_update(theirs), strict=True):
        assert_same_bits(actual, expected)
    for a, e in zip(learned_of(mine), learned_of(theirs), strict=True):
        assert_same_bits(a.first, e.first)
        assert_same_bits(a.second, e.second)
        torch.testing.assert_close(a.weight, e.weight, rtol=2.0**-21, atol=2.0**-21)
    assert_same_bits(mine.units, rounded_rows(mine.w_enc, "tfloat32").units)


def learned_of(update: Update) -> tuple[Learned, Learned, Learned]:
    """Return the parameters with their moments."""
    return update.encoder, update.bias, update.decoder


def switches(m: int, seed: int, *chosen: str, **flags: bool) -> dict[str, Any]:
    """Return the chosen tensors, and flags; rows have norm one unless a flag says otherwise."""
    tensors = {
        "shrink_enc": integers(-2, 2, (m,), seed + 20),
        "shrink_dec": integers(-2, 2, (m,), seed + 21),
        "no_shrink": torch.zeros(m),
        "sign": torch.tensor([1.0, -1.0], dtype=torch.float64),
        "factor": torch.tensor(0.5, dtype=torch.float64),
        # empty groups, one latent and all the others
        "group_ends": torch.tensor([0, m // 2, m // 2, m]),
    }
    named = {"shrink_dec" if c == "no_shrink" else c: tensors[c] for c in chosen}
    return {"unit_norm": True, **named, **flags}


SHAPE = Shape(4, 17, 6, 2)
ALONE = {
    "nothing": switches(6, 0),
    "free norms": switches(6, 0, unit_norm=False),
    "parallel part stays": switches(6, 0, remove_parallel=False),
    "shrink_enc": switches(6, 0, "shrink_enc"),
    "shrink_dec": switches(6, 0, "shrink_dec"),
    "sign": switches(6, 0, "sign"),
    "factor": switches(6, 0, "factor"),
    "group_ends": switches(6, 0, "group_ends"),
    "frozen encoder": switches(6, 0, update_encoder=False),
    "frozen decoder": switches(6, 0, update_decoder=False),
}


@pytest.mark.parametrize("d_out", [5, 17])
@pytest.mark.parametrize("name", ALONE)
def test_each_switch_alone_equals_the_reference(name: str, d_out: int) -> None:
    """Problems include transcoders and rows of several blocks."""
    check(Asked(SHAPE, d_out, switches=ALONE[name]))


@pytest.mark.parametrize("d_out", [16, 17])
def test_a_decay_of_zero_computes_the_component_along_the_rows(d_out: int) -> None:
    """precision="bf16_weights" needs this, since its value gradients belong to rounded rows."""
    check(Asked(SHAPE, d_out, extra=True, measured=True, switches=switches(6, 0, "no_shrink")))


@pytest.mark.parametrize("d_out", [16, 17])
def test_places_without_a_latent_are_not_read(d_out: int) -> None:
    check(Asked(SHAPE, d_out, extra=True, switches=switches(6, 0)))


@st.composite
def updates(draw: st.DrawFn) -> Asked:
    """Draw any combination, some with one latent, one active latent, one column or no row."""
    m = draw(st.integers(1, 7))
    shape = Shape(
        draw(st.integers(0, 4)),
        draw(st.sampled_from([1, 16, 19])),
        m,
        draw(st.integers(1, min(m, 3))),
    )
    seed = draw(seeds)
    tensors = ["shrink_enc", "shrink_dec", "sign", "factor"]
    flags = ["unit_norm", "remove_parallel", "update_encoder", "update_decoder"]
    chosen = switches(
        m,
        seed,
        *(name for name in tensors if draw(st.booleans())),
        **{name: draw(st.booleans()) for name in flags},
    )
    if draw(st.booleans()):
        ends = sorted(draw(st.lists(st.integers(0, m), max_size=2)))
        chosen["group_ends"] = torch.tensor([*ends, m])
    d_out = draw(st.sampled_from([1, 16, 19]))
    return Asked(shape, d_out, seed, extra=draw(st.booleans()), switches=chosen)


@settings(max_examples=25)
@given(asked=updates())
def test_every_combination_equals_the_reference(asked: Asked) -> None:
    check(asked)


def test_pieces_of_a_latent_sum_over_the_rows_of_its_group() -> None:
    """Two latents of different groups are active on every row: more than PIECE = 512 entries."""
    asked = Asked(Shape(520, 3, 4, 2), 2, switches=switches(4, 0, "group_ends", "factor"))
    indices, tokens = torch.tensor([0, 3]).repeat(520, 1), torch.arange(520)[:, None]

    def update() -> Update:
        drawn = asked.update()
        rows = drawn.residual[_group(asked.switches["group_ends"], indices), tokens]
        value_grads = (rows * drawn.w_dec[indices]).sum(2)
        values = torch.ones(520, 2)
        return drawn._replace(indices=indices, values=values, value_grads=value_grads)

    mine, theirs = update(), update()
    found = (*gradient_squares(*mine), *latent_update(*mine))
    wanted = (*reference.gradient_squares(theirs), *reference.latent_update(theirs))
    for a, e in zip(found, wanted, strict=True):
        assert_same_bits(a, e)
    for a, e in zip(learned_of(mine), learned_of(theirs), strict=True):
        assert_same_bits(a.first, e.first)
        assert_same_bits(a.second, e.second)


@pytest.mark.parametrize("frozen", [None, "encoder", "decoder"])
@pytest.mark.parametrize("chosen", [(), ("shrink_enc", "shrink_dec", "sign", "group_ends")])
def test_a_pass_equals_two_ops_bit_for_bit(
    frozen: str | None, chosen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measure and update in one pass, and by two ops; runs of more than four are cut."""
    monkeypatch.setattr(by_latent.sort_by_latent, "__defaults__", (4,))
    m = 7
    given = switches(m, 3, *chosen)
    if frozen is not None:
        given[f"update_{frozen}"] = False
    asked = Asked(Shape(23, 19, m, 2), 37, 3, extra=True, switches=given)
    factor = torch.tensor(0.3, dtype=torch.float64)
    once, twice = asked.update(), asked.update()
    measured = gradient_squares(*twice)
    updated = latent_update(*twice._replace(factor=factor))

    latents = latent_pass(once)
    found = (*latents.squares(), *latents.update(factor))
    for actual, expected in zip(found, (*measured, *updated), strict=True):
        assert_same_bits(actual, expected)
    for name in MUTATED:
        assert_same_bits(getattr(once, name), getattr(twice, name))


def test_a_pass_changes_the_versions_of_updated_tensors() -> None:
    """A packed encoder would seem fresh if the versions stayed."""
    update = Asked(Shape(3, 5, 4, 2), 5, switches={"unit_norm": True}).update()
    before = {name: getattr(update, name)._version for name in MUTATED}
    latent_pass(update).update(None)
    assert all(getattr(update, name)._version > before[name] for name in MUTATED)


@pytest.mark.parametrize("op", [gradient_squares, latent_update])
@pytest.mark.parametrize("name", ["rates", "sign", "factor"])
def test_scalars_of_another_dtype_are_refused_as_on_the_cpu(name: str, op: Any) -> None:
    update = Asked(SHAPE, 5, switches=switches(6, 0, "sign", "factor")).update()
    narrow = update._replace(**{name: getattr(update, name).float()})
    with pytest.raises(TypeError, match=f"{name} must be float64, got float32"):
        op(*narrow)


def test_a_pass_refuses_a_bad_factor() -> None:
    latents = latent_pass(Asked(SHAPE, 5, switches=switches(6, 0)).update())
    with pytest.raises(TypeError, match="factor must be float64, got float32"):
        latents.update(torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"factor must have shape \(\), got \(1,\)"):
        latents.update(torch.tensor([0.5], dtype=torch.float64))


class Allocations(TorchDispatchMode):
    """Record the bytes of every new tensor, and the names of the functions that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []
        self.functions: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Record outputs that do not share the memory of an input."""
        result = function(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves((args, kwargs))
        known = {_memory(tensor) for tensor in tensors if isinstance(tensor, Tensor)}
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and _memory(tensor) not in known:
                self.bytes.append(tensor.untyped_storage().nbytes())
        self.functions.add(function.name())
        if function.name() == "aten::index.Tensor":
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
            self.functions |= {"boolean index"} if masks else set()
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("op", [gradient_squares, latent_update])
def test_no_gradient_is_stored_and_the_host_never_waits(op: Any) -> None:
    """All tensors together are smaller than one gradient [m, d]."""
    n, d, m = 2, 129, 40
    chosen = switches(m, 0, "shrink_enc", "shrink_dec", "sign", "factor", "group_ends")
    asked = Asked(Shape(n, d, m, 1), d, extra=True, switches=chosen)
    update = asked.update()
    with Allocations() as seen:
        # Calls inside a custom op are hidden from modes outside of it.
        op._backend_fns["cuda"](*update)
    assert seen.bytes
    assert sum(seen.bytes) < 4 * m * d
    blocks = 2 * -(-d // 16)  # for columns of both matrices
    assert max(seen.bytes) <= max(8 * (m + 1), 4 * 3 * d, 4 * m * blocks)
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "boolean index"}
    assert seen.functions.isdisjoint(waits)


def test_squares_are_within_float32_rounding() -> None:
    """Gradients are nearly parallel to their rows, so the remainder has few significant digits."""
    n, d, m, k = 4, 33, 6, 2
    w_dec = normal((m, d), 0, torch.float64)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    indices, values = draw_indices(Shape(n, d, m, k), 1), normal((n, k), 2, torch.float64).abs()
    residual = 100.0 * w_dec[indices[:, 0]] + normal((n, d), 3, torch.float64)
    grads = reference.gather_dots(residual, w_dec, indices)
    parameters = [normal((m, d), 4, torch.float64), normal((m,), 5, torch.float64), w_dec]
    moments = [torch.zeros_like(p) for p in parameters for _ in range(2)]
    batch = (indices, values, grads, residual, normal((n, d), 6, torch.float64))
    wide = update_of(batch, parameters, moments, rates=RATES, **ADAM, unit_norm=True)
    narrow = wide._replace(
        **{
            name: tensor.float()
            for name, tensor in wide._asdict().items()
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and name != "rates"
        }
    )
    for shrink in (None, torch.zeros(m)):
        _, actual = gradient_squares(*narrow._replace(shrink_dec=shrink))
        _, expected = reference.gradient_squares(wide)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0.0)
