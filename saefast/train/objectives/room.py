"""Capacity of codes on a GPU: latents per row, chosen before their number is known."""

_STEP = 32


class Room:
    """Capacity per row of a code, adapted to the needs of earlier batches.

    The capacity is the same for all rows of a batch, and the host must know it before the kernels
    start. The number of active latents of a row is bounded only by the number of latents, so the
    host reads how many the longest row needed, and an encode that lacked room is repeated. Results
    do not depend on the capacity, only time and memory do.

    Args:
        places: initial capacity.
    """

    def __init__(self, places: int) -> None:
        self.places = places

    def fits(self, longest: int) -> bool:
        """Return whether a row of `longest` latents had room, and adapt the capacity.

        The capacity changes rarely, since each value needs kernels and graphs of its own: it grows
        when room was lacking, and shrinks when half of it would still leave a margin of one half.
        """
        fits = longest <= self.places
        enough = max(-(-3 * longest // (2 * _STEP)), 1) * _STEP
        if not fits or 2 * enough <= self.places:
            self.places = enough
        return fits
