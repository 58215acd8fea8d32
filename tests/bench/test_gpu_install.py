"""A session on a GPU installs a build of this checkout and Python, with CUDA C++ kernels."""

import platform
import sys
import zipfile
from pathlib import Path

import pytest

from bench.gpu import install

OWN = f"cp{sys.version_info.major}{sys.version_info.minor}"
MACHINE = platform.machine()


@pytest.mark.parametrize(
    ("older", "changed"),
    [
        (f"saefast-1-{OWN}-{OWN}-linux_{MACHINE}", {"d": "an older kernel"}),
        (f"saefast-1-cp27-cp27-linux_{MACHINE}", {}),
        (f"saefast-1-{OWN}-{OWN}-linux_sparc", {}),
    ],
    ids=["other-files", "other-python", "other-processor"],
)
def test_only_a_wheel_of_this_checkout_and_python_is_installed(
    tmp_path: Path, older: str, changed: dict[str, str]
) -> None:
    checkout, folder = tmp_path / "checkout", tmp_path / "wheels"
    for place in ("saefast/a.py", "saefast/b/c.py", "kernels/d.py"):
        (checkout / place).parent.mkdir(parents=True, exist_ok=True)
        (checkout / place).write_text(place)
    folder.mkdir()
    assert install.wheel(folder, checkout) is None

    def pack(name: str, changed: dict[str, str]) -> Path:
        with zipfile.ZipFile(folder / f"{name}.whl", "w") as archive:
            for place, kept in {
                "saefast/a.py": "saefast/a.py",
                "saefast/b/c.py": "saefast/b/c.py",
                "saefast/kernels/d.py": "kernels/d.py",
            }.items():
                archive.writestr(place, changed.get(Path(kept).stem, kept))
        return folder / f"{name}.whl"

    pack(older, changed)
    assert install.wheel(folder, checkout) is None
    right = pack(f"saefast-2-{OWN}-{OWN}-manylinux_2_28_{MACHINE}", {})
    assert install.wheel(folder, checkout) == right


@pytest.mark.parametrize("cuda", [True, False])
def test_an_installation_without_cuda_kernels_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "wheel", lambda *folders: tmp_path / "any.whl")
    monkeypatch.setattr(install, "_pip", lambda *what: True)
    monkeypatch.setattr(install, "differences", lambda *places: [])
    info = {"folder": str(tmp_path), "cuda": cuda}
    monkeypatch.setattr(install, "_probe", lambda: info)
    [row] = install.installed()
    assert (row["how"], row["holds"], row["info"]) == ("wheel", cuda, info)
    if not cuda:
        assert row["reason"] == (
            "wheel: no CUDA C++ kernels, so the selection runs in Triton; nvcc is not on PATH"
        )
