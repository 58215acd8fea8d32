"""The many operands of `latent_update`: their names, what they mean, and that they fit together."""

from typing import NamedTuple

from torch import Tensor

from saefast import checks
from saefast.types import Decay


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
    """[c] latents with gradients from elsewhere, each once; one out of range stands for none, and
    its gradients may be unset"""
    extra_w_enc: Tensor | None
    """[c, d] their gradients"""
    extra_b_enc: Tensor | None
    """[c]"""
    extra_w_dec: Tensor | None
    """[c, d_out]"""
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
    """[m] see `Decay`"""
    shrink_dec: Tensor | None = None
    """[m] see `Decay`. With it or `sign`, even of zero, the part of the decoder's gradient along
    its rows is measured; without, it is inferred from `value_grads`"""
    sign: Tensor | None = None
    """[2] see `Decay`"""
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
    def extra(self) -> tuple[Tensor, ...] | None:
        """The extra latents and gradients, if there are any."""
        return _all_or_none(
            "the extra gradients",
            self.extra_latents,
            self.extra_w_enc,
            self.extra_b_enc,
            self.extra_w_dec,
        )


MUTATED = (*Update._fields[5:17],)
_KINDS = {Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", float: "float", bool: "bool"}


def schema(mutated: tuple[str, ...]) -> str:
    """That of an op which takes an `Update` and changes these operands."""
    arguments = []
    for i, (name, kind) in enumerate(Update.__annotations__.items()):
        written = _KINDS[kind]
        if name in mutated:
            written = written.replace("Tensor", f"Tensor({chr(97 + i)}!)")
        default = Update._field_defaults.get(name, ...)
        arguments.append(f"{written} {name}" + ("" if default is ... else f"={default}"))
    return f"({', '.join(arguments)}) -> (Tensor, Tensor)"


def check(update: Update) -> None:
    """Kinds and shapes of all but what is packed."""
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
    for name, scalars in (("sign", (2,)), ("factor", ())):
        if getattr(update, name) is not None:
            checks.same_device("w_enc", update.w_enc, name, getattr(update, name))
            checks.shape(name, getattr(update, name), scalars)
    if update.group_ends is not None:
        checks.same_device("w_enc", update.w_enc, "group_ends", update.group_ends)
        checks.indices("group_ends", update.group_ends, "[g]")


def check_packed(update: Update, units: tuple[int, ...]) -> None:
    """`units` is their shape on the device at hand."""
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
