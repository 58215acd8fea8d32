"""Scales, ticks and marks."""

import xml.etree.ElementTree as ElementTree

import pytest

from saefast.report.chart import Chart
from saefast.report.scale import Scale, covering, short


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


def test_bars_start_at_zero_and_end_at_their_values() -> None:
    chart = Chart(Scale(0, 2), Scale(0, 10), "x", "y")
    chart.bar(0, 1, 5, "s0", "a <named> bar")
    root = ElementTree.fromstring(chart.svg())
    rect = next(each for each in root.iter() if each.tag.endswith("rect"))
    axis = next(each for each in root.iter() if each.get("class") == "axis")
    bottom = float(rect.attrib["y"]) + float(rect.attrib["height"])
    assert bottom == pytest.approx(float(axis.attrib["d"].split()[1].split("H")[0]), abs=0.11)
    assert float(rect.attrib["height"]) == pytest.approx((300 - 30 - 46) / 2, abs=0.11)
    assert rect[0].text == "a <named> bar"
