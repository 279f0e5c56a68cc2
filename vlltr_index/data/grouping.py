"""How to tell which pictures of a source belong together (`--group`)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vlltr_index.errors import UsageError
from vlltr_index.heads.bursts import bursts
from vlltr_index.schemas.records import ImageRecord

_GROUPS = 2  # of several pictures that a class has in the mean, where names tell groups
_FORMS = (
    "Give folder, column:NAME, name:REGEX, path:REGEX, seconds:N, or auto: a column group, else pictures are"
    " compared."
)


@dataclass(frozen=True)
class Grouping:
    """A way to tell which pictures belong together.

    Attributes:
        how: `auto`: a table's column `group`, where there is one. `folder`: the folder below the class folder, or of a
            list the picture's own. `column`: another column. `name`: what a regular expression finds in the file's
            name. `path`: the same in the path below the source. `seconds`: pictures of one folder, each taken soon
            after the one before.
        value: The column, the expression, or the seconds; empty for the others.
    """

    how: Literal["auto", "folder", "column", "name", "path", "seconds"] = "auto"
    value: str = ""

    @classmethod
    def parse(cls, text: str) -> Grouping:
        """Read what `--group` says.

        Raises:
            UsageError: If it has none of the forms, the expression is none, or the seconds are no number.
        """
        how, colon, value = text.partition(":")
        if how in ("auto", "folder") and not colon:
            return cls("auto" if how == "auto" else "folder")
        if how == "column" and value:
            return cls("column", value)
        if how in ("name", "path") and value:
            try:
                re.compile(value)
            except (re.error, RecursionError, OverflowError) as error:
                raise UsageError(
                    f"--group {text}: {value!r} is no regular expression: {error}",
                    r"For burst12_3.jpg, burst12_4.jpg: --group 'name:^(.+)_\d+'",
                ) from None
            return cls("name" if how == "name" else "path", value)
        if how == "seconds" and value:
            try:
                seconds = float(value)
            except ValueError:
                seconds = math.nan
            if not 0 <= seconds < math.inf:
                raise UsageError(
                    f"--group {text}: {value!r} is no number of seconds", "For example: seconds:10"
                )
            return cls("seconds", value)
        raise UsageError(f"--group {text}: not a way to group pictures", _FORMS)

    @property
    def column(self) -> str | None:
        """The column of a table that was asked for."""
        return self.value if self.how == "column" else None

    def __str__(self) -> str:
        """Return what `--group` says."""
        return f"{self.how}:{self.value}" if self.value else self.how

    def groups(
        self, records: Sequence[ImageRecord], taken: Sequence[float | None], class_folders: bool
    ) -> list[str | None]:
        """Return the group of each image of a source; None where this grouping has none for it.

        Args:
            records: All images of the source.
            taken: For `seconds` when each was taken, see `capture.time_taken`; None where it is not known.
            class_folders: Whether the first folder names the class, and so is no group.
        """
        if self.how == "folder":
            parents = [one.source.rpartition("/")[0] for one in records]
            return [
                None if not parent or (class_folders and "/" not in parent) else parent for parent in parents
            ]
        if self.how in ("name", "path"):
            pattern = re.compile(self.value)
            searched = (
                one.source if self.how == "path" else one.source.rpartition("/")[2] for one in records
            )
            found = [pattern.search(text) for text in searched]
            return [None if match is None else (match[min(1, pattern.groups)] or None) for match in found]
        if self.how == "seconds":
            return self._by_time(records, taken)
        return [one.group for one in records]

    def _by_time(self, records: Sequence[ImageRecord], taken: Sequence[float | None]) -> list[str | None]:
        """Group pictures by time; one that was taken alone is a group by itself."""
        places = [(one.split, one.source.rpartition("/")[0]) for one in records]
        first = [n if of is None else of for n, of in enumerate(bursts(taken, places, float(self.value)))]
        return [
            None if taken[n] is None else f"{records[of].source} at {taken[of]}" for n, of in enumerate(first)
        ]


AUTO = Grouping()
_LIKELY = (Grouping("folder"), Grouping("path", "^([^/]+/[^_.]+)"), Grouping("path", r"^(.+)[-_ ]\(?\d+"))
"""Ways that often tell what belongs together: `owl/nest/1.jpg`, `owl/1_aug2.jpg`, `owl/nest-7 (2).jpg`."""


class LikelyGroups(NamedTuple):
    """Groups that the names of the pictures in class folders suggest.

    Attributes:
        grouping: What makes them.
        groups: How many have several pictures.
        pictures: How many lie in these.
    """

    grouping: Grouping
    groups: int
    pictures: int


def likely_groups(records: Sequence[ImageRecord]) -> LikelyGroups | None:
    """Find a way by which most of the pictures in class folders are in groups of several, and few groups are a class.

    Args:
        records: All images of a folder of class folders.
    """
    classes = len({one.class_name for one in records})
    untold = [None] * len(records)
    for way in _LIKELY:
        sizes = Counter(way.groups(records, untold, class_folders=True))
        del sizes[None]
        several = [size for size in sizes.values() if size > 1]
        if 2 * sum(several) >= len(records) and len(several) >= _GROUPS * classes:
            return LikelyGroups(way, len(several), sum(several))
    return None
