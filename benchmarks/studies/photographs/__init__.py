"""Photographs: the method, its terms, and baselines on Photos-LT.

    python -m benchmarks photographs run --side after --photos photos-lt --dir runs
    python -m benchmarks photographs run --side rules --photos photos-lt --dir runs
    python -m benchmarks photographs run --side before --python PYTHON --texts true --photos photos-lt --dir runs
    python -m benchmarks photographs keep --dir runs
    python -m benchmarks photographs table

Questions, written before any run. Does text raise accuracy with 3, 5 and 10 images per class, in the long tail, and
where cut-outs are for training and scenes for testing? Is the method as accurate as the best baseline, and better
calibrated? Which part of it does this: images, texts or their combination? How many images of added classes are found
by text alone, by one image and by five, and what do existing classes lose? Are classes found by their texts that
ImageNet's names say nothing of?

Settings and seeds are in `settings.json`, committed before any run. `after` is the method of this version; `before`,
which can be left out, that of another one, by its PYTHON; `rules` are the baselines. Controls: no text, texts of other
classes (permuted) and random words. Groups and near duplicates stay on one side of the split. `imagenet` writes which
classes ImageNet names (`imagenet.csv`).
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.collections.photographs import ADDED, GROUP, SETTINGS, drawn, read_photographs
from benchmarks.collections.sources import Draw as Collection
from benchmarks.collections.sources import Kind, with_texts
from benchmarks.kept import keep, read, surroundings
from benchmarks.studies.photographs.imagenet import COMMAND as IMAGENET
from benchmarks.studies.photographs.rules import measure_rules
from benchmarks.studies.photographs.summary import (
    ENCODERS,
    RULES,
    TEXTS,
    TRUE,
    gathered,
    summary,
    unit_name,
)
from benchmarks.studies.photographs.table import generated
from benchmarks.studies.side_by_side.driver import SIDES, Worker, add_side, draw_file, measured
from benchmarks.studies.side_by_side.encoding import Encoding
from benchmarks.studies.side_by_side.worker import METHOD, Draw
from benchmarks.study import Command, Setting, Study, add_folder, chosen, run_draws

_SETTINGS = Path(__file__).parent / "settings.json"


@dataclass(frozen=True)
class Unit:
    """One setting with one encoder and one kind of texts."""

    setting: str
    encoder: str
    texts: str
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its name in files and results."""
        return unit_name(self.encoder, self.setting, self.texts)


def units() -> list[Unit]:
    """Return all settings, of each encoder together."""
    rows = json.loads(_SETTINGS.read_text(encoding="utf-8"))
    return [
        Unit(row["setting"], encoder, texts, tuple(row["seeds"]))
        for encoder in ENCODERS
        for row in rows
        for texts in TEXTS
    ]


def make(unit: Unit, seed: int, encoding: Encoding, photos: Path) -> Draw:
    """Make one draw; the classes keep their names, whatever their texts are."""
    kinds, added = drawn(read_photographs(photos), unit.setting, seed)
    names = [kind.name for kind in (*kinds, *added)]
    return encoding.draw(
        _with_texts(kinds, unit.texts, seed), _with_texts(added, unit.texts, seed), GROUP, names
    )


def _with_texts(kinds: Sequence[Kind], texts: str, seed: int) -> Sequence[Kind]:
    """Return the classes with other texts, see `TEXTS`."""
    if not kinds:
        return kinds
    return with_texts(Collection(tuple(kinds), kinds[0], ()), TEXTS[texts], seed).kinds


def run(
    side: str,
    python: Path,
    draws: int | None,
    settings: Sequence[str] | None,
    folder: Path,
    photos: Path,
    texts: Sequence[str],
) -> None:
    """Measure one side on the draws that it has not measured yet."""
    encoding = cache(lambda name: Encoding(name, folder))

    def measure(unit: Unit, seed: int) -> dict[str, Any]:
        def made() -> Draw:
            return make(unit, seed, encoding(unit.encoder), photos)

        def ask(path: Path) -> Mapping[str, Any]:
            if side == RULES:
                return measure_rules(path, seed)
            return worker.ask(path, rows_only=unit.setting != ADDED)

        return measured(draw_file(unit.name, seed, folder), made, ask)

    wanted = [
        Setting(unit.name, unit.seeds, partial(measure, unit))
        for unit in units()
        if unit.texts in ([TRUE] if side == RULES else texts)
    ]
    wanted = chosen(wanted, settings)
    if not photos.is_dir():
        raise SystemExit(f"missing: {photos}; make it: recipes/photos_lt/README.md")
    with Worker(python) as worker:
        run_draws(side, wanted, draws, worker.version, folder)


def keep_results(folder: Path) -> None:
    """Keep the figures of each encoder and setting that the method has draws of."""
    by_side = {side: read(side, folder) for side in (*SIDES, RULES)}
    for encoder in ENCODERS:
        for setting in SETTINGS:
            rows = gathered(by_side, encoder, setting)
            if rows:
                unit = unit_name(encoder, setting, TRUE)
                names = [
                    Draw.load(draw_file(unit, int(seed), folder)).names.tolist() for seed in rows[METHOD]
                ]
                commits = {
                    side: next(iter(some.values()))["commit"] for side, some in by_side.items() if some
                }
                facts = {"encoder": encoder, "setting": setting, "commits": commits, **surroundings()}
                keep("photographs", f"{encoder}, {setting}", facts | summary(rows, names))


def _arguments(parser: ArgumentParser) -> None:
    add_side(parser, (*SIDES, RULES))
    parser.add_argument("--photos", type=Path, default=Path("photos-lt"), help="Photos-LT")
    parser.add_argument(
        "--texts", nargs="+", choices=TEXTS, default=list(TEXTS), help="these texts; default: all"
    )


STUDY = Study(
    {"results/photographs.md": generated},
    commands={
        "run": Command(run, _arguments),
        "keep": Command(keep_results, add_folder),
        "imagenet": IMAGENET,
    },
)
