"""The checks and contests that bench/ makes on a GPU, by the CPU's kernels; their arithmetic."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.checkout import CHECKOUT
from torch import Tensor

import saefast.train.learner
from bench import (
    gpu_contests,
    gpu_matching,
    gpu_peers,
    gpu_profile,
    gpu_tiles,
    gpu_times,
    gpu_training_checks,
    gpu_trainings,
    gpu_worker,
    record,
)
from bench.cases import Shape, draw
from bench.gpu_contest import Contest, dense_code, model
from bench.gpu_finding import drawn_on
from bench.gpu_lanes import POISONED
from bench.gpu_parts import PROFILED
from bench.gpu_times import Ceilings, Contestant, floors_of
from bench.shapes import GPU_SHAPES
from saefast import SAE, FusedStep, reference
from saefast.ops.latent_pass import LatentPass
from saefast.types import Update

H100 = Ceilings(bf16_flops=8e14, copy_bytes=3e12, l2_bytes=5.5e12)
SHAPE = Shape(4, 8, 2, 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", [["bench", "gpu"], ["bench.gpu"]])
def test_without_a_gpu_it_says_so(module: list[str], tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", *module, "--json", str(file)]
    result = subprocess.run(
        command,
        cwd=CHECKOUT,
        env={"PATH": str(tmp_path), "OUT": str(tmp_path / "out")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "bench.gpu needs an NVIDIA GPU; this machine has no NVIDIA driver\n"
    assert not file.exists()


@pytest.mark.parametrize(
    ("shape", "encode", "update", "step"),
    [
        (Shape(4096, 131072, 64, 8192), 11.15, 10.97, 23.5),
        (Shape(768, 32768, 32, 8192), 0.55, 0.59, 1.28),
    ],
)
def test_floors_are_what_bytes_and_operations_come_to(
    shape: Shape, encode: float, update: float, step: float
) -> None:
    """At an H100's ceilings, worked out by hand from the sizes."""
    floors = floors_of(shape, H100)
    assert floors["encode"] == pytest.approx(encode, rel=0.02)
    assert floors["update"] == pytest.approx(update, rel=0.02)
    assert floors["step"] == pytest.approx(step, rel=0.02)
    assert floors["decode"] == pytest.approx(2e3 * shape.n * shape.k * shape.d / 3e12)
    dense_gradient = 4e3 * shape.m * shape.d / 3e12
    assert floors["decode+backward"] > 2 * floors["decode"] + dense_gradient


def contestant(rival: str, mode: str, case: str = "encode", agrees: bool = True) -> Contestant:
    return Contestant(case, rival, mode, lambda: lambda: None, lambda _: agrees)


def test_a_row_has_medians_and_shares() -> None:
    one = contestant("saefast", "exact")
    row = gpu_times.row_of(one, SHAPE, [2.0, 1.0, 4.0, 3.0, 100.0], [1.0, 1.0, 1.0, 1.0, 50.0], 1.5)
    assert row == {
        "case": "encode",
        "shape": {"d": 4, "m": 8, "k": 2, "n": 3},
        "rival": "saefast",
        "mode": "exact",
        "ms": 3.0,
        "p20": 2.0,
        "p80": 4.0,
        "floor_ms": 1.5,
        "floor_share": 0.5,
        "rounds": 5,
        "agrees": True,
        "gemm_ratio": 2.0,
    }


def worked(items: Iterator[gpu_worker.Item]) -> list[dict[str, Any]]:
    """The rows that a worker writes of these items."""
    messages: list[dict[str, Any]] = []
    assert gpu_worker.work(items, 0, lambda **message: messages.append(message)) == 0
    return [message["row"] for message in messages if "row" in message]


def test_who_fails_or_disagrees_is_named_and_the_next_is_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Any:
        raise ImportError("no such thing\nand more")

    def listed() -> Iterator[Contestant]:
        yield contestant("torch", "a")._replace(build=broken)
        yield contestant("torch", "b", agrees=False)
        yield contestant("torch", "c")
        raise ValueError("no more can be listed")

    times: Callable[..., Any] = lambda runs, rounds: [[1.0] * rounds] * len(runs)  # noqa: E731
    monkeypatch.setattr(gpu_times, "milliseconds", times)
    raced = gpu_times.raced(SHAPE, lambda: None, "encode", listed(), lambda: H100)
    failed, disagrees, timed, ended = worked(raced)
    assert failed["raised"].startswith("ImportError: no such thing (")
    assert (failed["case"], failed["rival"], failed["mode"]) == ("encode", "torch", "a")
    assert disagrees["raised"].startswith("RuntimeError: does not agree, so it was not timed")
    assert (timed["mode"], timed["ms"], timed["rounds"]) == ("c", 1.0, gpu_times.ROUNDS)
    assert ended["raised"].startswith("ValueError: no more can be listed")


def test_rounds_are_fewer_where_they_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds_of: dict[float, int] = {}
    for ms in (0.1, 150.0, 5000.0):
        monkeypatch.setattr(
            gpu_times, "milliseconds", lambda runs, n, ms=ms: [[ms] * n] * len(runs)
        )
        [row] = gpu_times.timed(
            contestant("torch", "a"), SHAPE, lambda: None, lambda: H100, gpu_times.ROUNDS
        )
        rounds_of[ms] = row["rounds"]
    assert rounds_of == {0.1: 20, 150.0: 10, 5000.0: 5}


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "Triton Error [CUDA]: unspecified launch failure",
    ],
)
def test_errors_that_stay_are_known(message: str) -> None:
    def fail() -> Any:
        raise RuntimeError(message)

    written: list[dict[str, Any]] = []
    items = iter([gpu_worker.Item("a", fail), gpu_worker.Item("b", list)])
    assert gpu_worker.work(items, 0, lambda **each: written.append(each)) == POISONED
    assert [list(each) for each in written] == [["begin"], ["row"], ["end"]]
    assert not gpu_worker.is_sticky(RuntimeError("CUDA out of memory"))


def test_results_replace_the_file_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.json"
    record.write(file, {"a": 1})
    with pytest.raises(TypeError):
        record.write(file, {"a": object()})
    record.write(tmp_path / "new" / "other.json", {})
    assert json.loads(file.read_text()) == {"a": 1}
    assert sorted(path.name for path in file.parent.iterdir()) == ["other.json", "rows.json"]


def test_every_shape_that_must_be_compared_is_timed() -> None:
    assert GPU_SHAPES["C1"] == (4096, 131072, 64, 8192)
    assert GPU_SHAPES["C2"] == (768, 32768, 32, 8192)
    assert GPU_SHAPES["mid"] == (2304, 65536, 64, 8192)
    assert GPU_SHAPES["decode"]._replace(k=64) == GPU_SHAPES["mid"]
    assert gpu_matching.ONE_TO_ONE[:2] == (4096, 131072)
    assert gpu_matching.NEAREST[:2] == (2304, 1 << 20)
    assert set(PROFILED) == {"C1", "C2"}


CHECKED = Shape(40, 127, 5, 33)


@pytest.mark.parametrize("shape", gpu_training_checks.DEFAULTS_AT)
def test_default_steps_are_compared(shape: Shape) -> None:
    found = list(gpu_training_checks.defaults(shape, *drawn_on(shape, "cpu")))
    assert len(found) == len(gpu_training_checks.VARIANTS)
    assert [finding for finding in found if not finding.holds] == []


def test_default_steps_see_a_latent_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    latent_pass = saefast.train.learner.latent_pass

    def without_one(update: Update) -> LatentPass:
        if update.values.dtype == torch.float32:  # ours, not the truth
            of_one = update.indices == update.indices[0, 0]
            update = update._replace(
                value_grads=update.value_grads.masked_fill(of_one, 0.0),
                values=update.values.masked_fill(of_one, 0.0),
            )
        return latent_pass(update)

    monkeypatch.setattr(saefast.train.learner, "latent_pass", without_one)
    monkeypatch.setattr(gpu_training_checks, "VARIANTS", ("topk",))
    [finding] = gpu_training_checks.defaults(CHECKED, *drawn_on(CHECKED, "cpu"))
    assert not finding.holds


@pytest.mark.parametrize("shape", gpu_training_checks.DEFAULTS_AT)
def test_no_choice_of_the_default_steps_is_a_near_tie(shape: Shape) -> None:
    """Their truth chooses for itself, so float32 must not be able to choose otherwise.

    Gaps are in units of what a float32 sum in any order, twice truncated, may be off.
    """
    x, weights = drawn_on(shape, "cpu")
    shape = shape._replace(n=gpu_training_checks.DEFAULTS_AT[shape])
    x = x[: shape.n]
    wide = x.double() - weights.b_dec.double()
    allowed = 2.5 * (shape.d + 32) * 2.0**-24 * float(wide.norm(dim=1).max())

    def scores(w: Any) -> Tensor:
        return reference.scores(wide, w.w_enc.double(), w.b_enc.double(), None)

    by_row = scores(weights).sort(dim=1, descending=True).values
    gaps = {"topk": float((by_row[:, shape.k - 1] - by_row[:, shape.k]).min())}
    of_batch = scores(weights).flatten().sort(descending=True).values
    last = shape.n * shape.k
    gaps["batchtopk"] = float(of_batch[last - 1] - of_batch[last])
    low = scores(gpu_training_checks.lowered(weights, x - weights.b_dec, shape.k))
    bandwidth = 0.05
    threshold = float(SAE(1, 1, k=1, variant="jumprelu").jump_threshold.detach())
    limits = {"relu": 0.0, "jumprelu": threshold}
    limits |= {f"edge {s}": threshold + s * bandwidth / 2 for s in (-1, 1)}
    gaps |= {name: float((low - limit).abs().min()) for name, limit in limits.items()}
    assert {name for name, gap in gaps.items() if gap <= 2 * allowed} == set()


def test_trainings_hold_though_a_choice_is_a_near_tie() -> None:
    """Two latents that score the same: which of them is active makes no difference to the check."""
    x, weights = drawn_on(CHECKED, "cpu")
    for of in (weights.w_enc, weights.b_enc):
        of[64:] = of[: len(of) - 64]
    weights.w_enc[64:] *= 1 + 2.0**-23
    for precision in ("exact", "bf16"):
        for auxk in (False, True):
            finding = gpu_training_checks.training(CHECKED, x, weights, precision, auxk=auxk)
            assert finding.holds, finding
    [finding] = gpu_training_checks.gradients(CHECKED, x, weights)
    assert finding.holds, finding


def test_trainings_see_a_latent_that_was_not_among_the_largest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Although the truth follows the choice."""
    largest = gpu_training_checks.PackedEncoder.largest

    def others(self: Any, inputs: Tensor, k: int, scale: Any = None) -> Any:
        code = largest(self, inputs, k + 1, scale)
        keep = [0, *range(2, k + 1)]
        return code._replace(values=code.values[:, keep], indices=code.indices[:, keep])

    monkeypatch.setattr(gpu_training_checks.PackedEncoder, "largest", others)
    finding = gpu_training_checks.training(CHECKED, *drawn_on(CHECKED, "cpu"), "exact", auxk=False)
    assert not finding.holds
    assert finding.figures["loss_apart"] < 1e-5 < 1.0 < finding.figures["apart"]


def cancelling() -> tuple[Shape, Tensor, Any]:
    """One row whose gradient of the value is a thousandth of a rounding of its terms."""
    shape = Shape(16, 64, 1, 1)
    x, weights = drawn_on(shape, "cpu")
    weights.b_enc.copy_(1e-7 - weights.w_dec @ weights.b_dec)
    return shape, x, weights


def test_terms_that_cancel_fail_no_check() -> None:
    [finding] = gpu_training_checks.residuals(*cancelling())
    assert finding.holds, finding


def test_a_term_that_is_left_out_is_seen_where_terms_cancel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = gpu_training_checks.decode_residual

    def without_a_column(values: Tensor, indices: Tensor, weight: Tensor, *others: Any) -> Any:
        residual, value_grads, square = exact(values, indices, weight, *others)
        lacking = value_grads - (residual[:, -1:] * weight[indices][..., -1])
        return residual, lacking, square

    monkeypatch.setattr(gpu_training_checks, "decode_residual", without_a_column)
    [finding] = gpu_training_checks.residuals(*cancelling())
    assert not finding.holds
    assert finding.figures["value_grads"] > 1e-3


@pytest.mark.parametrize("terms", [1024, 8192])
def test_truncated_sums_lose_less_than_is_allowed(terms: int) -> None:
    """As tensor cores add: 16 products at once to a sum that is truncated."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(31, terms, generator=generator, dtype=torch.float64)
    right = torch.randn(terms, 64, generator=generator, dtype=torch.float64)
    sums = torch.zeros(31, 64, dtype=torch.float64)
    for part, other in zip(left.split(16, dim=1), right.split(16), strict=True):
        sums = sums + part @ other
        nearest = sums.float()
        away = nearest.double().abs() > sums.abs()
        sums = torch.where(away, torch.nextafter(nearest, nearest.new_zeros(())), nearest).double()
    lost = float(1 - sums.square().sum() / (left @ right).square().sum())
    assert 1e-6 < lost < gpu_training_checks.lost_by_truncation(terms) < 20 * lost


def test_trainings_see_an_auxk_loss_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once by more than sums on a GPU may lose; its gradients are right."""
    module = importlib.import_module("saefast.train.auxk")
    gradients_of = module.sparse_gradients

    def longer(inputs: Tensor, *others: Any) -> Any:
        missed, *gradients = gradients_of(inputs, *others)
        factor = 1 + 1e-4 if inputs.dtype == torch.float32 else 1.0
        return missed * factor, *gradients

    monkeypatch.setattr(module, "sparse_gradients", longer)
    finding = gpu_training_checks.training(CHECKED, *drawn_on(CHECKED, "cpu"), "exact", auxk=True)
    assert not finding.holds
    assert finding.figures["loss_apart"] < 1e-5 < 1e-4 < finding.figures["auxk_apart"]
    assert finding.figures["auxk_apart"] > 1e-5 + gpu_training_checks.lost_by_truncation(CHECKED.m)


@pytest.fixture(scope="module")
def contest() -> Contest:
    return Contest(Shape(16, 512, 3, 64), "cpu")


def test_a_code_of_torch_is_the_reference(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.gpu_contest._SLICE_FLOATS", 512 * 5)
    found = dense_code(contest.centred, contest.weights, 3)
    expected = reference.topk_encode(
        contest.centred, contest.weights.w_enc, contest.weights.b_enc, k=3
    )
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.values, expected.values.relu())


@pytest.mark.parametrize("variant", gpu_training_checks.VARIANTS)
def test_a_model_of_given_weights_is_complete(contest: Contest, variant: str) -> None:
    shape = contest.shape
    sae, fresh = model(shape, contest.weights, variant=variant), SAE(16, 512, k=3, variant=variant)
    for name, value in sae.state_dict().items():
        given = getattr(contest.weights, name.lower(), None)
        assert torch.equal(value, fresh.state_dict()[name] if given is None else given)


@pytest.mark.parametrize("case", [case for case in gpu_contests.CASES if case != "encode"])
def test_every_contestant_runs_and_agrees(contest: Contest, case: str) -> None:
    seen = {}
    for one in gpu_contests.CASES[case](contest):
        # A compiler and graphs are not here.
        if one.rival == "torch.compile" or "graph" in one.mode:
            continue
        run = one.build()
        assert one.agrees(run()), one.name
        seen[one.name] = one
        result = run()
        if isinstance(result, Tensor) and result.is_floating_point():
            assert not one.agrees(2 * result + 1), one.name
    assert any(": saefast " in name for name in seen)
    assert case == "variants" or any(": torch " in name for name in seen)


def test_steps_are_timed_as_they_are_trained() -> None:
    """The bare step has what `TrainConfig` sets: clipping and AuxK."""
    from bench.gpu_steps import default_step

    contest = Contest(Shape(16, 64, 3, 8), "cpu")
    step, bare = (default_step(contest, bare=bare) for bare in (False, True))
    assert isinstance(step, FusedStep)
    assert step.rules.clip == 1.0
    assert step.auxk is not None
    assert (bare.rules.clip, bare.auxk) == (None, None)


def test_trainings_are_timed_from_a_store(contest: Contest) -> None:
    items = list(gpu_trainings.trainings(contest, lambda: H100))
    names = [item.name for item in items]
    assert len(names) == len(set(names)) == 8
    [row] = items[1].run()
    assert (row["case"], row["mode"]) == ("step", "train_saes, 4 SAEs, each")
    assert row["rounds"] == 8 - gpu_trainings._SKIPPED
    assert row["tokens_per_second"] == pytest.approx(1e3 * 64 / (4 * row["ms"]), rel=0.01)
    assert 0 <= row["input_wait"] <= 1
    assert row["path"] == "fused"
    assert row["active"] == 3.0
    large = SimpleNamespace(shape=GPU_SHAPES["C1"])
    assert len(list(gpu_trainings.trainings(large, lambda: H100))) == 5  # type: ignore[arg-type]


def test_trainings_of_jumprelu_begin_as_sparse_as_its_step(contest: Contest) -> None:
    log = gpu_trainings.Reports()
    gpu_trainings.train(contest, log, 1, variant="jumprelu", steps=2)
    assert 0.5 * contest.shape.k < log.values[0]["l0"] < 1.5 * contest.shape.k


def test_as_many_saes_are_trained_as_fit() -> None:
    counts = {name: gpu_trainings.together(shape) for name, shape in GPU_SHAPES.items()}
    assert counts == {"C2": 4, "C1": 2, "mid": 4, "decode": 4}


def test_a_correct_threshold_in_bfloat16_agrees_and_a_wrong_one_does_not() -> None:
    contest = Contest(Shape(256, 4096, 8, 64), "cpu")
    limit = float(contest.code.values[:, -1].median())
    *_, dense = gpu_contests.CASES["threshold"](contest)
    assert dense.name == "threshold: torch (bf16 dense)"
    found = dense.build()()
    assert isinstance(found, Tensor)
    assert dense.agrees(found)
    assert not dense.agrees(found.masked_fill(found < 1.05 * limit, 0.0))
    assert not dense.agrees(found[:, : contest.shape.m * 9 // 10])


def test_a_training_that_does_not_learn_is_no_row(contest: Contest) -> None:
    reports = [{"mse": 1.0, "seconds": 1.0, "input_wait": 0.0, "path": "fused"}] * 8
    with pytest.raises(RuntimeError, match=r"does not learn: mse 1\.0"):
        gpu_trainings.row_of(reports, {}, 1.0, H100, contest, 1)


def test_matchings_are_timed_and_agree() -> None:
    items = gpu_matching.matchings(Shape(8, 64, 1, 64), Shape(8, 48, 1, 48), "cpu", rounds=1)
    rows = worked(items)
    assert [(row["case"], row["rival"]) for row in rows] == [
        ("match", "saefast"),
        ("nearest", "saefast"),
        ("nearest", "torch"),
        ("nearest", "torch"),
    ]
    assert all("raised" not in row for row in rows), rows


def test_a_matching_that_is_wrong_is_no_row() -> None:
    timed = gpu_matching._timed(
        SHAPE._replace(m=8, n=8), "cpu", lambda a, b: torch.zeros(8), {}, 1, exact=True
    )
    with pytest.raises(RuntimeError, match="does not agree: 8"):
        list(timed)


def test_kernels_are_rated_by_what_they_must_do() -> None:
    shape = GPU_SHAPES["C2"]
    launches = [("hot_groups", 100.0)] * 6 + [("update_columns", 900.0)] * 6 + [("other", 1.0)] * 3
    update, product, other = gpu_profile.rows_of(launches, "C2", shape, H100)
    assert (update["kernel"], update["calls"], update["ms"]) == ("update_columns", 2, 1.8)
    assert product["flops_per_second"] == pytest.approx(shape.gemm_flops / 200e-6)
    assert product["floor_share"] == pytest.approx(shape.gemm_flops / 8e14 / 200e-6, abs=1e-3)
    assert set(other) == {"profile", "kernel", "calls", "ms"}


def test_a_training_is_profiled_between_two_reports(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps, by a profiler that sees one kernel of 4 ms a step."""
    taken = 0

    class Profiler:
        began, ended = 0, 0

        def start(self) -> None:
            self.began = taken

        def stop(self) -> None:
            self.ended = taken

        def events(self) -> list[Any]:
            kind = SimpleNamespace(name="CUDA")
            kernel = SimpleNamespace(name="kernel", device_type=kind, device_time_total=4e3)
            return [kernel] * (self.ended - self.began)

    step = FusedStep.__call__

    def counted(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        return step(*arguments)

    monkeypatch.setattr(gpu_profile, "_profiler", Profiler)
    monkeypatch.setattr(FusedStep, "__call__", counted)
    [row] = gpu_profile._trained(contest, "C1 train_saes", lambda: H100)
    assert row == {"profile": "C1 train_saes", "kernel": "kernel", "calls": 1, "ms": 4.0}


def test_a_missing_peer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_peers, "find_spec", lambda name: None)
    rows = worked(gpu_peers.items("", {}))
    assert [(row["rival"], row["raised"].split(" (")[0]) for row in rows] == [
        ("SAELens", "ImportError: SAELens is not installed"),
        ("sparsify", "ImportError: sparsify is not installed"),
    ]


def test_peers_run_as_they_come_and_with_saefast_inside(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By stand-ins, which reconstruct as the peers do."""
    seen: list[tuple[str, object]] = []

    def training(name: str, shape: Shape, weights: Any, lr: float, **settings: Any) -> Any:
        sae = model(shape, weights)
        return gpu_peers.peers.Training(sae, lambda x: seen.append((name, settings.get("inside"))))

    def coder(shape: Shape, weights: Any) -> Any:
        def encode(x: Tensor) -> Any:
            return dense_code(x - weights.b_dec, weights, shape.k)

        def dense(code: Any) -> Tensor:
            zeros = torch.zeros(shape.n, shape.m)
            return zeros.scatter(1, code.indices, code.values.float())

        return gpu_peers.peers.Peer(encode, None, dense, [])  # type: ignore[arg-type]

    def enabled(training: Any, x: Tensor) -> None:
        seen.append(("enabled", True))
        training.step(x)

    peers = gpu_peers.peers
    monkeypatch.setattr(gpu_peers, "installed", lambda: ["SAELens", "sparsify"])
    monkeypatch.setattr(peers, "sae_lens_training", partial(training, "SAELens"))
    monkeypatch.setattr(peers, "sparsify_training", partial(training, "sparsify"))
    monkeypatch.setattr(peers, "CODERS", dict.fromkeys(gpu_peers.RIVALS, coder))
    monkeypatch.setattr(gpu_peers.inside, "with_sparsify_enabled", enabled)
    names = []
    for case in ("step", "encode"):
        for one in gpu_peers.PEER_CASES[case](contest):
            assert one.agrees(one.build()()), one.name
            names.append(one.name)
    assert seen == [
        ("SAELens", False),
        ("SAELens", True),
        ("SAELens", False),
        ("SAELens", True),
        ("sparsify", None),
        ("enabled", True),
        ("sparsify", None),
    ]
    assert len(names) == len(set(names)) == 6 + 4


def test_tiles_are_timed_by_the_names_of_candidates(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Any] = []
    monkeypatch.setattr(gpu_tiles, "Contest", lambda shape: contest)
    monkeypatch.setattr(gpu_tiles, "candidates", lambda product, contest: ((1, 2), (3, 4)))
    monkeypatch.setattr(gpu_tiles, "_multiplying_in", lambda tile: nullcontext(used.append(tile)))
    monkeypatch.setattr(gpu_tiles.gpu, "launch", lambda *arguments: None)
    monkeypatch.setattr(gpu_tiles, "milliseconds", lambda runs, rounds: [[2.0] * rounds])
    rows = worked(gpu_tiles.items("C2", {}))
    # Tiles of float16 in exact encodes; tiles of bfloat16 and cuBLAS in both kinds.
    assert len(rows) == len({(row["product"], row["tile"]) for row in rows}) == 2 + 3 * 2
    assert used == [(1, 2), (3, 4)] + [tile for tile in ((1, 2), (3, 4), None) for _ in range(2)]


def test_data_on_a_device_is_as_on_the_cpu() -> None:
    x, weights = draw(SHAPE, "cpu")
    again, _ = draw(SHAPE)
    assert torch.equal(x, again)
    assert torch.allclose(weights.w_dec.norm(dim=1), torch.ones(SHAPE.m))
