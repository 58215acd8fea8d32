"""csrc/ without its x86 files compiles for other processors and systems; no x86 header in it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.checkout import CHECKOUT

CSRC = CHECKOUT / "csrc"
X86_ONLY = ("kernels_avx2.cpp", "kernels_avx512.cpp", "kernels_avx512_bf16.cpp")
SOURCES = sorted([*CSRC.glob("*.cpp"), *CSRC.glob("simd/*.cpp")])
PORTABLE = [path for path in SOURCES if path.name not in X86_ONLY]


@pytest.mark.parametrize("target", ["aarch64-linux-gnu", "aarch64-macos"])
@pytest.mark.parametrize("source", PORTABLE, ids=lambda path: path.name)
def test_the_sources_compile_for_arm64(source: Path, target: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "c++", "-target", target),
            *("-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-c", str(source)),
            *("-o", str(tmp_path / "object.o")),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr


def test_missing_instruction_sets_are_never_executed(tmp_path: Path) -> None:
    """Even the function that lists the loops of a level is compiled with its instructions."""
    program = tmp_path / "levels.cpp"
    program.write_text(
        """
        #include <cstdio>
        #include <cstdlib>
        #include "isa.h"
        namespace saefast {
        namespace portable { Kernels kernels() { return {}; } }
        namespace avx2 { Kernels kernels() { std::abort(); } }
        namespace avx512 { Kernels kernels() { std::abort(); } }
        namespace avx512_bf16 { Kernels kernels() { std::abort(); } }
        }
        int main() {
          for (const auto& name : saefast::compiled_levels()) std::printf("%s ", name.c_str());
          for (const auto& name : saefast::usable_levels()) std::printf("%s ", name.c_str());
          std::printf("%s", saefast::active_level().c_str());
        }
        """
    )
    command = ["c++", "-std=c++20", "-DSAEFAST_X86"]
    # a processor with only the portable level
    command += ["-D__builtin_cpu_supports(feature)=0", "-D__builtin_cpu_init()=0"]
    command += [f"-I{CSRC}", str(program), str(CSRC / "isa.cpp"), "-o", str(tmp_path / "levels")]
    subprocess.run(command, check=True, capture_output=True)
    result = subprocess.run([tmp_path / "levels"], check=True, capture_output=True, text=True)
    assert result.stdout == "scalar avx2 avx512 avx512_bf16 scalar scalar"


def test_the_x86_files_are_known_by_their_headers() -> None:
    def includes(path: Path) -> set[str]:
        found = set()
        for name in re.findall(r'#include [<"]([\w/.]+)[>"]', path.read_text()):
            found.add(name)
            if (path.parent / name).exists():
                found |= includes(path.parent / name)
        return found

    assert PORTABLE
    for path in SOURCES:
        assert ("immintrin.h" in includes(path)) == (path.name in X86_ONLY), path.name
