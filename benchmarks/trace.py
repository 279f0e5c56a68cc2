"""How much of the library a command goes through: files, calls, calls from one file into another, tables opened.

    python -m benchmarks.trace     prints them of `predict --explain 3` and of `classes add` with two sentences

The workspace is ten classes of five pictures, made by the commands of the README. Each command runs twice: at first
imports are made, then it is traced.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from benchmarks.studies.draws.bench import Bench
from benchmarks.studies.draws.sources import Setting, draw
from vlltr_index.cli.main import vlltr

ROOT = Path(__file__).parents[1]
FOLDERS = tuple(f"{ROOT / name}/" for name in ("vlltr_index", "cli", "train", "schemas"))


class Trace:
    """Counts calls of the library's functions; give `see` to `sys.setprofile`."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.across = self.opened = 0

    def see(self, frame: FrameType, event: str, _: object) -> None:
        """A call or a return."""
        if event != "call":
            return
        name = frame.f_code.co_filename
        if frame.f_code.co_name == "open_table" and name.endswith("lancedb/db.py"):
            self.opened += 1
        if not name.startswith(FOLDERS):
            return
        self.files[name.removeprefix(f"{ROOT}/")] += 1
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(FOLDERS):
            caller = caller.f_back
        self.across += caller is not None and caller.f_code.co_filename != name

    @property
    def counts(self) -> dict[str, int]:
        """What was seen."""
        return {
            "files": len(self.files),
            "calls": self.files.total(),
            "into another file": self.across,
            "tables opened": self.opened,
        }


def traced(workspace: Path, words: Sequence[str]) -> Trace:
    """Run a command on copies of the workspace, and trace it the second time."""
    for seen in (None, Trace()):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            copy = shutil.copytree(workspace, Path(folder) / "copy")
            sys.setprofile(seen.see if seen else None)
            try:
                args = ["-q", "--json", "-w", str(copy), *words]
                vlltr.main(args=args, prog_name="vlltr", standalone_mode=False)
            finally:
                sys.setprofile(None)
    assert seen is not None
    return seen


def measure() -> dict[str, Trace]:
    """Make the workspace, and trace both commands."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        Bench(place, "vlltr-tiny:glyphs", draw("heldout", Setting.of("10x5"), 0)).with_images(0)
        picture = str(next((place / "test").rglob("*.png")))
        words = {
            "predict": ["predict", picture, "--explain", "3"],
            "classes add": [
                "classes",
                "add",
                "a",
                "--sentence",
                "a round sign",
                "--sentence",
                "a sign with a dot",
            ],
        }
        return {name: traced(place / "base", some) for name, some in words.items()}


def main() -> None:
    """Print a line a command, and what was called most."""
    for name, found in measure().items():
        sys.stdout.write(
            json.dumps({"command": name, **found.counts, "calls of": found.files.most_common(9)}) + "\n"
        )


if __name__ == "__main__":
    main()
