"""What the page does with a workspace, apart from Gradio: examine, add, undo, and render pieces of HTML."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlltr_index.classes import ChangeOptions, ChangeReport, NewClass, add_classes
from vlltr_index.data.decoding import UNREADABLE, open_image
from vlltr_index.data.text import normalise_text, split_sentences
from vlltr_index.errors import InputError, UsageError, WorkspaceError
from vlltr_index.evaluation.report import environment, nearest_pictures
from vlltr_index.pipelines.history import RollbackReport, rollback
from vlltr_index.recognition.counterfactual import Examination
from vlltr_index.recognition.in_words import contrast
from vlltr_index.recognizer import Recognizer

if TYPE_CHECKING:
    from vlltr_index.evaluation.records import Thumbnail
    from vlltr_index.recognition.counterfactual import ExaminedClass
    from vlltr_index.recognition.model import Model
    from vlltr_index.schemas.options import Prior
    from vlltr_index.store.workspace import Workspace

MAX_UPLOAD = 20 * 2**20
"""Most bytes of an uploaded picture."""
MAX_PICTURES = 50
"""Most pictures of an added class."""
MAX_TOGETHER = 200 * 2**20
"""Most bytes of the pictures of an added class."""
MAX_TEXT = 200_000
"""Most characters of an added class's text."""
_MAX_FILE_NAME = 100


class PageService:
    """One workspace, shared by all visitors of a page; safe for several threads.

    Args:
        workspace: With a trained head.
        read_only: Refuse everything that would write.
        prior: How common the classes are, but for `estimated`.

    Raises:
        MissingStepError: If a step before has not been run; the hint names it.
        FingerprintMismatch: If encoder, vectors and head do not belong together.
        UsageError: As for `Model.under`, of the prior.
    """

    def __init__(self, workspace: Workspace, read_only: bool = False, prior: Prior = "balanced") -> None:
        self.workspace = workspace
        self.read_only = read_only
        self.prior = prior
        self.recognizer = Recognizer.open(workspace)
        self.recognizer.current().under(prior)
        _ = self.recognizer.current().encoder  # loaded now, so that its errors are raised at the start
        self._writing = threading.Lock()
        self._made: dict[int, str] = {}  # name of the added class by commit made from the page

    def model(self) -> Model:
        """Return the model of the newest commit that can predict."""
        return self.recognizer.current()

    def answering(self) -> Model:
        """Return that model under the page's prior.

        Raises:
            UsageError: If the prior does not fit the classes any more.
        """
        return self.model().under(self.prior)

    def examine(self, picture: Path) -> Examination:
        """Examine a picture that was uploaded to the page.

        Raises:
            InputError: If it is too large or cannot be read.
        """
        return Examination.of(self.answering(), _read(picture))

    def neighbours(self, found: Examination, one: ExaminedClass) -> tuple[Thumbnail, ...]:
        """Return training pictures of a class that the image side decided for."""
        model = found.model
        return nearest_pictures(model, self.workspace.snapshot(model.commit), found.feature, one)

    def add(self, name: str, text: str, pictures: Sequence[tuple[str, Path]] = ()) -> ChangeReport:
        """Add a class in one commit; its pictures are stored in the workspace.

        Args:
            name: The class's name.
            text: Its text, any number of sentences.
            pictures: Original file name and path of each picture.

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
        images = tuple((file_name(given), _checked(given, path)) for given, path in pictures)
        wanted = NewClass(normalise_text(name), tuple(split_sentences(text)), images=images)
        history = self.workspace.history
        with self._writing:
            newest = history.ids()[-1]
            report = add_classes(self.workspace, [wanted], ChangeOptions(recognizer=self.recognizer))
            name = report.classes[0].name
            since = [
                history.read(i) for i in history.ids() if i > newest
            ]  # may include other processes' commits
            self._made |= {commit.id: name for commit in since if commit.command == f"classes add {name!r}"}
        return report

    def offer(self) -> tuple[int | None, str]:
        """Return the newest state's commit and its class if it was added from the page, else None and ""."""
        state = self.workspace.history.last().state
        return (state, self._made[state]) if state in self._made else (None, "")

    def undo(self, commit: int) -> RollbackReport:
        """Go back to the commit before `commit`, if `offer` offers that.

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


def names_of(model: Model) -> list[str]:
    """Return the names of all classes that can be recognised, in alphabetical order."""
    return sorted((model.names[i] for i in model.class_ids.tolist()), key=str.casefold)


def _read(path: Path) -> bytes:
    """Read a file that was uploaded to the page."""
    if not path.is_file():
        raise InputError("the picture is not there any more", "Give it again.")
    size = path.stat().st_size
    if size > MAX_UPLOAD:
        raise InputError(
            f"a picture of {size / 2**20:.1f} MiB; {MAX_UPLOAD >> 20} are allowed", "Make it smaller."
        )
    return path.read_bytes()


def _checked(given: str, path: Path) -> bytes:
    """Read a picture, and check that it can be decoded."""
    data = _read(path)
    try:
        open_image(data)
    except InputError as error:
        raise InputError(f"{file_name(given)}: {error.message}", UNREADABLE) from None
    return data


def file_name(given: str) -> str:
    """Return a file's name as its owner calls it, without folders, so that it can be shown and stored."""
    return normalise_text(Path(given.replace("\\", "/")).name)[-_MAX_FILE_NAME:] or "picture"


def piece(name: str, *values: Any) -> str:
    """Render the macro `name` of the page's template with some values; all texts are escaped."""
    return str(getattr(_macros(), name)(*values))


@cache
def _macros() -> Any:
    made = environment("vlltr_index.cli.ui")
    # A value that rounds to zero is shown without a sign.
    made.filters["change"] = lambda value: f"{value:+.3f}" if abs(value) >= 5e-4 else "0.000"
    made.globals["contrast"] = contrast
    return made.get_template("page.html").module
