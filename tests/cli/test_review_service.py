"""Tests of `vlltr_index.cli.ui.review_service` and of a sitting: what is shown, what is kept, and saving."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.reviews import Listing, group, keep, review_of
from vlltr_index.classes import remove_classes, remove_images
from vlltr_index.cli.render import report_lines
from vlltr_index.cli.ui.review_service import ReviewService, choices_of, review_piece
from vlltr_index.errors import InputError, MissingStepError, UsageError, VlltrError
from vlltr_index.pipelines.history import rollback
from vlltr_index.pipelines.review import sitting as sitting_module
from vlltr_index.pipelines.review.files import write_list
from vlltr_index.pipelines.review.queue import REASONS, Entry, Reason, Review
from vlltr_index.pipelines.review.sitting import Decision, Sitting, key_of
from vlltr_index.store.workspace import Workspace

HOSTILE = '<img src=x onerror=alert(1)> & "quotes" \' ${1+1} {{value}}'
Open = Callable[..., ReviewService]


@pytest.fixture
def listing(trained: Workspace) -> Listing:
    """Pictures of a copy of the trained workspace."""
    return Listing(trained)


@pytest.fixture
def desk(trained: Workspace) -> Open:
    """A page's list, made by hand."""

    def opened(*entries: Entry, **how: Any) -> ReviewService:
        keep(trained, entries)
        return ReviewService(trained, **how)

    return opened


def classes(workspace: Workspace) -> dict[str, str]:
    """The class of each picture, by its id."""
    snapshot = workspace.snapshot()
    names = snapshot.class_table().names
    rows = snapshot.table("images", ["image_id", "class_id"], "class_id IS NOT NULL").to_pylist()
    return {row["image_id"]: names[row["class_id"]] for row in rows}


def id_of(entry: Entry) -> str:
    """The id of an entry's picture."""
    assert entry.image_id is not None
    return entry.image_id


def ids_beside(entry: Entry) -> list[str]:
    """The ids of the pictures beside it."""
    return [str(one.image_id) for one in entry.beside]


def test_every_kind_of_decision_is_written_in_one_commit(
    trained: Workspace, listing: Listing, desk: Open, pictures: Path
) -> None:
    """Confirmed, corrected, made, kept, added, skipped: the classes are what was decided, and can be taken back."""
    unseen = [str(path) for path in sorted((pictures / "unseen").glob("*.png"))]
    entries = [
        listing.entry("two classes", (3, 4)),
        *(listing.entry("label", (n,)) for n in (0, 1, 2, 5)),
        listing.entry("copies", (6, 6, 6)),
        group(unseen[:3]),
        Entry(unseen[3], "teaches", likely=((listing.names[7], 0.5),)),
    ]
    two, right, wrong, new, skipped, lot, *_ = entries
    page = desk(*entries)
    before = classes(trained)
    decided = [
        ("correct", listing.names[4], ()),
        ("confirm", "", ()),
        ("correct", listing.names[9], ()),
        ("correct", "okapi", ()),
        ("skip", "", ()),
        ("keep", "", ()),
        ("add", "dodo", (1,)),
        ("correct", listing.names[7], ()),
    ]
    said = []
    for expected, (act, name, dropped) in zip(entries, decided, strict=True):
        found = page.next()
        assert found == expected
        said.append(page.decide(found, act, name, dropped))
    assert said[1] == f"Confirmed: {listing.names[0]!r}."
    assert said[3] == "Now 'okapi', a class that saving makes: 1 picture."
    assert said[5] == f"Kept one, as {listing.names[6]!r}; 2 near duplicates go."
    assert said[6] == "Now 'dodo', a class that saving makes: 2 pictures."
    assert page.next() is None
    assert (page.counts().left, page.counts().decided, page.counts().skipped) == (0, 7, 1)
    assert {"okapi", "dodo"} < set(page.names())
    commits = trained.history.ids()
    report, commit = page.save()
    assert report is not None
    assert trained.history.ids() == [*commits, commits[-1] + 1]
    assert commit == commits[-1]
    expected_classes = before | {
        id_of(two): listing.names[4],
        id_of(wrong): listing.names[9],
        id_of(new): "okapi",
    }
    for gone in ids_beside(lot):
        del expected_classes[gone]
    now = classes(trained)
    assert {key: now[key] for key in expected_classes} == expected_classes
    assert not set(ids_beside(lot)) & set(now)
    added = trained.snapshot().table("images", ["image_id", "uri"]).to_pylist()
    of_path = {row["uri"]: now[row["image_id"]] for row in added if row["uri"] in unseen}
    assert of_path == {unseen[0]: "dodo", unseen[2]: "dodo", unseen[3]: listing.names[7]}
    said_of = {row["image_id"] for row in trained.snapshot().table("reviewed").to_pylist()}
    assert {id_of(right), id_of(wrong), id_of(lot), id_of(two)} <= said_of
    assert not set(ids_beside(two)) & said_of
    assert page.next() == skipped
    assert page.counts().left == 1, "what was saved is not asked again, what was skipped is"
    rollback(trained, commit)
    assert classes(trained) == before


def test_saving_nothing_is_no_commit(trained: Workspace, listing: Listing, desk: Open) -> None:
    """Skipped entries are nothing to save."""
    page = desk(listing.entry("label"))
    commits = trained.history.ids()
    assert page.save() == (None, None)
    entry = page.next()
    assert entry is not None
    page.decide(entry, "skip")
    assert page.save() == (None, None)
    assert trained.history.ids() == commits


def test_entries_follow_decisions_on_their_pictures(listing: Listing, desk: Open) -> None:
    """A picture that was given a class shows it in its lot; one that goes is no entry any more."""
    lot = listing.entry("copies", (5, 5, 5))
    first = replace(lot, reason="label", beside=())
    last = replace(lot, reason="label", beside=(), image_id=lot.beside[0].image_id)
    page = desk(first, lot, last)
    assert page.next() == first
    page.decide(first, "correct", listing.names[8])
    found = page.next()
    assert found is not None
    assert key_of(found) == key_of(lot)
    assert [found.class_name, *(one.class_name for one in found.beside)] == [
        listing.names[8],
        *[listing.names[5]] * 2,
    ]
    page.decide(found, "keep")
    assert page.next() is None
    assert page.counts().left == 0
    assert page.undo() == found
    assert page.undo() == first
    assert page.undo() is None


CHANGED = "this picture was decided on or changed since it was shown"


def test_a_decision_of_another_tab_stays(trained: Workspace, listing: Listing, desk: Open) -> None:
    """Two tabs show one entry: one decides, the other is refused and goes on; U takes the last decision back."""
    first, second = (listing.entry("label", (n,)) for n in range(2))
    page = desk(first, second)
    other = ReviewService(trained)  # a second `vlltr ui` on the workspace
    assert page.next() == other.next() == first
    page.decide(first, "confirm")
    for act in ("correct", "confirm", "skip"):
        with pytest.raises(InputError, match=CHANGED):
            other.decide(first, act, listing.names[9])
    assert other.next(first) == second
    other.decide(second, "correct", listing.names[9])
    assert page.next(second) is None
    assert page.undo() == second
    assert other.next() == second
    assert page.save()[0] is not None
    assert other.counts().decided == 0
    with pytest.raises(InputError, match=CHANGED):
        other.decide(first, "correct", listing.names[9])
    now = classes(trained)
    assert [now[id_of(one)] for one in (first, second)] == [first.class_name, second.class_name]
    assert other.save() == (None, None)


def test_an_entry_that_another_tab_changed_is_shown_again(listing: Listing, desk: Open) -> None:
    """A lot whose picture got another class, or lost it again, is not decided on as it was shown."""
    lot = listing.entry("copies", (5, 5))
    label = replace(lot, reason="label", beside=())
    page = desk(label, lot)
    page.decide(label, "correct", listing.names[8])
    with pytest.raises(InputError, match=CHANGED):
        page.decide(lot, "keep")
    found = page.next(lot)
    assert found == replace(lot, class_name=listing.names[8])
    assert page.undo() == label
    with pytest.raises(InputError, match=CHANGED):
        page.decide(found, "confirm")
    assert page.next(found) == lot
    page.decide(lot, "keep")
    assert page.counts().decided == 1


def test_tabs_decide_at_once(trained: Workspace, listing: Listing, desk: Open) -> None:
    """Two pages press keys at the same time: each entry has one decision, and every accepted decision is kept."""
    entries = [listing.entry("label", (n % 5,)) for n in range(20)]
    pages = [desk(*entries), ReviewService(trained)]
    accepted: list[tuple[str, str]] = []

    def press(page: ReviewService, name: str) -> None:
        entry = page.next()
        while entry is not None:
            with suppress(InputError):
                page.decide(entry, "correct", name)
                accepted.append((id_of(entry), name))
            entry = page.next(entry)

    tabs = [
        threading.Thread(target=press, args=(page, listing.names[9 + n % 2]))
        for n, page in enumerate([*pages, *pages])
    ]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert len(accepted) == len(dict(accepted)) == len(entries)
    assert (trained.path / "runs" / "sitting.jsonl").read_text(encoding="utf-8").count("{") == 2 * len(
        entries
    )
    assert pages[0].save()[0] is not None
    now = classes(trained)
    assert {one: now[one] for one, _ in accepted} == dict(accepted)


def test_a_decision_while_another_tab_saves(
    trained: Workspace, listing: Listing, desk: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits, and is kept for the next commit; one on an entry that is saved is refused."""
    saved, left = (listing.entry("label", (n,)) for n in range(2))
    page = desk(saved, left)
    page.decide(saved, "confirm")
    committed, go = threading.Event(), threading.Event()
    commit = sitting_module.open_change

    @contextmanager
    def slow(*given: Any, **how: Any) -> Iterator[Any]:
        with commit(*given, **how) as change:
            yield change
        committed.set()
        assert go.wait(10)

    monkeypatch.setattr(sitting_module, "open_change", slow)
    saving = threading.Thread(target=page.save)
    saving.start()
    assert committed.wait(60)
    refused: list[str] = []

    def again() -> None:
        try:
            ReviewService(trained).decide(saved, "correct", listing.names[9])
        except InputError as error:
            refused.append(error.message)

    tabs = [
        threading.Thread(target=page.decide, args=(left, "correct", listing.names[9])),
        threading.Thread(target=again),
    ]
    for tab in tabs:
        tab.start()
    go.set()
    for thread in (saving, *tabs):
        thread.join()
    assert refused == [CHANGED]
    assert page.counts().decided == 1
    page.save()
    now = classes(trained)
    assert [now[id_of(one)] for one in (saved, left)] == [saved.class_name, listing.names[9]]


def test_names_of_classes(trained: Workspace, listing: Listing, desk: Open) -> None:
    """A name means the class that has it in any case, one that another decision makes too; others are refused."""
    page = desk(*(listing.entry("label", (n,)) for n in range(4)))

    def correct(name: str) -> str:
        entry = page.next()
        assert entry is not None
        return page.decide(entry, "correct", name)

    assert correct(f"  {listing.names[9].upper()} ") == f"Now {listing.names[9]!r}: 1 picture."
    assert correct("Okapi") == "Now 'Okapi', a class that saving makes: 1 picture."
    assert correct("OKAPI") == "Now 'Okapi', a class that saving makes: 1 picture."
    for name in ("", " \t", "x" * 201, "\0"):
        with pytest.raises(InputError):
            correct(name)
    page.undo()
    page.undo()
    assert correct("okapi") == "Now 'okapi', a class that saving makes: 1 picture."
    report, _ = page.save()
    assert report is not None
    assert trained.snapshot().class_table().find("OKAPI") is not None


def test_two_spellings_of_a_new_class_are_one(trained: Workspace, listing: Listing) -> None:
    """Made in two tabs at the same moment: saving makes one class of the first spelling."""
    entries = [listing.entry("label", (n,)) for n in range(2)]
    sitting = Sitting(trained, entries)
    for entry, name in zip(entries, ("Okapi", "okapi"), strict=True):
        sitting.decide(Decision(entry=key_of(entry), labels={id_of(entry): name}, makes=name), entry)
    assert sitting.save() is not None
    assert {classes(trained)[id_of(entry)] for entry in entries} == {"Okapi"}


def test_what_is_gone_meanwhile_is_left_out(trained: Workspace, listing: Listing, desk: Open) -> None:
    """Entries whose class another program removed are not shown; decisions for it are named in the report."""
    entries = [listing.entry("label", (0,)), listing.entry("label", (1,)), listing.entry("label", (2,))]
    page = desk(*entries)
    found = page.next()
    assert found is not None
    page.decide(found, "correct", listing.names[9])
    remove_classes(trained, [listing.names[1], listing.names[9]])
    assert page.next() == entries[2]
    page.decide(entries[2], "confirm")
    remove_images(trained, [id_of(entries[2])])
    report, _ = page.save()
    assert report is not None
    assert "Left out: 1 picture is not there any more." in report.notes
    assert f"Left out: there is no class {listing.names[9]!r} any more." in report.notes
    assert classes(trained)[id_of(entries[0])] == listing.names[0]


def test_only_what_is_offered_can_be_decided(listing: Listing, desk: Open, tmp_path: Path) -> None:
    """An act of another kind of entry, an entry that is not of the list, and pictures that are no files: refused."""
    rows = Entry(f"{tmp_path}/none.parquet#3", "teaches", likely=((listing.names[0], 0.5),))
    label = listing.entry("label")
    page = desk(label, rows, group([str(tmp_path / "gone.png"), str(tmp_path / "gone2.png")]))
    for act in ("keep", "add", "undo", "", "rm -rf"):
        with pytest.raises(InputError, match="that cannot be decided"):
            page.decide(label, act, "okapi")
    for foreign in (
        Entry("/etc/passwd", "teaches"),
        replace(label, image_id="x"),
        group(["/etc/passwd", "/etc/hosts"]),
    ):
        with pytest.raises(InputError, match=CHANGED):
            page.decide(foreign, {"unknown": "add"}.get(foreign.reason, "correct"), "okapi")
    assert page.show(rows).acts == ("skip",)
    assert page.show(rows).thumbnails[0].problem
    with pytest.raises(InputError, match="is no file here"):
        page.decide(rows, "correct", "okapi")
    assert page.counts().decided == 0


def test_a_group_without_pictures_is_no_class(desk: Open, pictures: Path) -> None:
    """Positions beyond it drop nothing; all dropped is refused."""
    found = group([str(path) for path in sorted((pictures / "unseen").glob("*.png"))[:2]])
    page = desk(found)
    with pytest.raises(InputError, match="no picture is left of the group"):
        page.decide(found, "add", "okapi", (0, 1))
    assert page.decide(found, "add", "okapi", (7, -1)).endswith("2 pictures.")


def test_more_than_is_shown_is_not_decided(listing: Listing, desk: Open) -> None:
    """Of a large lot as many go as were shown; the number of the others is said."""
    lot = listing.entry("copies", [7] * 16)
    page = desk(lot)
    shown = page.show(lot)
    assert (len(shown.thumbnails), shown.more) == (13, 3)
    assert "remove 12 near duplicates" in review_piece("entry", shown, 1, False)
    assert page.decide(lot, "keep").endswith("; 12 near duplicates go.")


def test_the_large_picture_is_decided_on(trained: Workspace, listing: Listing, desk: Open) -> None:
    """Any of an entry's pictures can be made large: it is the one that gets a class, or that stays."""
    two = listing.entry("two classes", (3, 4))
    lot = listing.entry("copies", (5, 5, 5))
    page = desk(two, lot)
    shown = page.show(two, 1)
    assert [place for place, *_ in shown.beside] == [0]
    assert [place for place, *_ in page.show(lot, 1).beside] == [2, 0]
    drawn = review_piece("entry", shown, 1, False)
    assert "probability that it is wrong" not in drawn, "it is known of the entry's own picture alone"
    page.decide(two, "correct", listing.names[3], place=1)
    page.decide(lot, "keep", place=2)
    page.save()
    now = classes(trained)
    assert [now[one] for one in (id_of(two), *ids_beside(two))] == [listing.names[3]] * 2
    assert [now.get(one) for one in (id_of(lot), *ids_beside(lot))] == [None, None, listing.names[5]]


def test_classes_with_keys(listing: Listing) -> None:
    """Where labels differ these come first, then the likeliest, each once."""
    two = listing.entry("two classes", (3, 1), likely=(1, 0, 2))
    assert [listing.names[i] for i in (3, 1, 0, 2)] == [one.name for one in choices_of(two)]
    assert [one.number for one in choices_of(two)] == [1, 2, 3, 4]
    assert [one.chance for one in choices_of(two)][:2] == [None, 0.5]
    label = listing.entry("label", (0,), likely=(1, 0))
    assert [one.name for one in choices_of(label)] == [listing.names[1], listing.names[0]]
    alike = listing.entry("label", (3, 4), likely=(1, 3))
    assert [one.name for one in choices_of(alike)] == [listing.names[i] for i in (1, 3, 4)]


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_words_and_keys(listing: Listing, desk: Open, reason: Reason) -> None:
    """What it is listed for, and at least one thing to decide beside skipping."""
    entry = listing.entry(reason, (3, 4))
    drawn = review_piece("entry", desk(entry).show(entry), 7, False)
    assert re.search(r'<h2 id="vl-why">\w.{10,}</h2>', drawn)
    assert 'data-turn="7"' in drawn
    assert len(set(re.findall(r'(?:data-act|data-form)="(confirm|correct|add|skip)"', drawn))) > 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(0.4, "may be wrong (40%)"), (0.494, "may be wrong (49%)"), (0.5, "is probably wrong (50%)")],
)
def test_the_words_agree_with_the_probability(
    trained: Workspace, listing: Listing, desk: Open, tmp_path: Path, wrong: float, said: str
) -> None:
    """In the page, the terminal and the sheet: a label that is more likely right is not called probably wrong."""
    entry = replace(listing.entry("label"), wrong=wrong)
    drawn = review_piece("entry", desk(entry).show(entry), 7, False)
    assert f'<h2 id="vl-why">The label {said}</h2>' in drawn
    found = review_of([entry])
    assert str(report_lines(found)[-1]).endswith(f"(the label {said})")
    write_list(tmp_path / "sheet.html", found, trained.snapshot())
    assert f"the label {said}" in (tmp_path / "sheet.html").read_text(encoding="utf-8")


def test_a_kept_list_is_there_at_once(trained: Workspace, listing: Listing, desk: Open) -> None:
    """As it was, with the decisions; not that of other folders, nor a damaged one."""
    entries = [listing.entry("label"), listing.entry("two classes", (3, 4))]
    page = desk(*entries)
    page.decide(entries[0], "confirm")
    again = ReviewService(trained)
    assert again.found == page.found == review_of(entries)
    assert again.next() == entries[1]
    assert ReviewService(trained, ["shots"]).found is None
    kept = trained.path / "runs" / "listed.json"
    for text in (
        "",
        "{",
        "[]",
        "null",
        "{}",
        json.dumps({"format": 1, "folders": [], "from": "", "review": 3}),
    ):
        kept.write_text(text, encoding="utf-8")
        assert ReviewService(trained).found is None, text


def test_a_line_that_a_kill_cut_off_is_no_decision(trained: Workspace, listing: Listing, desk: Open) -> None:
    """What was kept before and after it is there."""
    entries = [listing.entry("label", (n,)) for n in range(3)]
    page = desk(*entries)
    page.decide(entries[0], "confirm")
    kept = trained.path / "runs" / "sitting.jsonl"
    with kept.open("a", encoding="utf-8") as file:
        file.write('\n{"entry": "label: x", "labels"')
    page.decide(entries[1], "confirm")
    assert list(Sitting(trained, entries).decided()) == list(map(key_of, entries[:2]))
    assert page.next() == entries[2]


def test_a_list_is_made_beside(trained: Workspace, listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    """With progress, once at a time; the end of the page stops it; an error is kept in words without details."""
    page = ReviewService(trained)
    assert (page.found, page.progress(), page.next()) == (None, None, None)
    go = threading.Event()
    begun = threading.Event()
    calls = []

    def listed(progress: Any) -> Review:
        calls.append(1)
        progress("look", 3, 10)
        begun.set()
        go.wait(10)
        progress("look", 4, 10)
        return review_of([listing.entry("label")])

    monkeypatch.setattr(page, "_listed", listed)
    page.make()
    page.make()
    assert begun.wait(10)
    assert page.progress() == ("look", 3, 10)
    go.set()
    page.wait()
    assert (len(calls), page.progress(), page.number) == (1, None, 1)
    assert page.next() is not None
    assert ReviewService(trained).found == page.found
    go.clear()
    begun.clear()
    page.make()
    assert begun.wait(10)
    threading.Timer(0.1, go.set).start()
    page.close()
    page.wait()
    assert page.number == 1, "a list that was stopped is none"

    def fails(error: Exception) -> VlltrError | None:
        def raising(progress: Any) -> Review:
            raise error

        failing = ReviewService(trained)
        monkeypatch.setattr(failing, "_listed", raising)
        failing.make()
        failing.wait()
        assert failing.found == page.found
        return failing.error

    assert str(fails(MissingStepError("no image", "Run: vlltr embed"))) == "no image\nRun: vlltr embed"
    assert "/secret/place" not in str(fails(RuntimeError("/secret/place")))


def test_a_list_for_reading_only(trained: Workspace, listing: Listing) -> None:
    """It is shown from place to place, and nothing is decided, saved or written."""
    entries = [listing.entry("label", (n,)) for n in range(2)]
    keep(trained, entries)
    before = {path: path.stat().st_mtime_ns for path in trained.path.rglob("*")}
    page = ReviewService(trained, read_only=True)
    page.make()
    assert page.progress() is None
    assert [page.at(place) for place in (-1, 0, 1, 5)] == [
        (0, entries[0]),
        (0, entries[0]),
        (1, entries[1]),
        (1, entries[1]),
    ]
    assert page.counts().left == 2
    for act in (
        lambda: page.decide(entries[0], "confirm"),
        lambda: page.undo(),
        lambda: page.save(),
    ):
        with pytest.raises(UsageError, match="this page is for reading only"):
            act()
    page.close()
    shown = review_piece("entry", page.show(entries[0]), 1, True)
    assert 'data-act="skip"' in shown
    assert 'data-act="confirm"' not in shown
    assert "<form" not in shown
    assert {path: path.stat().st_mtime_ns for path in trained.path.rglob("*")} == before


def test_every_text_is_escaped(trained: Workspace, listing: Listing, desk: Open) -> None:
    """Names of classes, paths, splits and steps are shown as they are written."""
    page = desk()
    beside = tuple(
        replace(one, class_name=HOSTILE, split=HOSTILE) for one in listing.entry("copies", (5, 5)).beside
    )
    entry = replace(
        listing.entry("two classes"),
        picture=HOSTILE,
        class_name=HOSTILE,
        split=HOSTILE,
        likely=((HOSTILE, 0.5),),
        beside=beside,
    )
    alike = group([HOSTILE, HOSTILE])
    counts = page.counts()
    pieces = [
        *(review_piece("entry", page.show(one), 1, only) for one in (entry, alike) for only in (False, True)),
        review_piece("names", [HOSTILE]),
        review_piece("said", HOSTILE, counts),
        review_piece("bar", True, counts, (HOSTILE, 1, 2), True, False),
    ]
    for shown in pieces:
        assert "<img src=x" not in shown
        assert "&lt;img src=x onerror=alert(1)&gt;" in shown
        assert 'alert(1)> & "' not in shown
