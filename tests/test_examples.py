"""The examples run at tiny sizes, with the output described in their first lines."""

import ast
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.checkout import CHECKOUT

import saefast
from saefast.synthetic import PlantedWorld

EXAMPLES = CHECKOUT / "examples"

Run = Callable[..., str]


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    torch_threads: None,
) -> Run:
    """Run an example in an empty folder; return its output."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> str:
        path = EXAMPLES / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def number(pattern: str, printed: str) -> float:
    found = re.search(pattern, printed)
    assert found, printed
    return float(found.group(1).replace(",", ""))


def test_own_tensors_prints_results_of_its_table(run: Run, tmp_path: Path) -> None:
    """Rows with planted features from a file; the output equals the table."""
    world = PlantedWorld.create(24, 16, active=2)
    for batch, name in enumerate(("train.npy", "more.npy")):
        np.save(tmp_path / name, world.sample(4000, batch).numpy())
    sizes = ["--latents", 32, "--k", 2, "--tokens", "40_000", "--batch-size", 128, "--lr", 5e-3]
    printed = run("own_tensors", "train.npy", "--held-out", "more.npy", *sizes, "--out", "run")
    table = pq.read_table("run/features.parquet").to_pydict()
    assert len(table["feature"]) == 4 * 32
    support = np.array(table["support"])
    share = (support == 4).sum() / (support > 0).sum()
    assert number(r"in 3: +([\d.]+)%", printed) == pytest.approx(100 * share, abs=0.06)
    assert share > 0.4
    held_out, saes = np.load("more.npy"), saefast.load_sae("run/seed-2")
    rest = saes(torch.from_numpy(held_out)).detach().numpy() - held_out
    explained = 1 - rest.var(0).sum() / held_out.var(0).sum()
    assert number(r"seed 2 +([\d.]+) ", printed) == pytest.approx(explained, abs=0.01)
    assert (
        run("own_tensors", "train.npy", "--held-out", "more.npy", *sizes, "--out", "run") == printed
    )


def test_own_tensors_makes_synthetic_rows_by_default(run: Run) -> None:
    printed = run("own_tensors", "--tokens", 5000, "--latents", 24)
    assert "SAE of seed 3" in printed
    assert Path("runs/own-tensors/features.parquet").is_file()


def test_own_language_model_prints_results(run: Run, tmp_path: Path) -> None:
    from helpers import tiny_lm

    model = tiny_lm.saved(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for i in range(40):
        text = "".join(chr(97 + (i * j * j) % 26) for j in range(1, 90))
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    printed = run(
        *("own_language_model", model, "--site", "mlp.1", "--text", "texts"),
        *("--tokens", 1500, "--context", 32, "--latents", 48, "--k", 4, "--epochs", 30),
    )
    features, stable, unstable = (
        number(pattern, printed)
        for pattern in (r"of (\d+) features", r"(\d+) are in both", r"(\d+) in none")
    )
    assert stable + unstable <= features <= 48
    assert stable > 0
    assert number(r"as it is +([\d.]+)", printed) < number(r"zeros instead +([\d.]+)", printed)
    # The text around a feature is printed as in the file.
    before, token, after = re.findall(r"^  '(.*)'  \['(.)'\]  '(.*)'$", printed, re.MULTILINE)[0]
    files = "\n\n".join(file.read_text() for file in sorted(Path("texts").iterdir()))
    assert ast.literal_eval(f"'{before}{token}{after}'") in files


def test_two_small_saes_are_matched_by_default(run: Run) -> None:
    printed = run("match_two_saes", "--out", "pairs.parquet")
    assert "no matching is better" in printed
    shared = number(r"by decoder +([\d.]+)", printed)
    table = pq.read_table("pairs.parquet").to_pydict()
    cosine, partner, one_to_one = (
        np.array(table[name]) for name in ("cosine", "nearest", "one_to_one")
    )
    dead = int(number(r"160 features, (\d+) of which never fire", printed))
    assert (partner < 0).sum() == (one_to_one < 0).sum() == dead < 80
    assert shared == pytest.approx((cosine[partner >= 0] >= 0.7).mean(), abs=6e-4)
    assert shared > 0.3
    assert len(np.unique(one_to_one[one_to_one >= 0])) == len(cosine) - dead


def test_two_given_saes_are_matched(run: Run) -> None:
    """Sizes differ; one SAE is permuted so that the true partners are known."""
    first = saefast.SAE(12, 30, k=3, seed=0)
    second = saefast.SAE(12, 40, k=3, seed=1)
    with torch.no_grad():
        second.W_dec[5:35] = first.W_dec.flip(0)
    saefast.save_sae(first, "a")
    saefast.save_sae(second, "b", format="dictionary_learning")
    printed = run("match_two_saes", "a", "b", "--threshold", 0.99)
    assert "b: 40 features" in printed
    assert number(r"by decoder +([\d.]+)", printed) == 1
    table = pq.read_table("partners.parquet").to_pydict()
    assert table["nearest"] == table["one_to_one"] == list(range(34, 4, -1))
    with pytest.raises(SystemExit):
        run("match_two_saes", "a")


def test_million_features_prints_the_plan_first_and_the_certificate_last(run: Run) -> None:
    printed = run("million_features", "--m", 400, "--d", 24)
    plan, took = printed.index("work: "), printed.index("took ")
    assert printed.index("400 features of width 24 against as many") < plan < took
    assert "proven optimal" in printed
    assert number(r"of ([\d,]+) features that are in both", printed) == 160
    assert number(r"both, ([\d.]+)% have", printed) > 99


def test_million_features_reads_saes_from_disk(run: Run) -> None:
    for seed in range(2):
        saefast.save_sae(saefast.SAE(8, 50, k=2, seed=seed), f"sae-{seed}")
    printed = run("million_features", "--saes", "sae-0", "sae-1")
    assert "50 features of width 8" in printed
    assert "are in both" not in printed


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_use_only_the_public_interface(path: Path) -> None:
    """The docstring has the command, and the code uses only public modules."""
    tree = ast.parse(path.read_text())
    printed = ast.get_docstring(tree) or ""
    assert f"python examples/{path.name}" in printed
    public = {"saefast", "saefast.lm", "saefast.activations", "saefast.synthetic"}
    imported = {each.module for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)}
    imported |= {
        name.name for each in ast.walk(tree) if isinstance(each, ast.Import) for name in each.names
    }
    assert {name for name in imported if str(name).startswith("saefast")} <= public
    assert not re.search(r"\b\w+\._\w", path.read_text())
