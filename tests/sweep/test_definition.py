"""Sweep files: their cells, and errors of bad files."""

from pathlib import Path
from typing import Any

import pytest
from helpers.small_sweep import base_settings, sweep_file

from saefast.pipeline import PRESETS
from saefast.pipeline.settings_file import settings_from
from saefast.sweep import Sweep, read_sweep
from saefast.sweep.grid import setting


def read(tmp_path: Path, text: str) -> Sweep:
    return read_sweep(sweep_file(tmp_path, text))


def names(sweep: Sweep) -> list[str]:
    return [cell.name for cell in sweep.cells]


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    sweep = read(
        tmp_path,
        'base = "quick"\n[grid]\n"train.latents" = [64, 128]\n"train.variant" = ["topk", "gated"]',
    )
    assert sweep.axes == ("train.latents", "train.variant")
    assert names(sweep) == [
        "latents-64_variant-topk",
        "latents-64_variant-gated",
        "latents-128_variant-topk",
        "latents-128_variant-gated",
    ]
    for cell in sweep.cells:
        printed = cell.settings.to_dict()
        assert {name: setting(printed, name) for name in cell.axes} == cell.axes
        expected = PRESETS["quick"].to_dict()
        for name, value in cell.axes.items():
            expected["train"][name.removeprefix("train.")] = value
        assert printed == expected


def test_base_is_a_relative_path_and_settings_apply_to_all_cells(tmp_path: Path) -> None:
    text = 'base = "base.toml"\n[settings]\n"train.lr" = 0.5\n[grid]\n"train.k" = [2]'
    (cell,) = read(tmp_path, text).cells
    settings = base_settings()
    settings["train"] |= {"lr": 0.5, "k": 2}
    assert cell.settings == settings_from(settings)


@pytest.mark.parametrize(
    ("printed", "values"),
    [
        ("{from = 8, to = 64, factor = 2}", [8, 16, 32, 64]),
        ("{from = 8, to = 63, factor = 2}", [8, 16, 32]),
        ("{from = 64, to = 8, factor = 0.5}", [64, 32, 16, 8]),
        ("{from = 2, to = 8, step = 3}", [2, 5, 8]),
        ("{from = 8, to = 2, step = -3}", [8, 5, 2]),
        ("{from = 0.1, to = 0.3, step = 0.1}", [0.1, 0.2, pytest.approx(0.3)]),
    ],
)
def test_ranges_include_both_ends(tmp_path: Path, printed: str, values: list[Any]) -> None:
    name = "train.lr" if "." in printed else "train.auxk.dead_after"
    sweep = read(tmp_path, f'base = "quick"\n[grid]\n"{name}" = {printed}')
    assert [cell.axes[name] for cell in sweep.cells] == values


def test_sets_are_settings_that_change_together(tmp_path: Path) -> None:
    text = """
    base = "quick"
    [sets.size]
    small = {"train.latents" = 64, "train.k" = 2}
    large = {"train.latents" = 512, "train.k" = 8}
    [grid]
    size = ["large", "small"]
    [grid.train]
    variant = ["topk", "relu"]
    [[exclude]]
    size = "large"
    "train.variant" = "relu"
    """
    sweep = read(tmp_path, text)
    assert names(sweep) == [
        "size-large_variant-topk",
        "size-small_variant-topk",
        "size-small_variant-relu",
    ]
    trains = [cell.settings.train for cell in sweep.cells]
    assert [(each.latents, each.k) for each in trains] == [(512, 8), (64, 2), (64, 2)]


def test_exclusions_match_axes_settings_and_several_values(tmp_path: Path) -> None:
    grid = 'base = "quick"\n[grid]\n"train.latents" = [64, 128]\n"train.k" = [2, 4, 8]\n'
    text = grid + '[[exclude]]\n"train.latents" = 128\n"train.k" = [2, 8]'
    assert names(read(tmp_path, text)) == [
        "latents-64_k-2",
        "latents-64_k-4",
        "latents-64_k-8",
        "latents-128_k-4",
    ]
    text = grid + '[[exclude]]\n"train.batch_size" = 512\n"train.k" = [2, 8]'
    assert names(read(tmp_path, text)) == ["latents-64_k-4", "latents-128_k-4"]


def test_cells_have_valid_folder_names(tmp_path: Path) -> None:
    text = """
    base = "demo"
    [grid]
    "harvest.model" = ["EleutherAI/pythia-160m"]
    "train.seeds" = [[0, 1], [2, 3]]
    "subspace.seed" = [1]
    "train.data_seed" = [0]
    """
    assert names(read(tmp_path, text)) == [
        "model-EleutherAI-pythia-160m_seeds-0-1_seed-1_data_seed-0",
        "model-EleutherAI-pythia-160m_seeds-2-3_seed-1_data_seed-0",
    ]
    both = 'base = "quick"\n[grid]\n"subspace.seed" = [1]\n"planted.seed" = [2]'
    assert names(read(tmp_path, both)) == ["subspace.seed-1_planted.seed-2"]


GRID = 'base = "quick"\n[grid]\n"train.k" = [2, 4]\n'
BAD = {
    "cannot be read as TOML": "base = quick",
    r"must have base, settings, sets, grid, exclude only, got 'gird'; did you mean grid\?": (
        'base = "quick"\n[gird]\n"train.k" = [2]'
    ),
    r"base must be a preset \(demo, quick\) or the path of a run's TOML, got nothing": (
        '[grid]\n"train.k" = [2]'
    ),
    r"got 'quik', and there is no file": 'base = "quik"\n[grid]\n"train.k" = [2]',
    "grid must be a table with one axis at least.*got nothing": 'base = "quick"',
    r"train.latens must be a setting, but there is no train.latens; did you mean train.latents\?": (
        'base = "quick"\n[grid]\n"train.latens" = [2]'
    ),
    r"trian.k must be a setting, but there is no trian; did you mean train\?": (
        'base = "quick"\n[grid]\n"trian.k" = [2]'
    ),
    r"harvest.site must be a setting of base, whose source of rows is \[planted\], got \[harvest": (
        'base = "quick"\n[grid]\n"harvest.site" = ["resid.3"]'
    ),
    "train.k.x must be a setting, but train.k is 4": ('base = "quick"\n[grid]\n"train.k.x" = [2]'),
    "grid must have dotted settings such as train.k, or names of .sets., got 'k'": (
        'base = "quick"\n[grid]\nk = [2]'
    ),
    "grid.train.k must be a list of values or a range such as .*, got 2": (
        'base = "quick"\n[grid]\n"train.k" = 2'
    ),
    "grid.train.k must list each value once, got 2 twice": (
        'base = "quick"\n[grid]\n"train.k" = [2, 2]'
    ),
    r"the range grid.train.k must have from, to, step, factor only, got 'by'": (
        'base = "quick"\n[grid]\n"train.k" = {from = 1, to = 2, by = 1}'
    ),
    "the range grid.train.k must have numbers from and to, and one of step and factor": (
        'base = "quick"\n[grid]\n"train.k" = {from = 1, to = 2}'
    ),
    "the range grid.train.k must reach 2 from 8, got step = 1": (
        'base = "quick"\n[grid]\n"train.k" = {from = 8, to = 2, step = 1}'
    ),
    "the range grid.train.k must reach 8 from 2, got factor = 1": (
        'base = "quick"\n[grid]\n"train.k" = {from = 2, to = 8, factor = 1}'
    ),
    "grid must span at most 100,000 cells, got 100,001": (
        'base = "quick"\n[grid]\n"train.data_seed" = {from = 0, to = 100000, step = 1}'
    ),
    r"the cell with train.k = 200 is not valid: k must be at most latents": (
        'base = "quick"\n[grid]\n"train.k" = [2, 200]'
    ),
    'the cell with train.k = "two" is not valid: train.k must be of type int': (
        'base = "quick"\n[grid]\n"train.k" = ["two"]'
    ),
    r"grid.size must list choices of \[sets.size\], small, got 'smal'": (
        'base = "quick"\n[sets.size]\nsmall = {"train.k" = 2}\n[grid]\nsize = ["smal"]'
    ),
    "sets.size must be an axis of grid, but grid has no size": (
        GRID + '[sets.size]\nsmall = {"train.latents" = 64}'
    ),
    "train.k must be set by one axis only, got train.k and size": (
        GRID + 'size = ["small"]\n[sets.size]\nsmall = {"train.k" = 2}'
    ),
    "grid must not have both a table and a setting of it, got train.auxk of train": (
        'base = "quick"\n[grid]\n"train.auxk.k" = [4, 8]\n"train.auxk" = [{capacity = 3}]'
    ),
    "grid must not have both .*, got train.rules .* and train.rules.clip of size; write": (
        'base = "quick"\n[grid]\n"train.rules" = [{eps = 1e-6}]\nsize = ["small"]\n'
        '[sets.size]\nsmall = {"train.rules.clip" = 2.0}'
    ),
    "settings must not have both .*, got train.auxk and train.auxk.k; write": (
        GRID + '[settings]\n"train.auxk.k" = 4\n"train.auxk" = {capacity = 3}'
    ),
    r"exclude\[0\] must match at least one cell of the grid, got .*which matches none": (
        GRID + '[[exclude]]\n"train.k" = 3'
    ),
    r"exclude\[0\] must have axes of grid or settings, got 'train.kk'; did you mean train.k\?": (
        GRID + '[[exclude]]\n"train.kk" = 2'
    ),
    "exclude must leave at least one cell": GRID + '[[exclude]]\n"train.k" = [2, 4]',
    "exclude must be tables": 'exclude = ["train.k"]\n' + GRID,
    "must have folders of different names, got variant-a-b for both": (
        'base = "quick"\n[sets.variant]\n"a b" = {"train.k" = 2}\n"a/b" = {"train.k" = 3}\n'
        '[grid]\nvariant = ["a b", "a/b"]'
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_errors_name_bad_definitions(tmp_path: Path, message: str) -> None:
    path = sweep_file(tmp_path, BAD[message])
    with pytest.raises((TypeError, ValueError), match=message) as printed:
        read_sweep(path)
    assert str(printed.value).startswith(str(path))
    assert "\n" not in str(printed.value)


def test_settings_of_a_table_that_is_none_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('[planted]\n[train]\nlatents = 64\nauxk = "none"')
    text = 'base = "other.toml"\n[settings]\n"train.auxk.k" = 8\n"train.auxk.dead_after" = 100\n'
    (cell,) = read(tmp_path, text + '[grid]\n"train.k" = [2]').cells
    assert (cell.settings.train.auxk.k, cell.settings.train.auxk.dead_after) == (8, 100)


def test_settings_of_a_given_table_can_be_given(tmp_path: Path) -> None:
    text = '[settings.train.auxk]\ncapacity = 3\n[grid]\n"train.auxk.k" = [4, 8]'
    cells = read(tmp_path, f'base = "quick"\n{text}').cells
    found = [(cell.settings.train.auxk.capacity, cell.settings.train.auxk.k) for cell in cells]
    assert found == [(3, 4), (3, 8)]
    with pytest.raises(ValueError, match=r"train.auxk has no setting 'kk'; did you mean k\?"):
        read(tmp_path, f'base = "quick"\n{text}'.replace("auxk.k", "auxk.kk"))


def test_an_exclusion_skips_cells_without_its_setting(tmp_path: Path) -> None:
    text = (
        'base = "quick"\n[sets.auxk]\nnone = {"train.auxk" = "none"}\nfew = {"train.auxk.k" = 8}\n'
        '[grid]\nauxk = ["none", "few"]\n"train.k" = [2, 4]\n'
        '[[exclude]]\n"train.auxk.k" = 8\n"train.k" = 4'
    )
    assert names(read(tmp_path, text)) == ["auxk-none_k-2", "auxk-none_k-4", "auxk-few_k-2"]


def test_a_base_without_training_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("[trained]\n[train]\nlatents = 64")
    with pytest.raises(
        ValueError, match=r"base must be the settings of a run with a training, got 'other.toml'"
    ):
        read(tmp_path, 'base = "other.toml"\n[grid]\n"train.k" = [2]')


def test_errors_name_a_bad_base(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, 'base = "bad.toml"\n[grid]\n"train.k" = [2]')
    (tmp_path / "bad.toml").write_text("[planted]\n[train]\nlatent = 3")
    with pytest.raises(ValueError, match=r"sweep.toml: .*bad.toml: train has no setting"):
        read_sweep(path)
