"""Check that a tag, pyproject.toml, CITATION.cff and the changelog name one version.

    python .ci/version.py v0.1.0

Without a tag, the three files are compared. Exits with 1 and a sentence if one differs.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def differing(root: Path, tag: str | None) -> str | None:
    """Return which place names another version than pyproject.toml, or None if all agree.

    Args:
        root: folder of the checkout.
        tag: name of the tag that is released, such as "v0.1.0"; None: not compared.
    """
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    cited = re.search(r"^version: (\S+)$", (root / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## \[([\d.]+)\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    places = {
        "the tag": tag,
        "CITATION.cff": f"v{cited[1]}" if cited else "no version",
        "the newest section of CHANGELOG.md": f"v{newest[1]}" if newest else "no version",
    }
    for place, stated in places.items():
        if stated is not None and stated != f"v{version}":
            return f"{place} names {stated}, pyproject.toml v{version}"
    return None


if __name__ == "__main__":
    sys.exit(differing(ROOT, sys.argv[1] if len(sys.argv) > 1 else None))
