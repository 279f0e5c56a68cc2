"""What the page does with a workspace, whatever draws it: answers, additions, taking these back, and pieces of HTML."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlltr_index.classes import ChangeOptions, ChangeReport, NewClass, Session, add_classes
from vlltr_index.data.decoding import UNREADABLE, open_image
from vlltr_index.data.text import normalise_text, split_sentences
from vlltr_index.errors import InputError, UsageError, WorkspaceError
from vlltr_index.evaluation.report import environment, nearest_pictures
from vlltr_index.pipelines.history import RollbackReport, rollback
from vlltr_index.recognition.counterfactual import Examination
from vlltr_index.recognition.in_words import rather_than
from vlltr_index.recognizer import Recognizer

if TYPE_CHECKING:
    from vlltr_index.evaluation.records import Thumbnail
    from vlltr_index.recognition.counterfactual import ExaminedClass
    from vlltr_index.recognition.predictor import Answers
    from vlltr_index.store.workspace import Workspace

MAX_UPLOAD = 20 * 2**20
"""Bytes a picture that is given to the page may have."""
MAX_PICTURES = 50
"""Pictures a class may be added with."""
MAX_TOGETHER = 200 * 2**20
"""Bytes these may have together."""
MAX_TEXT = 200_000
"""Characters the text of a class may have."""
_MAX_FILE_NAME = 100


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
        self.workspace = workspace
        self.read_only = read_only
        self._recognizer = Recognizer.open(workspace)
        _ = self._recognizer.encoder  # what is wrong with it is said now, not to the first visitor
        self._session = Session(workspace)
        self._writing = threading.Lock()
        self._made: dict[int, str] = {}  # commits that were made from the page, and the class that each added

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
        together = sum(path.stat().st_size for _, path in pictures if path.is_file())
        sizes = (
            ("characters", len(text), MAX_TEXT),
            ("pictures", len(pictures), MAX_PICTURES),
            ("bytes of pictures", together, MAX_TOGETHER),
        )
        for what, count, most in sizes:
            if count > most:
                said = f"{count:,} {what}; {most:,} are allowed here"
                raise InputError(said, "Use vlltr classes add for more.")
        images = tuple((_file_name(given), _checked(given, path)) for given, path in pictures)
        wanted = NewClass(normalise_text(name), tuple(split_sentences(text)), images=images)
        history = self.workspace.history
        with self._writing:
            newest = history.ids()[-1]
            report = add_classes(self.workspace, [wanted], ChangeOptions(session=self._session))
            name = report.classes[0].name
            since = [history.read(i) for i in history.ids() if i > newest]  # others' commits among them
            self._made |= {commit.id: name for commit in since if commit.command == f"classes add {name!r}"}
        return report

    def offer(self) -> tuple[int | None, str]:
        """What can be taken back: the newest state's commit and its class, if it was made from the page."""
        state = self.workspace.history.last().state
        return (state, self._made[state]) if state in self._made else (None, "")

    def undo(self, commit: int) -> RollbackReport:
        """Go back to the commit before `commit`, if that is what `offer` offers.

        Raises:
            WorkspaceError: If something newer would be taken back with it, or the commit before is gone.
            UsageError: If the page is for reading only.
        """
        self._check_writable()
        with self._writing:
            last = self.workspace.history.last()
            if commit not in self._made or last.state != commit:
                raise WorkspaceError(
                    f"commit {commit} is not the newest any more, that is commit {last.id} ({last.command}): nothing"
                    " was undone",
                    "Only what was done last, and from this page, can be undone here. For anything else: vlltr history,"
                    " then vlltr rollback",
                )
            before = self.workspace.history.read(commit).parent or 0
            return rollback(self.workspace, before, newest=last.id)

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
    if not path.is_file():
        raise InputError("the picture is not there any more", "Give it again.")
    size = path.stat().st_size
    if size > MAX_UPLOAD:
        raise InputError(
            f"a picture of {size / 2**20:.1f} MiB; {MAX_UPLOAD >> 20} are allowed", "Make it smaller."
        )
    return path.read_bytes()


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


def piece(name: str, *values: Any) -> str:
    """The piece of the page that the macro `name` of its template draws of some values, with every text escaped."""
    return str(getattr(_macros(), name)(*values))


@cache
def _macros() -> Any:
    made = environment("vlltr_index.cli.ui")
    # What rounds to nothing has no sign.
    made.filters["change"] = lambda value: f"{value:+.3f}" if abs(value) >= 5e-4 else "0.000"
    made.globals["rather_than"] = rather_than
    return made.get_template("page.html").module
