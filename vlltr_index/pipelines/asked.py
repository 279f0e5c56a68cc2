"""What is known of pictures without labels before they are answered: groups, and where and when they were taken."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vlltr_index.data.capture import time_taken
from vlltr_index.data.decoding import image_bytes
from vlltr_index.data.frequencies import Frequencies, Situation, place_of, read_situations
from vlltr_index.data.grouping import Grouping
from vlltr_index.data.unlabelled import unlabelled_images
from vlltr_index.errors import InputError, UsageError
from vlltr_index.schemas.records import ImageRecord
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.schemas.records import Progress

_log = logging.getLogger(__name__)
_NOT_FOUND = {
    "folder": "Rows of a Parquet file lie in no folder.",
    "name": "The expression is looked for in the file's name, without its folder.",
    "seconds": "They do not say when they were taken, in EXIF data.",
}
"""The ways to group, with why none is grouped."""


def groups_of(images: Sequence[str], group: str, progress: Progress | None = None) -> dict[str, str]:
    """Return the group of each picture by name; of those that have none there is none.

    Args:
        images: As for `data.unlabelled.unlabelled_images`.
        group: `folder`: those of one folder; `name:REGEX`: those of one folder in whose names it finds the same;
            `seconds:N`: those of one folder that were taken so soon one after the other. Rows of a Parquet file lie in
            no folder.
        progress: Called after every picture whose time is read.

    Raises:
        InputError: As for `data.unlabelled.unlabelled_images`.
        UsageError: If `group` is none of these, or puts no picture into a group.
    """
    if group.partition(":")[0] not in _NOT_FOUND:
        raise UsageError(
            f"--group {group}: not a way to group pictures without labels",
            "Give folder, name:REGEX or seconds:N.",
        )
    how = Grouping.parse(group)
    timed = how.how == "seconds"
    records = []
    spelled = dict[str, str]()  # each folder as it was named first
    taken = list[float | None]()
    for name, source in unlabelled_images(images, with_data=timed):
        folder, _, own = name.rpartition("/")
        if isinstance(source, str):  # a row of a Parquet file lies in no folder
            own = f"{spelled.setdefault(place_of(folder or '.'), folder or '.')}/{own}"
        records.append(ImageRecord(source=own, uri=name, class_name=None, split=""))
        taken.append(_taken(source) if timed else None)
        if timed and progress:
            progress("look", len(taken), None)
    groups = how.groups(records, taken, class_folders=False)
    found = dict[str, str]()
    for one, named in zip(records, groups, strict=True):
        if named is not None:
            # Cameras count alike in every folder.
            found[one.uri] = f"{one.source.rpartition('/')[0]}/{named}" if how.how == "name" else named
    if not found:
        raise UsageError(
            f"--group {how} puts none of the {plural(len(records), 'picture')} into a group",
            _NOT_FOUND[how.how],
        )
    return found


@dataclass(frozen=True)
class Situated:
    """How common classes are where and when each picture was taken.

    Attributes:
        frequencies: By place and month, and over all.
        of: Place and month of each picture by name; of one that has none here those over all hold.
    """

    frequencies: Frequencies
    of: Mapping[str, Situation]


def find_situations(
    images: Sequence[str], frequencies: Frequencies, taken: Path | None, progress: Progress | None = None
) -> Situated:
    """Find out where and when pictures were taken.

    Args:
        images: As for `data.unlabelled.unlabelled_images`.
        frequencies: How common classes are by place, month or both.
        taken: The file that says it, see `read_situations`. A month that it does not say is read from EXIF.
        progress: Called after every picture whose time is read.

    Raises:
        InputError: As for `data.unlabelled.unlabelled_images` and `read_situations`.
        UsageError: If places are told apart and there is no such file.
    """
    if frequencies.by_place and taken is None:
        raise UsageError(
            "the prior (--prior) is by place, and nothing says where the pictures were taken",
            "Name a file with the columns image and place: --taken FILE",
        )
    by = {"place": frequencies.by_place, "month": frequencies.by_month}
    apart = [column for column, told in by.items() if told]
    said = {} if taken is None else read_situations(taken, apart)
    found = dict[str, Situation]()
    named = 0
    number = 0
    for number, (name, source) in enumerate(unlabelled_images(images, with_data=frequencies.by_month), 1):
        place = place_of(name)
        named += place in said
        here = said.get(place, Situation())
        month = here.month
        if frequencies.by_month and month is None:
            seconds = _taken(source)
            month = None if seconds is None else datetime.fromtimestamp(seconds, UTC).month
            if progress:
                progress("look", number, None)
        at = Situation(here.place if frequencies.by_place else None, month if frequencies.by_month else None)
        if at in frequencies.situated:
            found[name] = at
    if said and not named:
        _log.warning("no row of %s names one of the pictures; its paths are relative to its folder", taken)
    if len(found) < number:
        _log.warning(
            "for %d of %d pictures the prior has no weights of where or when they were taken: its totals are used",
            number - len(found),
            number,
        )
    return Situated(frequencies, found)


def _taken(source: str | bytes) -> float | None:
    """Return when a picture was taken; None if that is not known, or it cannot be read."""
    try:
        return time_taken(image_bytes(source))
    except InputError:
        return None
