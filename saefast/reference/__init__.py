"""Reference implementation of every op in plain torch, for any dtype and device.

It defines the correct result and is not optimised. Every choice is explicit: the other
implementations are tested against its handling of ties, its placement of the bias and the order of
operations in Adam.
"""

from saefast.reference.decode import (
    decode_prefixes,
    decode_residual,
    gather_dots,
    latent_sum,
    sparse_decode,
)
from saefast.reference.encode import (
    keep_largest,
    keep_of_batch,
    magnitudes,
    scores,
    threshold_encode,
    topk_encode,
)
from saefast.reference.update import (
    adam,
    adam_rates,
    count_idle,
    gradient_squares,
    latent_gradients,
    latent_update,
    normalise_rows,
    shape_gradients,
)

__all__ = [
    "adam",
    "adam_rates",
    "count_idle",
    "decode_prefixes",
    "decode_residual",
    "gather_dots",
    "gradient_squares",
    "keep_largest",
    "keep_of_batch",
    "latent_gradients",
    "latent_sum",
    "latent_update",
    "magnitudes",
    "normalise_rows",
    "scores",
    "shape_gradients",
    "sparse_decode",
    "threshold_encode",
    "topk_encode",
]
