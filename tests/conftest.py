"""Fixtures that several test files use."""

from __future__ import annotations

from pathlib import Path

import pytest
from vlltr_index.schemas.config import Recipe

from vlltr_index.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    return Workspace.create(tmp_path / "workspace", Recipe(name="test"))
