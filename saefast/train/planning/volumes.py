"""Work of a training step on a rank: products, gathered bytes and updated bytes."""

UPDATE_BYTES = 26
"""Bytes that Adam reads and writes for a weight: it and its moments, and the packed copy."""


def gathered_bytes(n: int, k: int, rows: float, columns: float, entry: int) -> float:
    """Return the bytes of rows gathered for a code of n k entries.

    The decode and the products of errors with decoder rows share one pass over the columns, and
    each side of the gradient is another pass.

    Args:
        n: rows of the batch.
        k: entries of a row of the code.
        rows: width of the inputs, times the rank's share of the latents.
        columns: the rank's columns of the decoder.
        entry: bytes of a number.
    """
    return n * k * entry * (2 * columns + rows)
