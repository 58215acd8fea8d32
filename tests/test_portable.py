"""csrc/ without its x86 files compiles for another processor, and includes no x86 header."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
X86_ONLY = ("kernels_avx2.cpp", "kernels_avx512.cpp", "kernels_avx512_bf16.cpp")
PORTABLE = sorted(
    path for path in CSRC.glob("*.cpp") if path.name not in (*X86_ONLY, "bindings.cpp")
)


@pytest.mark.parametrize("source", PORTABLE, ids=lambda path: path.name)
def test_compiles_for_arm64(source: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu"),
            *("-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-c", str(source)),
            *("-o", str(tmp_path / "object.o")),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr


def test_the_x86_files_are_known_by_their_headers() -> None:
    def includes(path: Path) -> set[str]:
        found = set()
        for name in re.findall(r'#include [<"]([\w/.]+)[>"]', path.read_text()):
            found.add(name)
            if (CSRC / name).exists():
                found |= includes(CSRC / name)
        return found

    assert PORTABLE
    for path in CSRC.glob("*.cpp"):
        assert ("immintrin.h" in includes(path)) == (path.name in X86_ONLY), path.name
