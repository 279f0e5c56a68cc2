"""Groups of pictures that are given to a class: by the rule that the workspace's sources are grouped by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vlltr_index.data.grouping import AUTO, Grouping
from vlltr_index.store.ingestion import times_taken

if TYPE_CHECKING:
    from vlltr_index.schemas.records import ImageRecord
    from vlltr_index.store.transaction import Transaction


def rule_of(tx: Transaction) -> Grouping:
    """Return the rule (`--group`) of all sources that have one, if it is the same, else `AUTO`."""
    rules = {Grouping.parse(told) for told in tx.commit.info.groupings.values()} - {AUTO}
    return rules.pop() if len(rules) == 1 else AUTO


def with_groups(rule: Grouping, records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Return images of one class with their groups by a rule; as they are by `AUTO`."""
    if rule == AUTO:
        return list(records)
    taken = times_taken(records) if rule.how == "seconds" else [None] * len(records)
    if rule.how == "folder":
        groups = [_folder(one) for one in records]
    elif rule.how == "path":
        groups = rule.groups(
            [replace(one, source=_below_class(one)) for one in records], taken, class_folders=True
        )
    else:
        groups = rule.groups([replace(one, source=one.uri) for one in records], taken, class_folders=True)
    return [replace(one, group=group) for one, group in zip(records, groups, strict=True)]


def _below_class(record: ImageRecord) -> str:
    """Return the path of a picture as in a folder of class folders; a file by itself lies in its class's folder."""
    of_class = f"{record.class_name}/"
    placed = record.source.startswith(of_class)
    return record.source if placed else of_class + record.source.rpartition("/")[2]


def _folder(record: ImageRecord) -> str | None:
    """Return the folder of a picture below the one that was given; None for one in it, and for a file by itself."""
    below = record.source.removeprefix(f"{record.class_name}/")
    return record.uri.rpartition("/")[0] if record.source != record.uri and "/" in below else None
