"""Gradient, Adam and renormalisation of every latent in one pass; no gradient is ever stored."""

from typing import NamedTuple

import torch
from torch import Tensor

from saefast import reference
from saefast.ops import checks, gpu
from saefast.ops.cpu import address, contiguous, dtype_name, native, threads


class Update(NamedTuple):
    """What `latent_update` takes, in order; the state of the training is updated in place."""

    indices: Tensor
    """[n, k] the code"""
    values: Tensor
    value_grads: Tensor
    """[n, k] the loss's gradient by each value; zero where the value is not positive"""
    residual: Tensor
    """[n, d] the loss's gradient by the reconstruction"""
    inputs: Tensor
    """[n, d] what the encoder multiplied"""
    w_enc: Tensor
    """[m, d]"""
    b_enc: Tensor
    """[m]"""
    w_dec: Tensor
    """[m, d]"""
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
    """decoder rows have norm one; the gradient's part along them is removed first"""

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
_SCHEMA = ", ".join(
    "{} {}".format(
        {
            Tensor: f"Tensor({chr(97 + i)}!)" if name in _MUTATED else "Tensor",
            Tensor | None: f"Tensor({chr(97 + i)}!)?" if name in _MUTATED else "Tensor?",
            str: "str",
            float: "float",
            bool: "bool",
        }[kind],
        name,
    )
    for i, (name, kind) in enumerate(Update.__annotations__.items())
)


@torch.library.custom_op(
    "saefast::latent_update", mutates_args=_MUTATED, schema=f"({_SCHEMA}) -> (Tensor, Tensor)"
)
def latent_update(*arguments: Tensor | str | float | None) -> tuple[Tensor, Tensor]:
    """See `Update` and `reference.latent_update`.

    Returns the gradient of `inputs` summed over tokens [d], and on how many tokens each latent's
    value was positive [m].
    """
    update = Update(*arguments)  # type: ignore[arg-type]
    checks.in_range("indices", update.indices, update.w_enc.shape[0])
    return _by_reference(update)


def _by_reference(update: Update) -> tuple[Tensor, Tensor]:
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
    )


@latent_update.register_kernel("cpu")
def _(*arguments: Tensor | str | float | None) -> tuple[Tensor, Tensor]:
    update = Update(*arguments)  # type: ignore[arg-type]
    n, k = update.indices.shape
    m, d = update.w_enc.shape
    _check(update)
    _check_packed(update, (native.panel_units(update.product, d, m),))
    # Held here, so that the copies of what was not contiguous live as long as their addresses.
    left = [contiguous(tensor) for tensor in update[:5]]
    extra = [contiguous(tensor) for tensor in update.extra or ()]
    step_size, root = update.rates.tolist()
    input_grad_sum = update.w_enc.new_empty(d)
    fired = torch.empty(m, dtype=torch.int64)
    indices, values, value_grads, residual, inputs = left
    latents, *gradients = extra or (None, None, None, None)
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
        address(input_grad_sum),
        address(fired),
        update.product,
        address(update.units),
        address(update.norm),
        address(update.lost),
        threads(),
    )
    return input_grad_sum, fired


@latent_update.register_kernel("cuda")
def _(*arguments: Tensor | str | float | None) -> tuple[Tensor, Tensor]:
    update = Update(*arguments)  # type: ignore[arg-type]
    _check(update)
    if not gpu.serves(update.w_enc):
        return _by_reference(update)
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


def _check(update: Update) -> None:
    checks.at_least_float32("w_enc", update.w_enc)
    checks.code(update.values, update.indices, update.w_enc)
    m, d = update.w_enc.shape
    n, k = update.values.shape
    shapes: dict[str, tuple[int, ...]] = {
        "value_grads": (n, k),
        "residual": (n, d),
        "inputs": (n, d),
    }
    state = Update._fields[5:14]
    for name in state:
        checks.writable(name, getattr(update, name))
        shapes[name] = (m,) if name.startswith("b_enc") else (m, d)
    if update.extra:
        checks.indices("extra_latents", update.extra[0], "[c]")
        c = update.extra[0].shape[0]
        shapes |= {"extra_w_enc": (c, d), "extra_b_enc": (c,), "extra_w_dec": (c, d)}
    for name, shape in shapes.items():
        checks.same_kind("w_enc", update.w_enc, name, getattr(update, name))
        checks.shape(name, getattr(update, name), shape)
    checks.same_device("w_enc", update.w_enc, "rates", update.rates)
    checks.shape("rates", update.rates, (2,))


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


@latent_update.register_fake
def _(*arguments: Tensor | str | float | None) -> tuple[Tensor, Tensor]:
    w_enc = Update(*arguments).w_enc  # type: ignore[arg-type]
    m, d = w_enc.shape
    return w_enc.new_empty(d), w_enc.new_empty(m, dtype=torch.int64)
