"""Declare the functions of csrc/cuda/bindings.cpp, in a build with SAEFAST_CUDA=ON.

Addresses point to contiguous memory of the current device; `stream` is one of its cudaStream_t.
"""

architectures: list[str]

def keep_best(
    scores: int,
    maxima: int,
    shift: int,
    norm: int,
    lost: int,
    reach: int,
    spread: int,
    keys: int,
    counts: int,
    floor_keys: int,
    floor: int,
    rows: int,
    first: int,
    columns: int,
    width: int,
    k: int,
    capacity: int,
    block: int,
    hot: bool,
    bounded: bool,
    stream: int,
) -> None: ...
def choose(
    keys: int,
    counts: int,
    values: int,
    indices: int,
    rows: int,
    k: int,
    capacity: int,
    bfloat16: bool,
    stream: int,
) -> None: ...
