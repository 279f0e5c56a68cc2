"""Never worse than the simplest thing: random collections through the README's commands, beside simple rules.

    python -m benchmarks.draws run --setting 10x20 --source heldout --dir runs    to results/draws-heldout-10x20-...
    python -m benchmarks.draws table                                              all results to docs/results.md

A draw takes C classes of K images each (`CxK`; `all`: every trained class, long-tailed), makes a workspace of them by
the commands that the README shows, without any setting, and measures its answers on other images of the classes. The
simple rules see the same stored vectors; the best of them is chosen on folds of the training images. Then one more
class is added, beside a collection that had it from the start. With K = 0 a collection of others gets C classes from
their texts alone; `60xall` is 60 classes of all their pictures, a long tail. Sources: `heldout` glyph classes that no
encoder here has seen, `train` classes with test images in unseen fonts, `icons` of Icons-LT, which the shipped encoder
does not suit, `families` the same with test pictures by other designers, and `clip`: vectors of CLIP's geometry. A
draw that is done is not done again; all methods and texts have the same draws.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.draws_bench import Bench
from benchmarks.draws_sources import (
    TEXTS,
    Setting,
    clip_encoder,
    draw,
    image_vectors,
    remembered,
    text_vectors,
    with_texts,
)
from benchmarks.long_tailed import RESULTS, surroundings
from vlltr_index.embedding import vectors

SOURCES = ("heldout", "train", "icons", "families", "clip")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What `run` is asked for."""

    setting: str
    source: str
    texts: str
    encoder: str
    label: str  # of an encoder other than the shipped one, in the result's name
    additions: bool
    final: bool

    @property
    def result(self) -> Path:
        """The file of its results."""
        parts = [
            "draws",
            self.source,
            *(["final"] if self.final else []),
            *([self.label] if self.label else []),
        ]
        return RESULTS / ("-".join([*parts, self.setting, self.texts]) + ".json")


def run(plan: Plan, draws: Sequence[int], folder: Path) -> None:
    """Measure the draws that are not measured yet, and write the result after each."""
    path = plan.result
    done = json.loads(path.read_text(encoding="utf-8"))["draws"] if path.exists() else {}
    for number in draws:
        if str(number) in done:
            continue
        place = folder / f"{path.stem}-{number}"
        shutil.rmtree(place, ignore_errors=True)
        done[str(number)] = measured(plan, number, place)
        shutil.rmtree(place)
        _log.info("%s, draw %d: %s", path.stem, number, _shortly(done[str(number)]))
        facts = {n: getattr(plan, n) for n in ("setting", "source", "texts", "label", "final")}
        rows = ",\n".join(f'  "{n}": {json.dumps(row, sort_keys=True)}' for n, row in done.items())
        head = json.dumps({**facts, **surroundings()}, sort_keys=True)[:-1]
        RESULTS.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(f'{head},\n "draws": {{\n{rows}\n }}}}\n', encoding="utf-8")
        part.replace(path)


def _shortly(found: dict[str, Any]) -> str:
    sides = {n: side["balanced"] for n, side in found["sides"].items()}
    rules = {n: rule["balanced"] for n, rule in found["rules"].items()}
    shown = {n: round(100 * a, 1) for n, a in (sides | rules).items()}
    more = [found[n] for n in ("failed", "additions") if n in found]
    return f"{shown}, best {found['best simple']}, {found['seconds']} s {more or ''}"


def measured(plan: Plan, number: int, folder: Path) -> dict[str, Any]:
    """One draw, with its workspaces below `folder`."""
    setting = Setting.of(plan.setting)
    drawn = with_texts(draw(plan.source, setting, number, plan.final), plan.texts, number)
    with contextlib.ExitStack() as stack:
        encoder = plan.encoder
        if plan.source == "clip":
            encoder = clip_encoder(folder / "encoder")
            stack.enter_context(patch.object(vectors, "text_vectors", text_vectors))
            stack.enter_context(patch.object(vectors.LocalEngine, "images", image_vectors))
        else:
            stack.enter_context(patch.object(vectors, "text_vectors", remembered))
        bench = Bench(folder, encoder, drawn)
        found = bench.without_images() if setting.images == 0 else bench.with_images(number)
        if plan.additions and "failed" not in found:
            found["additions"] = bench.additions()
    counts = [len(kind.train) for kind in drawn.kinds]
    return {
        "classes": len(counts),
        "images": [min(counts), max(counts)],
        "training images": sum(counts),
        **found,
    }


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--setting", nargs="+", required=True, metavar="CxK", help="2x10, 10x20 ... or all")
    one.add_argument("--source", choices=SOURCES, required=True)
    one.add_argument("--draws", type=int, default=20)
    one.add_argument("--texts", nargs="+", choices=TEXTS, default=["true"])
    one.add_argument(
        "--encoder", default="vlltr-tiny:glyphs", help="for `vlltr init`; a folder as local-dir:FOLDER"
    )
    one.add_argument("--label", default="", help="names the results of another encoder")
    one.add_argument(
        "--additions", action=argparse.BooleanOptionalAction, help="default: with true texts, `all` apart"
    )
    one.add_argument(
        "--final", action="store_true", help="the held-out classes for final figures: once, at the end"
    )
    one.add_argument("--dir", type=Path, required=True, help="for workspaces, which are removed again")
    commands.add_parser("table")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.command == "table":
        from benchmarks.draws_table import write

        write()
        return
    for setting in args.setting:
        for texts in args.texts:
            usual = texts == "true" and bool(Setting.of(setting).images)
            added = usual if args.additions is None else args.additions
            plan = Plan(setting, args.source, texts, args.encoder, args.label, added, args.final)
            run(plan, range(args.draws), args.dir)


if __name__ == "__main__":
    main()
