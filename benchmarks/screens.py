"""The README's pictures: a terminal, and a part of the report, both of a quickstart's workspace.

    python -m benchmarks.screens vlltr-quickstart    to docs/predict.svg and docs/report.png

The report needs Debian's `chromium` and `chromium-driver`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

DOCS = Path(__file__).parent.parent / "docs"
_WIDTH = 112
_COMMANDS = ("predict samples/known.png --top 2", "predict samples/unseen.png --top 1 --explain 2")


def terminal(workspace: Path) -> None:
    """What the commands print, as a still."""
    console = Console(record=True, width=_WIDTH, file=sys.stderr)
    for command in _COMMANDS:
        console.print(Text(f"$ vlltr {command}", style="bold"))
        told = subprocess.run(
            ["vlltr", *shlex.split(command)], cwd=workspace, check=True, capture_output=True, text=True
        )
        for line in told.stdout.splitlines():
            console.print(Text(line), no_wrap=True, overflow="ellipsis", crop=True)
    drawn = console.export_svg(title="vlltr predict")
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)  # nothing is fetched to show it
    (DOCS / "predict.svg").write_text(drawn, encoding="utf-8")


def report(workspace: Path) -> None:
    """Explained predictions of the newest report."""
    newest = max((workspace / "reports").glob("*.html"), key=lambda path: path.stat().st_mtime)
    options = ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,860"):
        options.add_argument(flag)
    driver = Chrome(options, ChromeService("/usr/bin/chromedriver"))
    try:
        driver.get(newest.resolve().as_uri() + "#gallery")
        driver.save_screenshot(str(DOCS / "report.png"))
    finally:
        driver.quit()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    terminal(place)
    report(place)
