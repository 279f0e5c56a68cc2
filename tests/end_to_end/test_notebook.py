"""The notebook: its cells give what it shows, and its page is made of it."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.notebook import DOCS, page, pictures, read, run
from tests.support.pages import in_pattern


def texts(notebook: dict[str, Any]) -> list[str]:
    """What its cells print, with each number as `#`."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return [in_pattern(line) for output in outputs for line in output.get("text", ())]


def test_the_page_is_that_of_the_notebook() -> None:
    """Text, code, outputs and pictures: `python -m benchmarks.notebook` wrote both."""
    notebook = read()
    assert (DOCS / "notebook.md").read_text(encoding="utf-8") == page(notebook)
    there = {path.name: path.read_bytes() for path in (DOCS / "notebook").iterdir()}
    assert there == pictures(notebook)
    assert len(there) == 3


@pytest.mark.slow
def test_the_notebook_gives_what_it_shows(tmp_path: Path) -> None:
    """Run again in an empty folder, its lines are the same but for the numbers, and its pictures nearly so."""
    shown = read()
    given = run(shown, tmp_path)
    assert texts(given) == texts(shown)
    wanted = pictures(shown)
    for name, data in pictures(given).items():
        found, expected = (
            np.asarray(Image.open(BytesIO(one)).convert("L"), dtype=float) for one in (data, wanted[name])
        )
        assert found.shape == expected.shape, name
        assert np.abs(found - expected).mean() < 1, name
