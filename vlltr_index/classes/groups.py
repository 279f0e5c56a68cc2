"""Groups of pictures that are given to a class: by the rule that the workspace's sources are grouped by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from vlltr_index.data.grouping import AUTO, Grouping
from vlltr_index.store.ingestion import times_taken

if TYPE_CHECKING:
    from vlltr_index.schemas.records import ImageRecord
    from vlltr_index.store.transaction import Transaction


def with_groups(tx: Transaction, records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Return images of one class with their groups, if all sources with a rule (`--group`) have the same.

    A file by itself is in no folder of a source.
    """
    rules = {Grouping.parse(told) for told in tx.commit.info.groupings.values()} - {AUTO}
    if len(rules) != 1:
        return list(records)
    (rule,) = rules
    taken = times_taken(records) if rule.how == "seconds" else [None] * len(records)
    placed = [
        replace(one, source=f"{one.class_name}/{PurePath(one.source).name}") if one.source == one.uri else one
        for one in records
    ]
    groups = rule.groups(placed, taken, class_folders=True)
    return [replace(one, group=group) for one, group in zip(records, groups, strict=True)]
