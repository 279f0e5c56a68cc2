"""What a change to the class list did, and what it did to the classes it was not about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlltr_index.wording import many

_SHOWN = 3  # classes of a change that are named one by one
_DRY = "This was a dry run: nothing was committed."
_UNMEASURED = (
    "What the other classes lose by it was not measured: no image of theirs in split val is embedded."
)
_HARM = 0.01  # a loss of the other classes' accuracy that is worth a warning


@dataclass(frozen=True)
class AddedClass:
    """A class as a change leaves it."""

    name: str
    class_id: int
    sentences: int
    anchors: int
    images: int  # usable ones of split train
    rivals: list[str]
    visual: str = "none"  # what its images do: "trained" on them | known by "images" that came later | "none"

    def line(self, verb: str) -> str:
        """The class for people."""
        how = {
            "trained": "the classifier was trained on them",
            "images": "known by text and images" if self.sentences else "known by its images alone",
            "none": "its images wait for vlltr train lgr" if self.images else "known by text alone",
        }[self.visual]
        return (
            f"{verb} {self.name!r} (class {self.class_id}): {many(self.sentences, 'sentence')},"
            f" {many(self.anchors, 'anchor')}, {many(self.images, 'image')}, {how}."
            f" Nearest: {', '.join(self.rivals) or 'none'}."
        )


@dataclass(frozen=True)
class Effect:
    """Top-1 on stored validation vectors of the classes that a change was not about, before and after.

    None where there are no such images, or nothing that could have an effect was changed.
    """

    before: float | None = None
    after: float | None = None
    images: int = 0
    unmeasured: bool = False  # there may be an effect, and no image to see it by

    def lines(self) -> list[str]:
        """The effect for people, with a warning where it is harm."""
        if self.unmeasured:
            return [_UNMEASURED]
        if self.before is None or self.after is None:
            return []
        lines = [
            f"Old classes on {many(self.images, 'validation image')}:"
            f" {100 * self.before:.1f} % before, {100 * self.after:.1f} % after."
        ]
        if self.before - self.after > _HARM:
            lines.append(
                f"Warning: the old classes lose {100 * (self.before - self.after):.1f} points."
                " Sentences that tell a class apart, or more images of it, may help; `vlltr history` shows the commit"
                " before, `vlltr rollback ID` goes back to it."
            )
        return lines


@dataclass(frozen=True)
class ChangeReport:
    """What a change did to the classes it was about, and to the accuracy of the others."""

    command: str
    dry_run: bool
    notes: list[str]  # what was done, a sentence each
    classes: list[AddedClass]  # as they are now
    effect: Effect
    changed: bool = True  # whether there is a new commit
    added: bool = False  # whether the classes are new

    def lines(self) -> list[str]:
        """The report for people."""
        verb = "Now" if self.changed else "Still"
        if self.added:
            verb = "Would add" if self.dry_run else "Added"
        told = [one.line(verb) for one in self.classes[:_SHOWN]]
        if self.added and len(self.classes) > _SHOWN:
            told.append(f"{verb} {len(self.classes) - _SHOWN} more classes.")
        lines = [*told, *self.notes] if self.added else [*self.notes, *told]
        lines += self.effect.lines()
        return [*lines, _DRY] if self.dry_run else lines


def shortly(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
