"""What becomes of each image of an ingestion, decided from what is listed and what is stored, without a workspace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlltr_index.data.decoding import Probe
from vlltr_index.errors import InputError
from vlltr_index.pipelines.image_plan import Facts, Seen, Stored, decide
from vlltr_index.schemas.records import ImageRecord, Skipped
from vlltr_index.store.ingestion import image_id
from vlltr_index.store.origins import Origin

OWL, KITE = 0, 1
CLASSES = {"owl": OWL, "kite": KITE, "heron": None}
NAMES = {OWL: "owl", KITE: "kite"}


def seen(source: str, content: str = "a", split: str = "train", problem: str | None = None) -> Seen:
    """An image of a source, in the folder of its class."""
    name = source.partition("/")[0]
    found = None if CLASSES[name] is None else Probe(content, 32, 32, problem)
    return Seen(ImageRecord(source, f"/new/{source}", name, split), found)


def stored(source: str, class_id: int, content: str = "a", split: str = "train") -> dict[str, Stored]:
    """An image as the workspace has it, by its id."""
    key = image_id(split, source)
    return {key: Stored(key, f"/new/{source}", content, class_id, split, group=None)}


def facts(*items: Seen | Skipped, there: dict[str, Stored] | None = None) -> Facts:
    """A source that lists some items, and a workspace that has some images, all of which it gave before."""
    before = {key: Origin(key, NAMES[one.class_id or 0], one.class_id) for key, one in (there or {}).items()}
    return Facts(items, there or {}, CLASSES, NAMES, before=before)


def test_new_images_are_written() -> None:
    """Those of known classes, in the split that they are dealt to; the others are noted with the reason."""
    given = facts(
        seen("owl/1.png"),
        seen("owl/2.png", problem="damaged"),
        seen("heron/3.png"),
        seen("owl/1.png"),
        Skipped("/new/owl/4.txt", "not an image by its ending"),
    )
    plan = decide(replace(given, held={"owl/2.png"}, groups={("train", "owl/1.png"): "nest"}))
    found = [(one.record.source, one.record.split, one.class_id) for one in plan.images.values()]
    assert found == [("owl/1.png", "train", OWL), ("owl/2.png", "test", OWL)]
    assert [one.record.group for one in plan.images.values()] == ["nest", None]
    assert (plan.counts["added"], plan.unknown, plan.delete) == (2, {"heron": 1}, set())
    assert plan.notes.lines == [
        "kept aside: /new/owl/2.png: damaged",
        "left out: /new/owl/1.png: named before in this source",
        "left out: /new/owl/4.txt: not an image by its ending",
    ]
    assert plan.origins.keys() == {image_id("train", "owl/1.png"), image_id("test", "owl/2.png")}


def test_a_correction_by_hand_stays_until_the_source_changes() -> None:
    """The same bytes under the same name stay in the class they were put into; other bytes go where the source says."""
    there = stored("owl/1.png", KITE)
    (key,) = there
    given = replace(facts(seen("owl/1.png"), there=there), before={key: Origin(key, "owl", OWL)})
    plan = decide(given)
    (image,) = plan.images.values()
    assert (image.class_id, plan.counts["corrected"]) == (KITE, 1)
    plan = decide(replace(given, seen=[seen("owl/1.png", "b")]))
    (image,) = plan.images.values()
    assert (image.class_id, plan.counts["overruled"], plan.left) == (OWL, 1, {KITE})


def test_what_is_gone_is_deleted_only_with_sync() -> None:
    """Without it what the source gave stays known; what is there and cannot be used now stays."""
    there = stored("owl/1.png", OWL) | stored("owl/2.png", OWL, "b") | stored("owl/3.png", OWL, "c")
    one, two, three = there
    unusable = Skipped("/new/owl/3.png", "a link that leaves the folder", "/new/owl/3.png")
    given = facts(seen("owl/1.png"), unusable, there=there)
    plan = decide(given)
    assert (plan.delete, plan.missing) == (set(), 0)
    assert plan.origins.keys() == there.keys()
    plan = decide(replace(given, past={("train", "owl/1.png"): one}, of_content={"a": one}))
    assert (plan.delete, plan.missing, plan.given, plan.left) == ({two}, 1, 3, {OWL})
    assert plan.origins.keys() == {one, three}


def test_a_moved_image_keeps_its_group() -> None:
    """The row under the old name is deleted, and the new one is not counted as added."""
    there = stored("owl/1.png", OWL)
    (was,) = there
    there = {was: there[was]._replace(group="nest")}
    moved = facts(seen("kite/1.png"), there=there)
    plan = decide(replace(moved, past={("train", "kite/1.png"): was}, of_content={"a": was}))
    (image,) = plan.images.values()
    assert (image.class_id, image.record.group) == (KITE, "nest")
    assert (plan.delete, plan.counts["added"], plan.counts["moved"], plan.missing) == ({was}, 0, 1, 0)


def test_an_image_of_the_same_name_with_other_bytes() -> None:
    """Where the stored file is still there it is another image; where it is gone it is the same, changed."""
    there = stored("owl/1.png", OWL)
    (key,) = there
    there = {key: there[key]._replace(uri="/old/owl/1.png")}
    files = {"/old/owl/1.png": "/old/owl/1.png", "/new/owl/1.png": "/new/owl/1.png"}
    given = replace(facts(seen("owl/1.png", "b")), stored=there)
    plan = decide(replace(given, files=files))
    (image,) = plan.images.values()
    assert (image.image_id, plan.delete) == (image_id("train", "/new/owl/1.png"), set())
    plan = decide(replace(given, files={**files, "/old/owl/1.png": None}))
    (image,) = plan.images.values()
    assert (image.image_id, image.uri) == (key, "/new/owl/1.png")


def test_a_source_of_which_nothing_is_taken() -> None:
    """No class is known, or no image can be read."""
    with pytest.raises(InputError, match=r"none of the 1 images is of a class .* 'heron' \(1\)"):
        decide(facts(seen("heron/1.png")))
    with pytest.raises(InputError, match=r"no image was taken: /new/owl/1\.png: damaged"):
        decide(facts(seen("owl/1.png", problem="damaged")))
