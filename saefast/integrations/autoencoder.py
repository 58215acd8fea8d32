"""Check of SAEs that adapters with separate `encode` and `decode` can represent."""

from saefast.sae import SAE


def check_autoencoder(sae: SAE) -> None:
    """Raise ValueError unless the SAE reconstructs its input from the values of its latents alone.

    The packages decode values without the rows that they came from, on which the reconstruction
    depends if the SAE normalises rows or has a skip connection.
    """
    if sae.transcodes:
        raise ValueError("sae must reconstruct its input, got a transcoder")
    if sae.normalise != "none" or sae.skip:
        raise ValueError(
            f"sae must not normalise rows or have a skip connection, since values are decoded "
            f"without the rows here, got normalise={sae.normalise!r}, skip={sae.skip}"
        )
