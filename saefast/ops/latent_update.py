"""Gradient, Adam and renormalisation of every latent in one pass; no gradient is ever stored."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import checks, gpu
from saefast.ops.cpu import address, contiguous, dtype_name, native, threads
from saefast.types import Decay

Argument = Tensor | str | float | None


class Update(NamedTuple):
    """What `latent_update` takes, in order; the state of the training is updated in place."""

    indices: Tensor
    """[n, k] the code"""
    values: Tensor
    value_grads: Tensor
    """[n, k] the loss's gradient by each value; zero where the value is not positive"""
    residual: Tensor
    """[n, d_out] the loss's gradient by the reconstruction, or [g, n, d_out] with `group_ends`"""
    inputs: Tensor
    """[n, d] what the encoder multiplied"""
    w_enc: Tensor
    """[m, d]"""
    b_enc: Tensor
    """[m]"""
    w_dec: Tensor
    """[m, d_out]"""
    w_enc_first: Tensor
    """the moments of Adam, of the shapes of what they belong to"""
    w_enc_second: Tensor
    b_enc_first: Tensor
    b_enc_second: Tensor
    w_dec_first: Tensor
    w_dec_second: Tensor
    units: Tensor | None
    """units, norm, lost: w_enc as the device screens with it, for its `product`; refreshed"""
    norm: Tensor | None
    lost: Tensor | None
    product: str
    extra_latents: Tensor | None
    """[c] latents with gradients from elsewhere, each once; one out of range stands for none"""
    extra_w_enc: Tensor | None
    """[c, d] their gradients"""
    extra_b_enc: Tensor | None
    extra_w_dec: Tensor | None
    rates: Tensor
    """`reference.adam_rates`, on the device"""
    beta1: float
    beta2: float
    eps: float
    unit_norm: bool
    """decoder rows have norm one"""
    remove_parallel: bool = True
    """then their gradient's part along them is removed first"""
    update_encoder: bool = True
    """whether w_enc learns; b_enc always does"""
    update_decoder: bool = True
    shrink_enc: Tensor | None = None
    """these three: see `Decay`"""
    shrink_dec: Tensor | None = None
    sign: Tensor | None = None
    factor: Tensor | None = None
    """[] float64 multiplies every gradient"""
    group_ends: Tensor | None = None
    """[g] latents below group_ends[i], and not below the end before, learn from residual[i]"""

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """w_enc, b_enc, w_dec."""
        return self.w_enc, self.b_enc, self.w_dec

    @property
    def moments(self) -> tuple[Tensor, ...]:
        """The first and second moment of each parameter in turn."""
        return self[8:14]

    @property
    def packed(self) -> tuple[Tensor, ...] | None:
        """Units, norm and lost, if there are any."""
        return _all_or_none("units, norm and lost", self.units, self.norm, self.lost)

    @property
    def decay(self) -> Decay:
        """What the gradients get besides the data's."""
        return Decay(self.shrink_enc, self.shrink_dec, self.sign)

    @property
    def special(self) -> bool:
        """Whether more is asked for than the gradient of one reconstruction of its own input."""
        return (
            any(part is not None for part in (*self.decay, self.factor, self.group_ends))
            or not (self.update_encoder and self.update_decoder)
            or self.unit_norm > self.remove_parallel
            or self.w_enc.shape[1] != self.w_dec.shape[1]
        )

    @property
    def extra(self) -> tuple[Tensor, ...] | None:
        """The extra latents and gradients, if there are any."""
        return _all_or_none(
            "the extra gradients",
            self.extra_latents,
            self.extra_w_enc,
            self.extra_b_enc,
            self.extra_w_dec,
        )


_MUTATED = (*Update._fields[5:17],)
_KINDS = {Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", float: "float", bool: "bool"}


def _schema(mutated: tuple[str, ...]) -> str:
    arguments = []
    for i, (name, kind) in enumerate(Update.__annotations__.items()):
        written = _KINDS[kind]
        if name in mutated:
            written = written.replace("Tensor", f"Tensor({chr(97 + i)}!)")
        default = Update._field_defaults.get(name, ...)
        arguments.append(f"{written} {name}" + ("" if default is ... else f"={default}"))
    return f"({', '.join(arguments)}) -> (Tensor, Tensor)"


@torch.library.custom_op("saefast::latent_update", mutates_args=_MUTATED, schema=_schema(_MUTATED))
def latent_update(*arguments: Argument) -> tuple[Tensor, Tensor]:
    """See `Update` and `reference.latent_update`.

    Returns the gradient of `inputs` summed over tokens [d], and on how many tokens each latent's
    value was positive [m].
    """
    update = Update(*arguments)  # type: ignore[arg-type]
    checks.in_range("indices", update.indices, update.w_enc.shape[0])
    return _by_reference(update)


@torch.library.custom_op("saefast::gradient_squares", mutates_args=(), schema=_schema(()))
def gradient_squares(*arguments: Argument) -> tuple[Tensor, Tensor]:
    """What `latent_update` with these arguments would apply, without applying it.

    Returns the gradient of `inputs` summed over tokens [d], and the squared length of all that
    each latent's weights would be updated by, float64 [m].
    """
    update = Update(*arguments)  # type: ignore[arg-type]
    checks.in_range("indices", update.indices, update.w_enc.shape[0])
    return _squares_by_reference(update)


def _by_reference(
    update: Update, summed: Callable[..., Tensor] = reference.latent_sum
) -> tuple[Tensor, Tensor]:
    return reference.latent_update(
        *update[:5],
        update.parameters,
        update.moments,
        update.extra,
        update.rates,
        beta1=update.beta1,
        beta2=update.beta2,
        eps=update.eps,
        unit_norm=update.unit_norm,
        remove_parallel=update.remove_parallel,
        update_encoder=update.update_encoder,
        update_decoder=update.update_decoder,
        decay=update.decay,
        factor=update.factor,
        group_ends=update.group_ends,
        summed=summed,
    )


def _squares_by_reference(
    update: Update, summed: Callable[..., Tensor] = reference.latent_sum
) -> tuple[Tensor, Tensor]:
    gradients, input_grad_sum, _ = reference.latent_gradients(
        *update[:5],
        update.parameters,
        update.extra,
        project=update.unit_norm and update.remove_parallel,
        decay=update.decay,
        factor=update.factor,
        group_ends=update.group_ends,
        summed=summed,
    )
    squares = update.b_enc.new_zeros(update.b_enc.shape, dtype=torch.float64)
    updated = (update.update_encoder, True, update.update_decoder)
    for gradient, counts in zip(gradients, updated, strict=True):
        if counts:
            squares += gradient.double().reshape(len(squares), -1).square().sum(1)
    return input_grad_sum, squares


@latent_update.register_kernel("cpu")
def _(*arguments: Argument) -> tuple[Tensor, Tensor]:
    update = Update(*arguments)  # type: ignore[arg-type]
    fired = torch.empty(update.w_enc.shape[0], dtype=torch.int64)
    return _on_cpu(update, fired, None), fired


@gradient_squares.register_kernel("cpu")
def _(*arguments: Argument) -> tuple[Tensor, Tensor]:
    update = Update(*arguments)  # type: ignore[arg-type]
    m = update.w_enc.shape[0]
    squares = torch.empty(m, dtype=torch.float64)
    return _on_cpu(update, torch.empty(m, dtype=torch.int64), squares), squares


def _on_cpu(update: Update, fired: Tensor, squares: Tensor | None) -> Tensor:
    """Fills `fired`, and `squares` instead of updating; returns the sum of input gradients."""
    _check(update)
    n, k = update.indices.shape
    m, d = update.w_enc.shape
    _check_packed(update, (native.panel_units(update.product, d, m),))
    # Held here, so that the copies of what was not contiguous live as long as their addresses.
    left = [contiguous(tensor) for tensor in update[:5]]
    extra = [contiguous(tensor) for tensor in update.extra or ()]
    ends = torch.tensor([m]) if update.group_ends is None else contiguous(update.group_ends)
    step_size, root = update.rates.tolist()
    sign_enc, sign_dec = (0.0, 0.0) if update.sign is None else update.sign.tolist()
    input_grad_sum = update.w_enc.new_empty(d)
    indices, values, value_grads, residual, inputs = left
    latents, *gradients = extra or (None, None, None, None)
    units, norm, lost = (None, None, None) if squares is not None else update[14:17]
    native.latent_update(
        dtype_name(update.w_enc),
        address(indices),
        address(values),
        address(value_grads),
        address(residual),
        address(inputs),
        n,
        k,
        d,
        m,
        update.w_dec.shape[1],
        address(ends),
        len(ends),
        address(update.w_enc),
        address(update.b_enc),
        address(update.w_dec),
        (address(update.w_enc_first), address(update.w_enc_second)),
        (address(update.b_enc_first), address(update.b_enc_second)),
        (address(update.w_dec_first), address(update.w_dec_second)),
        address(latents),
        0 if latents is None else latents.shape[0],
        address(gradients[0]),
        address(gradients[1]),
        address(gradients[2]),
        step_size,
        root,
        update.beta1,
        update.beta2,
        update.eps,
        update.unit_norm,
        update.remove_parallel,
        update.update_encoder,
        update.update_decoder,
        address(update.shrink_enc),
        address(update.shrink_dec),
        sign_enc,
        sign_dec,
        1.0 if update.factor is None else float(update.factor),
        address(input_grad_sum),
        address(fired),
        address(squares),
        update.product,
        address(units),
        address(norm),
        address(lost),
        threads(),
    )
    return input_grad_sum


@latent_update.register_kernel("cuda")
def _(*arguments: Argument) -> tuple[Tensor, Tensor]:
    update = Update(*arguments)  # type: ignore[arg-type]
    _check(update)
    if not gpu.serves(update.w_enc):
        return _by_reference(update)
    if update.special:
        return _with_stored_gradients(update)
    kernels = gpu.kernels("latent_update")
    m, d = update.w_enc.shape
    _check_packed(update, (m, gpu.kernels("round_rows").padded_width(d)))
    moments = update.moments
    result: tuple[Tensor, Tensor] = gpu.launch(
        "latent_update.latent_update",
        *update[:5],
        kernels.Matrix(update.w_enc, *moments[:2]),
        kernels.Matrix(update.b_enc, *moments[2:4]),
        kernels.Matrix(update.w_dec, *moments[4:]),
        (update.product, *update.packed) if update.packed else None,
        kernels.Extra.of(*map(contiguous, update.extra), update.w_dec) if update.extra else None,
        update.rates,
        update.beta1,
        update.beta2,
        update.eps,
        unit_norm=update.unit_norm,
    )
    return result


def _with_stored_gradients(update: Update) -> tuple[Tensor, Tensor]:
    """For what no kernel does in one pass; the encoder is packed again afterwards."""
    result = _by_reference(update, torch.ops.saefast.latent_sum)
    if update.packed:
        fresh = gpu.launch("round_rows.rounded_rows", update.w_enc, update.product)
        for old, new in zip(update.packed, (fresh.units, fresh.norm, fresh.lost), strict=True):
            old.copy_(new)
    return result


@gradient_squares.register_kernel("cuda")
def _(*arguments: Argument) -> tuple[Tensor, Tensor]:
    update = Update(*arguments)  # type: ignore[arg-type]
    _check(update)
    served = gpu.serves(update.w_enc)
    summed = torch.ops.saefast.latent_sum if served else reference.latent_sum
    return _squares_by_reference(update, summed)


def _check(update: Update) -> None:
    checks.at_least_float32("w_enc", update.w_enc)
    checks.code(update.values, update.indices, update.w_enc)
    m, d = update.w_enc.shape
    n, k = update.values.shape
    d_out = update.w_dec.shape[-1]
    groups = () if update.group_ends is None else update.group_ends.shape
    shapes: dict[str, tuple[int, ...]] = {
        "value_grads": (n, k),
        "residual": (*groups, n, d_out),
        "inputs": (n, d),
    }
    rows = {"w_enc": (m, d), "b_enc": (m,), "w_dec": (m, d_out)}
    for name in Update._fields[5:14]:
        checks.writable(name, getattr(update, name))
        shapes[name] = rows[name.removesuffix("_first").removesuffix("_second")]
    for name in ("shrink_enc", "shrink_dec"):
        if getattr(update, name) is not None:
            checks.writable(name, getattr(update, name))  # contiguous, for its address is passed
            shapes[name] = (m,)
    if update.extra:
        checks.indices("extra_latents", update.extra[0], "[c]")
        c = update.extra[0].shape[0]
        shapes |= {"extra_w_enc": (c, d), "extra_b_enc": (c,), "extra_w_dec": (c, d_out)}
    for name, shape in shapes.items():
        checks.same_kind("w_enc", update.w_enc, name, getattr(update, name))
        checks.shape(name, getattr(update, name), shape)
    checks.same_device("w_enc", update.w_enc, "rates", update.rates)
    checks.shape("rates", update.rates, (2,))
    if update.group_ends is not None:
        checks.indices("group_ends", update.group_ends, "[g]")


def _check_packed(update: Update, units: tuple[int, ...]) -> None:
    if update.packed is None:
        return
    m = update.w_enc.shape[0]
    sizes: tuple[tuple[int, ...], ...] = (units, (m,), (m,))
    for name, part, size in zip(("units", "norm", "lost"), update.packed, sizes, strict=True):
        checks.writable(name, part)
        checks.shape(name, part, size)


def _all_or_none(what: str, *parts: Tensor | None) -> tuple[Tensor, ...] | None:
    given = tuple(part for part in parts if part is not None)
    if len(given) not in (0, len(parts)):
        raise ValueError(f"{what} must be given together or not at all")
    return given or None


def _fake(dtype: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]]:
    def fake(*arguments: Argument) -> tuple[Tensor, Tensor]:
        w_enc = Update(*arguments).w_enc  # type: ignore[arg-type]
        m, d = w_enc.shape
        return w_enc.new_empty(d), w_enc.new_empty(m, dtype=dtype)

    return fake


latent_update.register_fake(_fake(torch.int64))
gradient_squares.register_fake(_fake(torch.float64))
