"""Rule for folders that already hold results of the function that is called."""

from pathlib import Path


def refuse_existing(path: Path, resume: bool) -> None:
    """Raise an error if `path` exists and is not to be resumed.

    One rule holds for every function that fills a folder over time: `train_saes`, `harvest`,
    `StoreWriter`, `match_all`, `evaluate_pooling` and `run_pipeline`.

    - `resume=False`, the default: existing results are refused and stay as they are.
    - `resume=True`: finished work is kept, interrupted work continues, and missing work is begun.
      The result has the bits of a run that was never interrupted. Trainings and stores
      that were begun with other inputs or settings are refused; matches and stages of a run that
      were made from others are made again.

    Every command passes `resume=True`, so that a repetition of the command continues.

    Args:
        path: file or folder that exists if there is earlier work.
        resume: whether to continue it.

    Raises:
        FileExistsError: `path` exists, and `resume` is False.
    """
    if not resume and path.exists():
        raise FileExistsError(
            f"{path} already exists; continue with resume=True, or choose another folder"
        )
