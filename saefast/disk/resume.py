"""The rule for a folder that already holds what a function is about to write."""

from pathlib import Path


def refuse_existing(path: Path, resume: bool) -> None:
    """Raise an error if `path` exists and is not to be resumed.

    One rule holds for every function that fills a folder over time: `train_saes`, `harvest`,
    `StoreWriter`, `match_all`, `evaluate_pooling` and `run_pipeline`.

    - `resume=False`, the default: existing results are refused and stay as they are.
    - `resume=True`: what is finished is kept, what was interrupted goes on, and what is not there
      is begun. The result has the bits of a run that was never interrupted. Trainings and stores
      that were begun with other inputs or settings are refused; matches and stages of a run that
      were made from others are made again.

    Every command passes `resume=True`: repeated, it goes on.

    Args:
        path: the file or folder by which earlier work is known.
        resume: whether to go on with it.

    Raises:
        FileExistsError: `path` exists, and `resume` is False.
    """
    if not resume and path.exists():
        raise FileExistsError(
            f"{path} already exists; continue with resume=True, or choose another folder"
        )
