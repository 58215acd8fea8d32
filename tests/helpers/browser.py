"""The report in a real browser: loads without messages, searches, sorts, fits a phone.

    python tests/helpers/browser.py RUN/report.html [--shots FOLDER]

Needs `pip install playwright` and a Chromium: of the system (apt install chromium), or the path in
the variable CHROMIUM. Tests are skipped where one of them is missing, and fail there if
REQUIRE_BROWSER=1, as in .ci/run.
"""

import argparse
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCREENS = {
    "light": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}
_COUNT_UNPACKED = """
    window.unpackedPieces = 0;
    window.DecompressionStream = class extends DecompressionStream {
        constructor(kind) { super(kind); window.unpackedPieces++; }
    };
"""
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Return the path of a Chromium for playwright; None if one of both is missing."""
    if importlib.util.find_spec("playwright") is None:
        return None
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


def missing() -> bool:
    """Return whether tests of the report in a browser are to be skipped."""
    return chromium() is None and os.environ.get("REQUIRE_BROWSER") != "1"


def _dismiss(dialog: Any, complaints: list[str]) -> None:
    complaints.append(f"a dialog: {dialog.message}")
    dialog.dismiss()


@contextmanager
def opened(report: Path, screen: str, javascript: bool = True) -> Iterator[tuple[Any, list[str]]]:
    """Open the report with its table filled, and provide the page and browser messages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox"] if os.getuid() == 0 else [],
        )
        try:
            context = browser.new_context(java_script_enabled=javascript, **SCREENS[screen])  # type: ignore[arg-type]
            page = context.new_page()
            complaints: list[str] = []
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: complaints.append(request.url))
            page.on("dialog", lambda dialog: _dismiss(dialog, complaints))
            page.add_init_script(_COUNT_UNPACKED)
            page.goto(report.resolve().as_uri())
            if javascript:
                page.wait_for_selector(".filters ~ * tbody tr")
            # The page itself is the only allowed request.
            complaints.remove(report.resolve().as_uri())
            yield page, complaints
        finally:
            browser.close()


def main() -> int:
    """Write screenshots, and return whether there were browser messages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--shots", type=Path, default=Path("shots"))
    arguments = parser.parse_args()
    if chromium() is None:
        print("needs playwright (pip) and a Chromium (apt install chromium)", file=sys.stderr)
        return 1
    arguments.shots.mkdir(parents=True, exist_ok=True)
    wrong = []
    for screen in SCREENS:
        with opened(arguments.report, screen) as (page, complaints):
            path = arguments.shots / f"{screen}.png"
            page.screenshot(path=path, full_page=True)
            print(f"wrote {path}")
            wrong += complaints
    for complaint in wrong:
        print(complaint, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
