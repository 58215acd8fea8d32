"""Report of a run: one self-contained HTML file, and its figures as files."""

from pathlib import Path

from saefast.disk.atomic import make_folder, write_whole
from saefast.report.chart import standalone
from saefast.report.feature_rows import packed_features
from saefast.report.figures import draw_all
from saefast.report.findings import Finding, all_findings
from saefast.report.page import page, printed
from saefast.report.raster import rasteriser
from saefast.report.run_data import RunData, named_in_errors
from saefast.run_folder import REPORT

__all__ = ["Finding", "findings_of", "printed", "write_report"]


def write_report(
    run: str | Path, *, figures: str | Path | None = None, png: bool = False
) -> list[Path]:
    """Write RUN/report.html from the files that the stages of a run have written.

    Args:
        run: folder of a run.
        figures: folder for the figures as SVG files; None writes none.
        png: also write each figure as a PNG file to that folder; needs `pip install
            'saefast[figures]'`.

    Returns:
        Paths of the written files, the report first.
    """
    if png and figures is None:
        raise ValueError("png needs figures, the folder for the files, got figures=None")
    rasterised = rasteriser() if png else None
    report = Path(run) / REPORT
    with named_in_errors(Path(run)):
        data = _data_of(Path(run))
        drawn, missing = draw_all(data)
        members = {
            figure.name: figure.members
            for several in drawn.values()
            for figure in several
            if figure.members is not None
        }
        rows, details = packed_features(data, members) if data.features else ("", "")
        text = page(data, all_findings(data), drawn, missing, rows, details)
    write_whole(report, text.encode())
    written = [report]
    if figures is not None:
        folder = Path(figures)
        make_folder(folder)
        for each in (figure for several in drawn.values() for figure in several):
            text = standalone(each.svg, each.title)
            kinds = {"svg": text.encode()} | ({"png": rasterised(text)} if rasterised else {})
            for kind, content in kinds.items():
                written.append(folder / f"{each.name}.{kind}")
                write_whole(written[-1], content)
    return written


def findings_of(run: str | Path) -> list[Finding]:
    """Return the findings of a run's report.

    Args:
        run: folder of a run.

    Returns:
        Findings, the most important first.
    """
    with named_in_errors(Path(run)):
        return all_findings(_data_of(Path(run)))


def _data_of(run: Path) -> RunData:
    data = RunData(run)
    if not (data.facts or data.features or data.stability):
        raise FileNotFoundError(
            f"{run} holds no run: neither run.json nor features.parquet; saefast run creates one"
        )
    return data
