"""Commands on a tiny workspace, one after the other: what the power cuts and the kills are tried on.

`python -m benchmarks.trust.workload FOLDER` runs them all in one process; after each it makes the folder
`FOLDER/acknowledged/<number>`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vlltr_index.data.glyphs import glyph_files

CLASSES, IMAGES, SENTENCES = 4, 6, 4  # of each class

COMMANDS: tuple[tuple[str, ...], ...] = (
    (
        "init",
        "{workspace}",
        "--encoder",
        "vlltr-tiny:glyphs",
        "--set",
        "lgr.epochs=2",
        "--set",
        "lgr.views=1",
    ),
    ("ingest", "text", "{inputs}/texts.json"),
    ("ingest", "images", "{inputs}/train", "--split", "train"),
    ("embed",),
    ("select",),
    ("train", "lgr"),
    ("index",),
    (
        "classes",
        "add",
        "zigzag",
        "--sentence",
        "A zigzag of many strokes.",
        "--sentence",
        "It is like a saw.",
    ),
    ("classes", "add", "okapi", "--images", "{inputs}/more"),
    ("sentences", "add", "zigzag", "--sentence", "Its strokes go up and down."),
    ("classes", "remove", "zigzag", "--yes"),
    ("rollback", "8", "--yes"),
    ("prune", "--keep", "4", "--yes"),
)
"""What `vlltr` is called with. Each but the first and the last makes a commit."""

FIRST, LAST = COMMANDS[0], COMMANDS[-1]


def prepare(folder: Path) -> None:
    """Write the pictures and texts that the commands take in to `folder/inputs`."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    data, inputs = glyph_files(fast=True), folder / "inputs"
    texts = json.loads(data.texts.read_text(encoding="utf-8"))
    names = sorted(texts)[: CLASSES + 1]
    rows = pq.read_table(data.images, filters=pc.field("split") == "train")
    for number, name in enumerate(names):
        place = inputs / "train" / name if number < CLASSES else inputs / "more"
        place.mkdir(parents=True, exist_ok=True)
        images = rows.filter(pc.field("label") == name)["image"].to_pylist()[:IMAGES]
        for at, image in enumerate(images):
            (place / f"{at}.png").write_bytes(image)
    told = {name: texts[name][:SENTENCES] for name in names[:CLASSES]}
    (inputs / "texts.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "acknowledged").mkdir()


def arguments(folder: Path, command: Sequence[str]) -> list[str]:
    """The arguments of `vlltr` for one of `COMMANDS`, with its workspace `folder/workspace`."""
    places = {"workspace": folder / "workspace", "inputs": folder / "inputs"}
    filled = [argument.format(**places) for argument in command]
    return filled if command == FIRST else ["-w", str(places["workspace"]), *filled]


def run(folder: Path) -> None:
    """Run all commands.

    Raises:
        RuntimeError: If one fails.
    """
    from vlltr_index.cli.main import main

    for number, command in enumerate(COMMANDS):
        try:
            main(arguments(folder, command))
        except SystemExit as leave:
            if leave.code:
                raise RuntimeError(f"vlltr {' '.join(command)} ended with {leave.code}") from None
        (folder / "acknowledged" / str(number)).mkdir()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
