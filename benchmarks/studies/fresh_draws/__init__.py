"""Acceptance of a method: it and the previous one on the same fresh draws.

    python -m benchmarks fresh_draws run --side before --python PYTHON --photos photos-lt --folders kinds --dir runs
    python -m benchmarks fresh_draws run --side after --photos photos-lt --folders kinds --dir runs
    python -m benchmarks fresh_draws keep --dir runs
    python -m benchmarks fresh_draws table

PYTHON is that of an environment with the previous version. Settings and seeds are in `settings.json`, committed before
any run; no draw is left out. `--photos` has Photos-LT, see recipes/photos_lt; `--folders` has what
`python -m benchmarks fresh_draws folders` makes. Both sides read the same vectors, and what belongs together is found
once. `--dir` keeps draws, vectors and the results of each side, which can run at the same time. `keep` brings the
figures of the draws that both sides have into the results of the study.

With noise, each vector gets Gaussian noise as large as the images' distances to their class means. With images, an
added class has its name, too; with text alone, all its sentences. Unknown images are those of the added classes, before
these are added.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.collections.folders import COMMAND as FOLDERS_COMMAND
from benchmarks.kept import keep, read, surroundings
from benchmarks.studies.fresh_draws.collections import FOLDERS, PHOTOGRAPHS, Unit, make, units
from benchmarks.studies.fresh_draws.table import generated
from benchmarks.studies.side_by_side.driver import SIDES, Worker, add_side, draw_file, matched, measured
from benchmarks.studies.side_by_side.encoding import Encoding
from benchmarks.studies.side_by_side.figures import by_class, compact, recalls
from benchmarks.studies.side_by_side.worker import METHOD, Draw
from benchmarks.study import Command, Setting, Study, add_folder, chosen, run_draws


def run(
    side: str,
    python: Path,
    draws: int | None,
    settings: Sequence[str] | None,
    folder: Path,
    folders: Path,
    photos: Path,
) -> None:
    """Measure one side on the draws that it has not measured yet."""
    encoding = cache(lambda name: Encoding(name, folder))

    def measure(unit: Unit, seed: int) -> dict[str, Any]:
        def made() -> Draw:
            return make(unit, seed, encoding(unit.encoder), folders, photos)

        return measured(draw_file(unit.name, seed, folder), made, worker.ask)

    wanted = chosen([Setting(unit.name, unit.seeds, partial(measure, unit)) for unit in units()], settings)
    _check({setting.name for setting in wanted}, folders, photos)
    with Worker(python) as worker:
        run_draws(side, wanted, draws, worker.version, folder)


def _check(names: set[str], folders: Path, photos: Path) -> None:
    """Check that the folders of the settings are there.

    Raises:
        SystemExit: One is missing.
    """
    sources = {unit.source for unit in units() if unit.name in names}
    places = {source: folders / source for source in FOLDERS if source in sources}
    if PHOTOGRAPHS in sources:
        places[PHOTOGRAPHS] = photos
    missing = [f"{place} ({source})" for source, place in places.items() if not place.is_dir()]
    if missing:
        raise SystemExit(
            f"missing: {', '.join(missing)}; make them (recipes/photos_lt/README.md; python -m benchmarks"
            " fresh_draws folders), or name other settings: --settings"
        )


def keep_results(folder: Path) -> None:
    """Keep the figures of the draws that both sides have measured."""
    rows = matched(folder)
    for unit in units():
        if unit.name in rows:
            result = {
                "kind": unit.kind,
                "commits": {side: read(side, folder)[unit.name]["commit"] for side in SIDES},
                **surroundings(),
                "draws": {
                    seed: _figures(unit, seed, found, folder) for seed, found in rows[unit.name].items()
                },
            }
            keep("fresh_draws", unit.name, result)


def _figures(unit: Unit, seed: str, results: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Return both sides' figures of a draw; of photographs also those of each class."""
    found: dict[str, Any] = {side: compact(results[side]) for side in SIDES}
    if unit.source == PHOTOGRAPHS and all("failed" not in side for side in found.values()):
        names = Draw.load(draw_file(unit.name, int(seed), folder)).names.tolist()
        for side in SIDES:
            result = results[side]
            found[side]["classes"] = by_class(result["rows"][METHOD], names)
            found[side]["added_classes"] = {
                how: recalls(one["classes"], names) for how, one in result["added"].items()
            }
    return found


def _arguments(parser: ArgumentParser) -> None:
    add_side(parser)
    parser.add_argument("--folders", type=Path, default=Path("kinds"), help="has emoji, flags and scripts")
    parser.add_argument("--photos", type=Path, default=Path("photos-lt"), help="Photos-LT")


STUDY = Study(
    {"results/fresh_draws.md": generated},
    commands={
        "run": Command(run, _arguments),
        "keep": Command(keep_results, add_folder),
        "folders": FOLDERS_COMMAND,
    },
)
