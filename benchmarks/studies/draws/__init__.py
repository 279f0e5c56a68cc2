"""Never worse than the simplest thing: random collections through the README's commands, beside simple rules.

    python -m benchmarks draws run --setting 10x20 --source heldout --dir runs

A draw takes C classes of K images each (`CxK`; `all`: every trained class, long-tailed), makes a workspace of them by
the commands that the README shows, without any setting, and measures its answers on other images of the classes. The
simple rules see the same stored vectors; the best of them is chosen on folds of the training images. Then one more
class is added, beside a collection that had it from the start. With K = 0 a collection of others gets C classes from
their texts alone; `60xall` is 60 classes of all their pictures, a long tail; `30xhalf` keeps half of each class's for
testing. Sources: `heldout` glyph classes that no encoder here has seen, `train` classes with test images in unseen
fonts, `icons` of Icons-LT, which the shipped encoder does not suit, `families` the same with test pictures by other
designers, `clip`: vectors of CLIP's geometry, and the collections of the study honest_figure (`--setting 9xall`), nine
classes without texts, of bursts, series or copies; or any folder of class folders, without texts. A draw that is done
is not done again; all methods and texts have the same draws.
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kept import cleared, keep_draws
from benchmarks.studies.draws.bench import Bench
from benchmarks.studies.draws.clip import ClipGeometry, clip_encoder
from benchmarks.studies.draws.folders import COMMAND as FOLDERS
from benchmarks.studies.draws.sources import TEXTS, UNITS, Setting, draw, with_texts
from benchmarks.studies.draws.table import parts
from benchmarks.studies.paired import METHOD, UNDER_TRAINING
from benchmarks.study import Command, Study, add_folder

SOURCES = ("heldout", "train", "icons", "families", "clip", *UNITS)


@dataclass(frozen=True)
class Plan:
    """One collection's size, source and texts, and what is measured of it.

    Attributes:
        setting: `CxK`, `Cxall`, `Cxhalf` or `all`.
        source: One of `SOURCES`, or a folder of class folders.
        texts: One of `TEXTS`.
        encoder: For `vlltr init --encoder`.
        label: Names an encoder other than the shipped one.
        additions: Whether a class is added.
        final: Whether the held-out classes are those for final figures.
    """

    setting: str
    source: str
    texts: str
    encoder: str
    label: str
    additions: bool
    final: bool

    @property
    def unit(self) -> str:
        """The name of its result."""
        parts = (Path(self.source).name, "final" if self.final else "", self.label, self.setting, self.texts)
        return "-".join(part for part in parts if part)


def run(
    setting: Sequence[str],
    source: str,
    draws: int,
    texts: Sequence[str],
    encoder: str,
    label: str,
    additions: bool | None,
    final: bool,
    folder: Path,
) -> None:
    """Measure the draws of each setting and texts that are not measured yet."""
    for size in setting:
        for told in texts:
            usual = told == "true" and bool(Setting.of(size).images)
            added = usual if additions is None else additions
            measure(Plan(size, source, told, encoder, label, added, final), range(draws), folder)


def measure(plan: Plan, draws: Sequence[int], folder: Path) -> None:
    """Measure the draws that are not measured yet, and keep the result after each."""

    def one(number: int) -> dict[str, Any]:
        place = folder / f"{plan.unit}-{number}"
        with cleared(place):
            return compact(measured(plan, number, place))

    facts = {n: getattr(plan, n) for n in ("setting", "texts", "label", "final")}
    keep_draws("draws", plan.unit, draws, one, facts | {"source": Path(plan.source).name})


def measured(plan: Plan, number: int, folder: Path) -> dict[str, Any]:
    """Return one draw's measures, with its workspaces below `folder`."""
    setting = Setting.of(plan.setting)
    drawn = with_texts(draw(plan.source, setting, number, plan.final), plan.texts, number)
    if plan.source == "clip":
        bench = Bench(folder, clip_encoder(folder / "encoder"), drawn, ClipGeometry())
    else:
        bench = Bench(folder, plan.encoder, drawn)
    found = bench.without_images() if setting.images == 0 else bench.with_images(number)
    if plan.additions and "failed" not in found:
        found["additions"] = bench.additions()
    counts = [len(kind.train) for kind in drawn.kinds]
    return {"classes": len(counts), "images": [min(counts), max(counts)], **found}


def compact(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the tables need of a draw: accuracies of all rows, calibration of the method and the best rule."""
    rows: dict[str, dict[str, float]] = found["rules"] | found["sides"]
    kept = {
        key: found[key] for key in ("classes", "images", "best simple", "failed", "additions") if key in found
    }
    for which in ("accuracy", "balanced"):
        kept[which] = {name: row[which] for name, row in rows.items() if which in row}
    compared = (METHOD, UNDER_TRAINING, found["best simple"])
    kept["calibration"] = {
        name: [rows[name]["ece"], rows[name]["nll"]] for name in compared if "nll" in rows.get(name, {})
    }
    kept["train lgr"] = found["seconds"].get("train lgr")
    return kept


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--setting", nargs="+", required=True, metavar="CxK", help="2x10, 10x20 ... or all")
    parser.add_argument(
        "--source", type=_source, required=True, help=f"{', '.join(SOURCES)}, or a folder of class folders"
    )
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=["true"])
    parser.add_argument(
        "--encoder", default="vlltr-tiny:glyphs", help="for `vlltr init`; a folder as local-dir:FOLDER"
    )
    parser.add_argument("--label", default="", help="names the results of another encoder")
    parser.add_argument(
        "--additions", action=BooleanOptionalAction, help="default: with true texts, `all` apart"
    )
    parser.add_argument(
        "--final", action="store_true", help="the held-out classes for final figures: once, at the end"
    )
    add_folder(parser)


def _source(name: str) -> str:
    """Return a source; a folder by its whole path."""
    return name if name in SOURCES else str(Path(name).resolve())


STUDY = Study({"folders": FOLDERS, "run": Command(run, _arguments)}, parts)
