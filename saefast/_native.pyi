"""Declare the functions of csrc/bindings, the compiled kernels for the CPU.

Tensors must be contiguous and on the CPU; csrc/*.h documents their shapes, dtypes and meaning, and
errors name the argument that does not fit. Outputs are written in place.
"""

from collections.abc import Sequence

from torch import Tensor

from saefast.types import Update

openmp: bool

def compiled_levels() -> list[str]: ...
def usable_levels() -> list[str]: ...
def use_level(name: str) -> None: ...
def level() -> str: ...
def has_bfloat16_products() -> bool: ...
def has_int16_products() -> bool: ...
def panel_units(product: str, d: int, m: int) -> int: ...
def pack_weight(
    product: str,
    weight: Tensor,
    scale: Tensor | None,
    units: Tensor,
    norm: Tensor,
    lost: Tensor,
    threads: int,
) -> None: ...
def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    threshold: Tensor | None,
    values: Tensor,
    indices: Tensor,
    counts: Tensor | None,
    rescore: bool,
    absolute: bool,
    product: str,
    units: Tensor | None,
    norm: Tensor | None,
    lost: Tensor | None,
    threads: int,
) -> None: ...

class TileScreen:
    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        threshold: Tensor | None,
        values: Tensor,
        indices: Tensor,
        counts: Tensor | None,
        absolute: bool,
        product: str,
        threads: int,
    ) -> None: ...
    def feed(
        self, scores: Tensor, row: int, rows: int, column: int, columns: int, threads: int
    ) -> None: ...
    def finish(self, row: int, rows: int, threads: int) -> None: ...

def sparse_decode(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    threads: int,
) -> None: ...
def gather_dots(
    rows: Tensor, weight: Tensor, indices: Tensor, out: Tensor, threads: int
) -> None: ...
def partial_dots(
    rows: Tensor,
    weight: Tensor,
    indices: Tensor,
    width: int,
    ranks: int,
    out: Tensor,
    threads: int,
) -> None: ...
def decode_residual(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    factor: float,
    residual: Tensor,
    value_grads: Tensor,
    threads: int,
) -> float: ...
def latent_sum(
    values: Tensor, indices: Tensor, rows: Tensor, sums: Tensor, threads: int
) -> None: ...

class StoredGradients:
    def __init__(self, latents: int, width: int, item: int) -> None: ...

def latent_update(
    update: Update,
    input_grad_sum: Tensor | None,
    input_grad_parts: Tensor | None,
    fired: Tensor | None,
    squares: Tensor | None,
    stored: StoredGradients | None,
    threads: int,
) -> None: ...
def decoder_columns(
    update: Update,
    wanted: str,
    width: int,
    ranks: int,
    along: Tensor | None,
    extra_along: Tensor | None,
    partial: Tensor,
    threads: int,
) -> None: ...
def keep_best_row(
    scores: Tensor,
    maxima: Tensor,
    shift: Tensor,
    norm: Tensor,
    lost: Tensor,
    reach: Tensor,
    spread: Tensor,
    keys: Tensor,
    counts: Tensor,
    floor_keys: Tensor,
    floor: Tensor,
    row: int,
    first: int,
    columns: int,
    k: int,
    block: int,
    hot: bool,
    bounded: bool,
    lanes: int,
) -> None: ...
def xxh64(pieces: Sequence[bytes | bytearray | memoryview], threads: int) -> list[int]: ...

class Xxh64:
    def __init__(self) -> None: ...
    def add(self, piece: bytes | bytearray | memoryview) -> None: ...
    def value(self) -> int: ...

def choose_row(keys: Tensor, count: int, values: Tensor, indices: Tensor, lanes: int) -> None: ...
def keys_of(scores: Tensor, keys: Tensor) -> None: ...
def best_assignment(
    row_start: Tensor,
    column: Tensor,
    similarity: Tensor,
    floor: float,
    warm: bool,
    seconds: float,
    partner: Tensor,
    row_price: Tensor,
    column_price: Tensor,
) -> bool: ...
