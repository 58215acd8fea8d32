"""The public names, their first lines, and common properties of results."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import pyarrow as pa
import pytest
import torch
from helpers.strategies import normal

import saefast
from saefast.evaluation.reconstruction import reconstruction
from saefast.lm import Estimate, PatchEffect, Patching
from saefast.studies.result import StudyResult
from saefast.synthetic import World, explain, recovery

PROMISED = {
    *("topk_encode", "sparse_decode", "reference", "SAE", "SparseCode", "Dictionary", "Matches"),
    *("Stability", "Subspaces", "TrainConfig", "train_saes", "match_features", "score_stability"),
    *("fit_subspaces", "pool_features", "load_sae", "save_sae", "build_info", "verify"),
}
"""Names that the design promises"""

ADDED = {
    *("AuxK", "FusedStep", "Penalty", "Rules", "ThresholdCode", "threshold_encode", "sae_from"),
    *("convert", "load_dictionaries", "activation_covariance", "activation_matches", "match_all"),
    *("plan_matching", "Clusters", "Measure", "Overlap", "at_threshold", "find_clusters"),
    *("fit_power_law", "measure_overlap", "membership_counts", "stability_curve", "subset_curve"),
    *("principal_angles", "Contributions", "EffectRegression", "FeatureFunction"),
    *("FeatureStatistics", "contribution_r2", "feature_function", "feature_statistics"),
    *("regress_effect", "PoolingStudy", "evaluate_pooling", "__version__", "download_sae"),
    "push_to_hub",
}

HEADLESS = re.compile(r"(What|That|Those|Which|Who|How|Whether)(ever)?\b")


def test_the_root_exports_its_documented_names() -> None:
    assert set(saefast.__all__) == PROMISED | ADDED
    assert len(saefast.__all__) == len(set(saefast.__all__))


def exported() -> list[str]:
    folders = [f"saefast.{each.name}" for each in pkgutil.iter_modules(saefast.__path__, "")]
    modules = [importlib.import_module(name) for name in ("saefast", *folders) if _is_open(name)]
    return sorted(
        f"{module.__name__}:{name}" for module in modules for name in getattr(module, "__all__", ())
    )


def _is_open(name: str) -> bool:
    """Return whether a module can be imported without a GPU's compiler and without running."""
    return name not in ("saefast.__main__", "saefast.kernels", "saefast._cuda")


@pytest.mark.parametrize("path", exported())
def test_exported_names_have_docstrings(path: str) -> None:
    module, name = path.split(":")
    value = getattr(importlib.import_module(module), name)
    if not callable(value):  # a module, a tuple of names
        return
    first = (inspect.getdoc(value) or "").split("\n")[0]
    assert first, f"{path} has no docstring"
    assert not HEADLESS.match(first), f"{path} begins with {first!r}"


@dataclasses.dataclass(frozen=True)
class StudyRow:
    """A row of a study."""

    seed: int
    share: float | None


def results() -> dict[str, tuple[object, int]]:
    """Return all results with a table, and their numbers of rows."""
    saes = [saefast.SAE(6, 12, k=3, seed=seed) for seed in range(3)]
    with torch.no_grad():
        for sae in saes[1:]:
            sae.W_dec[:4] = saes[0].W_dec[:4]
    x = normal((200, 6), 0, torch.float32)
    quiet = {"progress": False}
    stability = saefast.score_stability(saes, **quiet)
    overlap = saefast.measure_overlap(*saes[:2], thresholds=[0.5], **quiet)
    (statistics, *_) = saefast.feature_statistics(saes, x, **quiet)
    (function, *_) = saefast.feature_function(
        saes[0], x, stability.groups()[0], mass=statistics.mass, draws=2, **quiet
    )
    clusters = saefast.find_clusters(stability)
    regression = saefast.regress_effect(
        torch.rand(30) + 1, torch.arange(30) < 9, torch.rand(30) + 1, torch.rand(30) + 1
    )
    options = {"draws": 2, **quiet}
    world = World(torch.eye(6), torch.full((1, 6), 0.3).double())
    return {
        "nearest": (saefast.match_features(*saes[:2], **quiet), 12),
        "one to one": (saefast.match_features(*saes[:2], one_to_one=True, **quiet), 12),
        "by activations": (saefast.activation_matches(saes, x, **quiet), 36),
        "stability": (stability, 36),
        "overlap": (overlap, len(overlap.measures)),
        "clusters": (clusters, len(clusters.features)),
        "subspaces": (saefast.fit_subspaces(saes, stability, nulls=["haar"], **options), 6),
        "contributions": (saefast.contribution_r2(saes, x, stability, **options), 6),
        "statistics": (statistics, 12),
        "function": (function, 10),
        "regression": (regression, 4),
        "reconstruction": (reconstruction(saes[0], x, **quiet)[0], 12),
        "patching": (patching(), 6),
        "recovery": (recovery(saes[0], world), 6),
        "explanation": (explain(saes[0], world, rows=50), 12),
        "study": (StudyResult(rows=(StudyRow(1, 0.5), StudyRow(2, None))), 2),
        "plan": (saefast.plan_matching(20, 4), 1),
    }


def estimate(value: float) -> Estimate:
    return Estimate(value=value, error=value / 8)


def patching() -> Patching:
    """Return made-up losses of a language model for one group."""
    names = [field.name for field in dataclasses.fields(PatchEffect)]

    def effect(first: float) -> PatchEffect:
        return PatchEffect(**{name: estimate(first + i) for i, name in enumerate(names)})

    whole = {name: effect(10 * i) for i, name in enumerate(("clean", "zero", "mean", "full"))}
    return Patching(**whole, keep={"stable": effect(40)}, drop={"stable": effect(50)})


RESULTS = results()


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_frozen_and_has_a_table(name: str) -> None:
    result, rows = RESULTS[name]
    table = result.to_table()
    assert isinstance(table, pa.Table)
    assert table.num_rows == rows
    assert dataclasses.is_dataclass(result)
    field = dataclasses.fields(result)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, field, None)
    with pytest.raises(TypeError, match="positional argument"):
        type(result)(getattr(result, field))


def test_a_feature_without_a_partner_has_nulls() -> None:
    matches = saefast.match_features(torch.eye(3), torch.eye(2, 3), one_to_one=True)
    rows = matches.to_table().to_pylist()
    assert rows[2] | {"row_price": 0} == {
        "feature": 2,
        "partner": None,
        "similarity": None,
        "mutual": False,
        "row_price": 0,
    }
    assert [row["row_price"] for row in rows] == matches.proof.row_price.tolist()
    assert rows[1]["partner"] == 1


def test_rows_of_a_table_have_their_keys() -> None:
    rows = RESULTS["patching"][0].to_table().to_pylist()
    named = [(row["replacement"], row["group"]) for row in rows]
    assert named[:4] == [(name, None) for name in ("clean", "zero", "mean", "full")]
    assert named[4:] == [("keep", "stable"), ("drop", "stable")]
    assert rows[5]["ce"] == 50
    assert rows[5]["ce_error"] == 50 / 8
    assert rows[5]["kl_score_mean"] == 56
    result = RESULTS["explanation"][0]
    table = result.to_table()
    assert table["feature"].to_pylist() == list(range(12))
    assert table["firing_rate"].to_pylist() == result.firing_rate.tolist()
    assert table["f1"].to_pylist() == result.f1.tolist()
    assert RESULTS["study"][0].to_table().to_pylist() == [
        {"seed": 1, "share": 0.5},
        {"seed": 2, "share": None},
    ]
    plan = RESULTS["plan"][0]
    assert plan.to_table().to_pylist() == [dataclasses.asdict(plan)]


def test_recovery_counts_the_latents_of_each_true_feature() -> None:
    world = World(torch.eye(3), torch.full((1, 3), 0.3).double())
    found = recovery(torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, -1]]), world)
    rows = found.to_table().to_pylist()
    assert [row["latents"] for row in rows] == [2, 0, 1]
    assert [row["recovered"] for row in rows] == [True, False, False]
    assert [row["best"] for row in rows] == found.best.tolist()


def public_callables() -> dict[str, object]:
    """Return the exported functions and the public methods of the exported classes, by name."""
    found = {}
    for path in exported():
        module, name = path.split(":")
        value = getattr(importlib.import_module(module), name)
        if inspect.isfunction(value):
            found[name] = value
        elif inspect.isclass(value):
            for method in vars(value):
                function = inspect.getattr_static(value, method)
                function = getattr(function, "__func__", function)
                if not method.startswith("_") and inspect.isfunction(function):
                    found[f"{name}.{method}"] = function
    return {name: value for name, value in found.items() if value.__module__.startswith("saefast")}


@pytest.mark.parametrize("name", public_callables())
def test_arguments_and_results_are_described(name: str) -> None:
    """Methods may refer to the protocol that they implement."""
    function = public_callables()[name]
    text, signature = inspect.getdoc(function) or "", inspect.signature(function)
    if text.startswith("See `"):
        return
    arguments = [each for each in signature.parameters if each not in ("self", "cls")]
    lacking = [each for each in arguments if not re.search(rf"(?m)^    \**{each}: ", text)]
    assert not lacking, f"{name} does not describe {', '.join(lacking)}"
    if arguments and signature.return_annotation not in (None, "None"):
        assert re.search(r"(?m)^(Returns|Yields):", text), f"{name} does not describe its result"
