"""Sharing a model: exporting a workspace as a folder, reading such a folder, and the hub."""

from __future__ import annotations

from vlltr_index.recognition.exported.hub import locate, push
from vlltr_index.recognition.exported.reading import read_model
from vlltr_index.recognition.exported.tables import export_tables
from vlltr_index.recognition.exported.writing import ExportReport, export_model

__all__ = ["ExportReport", "export_model", "export_tables", "locate", "push", "read_model"]
