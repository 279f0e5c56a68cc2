"""The study of photographs: the splits of its draws, what ImageNet names, and its page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import kept
from benchmarks.__main__ import main
from benchmarks.collections.photographs import ADDED, BY_KIND, SETTINGS, Photograph, drawn
from benchmarks.datasets.photos_lt.listing import CUTOUT, SCENE, facts
from benchmarks.studies import photographs as study
from benchmarks.studies.photographs import units
from benchmarks.studies.photographs.imagenet import BELOW, NAMED, NEITHER, Knowledge
from benchmarks.studies.photographs.summary import ENCODERS, unit_name
from benchmarks.studies.photographs.table import generated
from benchmarks.studies.side_by_side.driver import draw_file
from benchmarks.studies.side_by_side.encoding import CLIP, Encoding
from benchmarks.studies.side_by_side.worker import METHOD


def collection() -> list[Photograph]:
    """Return fifteen classes of 8 to 22 photographs; a group has three of them, and every other group has a scene."""
    found = []
    for at, label in enumerate(sorted(facts())[:15]):
        for number in range(8 + at):
            group = 100 * at + number // 3
            picture = SCENE if group % 2 and number % 3 == 0 else CUTOUT
            found.append(
                Photograph(f"{label}-{number}.png", b"", label, picture, f"{label} {number}.", group)
            )
    return found


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_group_is_on_both_sides(setting: str, seed: int) -> None:
    """Each class has at least two test images, at most 15, and as many training images as its setting says."""
    photographs = collection()
    group = {one.name: one.group for one in photographs}
    kinds, added = drawn(photographs, setting, seed)
    assert kinds == drawn(photographs, setting, seed)[0]
    assert kinds != drawn(photographs, setting, 3)[0]
    assert len(added) == (10 if setting == ADDED else 0)
    for kind in (*kinds, *added):
        train, test = ({group[name] for name, _ in side} for side in (kind.train, kind.test))
        assert not train & test
        assert 2 <= len(kind.test) <= 15
        if setting.endswith("per class"):
            assert len(kind.train) == int(setting.split()[0])
        captions = {f"{name.removesuffix('.png').replace('-', ' ')}." for name, _ in kind.test}
        assert not captions & set(kind.sentences)
        assert set(kind.sentences) >= set(facts()[kind.name])


def test_cutouts_are_for_training_and_scenes_for_testing() -> None:
    """No group of a scene is trained on."""
    by_name = {one.name: one for one in collection()}
    for kind in drawn(collection(), BY_KIND, 1)[0]:
        assert {by_name[name].kind for name, _ in kind.train} == {CUTOUT}
        assert {by_name[name].kind for name, _ in kind.test} == {SCENE}


def test_each_class_is_in_a_group_of_imagenet() -> None:
    """The numbers are those of the page."""
    knowledge = Knowledge()
    assert knowledge.group.keys() == facts().keys()
    assert Counter(knowledge.group.values()) == {NAMED: 3, NEITHER: 32}
    assert BELOW not in knowledge.group.values()
    some = [name for name, group in knowledge.group.items() if group == NEITHER and knowledge.contains[name]]
    assert len(some) == 21


def result(right: int, rows: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the result of a draw of two classes of ten test images, and one added class."""
    row = {"accuracy": right / 10, "balanced": right / 10, "nll": 0.5, "ece": 0.1, "seconds": 2.0}
    row["classes"] = [[10, right, 5.0]] * 2
    after = {"10 x 0": {"classes": [[10, right], [10, right - 1], [5, 3]]}}
    found: dict[str, Any] = {
        "digest": "d",
        "rows": dict.fromkeys(rows or (METHOD,), row),
        "seconds": 1.5,
        "added": after,
    }
    if rows:
        found["added by rule"] = dict.fromkeys(rows, after)
    return found


def test_rows_are_those_that_have_every_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method leads by what it has more; a row that lacks a draw is left out, and so is a claim on one class."""
    monkeypatch.setattr(kept, "RESULTS", tmp_path)
    kinds, added = drawn(collection(), ADDED, 1)
    names = ["bird", "fish", "coin"]
    encoding = Encoding(CLIP, tmp_path)
    parts = [
        [one.__class__(one.name, (), (("a-1.png", b""),), (("a-2.png", b""),)) for one in some]
        for some in (kinds[:2], added[:1])
    ]
    made = encoding.draw(parts[0], parts[1], names=names)
    true, random = (unit_name(ENCODERS[0], ADDED, texts) for texts in ("true", "random"))
    (tmp_path / "draws").mkdir()
    for seed in (1, 2):
        made.save(draw_file(true, seed, tmp_path))
    for unit, rights in ((true, (9, 8)), (random, (5, 5))):
        for seed, right in enumerate(rights, 1):
            kept.keep_draw("after", unit, seed, result(right), {"commit": "abc"}, tmp_path)
    rules = result(7, {"class means": None})
    kept.keep_draw("rules", true, 1, rules, {"commit": "abc"}, tmp_path)
    study.keep_results(tmp_path)
    page = generated(kept.read("photographs"))
    assert (
        "| random texts | 50.0 | 50.0 | 0.500 | 10.0 | 1.50 | +35.0 [+35.0, +35.0] | +0.000 [+0.000, +0.000] |"
        in page
    )
    assert "class means" not in page
    assert "| neither | 1 | 60.0 | 60.0 | no claim |" in page
    kept.keep_draw("rules", true, 2, rules, {"commit": "abc"}, tmp_path)
    study.keep_results(tmp_path)
    page = generated(kept.read("photographs"))
    assert "| class means | 70.0 | 70.0 | 0.500 | 10.0 | 2.00 | +15.0 [+15.0, +15.0] |" in page
    assert "5.00 (5.0) / 60.0 / " in page


def test_settings_are_those_of_the_splits() -> None:
    """Each encoder has each setting with each kind of texts, under its own name."""
    names = {unit.name for unit in units()}
    assert len(names) == len(units()) == 2 * len(SETTINGS) * 4
    assert {unit.setting for unit in units()} == set(SETTINGS)


def test_a_wrong_setting_or_folder_ends_a_run(tmp_path: Path) -> None:
    """The message names what there is."""
    command = ["photographs", "run", "--side", "rules", "--dir", str(tmp_path), "--photos"]
    with pytest.raises(SystemExit, match="missing: "):
        main([*command, str(tmp_path / "none")])
    with pytest.raises(
        SystemExit, match="no setting 7 per class; --settings takes: vlltr-photo, 3 per class, true; "
    ):
        main([*command, str(tmp_path), "--settings", "7 per class"])
