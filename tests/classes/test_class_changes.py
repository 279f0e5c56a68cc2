"""Removing, renaming and merging classes, and changing their sentences and images: what is done, said and refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.changes import World, anchors, state
from vlltr_index.classes import (
    ChangeOptions,
    ChangeReport,
    ClassState,
    NewClass,
    add_class,
    add_classes,
    add_images,
    add_sentences,
    merge_classes,
    remove_classes,
    remove_images,
    remove_sentences,
    rename_class,
)
from vlltr_index.classes.change import Effect
from vlltr_index.cli.render import effect_lines, report_lines
from vlltr_index.embedding.loading import image_set, image_units
from vlltr_index.errors import InputError, UnknownClassError, UsageError
from vlltr_index.pipelines.classlist import show_class
from vlltr_index.recognition.model import Model
from vlltr_index.store.transaction import put_back
from vlltr_index.store.workspace import Workspace


@pytest.fixture
def names(world: World) -> list[str]:
    """Names of its classes, by number."""
    return [world.classes[i].name for i in sorted(world.classes)]


def rows_of(workspace: Workspace, table: str, class_id: int) -> int:
    """How many rows of a table a class owns."""
    return workspace.snapshot().count(table, f"class_id = {class_id}")


def commits(workspace: Workspace) -> int:
    """Number of the newest commit."""
    return workspace.history.last().id


def test_a_removed_class_leaves_nothing_but_its_number(small: Workspace, names: list[str]) -> None:
    """Sentences, images, anchors and scores go in one commit; the name is free, the number is not."""
    before, scores = commits(small), small.snapshot().count("sentence_scores")
    report = remove_classes(small, [names[2]])
    assert commits(small) == before + 1
    assert report.notes[0].startswith(f"Removed {names[2]!r} (class 2) with 8 sentences and ")
    assert [rows_of(small, t, 2) for t in ("sentences", "images", "anchors")] == [0, 0, 0]
    assert small.snapshot().count("sentence_scores") == scores - 8
    with pytest.raises(UnknownClassError):
        remove_classes(small, [names[2]])
    again = add_class(small, names[2], ["It is back."]).classes[0]
    assert again.class_id == len(names)
    assert again.visual == "none"


def test_a_renamed_class_keeps_its_number_and_its_own_texts(small: Workspace, names: list[str]) -> None:
    """Prompts are made from the new name; the report says how many of each."""
    report = rename_class(small, names[0], "  the  first ")
    assert report.notes == [
        f"Renamed {names[0]!r} to 'the first' (class 0).",
        "2 sentences made from the old name gave way to 2 made from the new one; 6 other sentences stay as they are.",
    ]
    texts = small.snapshot().table("sentences", ["text", "source"], "class_id = 0").to_pylist()
    assert sorted(t["text"] for t in texts if t["source"] == "prompt") == [
        "a sign like the first.",
        "the first, printed.",
    ]
    table = small.snapshot().class_table()
    assert table.find("the first") == 0
    assert table.find(names[0]) is None


def test_renaming_onto_another_class_is_refused(small: Workspace, names: list[str]) -> None:
    """The message names the way to make them one; an alias of its own may become its name."""
    with pytest.raises(InputError) as caught:
        rename_class(small, names[0], names[1])
    assert caught.value.hint == f"To make them one: vlltr classes merge {names[1]!r} {names[0]!r}"
    add_class(small, "okapi", ["It is an animal."], aliases=["forest giraffe"])
    rename_class(small, "okapi", "Forest Giraffe")
    assert show_class(small, "forest giraffe").aliases == []


def test_merged_classes_add_their_rows(small: Workspace, names: list[str]) -> None:
    """Texts and images go over, the name is an alias, and the visual classifier gives the sum of the rows' chances."""
    features = image_set(small.snapshot(), "val").features
    before = Model.open(small.snapshot())
    rows = before.rule.linear_logits(features).softmax(1)
    report = merge_classes(small, names[3], names[7])
    assert "the name is an alias now" in report.notes[0]
    merge_classes(small, names[1], names[3])
    detail = show_class(small, names[7])
    assert (detail.class_id, set(detail.aliases)) == (1, {names[3], names[7]})
    assert set(detail.merged) == {names[3], names[7]}
    after = Model.open(small.snapshot())
    place = after.class_ids.tolist().index(1)
    expected = rows[:, [1, 3, 7]].sum(1)
    assert torch.allclose(after.rule.linear_logits(features).softmax(1)[:, place], expected, atol=1e-5)
    images = image_set(small.snapshot(), "train")
    of = image_units(small.snapshot(), images.image_ids, images.class_ids, images.features)
    units = {unit for unit, owner in zip(of, images.class_ids.tolist(), strict=True) if owner == 1}
    assert after.stats.counts[after.stats.class_ids == 1] == len(units)
    with pytest.raises(InputError, match="are the same class"):
        merge_classes(small, names[1], names[7])


def test_prompts_do_not_go_over_with_a_merged_class(small: Workspace, names: list[str]) -> None:
    """They name the class that is no more; other sentences go over."""
    kinds = {
        i: small.snapshot().table("sentences", where=f"class_id = {i}")["source"].to_pylist() for i in (3, 7)
    }
    assert all(kinds[i].count("prompt") == 2 for i in kinds)
    report = merge_classes(small, names[3], names[7])
    after = small.snapshot().table("sentences", where="class_id = 3").to_pylist()
    assert sum(row["source"] == "prompt" for row in after) == 2
    assert all(names[3] in row["text"] for row in after if row["source"] == "prompt")
    assert len(after) == len(kinds[3]) + len(kinds[7]) - 2
    assert "6 sentences and " in report.notes[0]
    assert "went over, prompts did not" in report.notes[0]


def test_what_sources_gave_goes_over_with_a_merged_class(small: Workspace, names: list[str]) -> None:
    """So that the next reading of a source finds its rows, also once a refit has forgotten the merge."""
    before = class_of_origins(small)
    merge_classes(small, names[1], names[3])
    assert 3 in before.values()
    assert class_of_origins(small) == {i: 1 if owner == 3 else owner for i, owner in before.items()}


def class_of_origins(workspace: Workspace) -> dict[str, int]:
    """The class of each row that a source gave."""
    rows = workspace.snapshot().table("origins", ["origin_id", "class_id"]).to_pydict()
    return dict(zip(rows["origin_id"], rows["class_id"], strict=True))


def test_sentences_come_and_go(small: Workspace, names: list[str], tmp_path: Path) -> None:
    """What is there already changes nothing; ids may be short; a text takes all that hold it; what is too long is
    told."""
    report = add_sentences(small, names[4], ["It is a test.", "IT is a  test.", "Another test."])
    unread = "1 sentence has no word that the encoder knows: to it they say nothing."  # another, test
    assert report.notes == ["2 sentences added; 1 there before.", unread]
    at = commits(small)
    assert not add_sentences(small, names[4], ["It is a test."]).changed
    assert commits(small) == at
    one = next(i for i in show_class(small, names[4], every_sentence=True).anchors)
    remove_sentences(small, names[4], [one.sentence_id[:10]])
    assert one.sentence_id not in anchors(small)
    report = remove_sentences(small, names[4], matching="TEST")
    gone = {line.strip() for line in report.notes if line.startswith("  ")}
    assert gone == {"It is a test.", "Another test."} - {one.text}
    left = show_class(small, names[4], every_sentence=True)
    assert not [s for s in [*left.anchors, *left.others] if "test" in s.text]
    (tmp_path / "long.txt").write_text(f"It is short.\n\n{'la ' * 2000}", encoding="utf-8")
    told = f"Left out: {tmp_path / 'long.txt'}: a piece of 5,999 characters without an end of sentence"
    assert add_sentences(small, names[4], text=tmp_path / "long.txt").notes == ["1 sentence added.", told]
    attracts = "A text-only class may attract unknown images, too."
    assert add_classes(small, [NewClass("okapi", text=tmp_path / "long.txt")]).notes == [told, attracts]


@pytest.mark.slow
def test_what_images_say_comes_and_goes_with_them(small: Workspace, world: World, tmp_path: Path) -> None:
    """A class known by text is known by its first image too, and no longer once its last has gone; an image that
    changed is another; a trained row stays."""
    class_id = add_class(small, "okapi", ["It is an animal."]).classes[0].class_id
    picture = Path(world.pictures[0])
    report = add_images(small, "okapi", [picture])
    assert (report.classes[0].visual, report.classes[0].images) == ("images", 1)
    assert not add_images(small, "okapi", [picture]).changed
    shown = show_class(small, "okapi")
    assert (shown.visual, shown.pictures[0].uri) == ("images", str(picture))
    assert rows_of(small, "class_stats", class_id) == 1
    report = remove_images(small, [shown.pictures[0].image_id[:8]])
    assert (report.classes[0].visual, report.classes[0].images) == ("none", 0)
    assert rows_of(small, "class_stats", class_id) == 0
    file = tmp_path / "one.png"
    for picture in world.pictures[:2]:
        file.write_bytes(Path(picture).read_bytes())
        add_images(small, "okapi", [file])
    assert show_class(small, "okapi").images == 2
    report = add_images(small, world.classes[0].name, [Path(world.pictures[2])])
    assert report.classes[0].visual == "trained"
    assert not any("The linear classifier" in note for note in report.notes)  # it has no weight here


def test_what_a_linear_classifier_with_weight_knows_is_noted(trained: Workspace, world: World) -> None:
    """Images that a class gets do not reach it."""
    name = Model.open(trained.snapshot()).names[0]
    notes = add_images(trained, name, [Path(world.pictures[2])]).notes
    assert any(note.startswith(f"The linear classifier knows {name!r}") for note in notes)


def test_what_is_refused_is_told_and_changes_nothing(small: Workspace, world: World) -> None:
    """Each refusal has its own message, and leaves the workspace as it was."""
    first, picture = world.classes[0].name, Path(world.pictures[2])
    add_class(small, "okapi", ["It is an animal."])
    add_images(small, "okapi", [picture])
    names = list(small.snapshot().class_table().names.values())
    calls: dict[str, Callable[[], object]] = {
        f"no sentence of class {first!r} holds 'zebra'": lambda: remove_sentences(
            small, first, matching="zebra"
        ),
        f"no sentence of class {first!r} with the id 'abcdef' can be told: there is none": (
            lambda: remove_sentences(small, first, ["abcdef"])
        ),
        f"class {first!r} would have no sentence left, and could not be recognised by text": (
            lambda: remove_sentences(small, first, matching=first.split()[0])
        ),
        "no readable image among what was given (/none.png: no such file)": (
            lambda: add_images(small, first, [Path("/none.png")])
        ),
        "no image with the id 'abcdef' can be told: there is none": lambda: remove_images(small, ["abcdef"]),
        f"{picture} is an image of class 'okapi' already": lambda: add_images(small, first, [picture]),
        "no class would be left": lambda: remove_classes(small, names),
        "which sentences?": lambda: remove_sentences(small, first),
        f"class {first!r}: {'x' * 40!r} ... has 4,001 characters; a sentence has 4,000 at most": (
            lambda: add_sentences(small, first, ["x" * 4001])
        ),
        "which images?": lambda: remove_images(small, []),
    }
    at = commits(small)
    for message, call in calls.items():
        with pytest.raises((InputError, UsageError)) as caught:
            call()
        assert caught.value.message == message
    assert commits(small) == at


@pytest.mark.slow
def test_dry_runs_commit_nothing(small: Workspace, world: World, names: list[str]) -> None:
    """Each change can be looked at first: commits and rows stay, and the next writer finds nothing to put back."""
    at, before = commits(small), state(small)
    added = add_classes(
        small,
        [NewClass("okapi", ("It is new.",), images=(Path(world.pictures[0]),))],
        ChangeOptions(dry_run=True),
    )
    assert (added.classes[0].images, added.classes[0].visual) == (1, "images")
    assert report_lines(added)[0] == "A dry run, which commits nothing:"
    reports: list[ChangeReport] = [
        remove_classes(small, [names[0]], ChangeOptions(dry_run=True)),
        rename_class(small, names[0], "other", ChangeOptions(dry_run=True)),
        merge_classes(small, names[0], names[1], ChangeOptions(dry_run=True)),
        add_sentences(small, names[0], ["New."], options=ChangeOptions(dry_run=True)),
        remove_sentences(small, names[0], matching="printed", options=ChangeOptions(dry_run=True)),
        add_images(small, names[0], [Path(world.pictures[3])], ChangeOptions(dry_run=True)),
        remove_images(small, [show_class(small, names[0]).pictures[0].image_id], ChangeOptions(dry_run=True)),
    ]
    assert commits(small) == at
    assert state(small) == before
    assert put_back(small.store, small.history.last()) == []
    for report in reports:
        assert report.dry_run
        assert report_lines(report)[0] == "A dry run, which commits nothing:"


def test_harm_is_warned_of() -> None:
    """A loss of more than one point has a line of its own that names the way back."""
    assert effect_lines(Effect()) == []
    assert "was not measured" in effect_lines(Effect(unmeasured=True))[0]
    harm = ChangeReport("classes remove 'owl'", False, [], [], Effect(0.9, 0.85, 1000, 400), before=7)
    assert report_lines(replace(harm, effect=Effect(0.9, 0.895, 100, 100)))[1:] == []
    few = replace(harm, effect=Effect(0.9, 0.5, 100, 29))
    assert report_lines(few)[1:] == [], "groups count, not images"
    assert report_lines(few)[0].endswith("before, 50.0% after. So few images say little.")
    assert report_lines(harm) == [
        "Existing classes on 1,000 held-out images: balanced accuracy 90.0% before, 85.0% after.",
        "Warning: accuracy on existing classes drops by 5.0 points. To take it back: vlltr rollback 7",
    ]
    dropped = "Warning: accuracy on existing classes drops by 5.0 points."
    assert report_lines(replace(harm, dry_run=True))[-1] == dropped
    for text, helps in (
        ("own", "Sentences that tell a class apart, or more images of it,"),
        ("none", "More images of a class"),
    ):
        added = ClassState("okapi", 3, sentences=2, anchors=2, images=1, rivals=[], text=text)
        assert report_lines(replace(harm, added=True, classes=[added]))[-1] == (
            f"{dropped} {helps} may help. To take it back: vlltr rollback 7"
        )
