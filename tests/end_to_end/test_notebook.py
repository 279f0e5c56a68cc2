"""The page in Python, `docs/notebook.md`: its code gives what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.notebook import PAGE, PICTURES, run
from tests.support.pages import in_pattern


def test_the_pictures_are_those_that_the_page_shows() -> None:
    """No file is missing, and none is left over."""
    shown = re.findall(r"\(notebook/(.+?\.png)\)", PAGE.read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(path.name for path in PICTURES.iterdir())
    assert len(shown) == 3


@pytest.mark.slow
def test_the_page_gives_what_it_shows(tmp_path: Path) -> None:
    """Run again in an empty folder, its lines are the same but for the numbers, and its pictures nearly so."""
    shown = PAGE.read_text(encoding="utf-8")
    given, pictures = run(shown, tmp_path)
    assert in_pattern(given) == in_pattern(shown)
    assert pictures.keys() == {path.name for path in PICTURES.iterdir()}
    for name, data in pictures.items():
        (tmp_path / name).write_bytes(data)
        found, expected = (
            np.asarray(Image.open(folder / name).convert("L"), dtype=float) for folder in (tmp_path, PICTURES)
        )
        assert found.shape == expected.shape, name
        assert np.abs(found - expected).mean() < 1, name
