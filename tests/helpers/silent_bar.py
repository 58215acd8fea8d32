"""A progress bar that shows nothing."""

from saefast.progress import ProgressBar


def silent() -> ProgressBar:
    return ProgressBar("test", total=None, unit="pairs", progress=False)
