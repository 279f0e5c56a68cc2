"""The class list of a trained workspace as rows: add, change and remove classes without training."""

from __future__ import annotations

from vlltr_index.classes.adding import NewClass, add_class, add_classes, read_manifest
from vlltr_index.classes.editing import (
    add_images,
    add_sentences,
    merge_classes,
    remove_classes,
    remove_images,
    remove_sentences,
    rename_class,
)
from vlltr_index.classes.reports import AddedClass, ChangeReport
from vlltr_index.classes.session import Session

__all__ = [
    "AddedClass",
    "ChangeReport",
    "NewClass",
    "Session",
    "add_class",
    "add_classes",
    "add_images",
    "add_sentences",
    "merge_classes",
    "read_manifest",
    "remove_classes",
    "remove_images",
    "remove_sentences",
    "rename_class",
]
