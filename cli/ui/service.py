"""What the page does with a workspace, whatever draws it: answers, additions, and taking back what was added here."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlltr_index.classes import ChangeReport, NewClass, Session, add_classes
from vlltr_index.data.decoding import UNREADABLE, open_image
from vlltr_index.data.text import normalise_text, split_sentences
from vlltr_index.errors import InputError, UsageError, WorkspaceError
from vlltr_index.evaluation.report import nearest_pictures
from vlltr_index.pipelines.history import RollbackReport, rollback
from vlltr_index.recognition.counterfactual import Examination
from vlltr_index.recognizer import Recognizer

if TYPE_CHECKING:
    from vlltr_index.evaluation.records import Thumbnail
    from vlltr_index.recognition.counterfactual import ExaminedClass
    from vlltr_index.recognition.predictor import Answers
    from vlltr_index.store.workspace import Workspace

__all__ = ["MAX_PICTURES", "MAX_TEXT", "MAX_UPLOAD", "Desk", "Made", "names_of"]

MAX_UPLOAD = 20 * 2**20
"""Bytes a picture that is given to the page may have."""
MAX_PICTURES = 50
"""Pictures a class may be added with."""
MAX_TEXT = 200_000
"""Characters the text of a class may have."""
_MAX_FILE_NAME = 100


@dataclass(frozen=True, slots=True)
class Made:
    """A commit that was made from the page.

    Attributes:
        commit: Its number.
        before: The commit it came after, which taking it back goes back to.
        name: The class that it added.
    """

    commit: int
    before: int
    name: str


class Desk:
    """One workspace as all visitors of a page share it; several threads may use it.

    Args:
        workspace: With a trained head.
        read_only: Refuse everything that would write.

    Raises:
        MissingStepError: If a step before has not been run; the hint names it.
        FingerprintMismatch: If encoder, vectors and head do not belong together.
    """

    def __init__(self, workspace: Workspace, read_only: bool = False) -> None:
        self.workspace, self.read_only = workspace, read_only
        self._recognizer = Recognizer.open(workspace)
        _ = self._recognizer.encoder  # what is wrong with it is said now, not to the first visitor
        self._session = Session(workspace)
        self._writing = threading.Lock()
        self._made: list[Made] = []

    def answers(self) -> Answers:
        """The newest commit that can answer."""
        return self._recognizer.current()

    def examine(self, picture: Path) -> Examination:
        """Look at a picture that was given to the page.

        Raises:
            InputError: If it is too large or cannot be read.
        """
        return Examination.of(self.answers(), _read(picture))

    def neighbours(self, found: Examination, one: ExaminedClass) -> tuple[Thumbnail, ...]:
        """Training pictures of a class that the image side decided for."""
        answers = found.answers
        return nearest_pictures(answers, self.workspace.snapshot(answers.commit), found.feature, one)

    def add(self, name: str, text: str, pictures: Sequence[tuple[str, Path]] = ()) -> ChangeReport:
        """Add a class in one commit; its pictures are kept in the workspace.

        Args:
            name: Its name.
            text: What is known of it, any number of sentences.
            pictures: Names of files as their owner calls them, and where they lie.

        Raises:
            InputError: If the name is taken or empty, a limit is passed, a picture cannot be read, or nothing at all
                is known of the class.
            UsageError: If the page is for reading only.
        """
        self._check_writable()
        if len(text) > MAX_TEXT:
            raise InputError(
                f"a text of {len(text):,} characters; {MAX_TEXT:,} are allowed here",
                "Add it on the command line: vlltr classes add NAME --text FILE",
            )
        if len(pictures) > MAX_PICTURES:
            raise InputError(
                f"{len(pictures)} pictures; {MAX_PICTURES} are allowed here",
                "Add the class with some of them, the others on the command line: vlltr images add NAME FOLDER",
            )
        images = tuple((_file_name(given), _checked(given, path)) for given, path in pictures)
        wanted = NewClass(name, tuple(split_sentences(text)), image_bytes=images)
        with self._writing:
            newest = self.workspace.history.ids()[-1]
            report = add_classes(self.workspace, [wanted], session=self._session)
            self._made += self._made_since(newest, report.classes[0].name)
        return report

    def _made_since(self, newest: int, name: str) -> list[Made]:
        """The commit after `newest` that added the class; other programs may have committed around it."""
        since = (self.workspace.history.read(i) for i in self.workspace.history.ids() if i > newest)
        command = f"classes add {name!r}"
        return [Made(c.id, c.parent, name) for c in since if c.command == command and c.parent is not None]

    def offer(self) -> Made | None:
        """What can be taken back: the newest state of the workspace, if it was made from the page."""
        if self.read_only:
            return None
        made, last = self._made[-1:], self.workspace.history.last()
        return made[0] if made and last.state == made[0].commit else None

    def undo(self, commit: int) -> RollbackReport:
        """Go back to the commit before `commit`, if that is what `offer` offers.

        Raises:
            WorkspaceError: If something newer would be taken back with it, or the commit before is gone.
            UsageError: If the page is for reading only.
        """
        self._check_writable()
        with self._writing:
            offered, last = self.offer(), self.workspace.history.last()
            if offered is None or offered.commit != commit:
                now = f"commit {last.id} ({last.command})" if last.id else "nothing"
                raise WorkspaceError(
                    f"commit {commit} is not the newest any more, that is {now}: nothing was undone",
                    "Only what was done last, and from this page, can be undone here. For anything else: vlltr history,"
                    " then vlltr rollback",
                )
            report = rollback(self.workspace, offered.before, newest=last.id)
            self._made.pop()
        return report

    def _check_writable(self) -> None:
        if self.read_only:
            raise UsageError(
                "this page is for reading only", "Start it without --read-only, or use the command line."
            )


def names_of(answers: Answers) -> list[str]:
    """Names of all classes that can be recognised, in alphabetical order."""
    return sorted((answers.names[i] for i in answers.scorer.class_ids.tolist()), key=str.casefold)


def _read(path: Path) -> bytes:
    """The bytes of a file that was given to the page."""
    try:
        size = path.stat().st_size
        if size > MAX_UPLOAD:
            raise InputError(
                f"a picture of {size / 2**20:.1f} MiB; {MAX_UPLOAD >> 20} are allowed", "Make it smaller."
            )
        return path.read_bytes()
    except OSError:
        raise InputError("the picture is not there any more", "Give it again.") from None


def _checked(given: str, path: Path) -> bytes:
    """The bytes of a picture that can be read."""
    data = _read(path)
    try:
        open_image(data)
    except InputError as error:
        raise InputError(f"{_file_name(given)}: {error.message}", UNREADABLE) from None
    return data


def _file_name(given: str) -> str:
    """A file's name as its owner calls it, without folders, so that it can be shown and stored."""
    return normalise_text(Path(given.replace("\\", "/")).name)[-_MAX_FILE_NAME:] or "picture"
