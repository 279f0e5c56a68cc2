"""What an ingestion did, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from vlltr_index.schemas.records import Skipped
from vlltr_index.wording import many

__all__ = ["IngestReport", "Notes", "some"]

_EXAMPLES = 10


@dataclass(frozen=True)
class IngestReport:
    """What an ingestion did. `notes` are examples of what was left out or kept aside, ten at most of each kind."""

    kind: str  # "images" | "sentences"
    source: str
    added: int
    updated: int  # images whose file, class or address changed
    unchanged: int  # there before; sentences: the same text in the same class
    classes_added: int
    classes: int
    splits: dict[str, int] = field(default_factory=dict)  # images of this source that are in, by split
    prompts: int = 0  # sentences made from class names; where text came in, they count as added
    quarantined: int = 0  # images kept with the reason why they cannot be used
    skipped: int = 0
    unknown_class: int = 0  # images left out because no class has that name
    duplicates_across_splits: int = 0  # images of the splits brought in whose very bytes are in another too
    duplicates_in: list[str] = field(default_factory=list)  # those splits
    notes: list[str] = field(default_factory=list)
    next_step: str | None = None

    def lines(self) -> list[str]:
        """The report for people."""
        by_split = ", ".join(f"{name} {count:,}" for name, count in sorted(self.splits.items()))
        same = "there before" if self.kind == "images" else "repeated or there before"
        counts = [(self.added, "added"), (self.updated, "updated"), (self.unchanged, same)]
        said = ", ".join(f"{count:,} {what}" for count, what in counts if count or what == "added")
        lines = [f"{self.source}: {self.kind} {said}" + (f" ({by_split})" if by_split else "") + "."]
        if self.prompts:
            made = (
                many(self.prompts, "prompt was", "prompts were")
                if self.kind == "images"
                else many(self.prompts, "of them is a prompt", "of them are prompts")
            )
            lines.append(f"{made} made from the class names.")
        lines.append(f"Classes: {self.classes:,}, {self.classes_added:,} of them new.")
        if self.quarantined:
            kept = many(self.quarantined, "image cannot be read; it is", "images cannot be read; they are")
            lines.append(f"{kept} kept aside with the reason.")
        if self.skipped:
            lines.append(f"{many(self.skipped, 'entry was', 'entries were')} left out.")
        if self.unknown_class:
            out = many(self.unknown_class, "image was", "images were")
            lines.append(f"{out} left out: the workspace has no class of that name.")
        if self.duplicates_across_splits:
            twice = many(self.duplicates_across_splits, "image is", "images are")
            lines.append(
                f"Warning: {twice} in more than one split, byte for byte: {', '.join(self.duplicates_in)}."
            )
        lines += [f"  {note}" for note in self.notes]
        return [*lines, f"Next: {self.next_step}"] if self.next_step else lines


@dataclass
class Notes:
    """Counts of what was left out, and the first few of each kind in words."""

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, kind: str, line: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= _EXAMPLES:
            self.lines.append(line)

    def skip(self, item: Skipped) -> None:
        self.add("skipped", f"left out: {item.where}: {item.why}")


def some(names: Iterable[str]) -> str:
    """The first three of `names`, and how many more there are."""
    shown = list(names)
    more = f" and {len(shown) - 3:,} more" if len(shown) > 3 else ""
    return ", ".join(map(repr, shown[:3])) + more
