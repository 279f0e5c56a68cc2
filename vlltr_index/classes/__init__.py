"""Add, change and remove classes of a trained workspace, as rows of its tables, without training."""

from __future__ import annotations

from vlltr_index.classes.change import ChangeOptions as ChangeOptions
from vlltr_index.classes.deciding import Decisions as Decisions
from vlltr_index.classes.deciding import decide as decide
from vlltr_index.classes.editing import NewClass as NewClass
from vlltr_index.classes.editing import add_class as add_class
from vlltr_index.classes.editing import add_classes as add_classes
from vlltr_index.classes.editing import add_images as add_images
from vlltr_index.classes.editing import add_sentences as add_sentences
from vlltr_index.classes.editing import merge_classes as merge_classes
from vlltr_index.classes.editing import read_manifest as read_manifest
from vlltr_index.classes.editing import remove_classes as remove_classes
from vlltr_index.classes.editing import remove_images as remove_images
from vlltr_index.classes.editing import remove_sentences as remove_sentences
from vlltr_index.classes.editing import rename_class as rename_class
from vlltr_index.classes.relabelling import RelabelReport as RelabelReport
from vlltr_index.classes.relabelling import relabel_images as relabel_images
from vlltr_index.classes.report import ChangeReport as ChangeReport
from vlltr_index.classes.report import ClassState as ClassState
