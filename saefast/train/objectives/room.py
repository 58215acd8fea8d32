"""How many latents of a row a GPU has places for, before it is known how many there are."""

_STEP = 32


class Room:
    """The number of places in every row of a list, learned from what earlier batches needed.

    A list has one size for the whole batch, and the host must know it before the kernels start. A
    row has no bound on its active latents other than all of them, so the host reads how many the
    longest row needed, and an encode that lacked places is repeated. Results do not depend on the
    number of places: only time and memory do.

    Args:
        places: the number of places at first.
    """

    def __init__(self, places: int) -> None:
        self.places = places

    def fits(self, longest: int) -> bool:
        """Return whether a row of `longest` latents had places, and learn how many are needed.

        The number changes rarely, since each one needs kernels and graphs of its own: it grows
        where places lacked, and shrinks where half of them would still leave a margin of a half.
        """
        fits = longest <= self.places
        enough = max(-(-3 * longest // (2 * _STEP)), 1) * _STEP
        if not fits or 2 * enough <= self.places:
            self.places = enough
        return fits
