"""The files that make a release: versions, the release workflow, and the settings of the wheels."""

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.checkout import CHECKOUT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def version() -> Any:
    spec = importlib.util.spec_from_file_location("version", CHECKOUT / ".ci" / "version.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_files_name_one_version(version: Any) -> None:
    assert version.differing(CHECKOUT, None) is None
    assert version.differing(CHECKOUT, f"v{PROJECT['project']['version']}") is None


def test_a_different_version_is_reported(version: Any, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
        shutil.copy(CHECKOUT / name, tmp_path)
    ours = PROJECT["project"]["version"]
    assert version.differing(tmp_path, "v9.9") == f"the tag names v9.9, pyproject.toml v{ours}"
    cited = tmp_path / "CITATION.cff"
    cited.write_text(cited.read_text().replace(f"version: {ours}", "version: 9.9"))
    assert version.differing(tmp_path, None) == f"CITATION.cff names v9.9, pyproject.toml v{ours}"
    shutil.copy(CHECKOUT / "CITATION.cff", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("## [9.8.7]\n## [0.1.0]\n")
    message = "the newest section of CHANGELOG.md names v9.8.7"
    assert version.differing(tmp_path, None).startswith(message)


def test_wheels_are_built_for_every_python_that_is_promised() -> None:
    promised = {
        printed.rpartition(" ")[2]
        for printed in PROJECT["project"]["classifiers"]
        if re.search(r"Python :: 3\.\d+$", printed)
    }
    built = re.findall(r"cp(\d)(\d+)-\*", PROJECT["tool"]["cibuildwheel"]["build"])
    assert {f"{major}.{minor}" for major, minor in built} == promised
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert min(promised) == "3.11"


def test_the_workflow_publishes_only_tested_files() -> None:
    workflow = yaml.safe_load((CHECKOUT / ".github" / "workflows" / "release.yml").read_text())
    jobs = workflow["jobs"]
    assert set(jobs["publish"]["needs"]) == {"sdist", "wheels", "supply-chain"}
    assert jobs["publish"]["if"] == "github.ref_type == 'tag'"
    platforms = {each["platform"] for each in jobs["wheels"]["strategy"]["matrix"]["include"]}
    assert platforms == {"linux-x86_64", "linux-aarch64", "macos-arm64"}
    assert workflow["permissions"] == {"contents": "read"}
    writing = [name for name, job in jobs.items() if "permissions" in job]
    assert writing == ["publish"]
    files = [
        path
        for command in PROJECT["tool"]["cibuildwheel"]["test-command"]
        for path in re.findall(r"\{project\}/(\S+)", command)
    ]
    files += [
        path
        for name in ("sdist", "supply-chain")
        for step in jobs[name]["steps"]
        for path in _files_run(step)
    ]
    assert files
    for path in files:
        assert (CHECKOUT / path).exists(), path


def test_a_known_vulnerability_stops_a_release() -> None:
    workflow = yaml.safe_load((CHECKOUT / ".github" / "workflows" / "release.yml").read_text())
    job = workflow["jobs"]["supply-chain"]
    (audit,) = (step for step in job["steps"] if "pip_audit" in step.get("run", ""))
    command = audit["run"].splitlines()[-1]  # its status is that of the step
    assert command.startswith("python -m pip_audit --strict ")
    assert "|" not in command
    assert not any("continue-on-error" in each or "if" in each for each in (job, audit))


def test_locked_packages_have_hashes_and_the_versions_that_are_asked_for() -> None:
    locked: dict[str, list[Requirement]] = {}
    for entry in re.split(r"\n(?=\w)", (CHECKOUT / "requirements-dev.txt").read_text())[1:]:
        requirement, *hashes = entry.strip().split(" \\\n    --hash=sha256:")
        assert hashes, entry
        assert all(re.fullmatch("[0-9a-f]{64}", each) for each in hashes), entry
        pin = Requirement(requirement)
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), entry
        locked.setdefault(canonicalize_name(pin.name), []).append(pin)

    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["test"], *extras["dev"], *extras["docs"]]
    names = {canonicalize_name(Requirement(each).name) for each in asked} - {"torch"}
    assert names <= locked.keys()
    pins = (CHECKOUT / "constraints.txt").read_text().splitlines()
    for requirement in map(Requirement, asked + [each for each in pins if each[:1] != "#"]):
        for pin in locked.get(canonicalize_name(requirement.name), []):
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version), (requirement, pin)


def _files_run(step: dict[str, Any]) -> list[str]:
    return re.findall(r"python (\.ci/\S+)", step.get("run", ""))
