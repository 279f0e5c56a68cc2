"""Sentences and images of a class: more of them, or fewer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from vlltr_index.classes.change import Edit, Options, change
from vlltr_index.classes.reports import ChangeReport
from vlltr_index.classes.rows import chosen_ids, classes_of, new_image_rows
from vlltr_index.data.text import normalise_text
from vlltr_index.data.text_readers import class_sentences
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import SentenceRecord
from vlltr_index.store.ingestion import sentence_rows
from vlltr_index.store.tables import one_of
from vlltr_index.wording import many

if TYPE_CHECKING:
    from vlltr_index.classes.session import Session
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

__all__ = ["add_images", "add_sentences", "remove_images", "remove_sentences"]

_EXAMPLES = 5


def add_sentences(
    workspace: Workspace,
    name: str,
    sentences: Sequence[str] = (),
    text: Path | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    session: Session | None = None,
) -> ChangeReport:
    """Give a class more sentences, and select its anchors again.

    Args:
        workspace: With a trained head.
        name: The class.
        sentences: Each taken as one sentence.
        text: A file of text, which is split.
        dry_run: As for `change.Options`; so are `progress` and `session`.

    Raises:
        UnknownClassError: If there is no such class.
        InputError: If there is no sentence in what was given.
    """
    records = [SentenceRecord(name, one, "given") for one in sentences if normalise_text(one)]
    if text is not None:
        records += class_sentences(text, name)
    if not records:
        raise InputError("no sentence was given", "Give --sentence or --text FILE.")

    def write(tx: Transaction) -> Edit:
        class_id = tx.class_table().lookup(name)
        where = f"class_id = {class_id}"
        there = set(tx.table("sentences", ["sentence_id"], where)["sentence_id"].to_pylist())
        rows = sentence_rows({class_id: records}, known=there.__contains__)
        same = f"; {len(records) - rows.num_rows} there before" if rows.num_rows < len(records) else ""
        notes = [f"{many(rows.num_rows, 'sentence')} added{same}."]
        if not rows.num_rows:
            return Edit(shown=[class_id], notes=notes)
        tx.upsert("sentences", rows)
        return Edit({class_id}, [class_id], rows, notes=notes)

    return change(workspace, f"sentences add {name!r}", write, Options(dry_run, progress, session))


def remove_sentences(
    workspace: Workspace,
    name: str,
    ids: Sequence[str] = (),
    matching: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    session: Session | None = None,
) -> ChangeReport:
    """Take sentences from a class, and select its anchors again.

    Args:
        workspace: With a trained head.
        name: The class.
        ids: Sentence ids, or their first six or more characters.
        matching: All sentences that hold this text, in any case.
        dry_run: As for `change.Options`; so are `progress` and `session`.

    Raises:
        UsageError: If neither ids nor a text are given.
        UnknownClassError: If there is no such class.
        InputError: If no sentence fits, or none would be left.
    """
    wanted = normalise_text(matching).casefold() if matching is not None else None
    if not ids and not wanted:
        raise UsageError("which sentences?", "Give their ids, or --matching TEXT.")

    def write(tx: Transaction) -> Edit:
        class_id = tx.class_table().lookup(name)
        look = f"See them: vlltr classes show {tx.class_table().names[class_id]!r} --all"
        rows = tx.table("sentences", ["sentence_id", "text"], f"class_id = {class_id}")
        there = dict(zip(rows["sentence_id"].to_pylist(), rows["text"].to_pylist(), strict=True))
        gone = chosen_ids(ids, list(there), f"sentence of class {name!r} with the id", look)
        if wanted:
            fits = [i for i, text in there.items() if wanted in text.casefold()]
            if not fits:
                raise InputError(f"no sentence of class {name!r} holds {matching!r}", look)
            gone = sorted({*gone, *fits})
        if len(gone) == len(there):
            raise InputError(
                f"class {name!r} would have no sentence left, and could not be recognised by text",
                "Add others first (vlltr sentences add), or remove the class: vlltr classes remove",
            )
        tx.delete("sentences", one_of("sentence_id", gone))
        shown = [f"  {there[i]}" for i in gone[:_EXAMPLES]]
        more = [f"  and {len(gone) - _EXAMPLES} more"] if len(gone) > _EXAMPLES else []
        return Edit({class_id}, [class_id], notes=[f"{many(len(gone), 'sentence')} removed:", *shown, *more])

    return change(workspace, f"sentences remove {name!r}", write, Options(dry_run, progress, session))


def add_images(
    workspace: Workspace,
    name: str,
    paths: Sequence[Path],
    dry_run: bool = False,
    progress: Progress | None = None,
    session: Session | None = None,
) -> ChangeReport:
    """Give a class more training images: all anchors are selected again, and what is known of its images is counted.

    Args:
        workspace: With a trained head.
        name: The class.
        paths: Image files, or folders of them.
        dry_run: As for `change.Options`; so are `progress` and `session`.

    Raises:
        UnknownClassError: If there is no such class.
        InputError: If none of the images can be read, or one is another class's already.
    """

    def write(tx: Transaction) -> Edit:
        class_id = tx.class_table().lookup(name)
        skipped: list[str] = []
        rows = new_image_rows(tx, {class_id: paths}, {class_id: tx.class_table().names[class_id]}, skipped)
        good = rows.filter(pc.is_null(rows["problem"]))
        if not good.num_rows:
            example = f" ({skipped[0]})" if skipped else ""
            raise InputError(f"no readable image among what was given{example}", "Give other files.")
        there = tx.count("images", one_of("image_id", good["image_id"].to_pylist()))
        tx.upsert("images", rows)
        notes = [
            many(good.num_rows - there, "image") + " added" + (f"; {there} there before." if there else ".")
        ]
        notes += [f"Left out: {what}" for what in skipped]
        if good.num_rows == there:
            return Edit(shown=[class_id], notes=notes)
        return Edit({class_id}, [class_id], images=rows, images_changed={class_id}, notes=notes)

    report = change(workspace, f"images add {name!r}", write, Options(dry_run, progress, session))
    return _with_trained_note(report)


def remove_images(
    workspace: Workspace,
    ids: Sequence[str],
    dry_run: bool = False,
    progress: Progress | None = None,
    session: Session | None = None,
) -> ChangeReport:
    """Take images away: all anchors are selected again, and what is known of their classes' images is counted anew.

    A class that loses its last training image is known by text alone, if it was not trained.

    Args:
        workspace: With a trained head.
        ids: Image ids, or their first six or more characters.
        dry_run: As for `change.Options`; so are `progress` and `session`.

    Raises:
        UsageError: If no id is given.
        InputError: If there is no such image, or no image to score sentences against would be left.
    """
    if not ids:
        raise UsageError("which images?", "Give their ids; `vlltr classes show NAME` lists them.")

    def write(tx: Transaction) -> Edit:
        there = tx.table("images", ["image_id"])["image_id"].to_pylist()
        gone = chosen_ids(ids, there, "image with the id", "See them: vlltr classes show NAME")
        where = one_of("image_id", gone)
        rows = tx.table("images", ["class_id", "split"], where)
        tx.delete("images", where)
        owners = {i for i in classes_of(rows.filter(pc.equal(rows["split"], "train"))) if i is not None}
        return Edit(
            owners, sorted(owners), images_changed=owners, notes=[f"{many(len(gone), 'image')} removed."]
        )

    command = f"images remove {' '.join(ids[:3])}" + (" ..." if len(ids) > 3 else "")
    report = change(workspace, command, write, Options(dry_run, progress, session))
    return _with_trained_note(report)


def _with_trained_note(report: ChangeReport) -> ChangeReport:
    kept = [one.name for one in report.classes if one.visual == "trained"]
    if kept and report.changed:
        report.notes.append(
            f"The visual row of {', '.join(map(repr, kept))} is a trained one and stays as it is;"
            " to train all rows again: vlltr refit"
        )
    return report
