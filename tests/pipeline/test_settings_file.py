"""Files of settings: all kinds give the same settings, and errors name setting and file."""

import json
from pathlib import Path

import pytest

from saefast.disk.tables import write_json
from saefast.pipeline import PRESETS, HarvestSettings, read_settings


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_settings_are_equal_after_a_round_trip(name: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    write_json(file, PRESETS[name].to_dict())
    assert read_settings(file) == PRESETS[name]


def test_toml_and_yaml_give_the_same_settings(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[harvest]\nmodel = "smollm2"\n[train]\nlatents = 64\nlr = 1\nseeds = [3, 4]\n'
        "[train.auxk]\ndead_after = 10\n"
    )
    (tmp_path / "a.yaml").write_text(
        "harvest: {model: smollm2}\ntrain:\n  latents: 64\n  lr: 1\n  seeds: [3, 4]\n"
        "  auxk: {dead_after: 10}\n"
    )
    pytest.importorskip("yaml")
    a, b = (read_settings(tmp_path / f"a.{kind}") for kind in ("toml", "yaml"))
    assert a == b
    assert a.data == HarvestSettings()
    assert a.train.lr == 1.0
    assert a.train.seeds == (3, 4)
    assert a.train.auxk is not None
    assert a.train.auxk.dead_after == 10


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"train": {"latents": 4}}, ValueError, "one of [harvest], [planted], [store], [trained]"),
        ({"planted": {}, "harvest": {}, "train": {"latents": 4}}, ValueError, "got 2 of them"),
        ({"planted": {}}, ValueError, "a table [train]"),
        ({"planted": {}, "train": {}}, ValueError, "train must have latents"),
        ({"planted": {}, "train": {"latent": 4}}, ValueError, "did you mean latents?"),
        ({"planted": {}, "train": {"latents": "4"}}, TypeError, "train.latents must be of type"),
        ({"planted": {}, "train": {"latents": True}}, TypeError, "train.latents must be of type"),
        ({"planted": {}, "train": {"latents": 4, "k": 9}}, ValueError, "k must be at most"),
        ({"planted": 3, "train": {"latents": 4}}, TypeError, "planted must be a table"),
        ({"planted": {}, "trian": {}}, ValueError, "did you mean train, trainer or trained?"),
        (
            {"planted": {}, "train": {"latents": 64}, "stability": {"threshold": "no"}},
            TypeError,
            "stability.threshold",
        ),
    ],
)
def test_errors_name_bad_settings(
    content: dict, error: type[Exception], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(content))
    with pytest.raises(error) as raised:
        read_settings(file)
    assert message in str(raised.value)
    assert str(file) in str(raised.value)


def test_errors_name_unreadable_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[train")
    with pytest.raises(ValueError, match=r"broken\.toml cannot be read"):
        read_settings(broken)
    other = tmp_path / "settings.ini"
    other.write_text("")
    with pytest.raises(ValueError, match="must end in"):
        read_settings(other)
