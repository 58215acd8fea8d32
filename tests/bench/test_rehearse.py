"""`bench.rehearse` records and compiles kernels without a GPU and fills Triton's cache."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.checkout import CHECKOUT

pytest.importorskip("triton", reason="Triton is a package of Linux only")

import triton
from helpers.kernel_sources import kernels_in_source
from triton import knobs

from bench.cases import Shape
from bench.rehearsal import compiling, programs, table
from bench.rehearsal.cache import relocate
from bench.rehearsal.compiling import Compiled, Figures, Source
from bench.rehearsal.pretended_gpu import DEVICE, GPUS, Driver, on, triton_driver
from bench.rehearsal.programs import Program
from bench.rehearsal.recording import Launched, recording
from bench.rehearsal.rereads import rereads
from saefast.kernels.device import thread_registers
from saefast.kernels.round_rows import rounded_rows

TABLE = CHECKOUT / "bench" / "results" / "compiled.json"


def recorded(*some: Program, architecture: int = 90) -> list[Launched]:
    with on(GPUS[architecture]), recording() as launched:
        for program in some:
            program.run()
    return list(launched)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the cache of the small rehearsal, which must find no fault."""
    folder = tmp_path_factory.mktemp("rehearsed")
    command = [sys.executable, "-m", "bench.rehearse", "--small", "--architectures", "90"]
    command += ["--cache", str(folder / "cache"), "--json", str(folder / "rows.json")]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "cache"


def test_the_small_rehearsal_writes_its_table(cache: Path) -> None:
    written = json.loads((cache.parent / "rows.json").read_text())
    rows = written["kernels"]
    assert len(rows) >= 15
    figures = [by_sm["90"] for row in rows for by_sm in row["triton"].values()]
    assert {len(some) for some in figures} == {len(written["figures"])}


def test_tables_of_several_versions_share_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    other = LAUNCHED._replace(kernel="other")
    for version, launched in (("1", LAUNCHED), ("1", other), ("2", LAUNCHED)):
        table.write(file, version, [90], [table.Row(launched, 90, 1, SOUND)])
    versions = {
        row["kernel"]: set(row["triton"]) for row in json.loads(file.read_text())["kernels"]
    }
    assert versions == {"choose": {"2"}, "other": {"1"}}
    table.write(file, "1", [90], [table.Row(LAUNCHED, 90, 1, "no")])
    (row,) = json.loads(file.read_text())["kernels"]
    assert row["triton"] == {"1": {"90": "no"}, "2": {"90": [*SOUND.figures]}}


def test_tables_of_several_architectures_share_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    for architecture in (80, 90, 80):
        table.write(file, "1", [architecture], [table.Row(LAUNCHED, architecture, 1, SOUND)])
    (row,) = json.loads(file.read_text())["kernels"]
    assert row["triton"] == {"1": {"80": [*SOUND.figures], "90": [*SOUND.figures]}}
    table.write(file, "1", [80], [])
    (row,) = json.loads(file.read_text())["kernels"]
    assert row["triton"] == {"1": {"90": [*SOUND.figures]}}


def test_only_entries_of_named_kernels_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    other = LAUNCHED._replace(kernel="other")
    both = [table.Row(launched, 90, 1, SOUND) for launched in (LAUNCHED, other)]
    table.write(file, "1", [90], both)
    table.write(file, "1", [90], [table.Row(other, 90, 1, "no")], ["other"])
    found = {row["kernel"]: row["triton"] for row in json.loads(file.read_text())["kernels"]}
    assert found == {"choose": {"1": {"90": [*SOUND.figures]}}, "other": {"1": {"90": "no"}}}


def test_every_kernel_that_is_launched_is_recorded() -> None:
    launched = recorded(*programs.programs_at(Shape(40, 127, 5, 70)))
    assert {one.kernel for one in launched} == kernels_in_source()


def test_integers_are_specialised_as_on_a_gpu() -> None:
    one, odd, even = (
        recorded(Program("", lambda shape=shape: programs.train(shape)))
        for shape in (programs.ONE, programs.ODD, programs.SMALL)
    )
    described = {
        name: [launched.described for launched in list_ if launched.kernel == "residual_rows"]
        for name, list_ in (("one", one), ("odd", odd), ("even", even))
    }
    assert [row["constants"].startswith("k=1,") for row in described["one"]] == [True]
    assert [row["odd"] for row in described["odd"]] == ["m d k"]
    assert [row["odd"] for row in described["even"]] == [""]


def test_addresses_are_specialised_by_their_offset() -> None:
    rows = torch.empty(9, 40, dtype=torch.bfloat16, device=DEVICE)
    whole, part = (
        recorded(Program("", lambda rows=some: rounded_rows(rows, "bfloat16")))[0].described
        for some in (rows, rows[1:].view(-1)[:-8].view(-1, 8))
    )
    assert "source" not in whole["odd"].split()
    assert part["odd"] == "d"
    shifted = rows.view(-1)[1:41].view(1, 40)
    (launched,) = recorded(Program("", lambda: rounded_rows(shifted, "bfloat16")))
    assert "source" in launched.described["odd"].split()


def test_a_pretended_gpu_is_removed_completely() -> None:
    with on(GPUS[80]):
        x = torch.empty(2, device=DEVICE)
        assert x.is_cuda
        assert torch.cuda.get_device_capability() == (8, 0)
    assert not x.is_cuda
    assert "is_cuda" not in vars(torch.Tensor)


@pytest.fixture
def small_kernels(cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Compiled]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    return {one.kernel: compiling.compiled(one, 90) for one in recorded(*programs.small_programs())}


def test_kernels_that_read_their_own_writes_are_detected(
    small_kernels: dict[str, Compiled],
) -> None:
    seen = {name: set(made.source.rereads) for name, made in small_kernels.items()}
    assert seen["score_candidates"] == {"keys"}
    assert seen["keep_best"] >= {"keys", "counts"}
    assert seen["hot_groups"] == seen["round_rows"] == set()


CARRIED = """
module {
  tt.func public @walk(%source: !tt.ptr<f32>, %out: !tt.ptr<f32>, %n: i32) attributes {a = 1} {
    %last = scf.for %i = %zero to %n step %one iter_args(%at = %out) -> (!tt.ptr<f32>)  : i32 {
      %value = tt.load %at : !tt.ptr<f32>
      %more = tt.load %source : !tt.ptr<f32>
      %next = tt.addptr %at, %one : !tt.ptr<f32>, i32
      scf.yield %next : !tt.ptr<f32>
    }
    tt.store %last, %sum : !tt.ptr<f32>
  }
}
"""


def test_addresses_are_followed_through_loops() -> None:
    assert rereads(CARRIED) == ["out"]
    assert rereads(CARRIED.replace("load %at", "load %source")) == []
    assert rereads(CARRIED.replace("load %at", "load %next")) == ["out"]


def test_an_offset_with_the_name_of_an_address_is_not_followed() -> None:
    loop = """
    scf.for %i = %zero to %n step %one  : i32 {
      NAMED
    }
"""
    store = "%1 = tt.addptr %out, %i : !tt.ptr<f32>, i32\n tt.store %1, %x : !tt.ptr<f32>"
    load = (
        "%1 = arith.muli %i, %n : i32\n %2 = tt.addptr %source, %1 : !tt.ptr<f32>, i32\n"
        " %3 = tt.load %2 : !tt.ptr<f32>"
    )
    head = (
        "tt.func public @f(%source: !tt.ptr<f32>, %out: !tt.ptr<f32>, %n: i32) attributes {a = 1}"
    )
    ttir = head + "".join(loop.replace("NAMED", body) for body in (store, load))
    assert rereads(ttir) == []
    assert rereads(ttir.replace("tt.addptr %source", "tt.addptr %out")) == ["out"]


def test_addresses_are_followed_out_of_branches() -> None:
    chosen = """
  tt.func public @choose(%a: !tt.ptr<f32>, %b: !tt.ptr<f32>, %c: i1) attributes {x = 1} {
    %place = scf.if %c -> (!tt.ptr<f32>) {
      scf.yield %a : !tt.ptr<f32>
    } else {
      scf.yield %b : !tt.ptr<f32>
    }
    tt.store %place, %x : !tt.ptr<f32>
    %value = tt.load %b : !tt.ptr<f32>
  }
"""
    assert rereads(chosen) == ["b"]
    assert rereads(chosen.replace("load %b", "load %place")) == ["a", "b"]


def test_pipelined_loops_and_tensor_cores_are_detected(small_kernels: dict[str, Compiled]) -> None:
    product, decode = small_kernels["hot_groups"], small_kernels["decode_rows"]
    assert product.figures.async_copies > 0
    assert product.figures.tensor_core == "wgmma.mma_async"
    assert product.source.wants_tensor_cores
    assert decode.figures.async_copies == 0
    assert not decode.source.wants_tensor_cores


LAUNCHED = Launched(
    "saefast.kernels.encode.choose",
    "choose",
    json.dumps(
        {
            "signature": {"keys": "*i64", "k": "i32", "FEW": "constexpr"},
            "constant_keys": [[2]],
            "constant_vals": [64],
            "attrs_keys": [[0]],
            "attrs_vals": [[["tt.divisibility", 16]]],
            "options": {"num_warps": 4, "num_stages": 3},
        }
    ),
)
SOUND = Compiled(Figures(255, 0, 0, 99 << 10, "mma.sync", 3), Source([], [], True))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stack_bytes": 16, "spills": 1}, "spills 16 bytes"),
        ({"registers": 256}, "256 registers"),
        ({"shared_bytes": (99 << 10) + 1}, "shared memory"),
        ({"tensor_core": ""}, "without tensor cores"),
        ({"rereads": ["keys"]}, "writes and reads keys"),
        ({"narrow_products": ["%0"]}, "32 bits"),
    ],
)
def test_faults_are_reported(change: dict[str, Any], fault: str) -> None:
    figures = SOUND.figures._replace(**{n: v for n, v in change.items() if n in Figures._fields})
    source = SOUND.source._replace(**{n: v for n, v in change.items() if n in Source._fields})
    rows = [table.Row(LAUNCHED, 120, 1, one) for one in (SOUND, Compiled(figures, source))]
    (found,) = table.faults(rows)
    assert fault in found
    assert "sm_120 choose (FEW=64)" in found


def test_a_stack_without_registers_is_not_a_fault() -> None:
    figures = SOUND.figures._replace(stack_bytes=16)
    assert [*table.faults([table.Row(LAUNCHED, 120, 1, Compiled(figures, SOUND.source))])] == []


def test_registers_must_suffice_for_all_threads_of_a_block() -> None:
    wide = LAUNCHED._replace(
        specialisation=LAUNCHED.specialisation.replace('"num_warps": 4', '"num_warps": 16')
    )
    fits = Compiled(SOUND.figures._replace(registers=128), SOUND.source)
    rows = [table.Row(wide, 120, 1, one) for one in (fits, SOUND)]
    (found,) = table.faults(rows)
    assert "255 registers of 128" in found


def test_a_compilation_error_is_a_fault() -> None:
    (found,) = table.faults([table.Row(LAUNCHED, 90, 1, "CompilationError: at 1:2")])
    assert found == "sm_90 choose (FEW=64) does not compile: CompilationError: at 1:2"


class LoadingDriver(Driver):
    """A driver that loads kernels to nowhere, so that launches run completely."""

    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 227 << 10},
        load_binary=lambda name, kernel, shared, device: (0, 0, 0, 0, 1024),
    )

    def launcher_cls(self, source: object, metadata: object) -> Any:
        return lambda *arguments: None


def launched_from_cache(architecture: int) -> list[tuple[str, bool]]:
    """Return the kernels that the small programs launch, and whether each was in the cache."""
    seen = []

    def listen(*, src: Any, cache_hit: bool, **others: object) -> None:
        seen.append((src.name, cache_hit))

    with (
        mock.patch.object(knobs.compilation, "listener", listen),
        on(GPUS[architecture]),
        triton_driver(LoadingDriver(architecture)),
    ):
        for program in programs.small_programs():
            program.run()
    return seen


@pytest.mark.skipif(
    triton.__version__.startswith("3.7."),
    reason="a key of Triton 3.7 depends on which functions were hashed before",
)
def test_launches_find_rehearsed_kernels_in_a_copied_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(cache, copy)
    entries = sorted(path.name for path in copy.iterdir())
    cache.rename(cache.parent / "away")
    try:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(copy))
        assert relocate(copy) == len(entries)
        found = launched_from_cache(90)
    finally:
        (cache.parent / "away").rename(cache)
    assert len(found) == len(entries)
    assert [name for name, hit in found if not hit] == []
    assert sorted(path.name for path in copy.iterdir()) == entries


def committed() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(TABLE.read_text())["kernels"]
    assert rows
    return rows


def test_the_committed_table_has_every_kernel_and_no_fault() -> None:
    assert TABLE.stat().st_size < 800_000
    rows = committed()
    assert {row["kernel"] for row in rows} == kernels_in_source()
    for row in rows:
        for by_sm in row["triton"].values():
            for architecture, figures in by_sm.items():
                made = Figures(*figures)
                if made.spills:
                    assert made.stack_bytes <= table.MAY_SPILL.get(row["kernel"], 0), row
                assert made.registers <= thread_registers(row["warps"]), row
                assert made.shared_bytes <= GPUS[int(architecture)].shared_bytes, row


def test_the_committed_table_has_all_architectures_and_versions_of_triton() -> None:
    seen = {
        (version, architecture)
        for row in committed()
        for version, by_sm in row["triton"].items()
        for architecture in by_sm
    }
    assert seen >= {(version, str(name)) for version in ("3.6.0", "3.9.0") for name in GPUS}
