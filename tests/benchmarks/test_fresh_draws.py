"""The acceptance study: its seeds, its draws, and what its page says of the bounds."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kept
from benchmarks.__main__ import main
from benchmarks.collections.sources import UNITS, Kind, of_units
from benchmarks.studies import fresh_draws
from benchmarks.studies.fresh_draws.collections import FOLDERS, make, units
from benchmarks.studies.fresh_draws.table import generated
from benchmarks.studies.photographs import units as photograph_units
from benchmarks.studies.side_by_side.driver import SIDES, draw_file
from benchmarks.studies.side_by_side.encoding import CLIP, Encoding
from benchmarks.studies.side_by_side.worker import METHOD

FIRST = {"characters 10x20": 20, "CLIP's geometry 10x5": 40, "photographs, long tail": 20}
"""Number of the first draw of settings whose draws were looked at before a change that concerns them."""


def seeds(name: str, first: int = 0) -> tuple[int, ...]:
    """Return the seeds by the rule that made them."""
    digests = [hashlib.sha256(f"{name}:{number}".encode()).hexdigest() for number in range(first, first + 20)]
    return tuple(2 * 10**6 + int(digest[:8], 16) % 10**6 for digest in digests)


def test_seeds_were_not_chosen() -> None:
    """They are digests of the setting's name and the number of the draw, beyond all that earlier studies drew."""
    for unit in units():
        assert unit.seeds == seeds(unit.name, FIRST.get(unit.name, 0))
    for one in photograph_units():
        assert one.seeds == seeds(f"{one.setting} (photographs)", 20)


def test_settings_are_those_of_the_method_and_of_every_kind() -> None:
    """Names are unique, and each source is one that `make` knows."""
    names = [unit.name for unit in units()]
    assert len(set(names)) == len(names) == 17
    assert len({unit.kind for unit in units()}) == 6
    known = {*UNITS, *FOLDERS, "photographs", "train", "heldout", "icons", "families", "clip"}
    assert {unit.source for unit in units()} <= known


def test_a_draw_has_ten_classes_to_add(tmp_path: Path) -> None:
    """It depends on its seed alone."""
    (unit,) = (unit for unit in units() if unit.source == "clip")
    made = [make(unit, seed, Encoding(CLIP, tmp_path), tmp_path, tmp_path) for seed in (5, 5, 6)]
    assert made[0].classes == 10
    assert made[0].can_add(10, 0)
    assert made[0].can_add(10, 5)
    assert (made[0].train == made[1].train).all()
    assert made[0].names.tolist() != made[2].names.tolist()


def test_a_missing_folder_ends_a_run_before_it_starts(tmp_path: Path) -> None:
    """The message names the folder; a setting that does not exist is answered by those that do."""
    command = [
        "fresh_draws",
        "run",
        "--side",
        "after",
        "--dir",
        str(tmp_path),
        "--folders",
        str(tmp_path),
        "--settings",
    ]
    with pytest.raises(SystemExit, match=r"missing: .*emoji \(emoji\)"):
        main([*command, "emoji 30xhalf"])
    with pytest.raises(SystemExit, match="--settings takes: characters 10x20; "):
        main([*command, "emoji"])


@pytest.mark.slow
def test_other_classes_of_a_collection_of_units_change_nothing_else() -> None:
    """The nine classes and the one that is added stay, and the others are new."""
    few = of_units("augmented", 3)
    many = of_units("augmented", 3, others=2)
    for one, other in zip((*few.kinds, few.new), (*many.kinds, many.new), strict=True):
        assert [data for _, data in one.train] == [data for _, data in other.train]
        assert [data for _, data in one.test] == [data for _, data in other.test]
    assert len(few.others) == 0
    assert len(many.others) == 2


def result(balanced: float, nll: float, lost: int) -> dict[str, Any]:
    """Return the result of a draw of ten test images of each of two classes, and one added class."""
    hits = round(10 * balanced)
    row = {"accuracy": balanced, "balanced": balanced, "nll": nll, "ece": 0.1}
    row["classes"] = [[10, hits, 10 * nll], [10, hits, 10 * nll]]
    added = {"1 x 1": {"classes": [[10, hits - lost], [10, hits - lost], [10, 4]]}}
    return {
        "digest": "d",
        "rows": {METHOD: row},
        "seconds": 1.0,
        "known_accepted": 0.95,
        "unknown_accepted": 0.5,
        "added": added,
    }


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with results of both sides, equal, of every setting; results are kept there."""
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    for side in SIDES:
        for unit in units():
            if unit.source != "photographs":
                draws = {
                    str(seed): result(0.8 if number % 2 else 0.9, 0.5, 0)
                    for number, seed in enumerate(unit.seeds)
                }
                kept.keep(side, unit.name, {"commit": "abc", "draws": draws}, tmp_path)
    return tmp_path


def test_equal_versions_differ_by_nothing(results: Path) -> None:
    """All differences are exactly 0, all bounds hold, and the settings without draws are named."""
    fresh_draws.keep_results(results)
    page = generated(kept.read("fresh_draws"))
    row = next(text for text in page.splitlines() if text.startswith("| icons 10x20 | 20 "))
    assert row == (
        "| icons 10x20 | 20 | 85.0 | 85.0 | +0.0 [+0.0, +0.0] | 0.500 | 0.500 | +0.000 [+0.000, +0.000]"
        " | 10.0 / 10.0 | 1.0 / 1.0 |"
    )
    assert "does not hold" not in page
    assert page.count(": holds.") == 6
    assert "are in no table:** photographs, long tail (20), photographs, 5 per class (20)" in page


def test_intervals_of_photographs_are_over_classes(results: Path) -> None:
    """Two draws of the same images, in which one of two classes gains twenty points; an added class gains as much."""
    encoding = Encoding(CLIP, results)
    bird, fish, coin = (
        Kind(name, (), (("a-1.png", b""),), (("a-2.png", b""),)) for name in ("bird", "fish", "coin")
    )
    made = encoding.draw([bird, fish], [coin])
    name = "photographs, long tail"
    (unit,) = (unit for unit in units() if unit.name == name)
    for seed in unit.seeds[:2]:
        draw_file(name, seed, results).parent.mkdir(exist_ok=True)
        made.save(draw_file(name, seed, results))
        for side, gain in (("before", 0), ("after", 2)):
            one = result(0.5, 0.5, 0)
            one["rows"][METHOD]["classes"][0][1] += gain
            one["added"]["1 x 1"]["classes"][2][1] += gain
            kept.keep_draw(side, name, seed, one, {"commit": "abc"}, results)
    fresh_draws.keep_results(results)
    page = generated(kept.read("fresh_draws"))
    assert "| photographs, long tail | 2 | 50.0 | 50.0 | +10.0 [+0.0, +20.0] |" in page
    assert "| photographs, long tail | 1, 1 image | 2 |" in page
    row = next(
        text for text in page.splitlines() if text.startswith("| photographs, long tail | 1, 1 image |")
    )
    assert row.endswith("| +6.7 [+0.0, +20.0] |")


def test_a_bound_that_does_not_hold_is_named(results: Path) -> None:
    """One kind has lost accuracy, NLL and thresholds, and loses too much by an added class."""
    fresh_draws.keep_results(results)
    found = copy.deepcopy(kept.read("fresh_draws"))
    for draw in found["CLIP's geometry 10x5"]["draws"].values():
        after = draw["after"]
        after["rows"][METHOD]["balanced"] -= 0.02
        after["rows"][METHOD]["nll"] += 0.03
        after["known_accepted"] = 0.9
        after["added"]["1 x 1"] = {"lost": 0.02, "found": 0.1, "all": 0.5}
    (failing,) = [found["icons 10x20"]["draws"][key] for key in list(found["icons 10x20"]["draws"])[:1]]
    failing["after"] = {"failed": "ValueError: no"}
    page = generated(found)
    assert "above -1.0 points for each kind: **does not hold** for CLIP's geometry." in page
    assert "NLL: upper end below +0.02: **does not hold** for CLIP's geometry." in page
    assert (
        "At most 1.0 points lost on average: **does not hold** for CLIP's geometry 10x5, 1, 1 image." in page
    )
    assert "less than 1.0 points behind: **does not hold** for CLIP's geometry 10x5, 1, 1 image." in page
    assert "are kept: **does not hold** for CLIP's geometry 10x5." in page
    assert "icons 10x20 (1)" in page
