"""The report: complete, honest about what is missing, safe whatever the data say."""

import base64
import dataclasses
import functools
import gzip
import json
import re
import shutil
import struct
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tiny_run import NASTY, add_language_model, tiny_run

from saefast.pipeline import run_pipeline, settings_of
from saefast.report import findings_of, write_report
from saefast.report.chart import Chart, Scale, covering, short
from saefast.report.figures import SECTIONS
from saefast.report.finding import AGREES, DISAGREES
from saefast.run_files import (
    CONTEXTS,
    EVALUATION,
    FEATURES,
    POOLING,
    STABILITY,
    SUBSPACES,
    add_columns,
    read_json,
    read_table,
    write_json,
    write_rows,
)

VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """What is on a page; fails where elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if named.get("id"):
            self.ids.append(str(named["id"]))
        if tag == "script":
            self._script = str(named.get("id", "code"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self._script] = data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def rows(self) -> dict:
        """The table of features."""
        return json.loads(gzip.decompress(base64.b64decode(self.scripts["rows"])))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("runs") / "tiny <&> run")


@pytest.fixture
def run(planted: Path, tmp_path: Path) -> Path:
    """A copy that has all there can be."""
    out = shutil.copytree(planted, tmp_path / planted.name)
    add_language_model(out)
    return out


def page_of(run: Path) -> Page:
    return Page(write_report(run)[0].read_text(encoding="utf-8"))


def test_a_complete_run_has_every_figure_in_a_well_formed_page(run: Path, tmp_path: Path) -> None:
    written = write_report(run, figures=tmp_path / "figures")
    page = Page(written[0].read_text(encoding="utf-8"))
    wanted = sum(len(several) for several in SECTIONS.values())
    assert len(written) == 1 + wanted
    drawn = [name for name in page.ids if name.startswith("fig-")]
    assert sorted(drawn) == sorted(f"fig-{path.stem}" for path in written[1:])
    assert len(set(page.ids)) == len(page.ids)
    named = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(named) == wanted
    assert all(value and len(value) > 20 for value in named)
    assert "missing" not in page.ids


def test_figures_are_files_that_other_programs_read(run: Path, tmp_path: Path) -> None:
    for path in write_report(run, figures=tmp_path / "figures")[1:]:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        marks = [each.tag.split("}")[1] for each in root.iter()]
        assert "title" in marks
        assert len(marks) > 10
        numbers = re.findall(r'(?:d|x|y|cx|cy|width|height)="([^"]*)"', path.read_text())
        assert not any("nan" in each or "inf" in each for each in numbers)


def test_figures_bring_their_colours_along(run: Path, tmp_path: Path) -> None:
    """Programs that know no variables of CSS would draw all of it in black."""
    for path in write_report(run, figures=tmp_path / "figures")[1:]:
        text = path.read_text()
        style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)[0]
        assert "var(" not in text
        assert "@media" not in text
        assert "fill: #2463c2" in style
        used = {name for names in re.findall(r'class="([^"]*)"', text) for name in names.split()}
        assert all(f".{name}" in style for name in used if name), used


def test_figures_are_pictures_on_request(run: Path, tmp_path: Path) -> None:
    svg_to_bytes = pytest.importorskip("resvg_py").svg_to_bytes
    written = write_report(run, figures=tmp_path / "figures", png=True)[1:]
    pictures = [path for path in written if path.suffix == ".png"]
    assert [path.with_suffix(".svg") for path in pictures] == [
        path for path in written if path.suffix == ".svg"
    ]
    for path in pictures:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert struct.unpack(">II", content[16:24]) == (1920, 1200)
    # What one says and how it is coloured is there to be seen.
    svg = path.with_suffix(".svg").read_text()
    for part in (r"<text.*?</text>", r"<style>.*?</style>"):
        assert bytes(svg_to_bytes(re.sub(part, "", svg, flags=re.DOTALL), zoom=2)) != content


def test_without_a_font_no_picture_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The renderer would leave out every word."""
    resvg = pytest.importorskip("resvg_py")
    blind = functools.partial(resvg.svg_to_bytes, skip_system_fonts=True)
    monkeypatch.setattr(resvg, "svg_to_bytes", blind)
    with pytest.raises(OSError, match="need a font"):
        write_report(run, figures=tmp_path / "figures", png=True)
    assert not (tmp_path / "figures").exists()


def test_nothing_is_loaded_from_anywhere(run: Path) -> None:
    text = write_report(run)[0].read_text(encoding="utf-8")
    page = Page(text)
    loading = ("src", "href", "action", "data", "poster", "srcset")
    for tag, name, value in page.attributes:
        if name in loading:
            assert str(value).startswith("#"), (tag, name, value)
    assert not re.search(r"https?://", text.replace("http://www.w3.org/2000/svg", ""))
    assert "@import" not in text
    assert "url(" not in text
    policy = next(v for tag, name, v in page.attributes if (tag, name) == ("meta", "content"))
    assert "default-src 'none'" in str(policy)


def test_what_comes_from_data_stays_text(run: Path) -> None:
    """The name of the folder, texts of the corpus, settings: all of it may hold anything."""
    settings = read_json(run / "settings.json")
    settings["store"] = {"train": NASTY, "held_out": ""}
    del settings["planted"]
    write_json(run / "settings.json", settings)
    write_json(run / SUBSPACES / "skipped.json", [NASTY])
    page = page_of(run)
    assert sorted(page.scripts) == ["code", "rows"]
    text = "".join(page.text)
    assert text.count(NASTY) == 2
    assert "tiny <&> run" in text
    assert not any(tag == "b" for tag, _, _ in page.attributes)
    rows = page.rows
    assert all(token.startswith(NASTY) for token in rows["token"])
    assert [each[0][1] for each in rows["contexts"]] == rows["token"]


def test_the_table_says_what_the_files_say(run: Path) -> None:
    table = read_table(run / FEATURES).to_pylist()
    alive = [row for row in table if row["alive"]]
    rows = page_of(run).rows
    assert len(rows["feature"]) == len(alive) < len(table) + 1
    for number, row in enumerate(alive):
        assert (rows["seed"][number], rows["feature"][number]) == (row["seed"], row["feature"])
        assert rows["group"][number] == row["group"]
        assert rows["score"][number] == pytest.approx(row["score"], abs=1e-3)
        assert rows["effect"][number] == pytest.approx(row["effect"], rel=1e-2)
        partners = {seed: partner for seed, partner, _ in rows["partners"][number]}
        assert partners == {s: p for s, p in enumerate(row["partner"]) if p >= 0}
        assert row["seed"] not in partners
    contexts = [
        each
        for each in read_table(run / CONTEXTS).to_pylist()
        if (each["seed"], each["feature"]) == (alive[3]["seed"], alive[3]["feature"])
    ]
    assert [each[0] for each in rows["contexts"][3]] == [each["before"] for each in contexts]


@pytest.mark.parametrize(
    ("gone", "lost", "said"),
    [
        (POOLING, {"pooling-frontier"}, "pooling and its controls"),
        (
            SUBSPACES,
            {"spectra", "angles", "overlap-stable", "overlap-unstable", "contributions"},
            "subspaces",
        ),
        (EVALUATION, {"keep-drop", "keep-drop-ce"}, "an evaluation"),
        ("metrics.jsonl", {"training"}, "the log of the training"),
        ("membership.json", {"only-in-one"}, "membership"),
        ("overlap.parquet", {"shared-curves", "pair-heat-map"}, "in common"),
        ("matches", {"decoder-encoder"}, "matches by decoder"),
    ],
)
def test_what_is_missing_is_left_out_and_named(
    run: Path, gone: str, lost: set[str], said: str
) -> None:
    complete = {name for name in page_of(run).ids if name.startswith("fig-")}
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of(run)
    left = {name for name in page.ids if name.startswith("fig-")}
    assert complete - left == {f"fig-{name}" for name in lost}
    assert said in "".join(page.text).partition("What is not in this report")[2]


def test_what_was_made_from_old_scores_is_left_out(run: Path) -> None:
    """After another threshold planes, pools and worth are those of groups that are no more."""
    settings = settings_of(run)
    rule = dataclasses.replace(settings.stability, threshold=0.9)
    changed = dataclasses.replace(settings, stability=rule)
    run_pipeline(changed, run, until="stability", progress=False)
    page = page_of(run)
    left = {name for name in page.ids if name.startswith("fig-")}
    gone = {"spectra", "angles", "overlap-stable", "keep-drop", "pooling-frontier"}
    assert not left & {f"fig-{name}" for name in gone}
    assert "fig-stability-histogram" in left
    assert "saefast pool" in "".join(page.text)


def test_a_run_that_has_only_been_trained_has_a_report(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("run.json", "metrics.jsonl"):
        shutil.copy(run / name, bare)
    page = page_of(bare)
    assert [name for name in page.ids if name.startswith("fig-")] == ["fig-training"]
    assert "Nothing yet" in "".join(page.text)
    assert not page.scripts


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report(tmp_path)


def test_the_same_files_give_the_same_bytes(run: Path) -> None:
    first = write_report(run)[0].read_bytes()
    assert write_report(run)[0].read_bytes() == first


def finding(run: Path, topic: str, number: int = 0) -> tuple[str, str]:
    found = [each for each in findings_of(run) if each.topic == topic]
    return found[number].text, found[number].verdict


def test_shares_of_stable_features_are_those_of_the_table(run: Path) -> None:
    rows = [row for row in read_table(run / FEATURES).to_pylist() if row["alive"]]
    stable = sum(row["group"] == "stable" for row in rows) / len(rows)
    unstable = sum(row["group"] == "unstable" for row in rows) / len(rows)
    text, _ = finding(run, "Stability")
    shown = [int(value) / 100 for value in re.findall(r"(\d+) %", text)]
    assert shown[0] == pytest.approx(stable, abs=0.0051)
    assert unstable == pytest.approx(
        float(re.search(r"([\d.]+) % unstable", text)[1]) / 100,
        abs=0.0051,  # type: ignore[index]
    )
    mean = np.mean([row["score"] for row in rows])
    assert f"the mean score is {mean:.2f}" in text


def set_groups(run: Path, **keep: float) -> None:
    """Say that groups explain so much, each with its random sets of equal mass at 0.3 ± 0.01."""
    evaluation = read_json(run / EVALUATION)
    for each in evaluation["seeds"]:
        for line in each["groups"]:
            line["features"] = 5.0
            if line["control"] == "mass":
                line["keep"], line["keep_std"] = 0.3, 0.01
            elif line["control"] == "":
                line["keep"] = keep[line["group"]]
    write_json(run / EVALUATION, evaluation)


@pytest.mark.parametrize(
    ("keep", "verdicts", "words"),
    [
        ({"stable": 0.6, "unstable": 0.1}, [AGREES, AGREES, AGREES], ["more than", "less than"]),
        ({"stable": 0.2, "unstable": 0.5}, [DISAGREES] * 3, ["less than", "more than"]),
        (
            {"stable": 0.31, "unstable": 0.29},
            [AGREES, DISAGREES, DISAGREES],
            ["no different from", "no different from"],
        ),
    ],
)
def test_the_verdict_is_what_the_numbers_say(
    run: Path, keep: dict[str, float], verdicts: list[str], words: list[str]
) -> None:
    """Also where stable features are worth no more than random ones."""
    set_groups(run, **keep)
    text, verdict = finding(run, "Worth")
    controls = [finding(run, "Controls", number) for number in (0, 1)]
    assert [verdict, *(each[1] for each in controls)] == verdicts
    assert f"stable features alone {keep['stable']:.3f}" in text
    for (said, _), word in zip(controls, words, strict=True):
        assert f"{word} random features with" in said


def test_planes_are_called_reproducible_only_beyond_every_null(run: Path) -> None:
    table = read_table(run / SUBSPACES / "nulls.parquet").to_pylist()

    def say(group: str, null: str, high: float) -> None:
        for row in table:
            if (row["group"], row["statistic"]) == (group, "overlap"):
                row["value"] = 0.8
                if row["null"] == null:
                    row["mean"], row["high"] = high - 0.1, None if null == "haar" else high

    for null in ("haar", "covariance", "subset"):
        say("unstable", null, 0.5)
    write_rows(run / SUBSPACES / "nulls.parquet", table)
    assert finding(run, "Planes")[1] == AGREES
    assert "overlap by 0.80" in finding(run, "Planes")[0]
    say("unstable", "subset", 0.9)
    write_rows(run / SUBSPACES / "nulls.parquet", table)
    text, verdict = finding(run, "Planes")
    assert verdict == "in part as published"
    assert "not beyond as many random features" in text
    for null in ("haar", "covariance"):
        say("unstable", null, 0.95)
    write_rows(run / SUBSPACES / "nulls.parquet", table)
    assert finding(run, "Planes")[1] == DISAGREES


def test_pooling_that_does_not_beat_its_controls_is_said_to(run: Path) -> None:
    told = read_json(run / POOLING)
    assert {row["method"] for row in told["methods"]} == {"pooled", "pruned", "scratch", "single"}
    told["beaten"] = {"pruned": False, "scratch": True, "single": True}
    write_json(run / POOLING, told)
    text, verdict = finding(run, "Pooling")
    assert text.startswith("Pooling does not beat pruned.")
    assert verdict == DISAGREES
    told["beaten"]["pruned"] = True
    write_json(run / POOLING, told)
    assert finding(run, "Pooling")[1] == AGREES
    pooled = next(row for row in told["methods"] if row["method"] == "pooled")
    assert f"{pooled['equal_explained_variance']:.3f}" in finding(run, "Pooling")[0]


def test_what_the_language_model_loses_is_said(run: Path) -> None:
    text, verdict = finding(run, "Language model")
    assert "costs the model 2.50 nats, 3.00 with the reconstruction, 3.50 from stable" in text
    assert "7.25 from unstable" in text
    assert verdict == AGREES


@pytest.mark.parametrize(
    ("unstable", "verdict"), [(0.9, AGREES), (0.71, ""), (0.69, ""), (0.5, DISAGREES)]
)
def test_medians_that_hardly_differ_are_no_verdict(
    run: Path, unstable: float, verdict: str
) -> None:
    groups = read_table(run / FEATURES)["group"].to_pylist()
    aurocs = [unstable if group == "unstable" else 0.7 for group in groups]
    add_columns(run / FEATURES, {"token_auroc": aurocs})
    assert finding(run, "Surface form")[1] == verdict


def test_an_effect_that_may_be_none_is_no_verdict(run: Path) -> None:
    evaluation = read_json(run / EVALUATION)
    for value, said, verdict in (
        (-1.0, "worth less", AGREES),
        (1.0, "worth more", DISAGREES),
        (0.1, "as far as is known", ""),
    ):
        evaluation["regression"] = {
            "coefficient": {"group": value},
            "standard_error": {"group": 0.2},
            "features": 100,
        }
        write_json(run / EVALUATION, evaluation)
        text, given = finding(run, "At equal frequency")
        assert said in text
        assert given == verdict


def test_no_group_at_all_is_no_error(run: Path) -> None:
    """A threshold that nothing reaches: all features are unstable, none is stable."""
    table = read_table(run / FEATURES)
    alive = table["alive"].to_pylist()
    group = ["unstable" if lives else "dead" for lives in alive]
    add_columns(run / FEATURES, {"group": group})
    told = read_json(run / STABILITY)
    for each in told["seeds"]:
        each["stable"], each["unstable"] = 0, each["alive"]
    write_json(run / STABILITY, told)
    evaluation = read_json(run / EVALUATION)
    for each in evaluation["seeds"]:
        for line in each["groups"]:
            if line["group"] == "stable":
                line["features"] = 0.0
    write_json(run / EVALUATION, evaluation)
    assert "No feature is stable" in finding(run, "Worth")[0]
    assert "fig-keep-drop" in page_of(run).ids


def test_scales_and_their_ticks() -> None:
    assert Scale(0, 1).ticks() == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert Scale(0, 0.37).ticks() == [0, 0.1, 0.2, 0.3]
    assert Scale(1e-5, 0.5, log=True).ticks() == [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
    assert Scale(1e-4, 1, log=True)(1e-2) == pytest.approx(0.5)
    assert Scale(2, 2)(2) == 0.5
    assert covering([float("nan")]) == Scale(0, 1)
    assert covering([3.0, 4.0]).low == 0
    assert covering([-1.0, 1.0]).low < -1
    assert [short(value) for value in (0, 0.25, 200_000, 1.6e6, 1e-5, 2.5e-6)] == [
        "0",
        "0.25",
        "200K",
        "1.6M",
        "1e-5",
        "2.5e-6",
    ]


def test_bars_stand_on_zero_and_lie_where_their_values_do() -> None:
    chart = Chart(Scale(0, 2), Scale(0, 10), "x", "y")
    chart.bar(0, 1, 5, "s0", "a <told> bar")
    root = ElementTree.fromstring(chart.svg())
    rect = next(each for each in root.iter() if each.tag.endswith("rect"))
    axis = next(each for each in root.iter() if each.get("class") == "axis")
    bottom = float(rect.attrib["y"]) + float(rect.attrib["height"])
    assert bottom == pytest.approx(float(axis.attrib["d"].split()[1].split("H")[0]), abs=0.11)
    assert float(rect.attrib["height"]) == pytest.approx((300 - 30 - 46) / 2, abs=0.11)
    assert rect[0].text == "a <told> bar"
