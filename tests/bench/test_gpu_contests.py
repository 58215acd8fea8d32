"""The GPU contests of bench/, run on the CPU's kernels."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.worker_rows import worked
from torch import Tensor

from bench.cases import Shape, draw
from bench.gpu import contests, profile, tiles, training_checks, trainings
from bench.gpu import peers as gpu_peers
from bench.gpu.contest import Contest, dense_code, model
from bench.gpu.times import Ceilings
from bench.shapes import GPU_SHAPES
from saefast import SAE, FusedStep, reference

H100 = Ceilings(bf16_flops=8e14, copy_bytes=3e12, l2_bytes=5.5e12)

SHAPE = Shape(4, 8, 2, 3)


@pytest.fixture(scope="module")
def contest() -> Contest:
    return Contest(Shape(16, 512, 3, 64), "cpu")


def test_the_code_of_torch_is_the_reference(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.gpu.contest._SLICE_FLOATS", 512 * 5)
    found = dense_code(contest.centred, contest.weights, 3)
    expected = reference.topk_encode(
        contest.centred, contest.weights.w_enc, contest.weights.b_enc, k=3
    )
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.values, expected.values.relu())


@pytest.mark.parametrize("variant", training_checks.VARIANTS)
def test_a_model_of_given_weights_is_complete(contest: Contest, variant: str) -> None:
    shape = contest.shape
    sae, fresh = model(shape, contest.weights, variant=variant), SAE(16, 512, k=3, variant=variant)
    for name, value in sae.state_dict().items():
        given = getattr(contest.weights, name.lower(), None)
        assert torch.equal(value, fresh.state_dict()[name] if given is None else given)


@pytest.mark.parametrize("case", [case for case in contests.CASES if case != "encode"])
def test_every_contestant_runs_and_agrees(contest: Contest, case: str) -> None:
    seen = {}
    for one in contests.CASES[case](contest):
        # A compiler and CUDA graphs are not available.
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


def test_timed_steps_have_the_default_settings() -> None:
    """The plain step has the settings of `TrainConfig`: clipping and AuxK."""
    from bench.gpu.steps import default_step

    contest = Contest(Shape(16, 64, 3, 8), "cpu")
    step, bare = (default_step(contest, bare=bare) for bare in (False, True))
    assert isinstance(step, FusedStep)
    assert step.rules.clip == 1.0
    assert step.auxk is not None
    assert (bare.rules.clip, bare.auxk) == (None, None)


def test_trainings_are_timed_from_a_store(contest: Contest) -> None:
    items = list(trainings.trainings(contest, lambda: H100))
    names = [item.name for item in items]
    assert len(names) == len(set(names)) == 8
    [row] = items[1].run()
    assert (row["case"], row["mode"]) == ("step", "train_saes, 4 SAEs, each")
    assert row["rounds"] == 8 - trainings._SKIPPED
    assert row["tokens_per_second"] == pytest.approx(1e3 * 64 / (4 * row["ms"]), rel=0.01)
    assert 0 <= row["input_wait"] <= 1
    assert row["path"] == "fused"
    assert row["active"] == 3.0
    large = SimpleNamespace(shape=GPU_SHAPES["C1"])
    assert len(list(trainings.trainings(large, lambda: H100))) == 5  # type: ignore[arg-type]


def test_trainings_of_jumprelu_start_as_sparse_as_its_step(contest: Contest) -> None:
    log = trainings.Reports()
    trainings.train(contest, log, 1, variant="jumprelu", steps=2)
    assert 0.5 * contest.shape.k < log.values[0]["l0"] < 1.5 * contest.shape.k


def test_as_many_saes_are_trained_as_fit() -> None:
    counts = {name: trainings.together(shape) for name, shape in GPU_SHAPES.items()}
    assert counts == {"C2": 4, "C1": 2, "mid": 4, "decode": 4}


def test_a_correct_threshold_in_bfloat16_agrees_and_a_wrong_one_does_not() -> None:
    contest = Contest(Shape(256, 4096, 8, 64), "cpu")
    limit = float(contest.code.values[:, -1].median())
    *_, dense = contests.CASES["threshold"](contest)
    assert dense.name == "threshold: torch (bf16 dense)"
    found = dense.build()()
    assert isinstance(found, Tensor)
    assert dense.agrees(found)
    assert not dense.agrees(found.masked_fill(found < 1.05 * limit, 0.0))
    assert not dense.agrees(found[:, : contest.shape.m * 9 // 10])


def test_a_training_that_does_not_learn_gives_no_row(contest: Contest) -> None:
    reports = [{"mse": 1.0, "seconds": 1.0, "input_wait": 0.0, "path": "fused"}] * 8
    with pytest.raises(RuntimeError, match=r"does not learn: mse 1\.0"):
        trainings.row_of(reports, {}, 1.0, H100, contest, 1)


def test_kernels_are_compared_with_their_floors() -> None:
    shape = GPU_SHAPES["C2"]
    launches = [("hot_groups", 100.0)] * 6 + [("update_columns", 900.0)] * 6 + [("other", 1.0)] * 3
    update, product, other = profile.rows_of(launches, "C2", shape, H100)
    assert (update["kernel"], update["calls"], update["ms"]) == ("update_columns", 2, 1.8)
    assert product["flops_per_second"] == pytest.approx(shape.gemm_flops / 200e-6)
    assert product["floor_share"] == pytest.approx(shape.gemm_flops / 8e14 / 200e-6, abs=1e-3)
    assert set(other) == {"profile", "kernel", "calls", "ms"}


def test_a_profile_covers_the_steps_between_two_reports(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps, with a profiler that records one kernel of 4 ms in each."""
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

    monkeypatch.setattr(profile, "_profiler", Profiler)
    monkeypatch.setattr(FusedStep, "__call__", counted)
    [row] = profile._trained(contest, "C1 train_saes", lambda: H100)
    assert row == {"profile": "C1 train_saes", "kernel": "kernel", "calls": 1, "ms": 4.0}


def test_peers_run_alone_and_with_saefast_inside(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins reconstruct like the peers."""
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


def test_tiles_are_timed_under_the_names_of_candidates(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Any] = []
    monkeypatch.setattr(tiles, "Contest", lambda shape: contest)
    monkeypatch.setattr(tiles, "candidates", lambda product, contest: ((1, 2), (3, 4)))
    monkeypatch.setattr(tiles, "_multiplying_in", lambda tile: nullcontext(used.append(tile)))
    monkeypatch.setattr(tiles.gpu, "launch", lambda *arguments: None)
    monkeypatch.setattr(tiles, "milliseconds", lambda runs, rounds: [[2.0] * rounds])
    rows = worked(tiles.items("C2", {}))
    # Tiles of float16 in exact encodes; tiles of bfloat16 and cuBLAS in both kinds.
    assert len(rows) == len({(row["product"], row["tile"]) for row in rows}) == 2 + 3 * 2
    assert used == [(1, 2), (3, 4)] + [tile for tile in ((1, 2), (3, 4), None) for _ in range(2)]


def test_data_on_a_device_equals_data_on_the_cpu() -> None:
    x, weights = draw(SHAPE, "cpu")
    again, _ = draw(SHAPE)
    assert torch.equal(x, again)
    assert torch.allclose(weights.w_dec.norm(dim=1), torch.ones(SHAPE.m))
