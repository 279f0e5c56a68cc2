"""Two versions on the same draws: the draws, the measures, and the process of a version."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import kept
from benchmarks.collections.sources import Kind
from benchmarks.studies.side_by_side import driver
from benchmarks.studies.side_by_side.driver import Worker
from benchmarks.studies.side_by_side.encoding import CLIP, Encoding, noisy
from benchmarks.studies.side_by_side.figures import addition
from benchmarks.studies.side_by_side.worker import METHOD, NAME, OWN, PROMPT, Draw, measured
from benchmarks.study import Setting, run_draws


def kind(name: str, train: int, sentences: tuple[str, ...] | None = None) -> Kind:
    """Return a class of CLIP's geometry with some training images, three test images and two sentences."""
    pictures = tuple((f"{name}.{number}.png", b"") for number in range(train + 3))
    own = (f"{name} has mark 1.", f"{name} has mark 2.") if sentences is None else sentences
    return Kind(name, own, pictures[3:], pictures[:3])


@pytest.fixture(scope="module")
def draw(tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """Return three classes of four images, and two that are added to them, with six images and with one."""
    kinds = [kind(f"kind-0-{number}", 4) for number in range(3)]
    added = [kind("kind-0-3", 6), kind("kind-0-4", 1)]
    return Encoding(CLIP, tmp_path_factory.mktemp("vectors")).draw(kinds, added)


def test_a_draw_is_read_as_it_was_written(draw: Draw, tmp_path: Path) -> None:
    """All arrays and numbers are equal, and the same draw makes the same file."""
    draw.save(tmp_path / "one.npz")
    draw.save(tmp_path / "two.npz")
    found = Draw.load(tmp_path / "one.npz")
    for name, value in vars(draw).items():
        assert np.array_equal(getattr(found, name), value), name
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_an_added_class_has_so_many_images(draw: Draw) -> None:
    """Added classes have the number asked for, or what they have, at most five; a class without any cannot be added."""
    assert (draw.classes, len(draw.labels), len(draw.test_labels)) == (3, 12, 9)
    assert draw.images().labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert draw.images(1, 1).labels.tolist()[12:] == [3]
    assert draw.images(2, 5).labels.tolist()[12:] == [3] * 5 + [4]
    assert draw.can_add(2, 5)
    assert not draw.can_add(3, 1)
    assert not set(draw.units.tolist()) & set(draw.added_units.tolist())


def test_an_added_class_with_images_has_its_name_alone(draw: Draw) -> None:
    """One with text alone has all its sentences; existing classes have theirs in both cases."""
    assert set(draw.text_roles.tolist()) == {OWN, PROMPT}
    by_image = draw.texts_of(1, 1)
    by_text = draw.texts_of(1, 0)
    assert by_image.prompts[by_image.owner == 3].all()
    assert set(by_text.owner.tolist()) == {0, 1, 2, 3}
    assert int((~by_text.prompts[by_text.owner == 3]).sum()) == 2
    assert (by_image.owner < 3).sum() == (by_text.owner < 3).sum() == (draw.texts_of().owner < 3).sum()


def test_a_recipe_without_prompts_gives_an_added_class_its_bare_name(tmp_path: Path) -> None:
    """It is read where nothing else is known of the class."""
    encoding = Encoding(CLIP, tmp_path)
    encoding.templates = ()
    found = encoding.draw([kind("kind-0-0", 2)], [kind("kind-0-1", 1), kind("kind-0-2", 1, ())])
    assert found.text_roles.tolist().count(NAME) == 3
    assert found.texts_of().texts == ["kind-0-0 has mark 1.", "kind-0-0 has mark 2."]
    assert found.texts_of(2, 1).texts[2:] == ["kind-0-1", "kind-0-2"]
    assert found.texts_of(2, 0).texts[2:] == ["kind-0-1 has mark 1.", "kind-0-1 has mark 2.", "kind-0-2"]
    without = encoding.draw([kind("kind-0-0", 2, ())], [kind("kind-0-1", 1, ())])
    assert not len(without.texts)
    assert not without.can_add(1, 0)


def test_noise_is_as_large_as_the_distance_to_the_class_mean(draw: Draw) -> None:
    """It is drawn by the seed, for all images."""
    changed = noisy(draw, 1)
    assert np.array_equal(changed.test, noisy(draw, 1).test)
    assert not np.array_equal(changed.test, noisy(draw, 2).test)
    means = np.stack([draw.train[draw.labels == number].mean(0) for number in range(3)])
    expected = np.square(draw.train - means[draw.labels]).sum(1).mean()
    for name in ("train", "test", "added", "added_test"):
        found = np.square(getattr(changed, name) - getattr(draw, name)).sum(1).mean()
        assert found == pytest.approx(expected, rel=0.15), name


def test_measures_are_those_of_the_textbook() -> None:
    """Three images of two classes, one of which is wrong; the third class has no image."""
    chances = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]], dtype=torch.float64)
    found = measured(chances, torch.tensor([0, 1, 1]), 3)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["balanced"] == pytest.approx(0.75)
    assert found["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.3) + math.log(0.8)) / 3)
    assert found["ece"] == pytest.approx((0.3 + 0.6 + 0.2) / 3)
    assert [row[:2] for row in found["classes"]] == [[1, 1], [2, 1], [0, 0]]


def test_what_an_addition_costs_is_measured_on_existing_classes() -> None:
    """Lost is the fall of their balanced accuracy, found the recall of the added ones."""
    found = addition([[4, 4, 0.0], [2, 1, 0.0]], [[4, 3], [2, 1], [10, 5]])
    assert found == {"lost": 0.125, "found": 0.5, "all": round((0.75 + 0.5 + 0.5) / 3, 6)}


def test_a_draw_is_made_once(draw: Draw, tmp_path: Path) -> None:
    """Both sides measure the same file, and results have its digest; draws that one side lacks are left out."""
    made: list[int] = []

    def make() -> Draw:
        made.append(1)
        return draw

    def measure(seed: int) -> dict[str, Any]:
        path = driver.draw_file("some, unit's", seed, tmp_path)
        return driver.measured(path, make, lambda path: {"classes": Draw.load(path).classes})

    for side, seeds in (("before", (1, 2, 3)), ("after", (1, 2))):
        run_draws(side, [Setting("some, unit's", seeds, measure)], None, {"commit": side}, tmp_path)
    assert len(made) == 3
    found = driver.matched(tmp_path)["some, unit's"]
    assert list(found) == ["1", "2"]
    assert found["1"]["before"] == found["1"]["after"]
    assert found["1"]["after"]["classes"] == 3


def test_sides_must_have_measured_the_same_draw(tmp_path: Path) -> None:
    """Else no difference is taken."""
    for side, digest in (("before", "a"), ("after", "b")):
        kept.keep_draw(side, "u", 1, {"digest": digest}, {}, tmp_path)
    with pytest.raises(SystemExit, match="different draws of u, seed 1"):
        driver.matched(tmp_path)


@pytest.mark.slow
def test_a_worker_measures_a_draw_twice_alike(tmp_path: Path) -> None:
    """All but the seconds is equal; existing classes, added ones and unknown images are measured; errors are kept."""
    path = tmp_path / "draw.npz"
    encoding = Encoding(CLIP, tmp_path)
    encoding.templates = ()  # so that attention has few sentences
    encoding.draw([kind(f"kind-0-{number}", 3) for number in range(2)], [kind("kind-0-2", 5)]).save(path)
    (tmp_path / "bad.npz").write_bytes(b"")
    with Worker(Path(sys.executable)) as worker:
        found = [worker.ask(path) for _ in range(2)]
        bad = worker.ask(tmp_path / "bad.npz")
        rows_only = worker.ask(path, rows_only=True)
    assert "failed" in bad
    for one in found:
        assert one.pop("seconds") > 0.0
    assert found[0] == found[1]
    assert rows_only["rows"] == found[0]["rows"]
    assert "added" not in rows_only
    assert found[0]["rows"][METHOD]["balanced"] > 0.5
    assert set(found[0]["added"]) == {"1 x 0", "1 x 1", "1 x 5"}
    assert len(found[0]["added"]["1 x 1"]["classes"]) == 3
