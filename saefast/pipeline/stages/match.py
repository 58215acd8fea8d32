"""Stage match: matches between every pair of SAEs, and their overlap."""

from itertools import combinations

from saefast.disk.tables import write_rows
from saefast.pipeline.job import Job
from saefast.run_folder import OVERLAP
from saefast.stability.overlap import Key, measure_overlap

_SIDES = ("decoder", "encoder")


def match(job: Job) -> None:
    """Match every pair of SAEs by decoder and by encoder, and measure the overlap of each pair."""
    by_side = {side: job.matches(side) for side in _SIDES}
    sign = "absolute" if job.absolute else "signed"
    rows = []
    for a, b in combinations(range(len(job.seeds)), 2):
        known = {
            Key("nearest", side, sign, turned): by_side[side][(b, a) if turned else (a, b)]
            for side in _SIDES
            for turned in (False, True)
        }
        found = measure_overlap(
            job.dictionaries[a],
            job.dictionaries[b],
            signs=(sign,),
            matches=known,
            progress=job.progress,
        )
        rows += [{"a": a, "b": b, **vars(measure)} for measure in found.measures]
    write_rows(job.run / OVERLAP, rows)
