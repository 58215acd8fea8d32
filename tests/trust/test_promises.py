"""Promises of SECURITY.md: no network access by default, no unpickling, allowed licences."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.checkout import CHECKOUT


def test_everything_works_without_a_network(tmp_path: Path) -> None:
    """In a process of its own, in which an attempt to connect is an error; helpers/offline.py."""
    pytest.importorskip("transformers", reason="needs saefast[lm]")
    quiet = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRANSFORMERS_OFFLINE")
    ended = subprocess.run(
        [sys.executable, "-m", "helpers.offline", tmp_path],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in quiet}
        | {"PYTHONPATH": os.pathsep.join([*sys.path, str(CHECKOUT / "tests")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.strip() == "works without a network"


UNSAFE = re.compile(
    r"pickle\.loads?\(|yaml\.(unsafe_|full_)?load\((?!.*Loader=loader)|\beval\(|\bexec\(|os\.system"
    r"|weights_only=False|allow_pickle=True\)|shell=True|trust_remote_code"
)
ALLOWED_LINES = {
    # Where the caller has passed allow_pickle=True.
    "saefast/formats/tensor_files.py": {"weights_only=False"},
    # A field of the options of the sae-bench package, which saefast does not read.
    "saefast/integrations/sae_bench.py": {"trust_remote_code"},
}


def test_no_source_runs_what_it_reads() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted((CHECKOUT / "saefast").rglob("*.py")):
        for match in UNSAFE.finditer(path.read_text()):
            if not re.search(r"\.eval\($", path.read_text()[: match.end()]):  # of torch's modules
                found.setdefault(str(path.relative_to(CHECKOUT)), set()).add(match.group())
    assert found == ALLOWED_LINES


@pytest.fixture(scope="module")
def components() -> Any:
    place = CHECKOUT / ".ci" / "components.py"
    spec = importlib.util.spec_from_file_location("components", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name: str, *needs: str, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "version": "1.0", "requires_dist": list(needs), **metadata}}


DEPENDENCIES = [
    package("torch", "sympy>=1; extra == 'no'", "Fs_Spec", license_expression="BSD-3-Clause"),
    package("fs-spec", "torch", license="Apache 2.0\n\nlong text"),
    *(
        package(name, classifier=["License :: OSI Approved :: MIT License"])
        for name in ("numpy", "safetensors", "pyarrow", "tqdm", "tyro", "not-needed")
    ),
]


def test_packages_that_are_installed_have_allowed_licences(components: Any) -> None:
    packages = components.needed(components.installed())
    assert len(packages) >= 6
    assert components.refused(packages) == []
    assert (CHECKOUT / "NOTICE").is_file()


def test_licences_that_are_not_allowed_are_reported(components: Any) -> None:
    packages = components.needed(DEPENDENCIES)
    names = [each["metadata"]["name"] for each in packages]
    assert names == ["fs-spec", "numpy", "pyarrow", "safetensors", "torch", "tqdm", "tyro"]
    assert components.refused(packages) == []
    for licence in ("GPL-3.0-only", "MIT AND AGPL-3.0", "unknown", "Proprietary", None):
        bad = package("tqdm", license_expression=licence)
        line = f"tqdm: {licence or 'unknown'}"
        assert components.refused([bad]) == [line]
    assert components.refused([package("nvidia-cudnn-cu13", license="NVIDIA Proprietary")]) == []
    with pytest.raises(LookupError, match="torch is needed"):
        components.needed(DEPENDENCIES[1:])


def test_the_bill_of_materials_names_every_package_and_its_checksum(components: Any) -> None:
    listed = [each | {"download_info": {"archive_info": {"hashes": {"sha256": "ab"}}}}
              for each in DEPENDENCIES]  # fmt: skip
    content = components.sbom(components.needed(listed))
    assert json.loads(json.dumps(content)) == content
    assert (content["bomFormat"], content["specVersion"]) == ("CycloneDX", "1.6")
    assert content["metadata"]["component"]["name"] == "saefast"
    assert [each["name"] for each in content["components"]] == [
        "fs-spec", "numpy", "pyarrow", "safetensors", "torch", "tqdm", "tyro"
    ]  # fmt: skip
    for each in content["components"]:
        assert each["purl"] == f"pkg:pypi/{each['name']}@1.0"
        assert each["hashes"] == [{"alg": "SHA-256", "content": "ab"}]


def test_pins_name_every_package_and_its_checksum(components: Any) -> None:
    listed = [each | {"download_info": {"archive_info": {"hashes": {"sha256": "ab"}}}}
              for each in DEPENDENCIES[:2]]  # fmt: skip
    assert components.pins(listed) == [
        "fs-spec==1.0 --hash=sha256:ab",
        "torch==1.0 --hash=sha256:ab",
    ]
    with pytest.raises(KeyError):
        components.pins(DEPENDENCIES)
