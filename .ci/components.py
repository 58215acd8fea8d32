"""Licences of the packages that saefast needs, a bill of materials, and pins of them.

    python .ci/components.py licences
    pip install --dry-run --ignore-installed --report - --quiet WHEEL > REPORT
    python .ci/components.py sbom REPORT
    python .ci/components.py pins REPORT

`licences` prints the licences of the installed packages, and fails for one that is not allowed.
`sbom` prints CycloneDX in JSON of the packages that pip would install, with their checksums; it and
`licences` cover the packages that saefast needs without extras. `pins` prints exact versions with
checksums, as in a file of requirements, of everything that pip would install but saefast itself.
"""

import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Package = Mapping[str, Any]
"""Entry of a package in a report of pip: its metadata, and in download_info its checksum."""

_PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
ALLOWED = re.compile(
    r"MIT|BSD|Apache|ISC|\bPSF|Python Software Foundation|Zlib|CC0|0BSD|MPL[- ]2|Mozilla Public",
    re.I,
)
"""Licences that allow use in any program; MPL 2.0 asks only for changes to the files themselves."""
_COPYLEFT = re.compile(r"\bA?GPL|General Public|\bLGPL|SSPL|Commons Clause", re.I)
_OF_CUDA = re.compile(r"(nvidia|cuda)-.*")
"""Packages of NVIDIA that torch's CUDA builds ask for, under NVIDIA's own licence."""


def installed() -> list[Package]:
    """Return the packages that are installed, in the form of pip's reports."""
    return [
        {
            "metadata": {
                "name": each.metadata["Name"],
                "version": each.version,
                "requires_dist": each.requires or [],
                "classifier": each.metadata.get_all("Classifier") or [],
                "license": each.metadata.get("License"),
                "license_expression": each.metadata.get("License-Expression"),
            }
        }
        for each in importlib.metadata.distributions()
        if each.metadata["Name"]
    ]


def needed(listed: Iterable[Package]) -> list[Package]:
    """Return the packages among those listed that saefast needs, sorted by name."""
    by_name = {canonicalize_name(each["metadata"]["name"]): each for each in listed}
    project = tomllib.loads(_PYPROJECT.read_text())["project"]
    found: dict[str, Package] = {}
    waiting = list(project["dependencies"])
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        marker = requirement.marker
        if name in found or (marker and not any(marker.evaluate({"extra": e}) for e in extras)):
            continue
        if name not in by_name:
            raise LookupError(f"{name} is needed but not among the packages that are listed")
        found[name] = by_name[name]
        waiting += by_name[name]["metadata"].get("requires_dist", [])
    return [found[name] for name in sorted(found)]


def licence_of(package: Package) -> str:
    """Return the licence that the metadata of a package states, in one line."""
    metadata = package["metadata"]
    classified = [
        line.rpartition(" :: ")[2]
        for line in metadata.get("classifier", [])
        if line.startswith("License ::") and not line.endswith("OSI Approved")
    ]
    stated = metadata.get("license_expression") or ", ".join(classified)
    stated = stated or str(metadata.get("license") or "").strip().partition("\n")[0]
    return stated or "unknown"


def refused(packages: Iterable[Package]) -> list[str]:
    """Return a line for each package whose licence is not allowed."""
    return [
        f"{each['metadata']['name']}: {licence_of(each)}"
        for each in packages
        if not _OF_CUDA.fullmatch(canonicalize_name(each["metadata"]["name"]))
        and (not ALLOWED.search(licence_of(each)) or _COPYLEFT.search(licence_of(each)))
    ]


def sbom(packages: Iterable[Package]) -> dict[str, Any]:
    """Return a bill of materials, CycloneDX 1.6, without times or random numbers."""
    project = tomllib.loads(_PYPROJECT.read_text())["project"]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "name": project["name"],
                "version": project["version"],
                "purl": f"pkg:pypi/{project['name']}@{project['version']}",
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": [_component(each) for each in packages],
    }


def _component(package: Package) -> dict[str, Any]:
    metadata = package["metadata"]
    name = canonicalize_name(metadata["name"])
    hashes = package.get("download_info", {}).get("archive_info", {}).get("hashes", {})
    purl = f"pkg:pypi/{name}@{metadata['version']}"
    component = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": metadata["version"],
        "purl": purl,
        "licenses": [{"license": {"name": licence_of(package)}}],
    }
    if "sha256" in hashes:
        component["hashes"] = [{"alg": "SHA-256", "content": hashes["sha256"]}]
    return component


def pins(packages: Iterable[Package]) -> list[str]:
    """Return a line of requirements for each package: its version and checksum."""
    lines = []
    for each in packages:
        name, version = each["metadata"]["name"], each["metadata"]["version"]
        checksum = each["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{canonicalize_name(name)}=={version} --hash=sha256:{checksum}")
    return sorted(lines)


def main() -> int:
    """Print licences, a bill of materials, or pins."""
    if sys.argv[1] in ("sbom", "pins"):
        report = json.loads(Path(sys.argv[2]).read_text())
        own = tomllib.loads(_PYPROJECT.read_text())["project"]["name"]
        others = [each for each in report["install"] if each["metadata"]["name"] != own]
        if sys.argv[1] == "sbom":
            print(json.dumps(sbom(needed(others)), indent=1))
        else:
            print(*pins(others), sep="\n")
        return 0
    packages = needed(installed())
    for each in packages:
        print(f"{each['metadata']['name']} {each['metadata']['version']}: {licence_of(each)}")
    wrong = refused(packages)
    for line in wrong:
        print(f"not allowed: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
