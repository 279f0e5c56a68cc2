"""Acceptance of a method: it and the previous one on the same fresh draws.

    python -m benchmarks fresh_draws run --side before --python PYTHON --photos photos-lt --folders kinds --dir runs
    python -m benchmarks fresh_draws run --side after --photos photos-lt --folders kinds --dir runs
    python -m benchmarks fresh_draws keep --dir runs
    python -m benchmarks fresh_draws table

PYTHON is that of an environment with the previous version. Settings and seeds are in `settings.json`, committed before
any run; no draw is left out. PHOTOS is Photos-LT, see recipes/photos_lt; KINDS has the folders that
`python -m benchmarks draws folders` makes. Both sides read the same vectors, and what belongs together is found once.
`--dir` keeps draws, vectors and a line of JSON for each draw and side; a draw that is done is not done again, and the
two sides can run at the same time. `keep` brings the figures of the draws that both sides have into the results.

With noise, each vector gets Gaussian noise as large as the images' distances to their class means. With images, an
added class has its name, too; with text alone, all its sentences. Unknown images are those of the added classes, before
these are added.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.kept import keep, surroundings
from benchmarks.studies.fresh_draws.collections import FOLDERS, PHOTOGRAPHS, Unit, make
from benchmarks.studies.fresh_draws.collections import units as settings
from benchmarks.studies.fresh_draws.table import parts
from benchmarks.studies.side_by_side.driver import (
    SIDES,
    Job,
    Workers,
    add_side,
    draw_file,
    matched,
    measure,
)
from benchmarks.studies.side_by_side.encoding import Encoding
from benchmarks.studies.side_by_side.figures import by_class, compact, recalls
from benchmarks.studies.side_by_side.worker import METHOD, Draw
from benchmarks.study import Command, Study, add_folder


def run(
    side: str,
    python: Path,
    draws: int | None,
    units: Sequence[str] | None,
    folder: Path,
    folders: Path,
    photos: Path,
) -> None:
    """Measure one side on the draws that it has not measured yet."""
    chosen = [unit for unit in settings() if units is None or unit.unit in units]
    _check(chosen, folders, photos)
    with Workers(python) as workers:
        jobs = _jobs(chosen, draws, folder, folders, photos)
        measure(jobs, side, workers.version, workers.ask, folder)


def _check(chosen: Sequence[Unit], folders: Path, photos: Path) -> None:
    """Check that the folders of all settings are there.

    Raises:
        SystemExit: One is missing, or no setting is left.
    """
    if not chosen:
        raise SystemExit(f"no such setting; --units takes: {'; '.join(unit.unit for unit in settings())}")
    places = {unit.source: folders / unit.source for unit in chosen if unit.source in FOLDERS}
    if any(unit.source == PHOTOGRAPHS for unit in chosen):
        places[PHOTOGRAPHS] = photos
    missing = [f"{place} ({source})" for source, place in places.items() if not place.is_dir()]
    if missing:
        raise SystemExit(
            f"missing: {', '.join(missing)}; make them (recipes/photos_lt/README.md; python -m benchmarks draws"
            " folders), or name other settings: --units"
        )


def _jobs(
    chosen: Sequence[Unit], draws: int | None, folder: Path, folders: Path, photos: Path
) -> Iterator[Job]:
    """Yield the draws, of each encoder together."""
    for encoder in dict.fromkeys(unit.encoder for unit in chosen):
        encoding = Encoding(encoder, folder)
        for unit in chosen:
            if unit.encoder == encoder:
                for seed in unit.seeds[:draws]:
                    yield Job(unit.unit, seed, partial(make, unit, seed, encoding, folders, photos))


def keep_results(folder: Path) -> None:
    """Keep the figures of the draws that both sides have measured."""
    of_unit = {unit.unit: unit for unit in settings()}
    for name, rows in matched(folder).items():
        unit = of_unit[name]
        lines = next(iter(rows.values()))
        result = {
            "kind": unit.kind,
            "commits": {side: lines[side]["commit"] for side in SIDES},
            **surroundings(),
            "draws": {
                str(seed): _figures(unit, seed, rows[seed], folder) for seed in unit.seeds if seed in rows
            },
        }
        keep("fresh_draws", name, result)


def _figures(unit: Unit, seed: int, lines: dict[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Return both sides' figures of a draw; of photographs also those of each class."""
    found: dict[str, Any] = {side: compact(lines[side]) for side in SIDES}
    if unit.source == PHOTOGRAPHS and all("failed" not in side for side in found.values()):
        names = Draw.load(draw_file(unit.unit, seed, folder)).names.tolist()
        for side in SIDES:
            result = lines[side]["result"]
            found[side]["classes"] = by_class(result["rows"][METHOD], names)
            found[side]["added_classes"] = {
                how: recalls(one["classes"], names) for how, one in result["added"].items()
            }
    return found


def _arguments(parser: ArgumentParser) -> None:
    add_side(parser)
    parser.add_argument("--folders", type=Path, default=Path("kinds"), help="has emoji, flags and scripts")
    parser.add_argument("--photos", type=Path, default=Path("photos-lt"), help="Photos-LT")


STUDY = Study({"run": Command(run, _arguments), "keep": Command(keep_results, add_folder)}, parts)
