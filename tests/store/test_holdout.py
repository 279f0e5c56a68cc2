"""What stage 1 does not see: how it is chosen, that it takes no part, and that the checkpoint says so."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.support import drawings
from tests.support.commands import run
from vlltr_index.errors import WorkspaceError
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.status import status
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.pipelines.train_cvlp import train_cvlp_stage
from vlltr_index.schemas.config import SelectConfig
from vlltr_index.schemas.recipes import override
from vlltr_index.store import holdout
from vlltr_index.store.holdout import (
    HeldOut,
    choose_held_out,
    choose_held_out_classes,
    held_images,
    read_held_out,
    score_image_rows,
    without_names,
    write_held_out,
)
from vlltr_index.store.workspace import Workspace

ONE_EPOCH = ("cvlp.epochs=1", "cvlp.batch_size=14", "lgr.epochs=1", "lgr.views=1", "lgr.batch_size=28")


class Image(NamedTuple):
    """An image as the choice sees it."""

    image_id: str
    class_id: int
    group: str | None
    content: str | None


def choose(images: list[Image], most: int) -> list[Image]:
    """The images chosen."""
    columns = zip(*images, strict=True) if images else ((), (), (), ())
    return [images[place] for place in choose_held_out(*map(list, columns), most)]


def units(images: list[Image]) -> list[list[Image]]:
    """The images that must go together."""
    found: dict[object, list[Image]] = {}
    for image in images:
        found.setdefault(("g", image.group) if image.group else ("c", image.content or image), []).append(
            image
        )
    return list(found.values())


@st.composite
def collections(draw: st.DrawFn) -> list[Image]:
    """Images of a few classes, some in groups, some with equal contents."""
    count = draw(st.integers(0, 80))
    group = st.sampled_from([None, *"abcdefgh"]) if draw(st.booleans()) else st.none()
    content = st.one_of(st.none(), st.integers(0, draw(st.integers(1, 200))).map(str))
    return [Image(str(n), draw(st.integers(0, 4)), draw(group), draw(content)) for n in range(count)]


@settings(max_examples=100, deadline=None)
@given(images=collections(), most=st.integers(0, 12), random=st.randoms(use_true_random=False))
def test_the_choice(images: list[Image], most: int, random: object) -> None:
    """At most the budget, two images of a class stay, small groups and equal contents go whole, in any order."""
    chosen = choose(images, most)
    budget, counts = min(most, len(images) // 10), Counter(image.class_id for image in images)
    assert len(chosen) <= budget
    assert chosen == [image for image in images if image in set(chosen)]
    left = counts - Counter(image.class_id for image in chosen)
    assert all(left[i.class_id] >= 2 for i in chosen)
    size = Counter(image.group for image in images)
    for unit in units(images):
        if unit[0].group is None or size[unit[0].group] <= 5:
            assert set(unit) <= set(chosen) or not set(unit) & set(chosen)
    shuffled = list(images)
    random.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis gives a random.Random
    assert set(choose(shuffled, most)) == set(chosen)
    assert len(choose([Image(str(n), n % 4, None, None) for n in range(100)], 99)) == 10


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), max_size=300), random=st.randoms(use_true_random=False))
def test_the_choice_of_classes(sizes: list[int], random: object) -> None:
    """One in 50 from 100 classes on, of those with ten images; the order does not matter."""
    images = {f"class {n}": size for n, size in enumerate(sizes)}
    chosen = choose_held_out_classes(images)
    able = sum(size >= 10 for size in sizes)
    assert len(set(chosen)) == (0 if len(sizes) < 100 else min(able, len(sizes) // 50))
    assert all(images[name] >= 10 for name in chosen)
    shuffled = list(images.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined] # as above
    assert choose_held_out_classes(dict(shuffled)) == chosen
    assert len(choose_held_out_classes({str(n): 10 for n in range(5000)})) == 20


def test_sentences_that_name_a_class_kept_out() -> None:
    """They go, but not those of a class whose own name holds it; part of a word is no name."""
    names = {0: "owl", 1: "barn owl", 2: "tit"}
    told = {0: ["The owl."], 1: ["This OWL hunts."], 2: ["Fears the Owl.", "It howls."]}
    assert without_names(told, names, [0]) == told | {2: ["It howls."]}
    assert without_names(told, names, []) == told


def test_the_file(tmp_path: Path) -> None:
    """What is written is read; none means nothing; a damaged one is named, with the command."""
    assert read_held_out(tmp_path) == HeldOut()
    held = HeldOut(frozenset(["b", "a"]), frozenset([3]))
    write_held_out(held, tmp_path)
    assert read_held_out(tmp_path) == held
    path = tmp_path / "held_out.json"
    for content in (b"\xff", b'{"images": [1], "classes": []}'):
        path.write_bytes(content)
        with pytest.raises(
            WorkspaceError, match=f"^{path} does not say what stage 1 did not see: "
        ) as caught:
            read_held_out(tmp_path)
        assert caught.value.hint == "Bring it back from a backup, or make it again: vlltr train cvlp"


def trained_with(workspace: Workspace, *settings: str) -> tuple[HeldOut, dict[int, int]]:
    """Run stage 1; what it did not see, and how many images of each class it saw."""
    report = train_cvlp_stage(workspace, override(workspace.recipe, settings).cvlp)
    folder = workspace.objects.path("checkpoints", report.digest)
    held, visual = read_held_out(folder), load_file(folder / "visual.safetensors")
    counts = dict(zip(visual["class_ids"].tolist(), visual["counts"].tolist(), strict=True))
    assert (report.held_images, report.held_classes) == (len(held.images), len(held.classes))
    assert (report.images, report.classes) == (sum(counts.values()), len(counts))
    assert status(workspace).next == "vlltr embed"  # not: images came since
    assert not list((workspace.path / "runs").iterdir())
    return held, counts


@pytest.mark.slow
def test_stage_one_does_not_see_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and classes kept out are not in the counts; everything after stage 1 runs; with 0 all are trained on."""
    workspace = drawings.workspace(tmp_path, *ONE_EPOCH)
    all_of = dict(enumerate(drawings.COUNTS))
    held, counts = trained_with(workspace)
    rows = workspace.snapshot().table("images", ["image_id", "class_id"])
    owner = dict(zip(*(rows[c].to_pylist() for c in ("image_id", "class_id")), strict=True))
    names = workspace.snapshot().class_table().names
    sizes = {i: all_of[drawings.WORDS.index(name)] for i, name in names.items()}
    assert (len(held.images), held.classes) == (5, frozenset())
    assert counts == {i: n - Counter(owner[x] for x in held.images)[i] for i, n in sizes.items()}
    assert trained_with(workspace, "cvlp.hold_out=0") == (HeldOut(), sizes)
    monkeypatch.setattr(holdout, "LEAST_CLASSES", 8)
    monkeypatch.setattr(holdout, "CLASS_SHARE", 4)
    held, counts = trained_with(workspace)
    assert {sizes[i] for i in held.classes} == {20, 12}
    assert counts.keys() == sizes.keys() - held.classes
    assert all(owner[image] in counts for image in held.images)
    assert trained_with(workspace, "cvlp.hold_out_classes=false")[0].classes == frozenset()
    train_all(workspace, workspace.recipe)
    assert evaluate(workspace, "train").images == 56


def test_images_kept_at_another_side_stay_unseen(tmp_path: Path) -> None:
    """What stage 1 did not see is still known once the workspace keeps the images, under other ids."""
    workspace = drawings.workspace(tmp_path, *ONE_EPOCH)
    held, _ = trained_with(workspace)
    ingest_images(workspace, tmp_path / "images", "train", store=16)
    found = held_images(workspace.snapshot())
    assert {image.partition("-")[0] for image in found} == held.images
    assert all(image.endswith("-16") for image in found)


def test_the_texts_of_the_others_do_not_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The vocabulary of an encoder from scratch holds no word of a class kept out; the report says what is."""
    workspace = drawings.workspace(tmp_path, *ONE_EPOCH)
    monkeypatch.setattr(holdout, "LEAST_CLASSES", 8)
    monkeypatch.setattr(holdout, "CLASS_SHARE", 8)
    _, said, _ = run(capsys, "-w", workspace.path, "train", "cvlp")
    assert said.splitlines()[1] == (
        "Held out of this stage, so that train lgr can choose by what it never saw: 3 images and 1 class"
        " (cvlp.hold_out, cvlp.hold_out_classes)"
    )
    folder = workspace.objects.path("checkpoints", str(workspace.history.last().checkpoint))
    (apart,) = read_held_out(folder).classes
    name = workspace.snapshot().class_table().names[apart]
    words = (folder / "words.json").read_text(encoding="utf-8")
    assert json.dumps(name) not in words
    assert all(json.dumps(word) in words for word in {*drawings.WORDS} - {name})


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 3), max_size=15), most=st.integers(1, 4), data=st.data())
def test_score_images_do_not_depend_on_the_order(labels: list[int], most: int, data: st.DataObject) -> None:
    """Each class keeps its smallest hashes, of equal ones the smaller id, and none that is held out."""
    images = [(label, f"{k * 7919 % 5:04x}", f"i{k:02d}") for k, label in enumerate(labels)]
    held = data.draw(st.frozensets(st.sampled_from([i for *_, i in images]))) if images else frozenset()
    there = sorted(image for image in images if image[2] not in held)
    expected = [image for c in range(4) for image in [i for i in there if i[0] == c][:most]]
    columns = pa.schema([("class_id", pa.int32()), ("content_hash", pa.string()), ("image_id", pa.string())])
    rows = [dict(zip(columns.names, image, strict=True)) for image in data.draw(st.permutations(images))]
    snapshot: Any = SimpleNamespace(table=lambda *_: pa.Table.from_pylist(rows, schema=columns))
    kept = score_image_rows(snapshot, SelectConfig(images_per_class=most), held)
    assert [tuple(row.values()) for row in kept.to_pylist()] == expected
