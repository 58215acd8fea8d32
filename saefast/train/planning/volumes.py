"""Bytes that a rank gathers and updates in a training step."""

UPDATE_BYTES = 26
"""Bytes that Adam reads and writes for a weight: it and its moments, and the packed copy."""


def gathered_bytes(entries: float, rows: float, columns: float, number: int) -> float:
    """Return the bytes of rows that are gathered for a code.

    The decode and the products of errors with decoder rows share one pass over the columns, and
    each side of the gradient is another pass.

    Args:
        entries: number of entries of the code.
        rows: width of the inputs, times the rank's share of the latents.
        columns: the rank's columns of the decoder.
        number: bytes of a number.
    """
    return entries * number * (2 * columns + rows)
