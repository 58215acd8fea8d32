"""The benchmark of two builds, at a small size."""

import json
from pathlib import Path

import pytest

import saefast
from bench import builds

INSTALLED = Path(saefast.__file__).resolve().parent.parent
SHAPE = "16,64,4,50"


def test_two_builds_are_timed_and_compared(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    arguments = [f"old={INSTALLED}", f"new={INSTALLED}", "--shape", SHAPE, "--rounds", "2"]
    assert builds.main([*arguments, "--json", str(file)]) == 0
    old, new = json.loads(file.read_text())["rows"]
    assert (old["mode"], new["mode"]) == ("old", "new")
    assert old["agrees"]
    assert new["agrees"]
    assert old["ratio"] == 1.0
    assert new["ratio"] > 0
    assert old["p20"] <= old["ms"] <= old["p80"]


def test_builds_with_other_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(shape: object, folder: Path) -> dict[str, object]:
        return {"ms": 2.0 if folder.name == "b" else 1.0, "digest": folder.name}

    monkeypatch.setattr(builds, "_measured", measured)
    old, new = builds.race(builds.SHAPES[0], 3, {"1": Path("a"), "2": Path("b")})
    assert (old["agrees"], old["ratio"], old["ms"]) == (True, 1.0, 1.0)
    assert (new["agrees"], new["ratio"], new["ms"]) == (False, 2.0, 2.0)


def test_a_folder_without_a_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must have a build of saefast, but .* was imported"):
        builds.main([f"old={tmp_path}", f"new={tmp_path}", "--shape", SHAPE, "--rounds", "2"])
