"""Draw contact sheets of a folder that build.py wrote, to check the photographs by eye.

Command: python -m benchmarks.datasets.photos_lt.sheet photos-lt --out sheet.png --classes 9
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.datasets.photos_lt.build import failure
from vlltr_index.errors import InputError, VlltrError
from vlltr_index.recognition.sheet import Panel, Picture, check_target, write_sheet


def write_sheets(data: Path, out: Path, classes: int, columns: int) -> list[Path]:
    """Write a page for every few classes; return the pages.

    Args:
        data: Folder of the data set.
        out: File of the only page; of several, each has a number before the ending.
        classes: Classes on a page.
        columns: Photographs in a row.

    Raises:
        InputError: `data` has no table, or a page cannot be written.
        UsageError: The ending of `out` names no picture format.
    """
    check_target(out)
    pictures = _pictures(data)
    labels = sorted(pictures)
    pages = [labels[start : start + classes] for start in range(0, len(labels), classes)]
    written = []
    for number, page in enumerate(pages, 1):
        path = out if len(pages) == 1 else out.with_stem(f"{out.stem}-{number}")
        panel = Panel("", tuple(picture for label in page for picture in pictures[label]))
        title = f"Photos-LT: {page[0]} to {page[-1]} ({number} of {len(pages)})"
        write_sheet(path, title, [panel], columns)
        written.append(path)
    return written


def _pictures(data: Path) -> dict[str, list[Picture]]:
    """Return the photographs of each class with their captions."""
    table = data / "LICENCES.csv"
    if not table.is_file():
        raise InputError(
            f"not found: {table}",
            f"python -m benchmarks.datasets.photos_lt.build --packages packages --out {data}",
        )
    found: dict[str, list[Picture]] = defaultdict(list)
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            lines = (row["class"], f"{row['split']}, {row['kind']}", Path(row["original"]).stem)
            found[row["class"]].append(Picture(str(data / row["path"]), lines))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.datasets.photos_lt.sheet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="folder that build.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="picture to write; pages get a number")
    parser.add_argument("--classes", type=int, default=9, help="classes on a page (default: 9)")
    parser.add_argument("--columns", type=int, default=10, help="photographs in a row (default: 10)")
    options = parser.parse_args(argv)
    if min(options.classes, options.columns) < 1:
        parser.error("--classes and --columns take 1 or more")
    try:
        for path in write_sheets(options.data, options.out, options.classes, options.columns):
            sys.stdout.write(f"{path}\n")
    except (VlltrError, OSError) as error:
        parser.exit(*failure(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
