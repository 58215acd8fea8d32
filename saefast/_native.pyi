"""What csrc/bindings.cpp offers. Addresses point to contiguous memory that the caller keeps."""

openmp: bool

def compiled_levels() -> list[str]: ...
def usable_levels() -> list[str]: ...
def use_level(name: str) -> None: ...
def level() -> str: ...
def has_bfloat16_products() -> bool: ...
def panel_units(screen: str, d: int, m: int) -> int: ...
def pack_weight(
    dtype: str,
    screen: str,
    weight: int,
    scale: int,
    d: int,
    m: int,
    units: int,
    norm: int,
    lost: int,
    threads: int,
) -> None: ...
def topk_encode(
    dtype: str,
    x: int,
    weight: int,
    bias: int,
    scale: int,
    n: int,
    d: int,
    m: int,
    k: int,
    values: int,
    indices: int,
    rescore: bool,
    screen: str,
    units: int,
    norm: int,
    lost: int,
    threads: int,
) -> None: ...

class TileScreen:
    def __init__(
        self,
        dtype: str,
        x: int,
        weight: int,
        bias: int,
        scale: int,
        n: int,
        d: int,
        m: int,
        k: int,
        values: int,
        indices: int,
        screen: str,
        threads: int,
    ) -> None: ...
    def feed(
        self,
        scores: int,
        stride: int,
        row: int,
        rows: int,
        column: int,
        columns: int,
        threads: int,
    ) -> None: ...
    def finish(self, row: int, rows: int, threads: int) -> None: ...

def sparse_decode(
    dtype: str,
    values: int,
    indices: int,
    weight: int,
    bias: int,
    n: int,
    k: int,
    d: int,
    m: int,
    out: int,
    threads: int,
) -> None: ...
def gather_dots(
    dtype: str,
    rows: int,
    weight: int,
    indices: int,
    n: int,
    k: int,
    d: int,
    m: int,
    out: int,
    threads: int,
) -> None: ...
def decode_residual(
    dtype: str,
    values: int,
    indices: int,
    weight: int,
    bias: int,
    n: int,
    k: int,
    d: int,
    m: int,
    target: int,
    factor: float,
    residual: int,
    value_grads: int,
    threads: int,
) -> float: ...
def latent_sum(
    dtype: str,
    values: int,
    indices: int,
    rows: int,
    n: int,
    k: int,
    d: int,
    m: int,
    sums: int,
    threads: int,
) -> None: ...
def latent_update(
    dtype: str,
    indices: int,
    values: int,
    value_grads: int,
    residual: int,
    inputs: int,
    n: int,
    k: int,
    d: int,
    m: int,
    w_enc: int,
    b_enc: int,
    w_dec: int,
    w_enc_moments: tuple[int, int],
    b_enc_moments: tuple[int, int],
    w_dec_moments: tuple[int, int],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    unit_norm: bool,
    input_grad_sum: int,
    fired: int,
    screen: str,
    units: int,
    norm: int,
    lost: int,
    threads: int,
) -> None: ...
