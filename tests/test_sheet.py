"""Tests of contact sheets."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from vlltr_index.errors import InputError, UsageError
from vlltr_index.recognition.sheet import Panel, Picture, check_target, contact_sheet, write_sheet


def picture(colour: str, size: tuple[int, int] = (8, 8)) -> Picture:
    """A picture of one colour with two lines under it."""
    out = BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return Picture(out.getvalue(), (colour, "+0.5"))


def colours(image: Image.Image) -> set[tuple[int, int, int]]:
    """The colours that cover more than a thousand pixels."""
    found = image.getcolors(2**24)
    assert found is not None
    return {colour for count, colour in found if count > 1000}  # type: ignore[misc]  # RGB pixels are tuples


def test_pictures_stand_in_rows_and_panels_side_by_side() -> None:
    """Seven pictures in rows of three, and a second panel as wide to the right."""
    pictures = tuple(picture("red") for _ in range(7))
    one = contact_sheet("title", [Panel("", pictures)], columns=3)
    two = contact_sheet("title", [Panel("left", pictures), Panel("right", (picture("blue"),))], columns=3)
    assert two.width == 2 * one.width
    assert two.height > one.height
    assert colours(one) == {(255, 255, 255), (255, 0, 0)}
    assert (0, 0, 255) not in colours(two.crop((0, 0, one.width, two.height)))
    assert (0, 0, 255) in colours(two.crop((one.width, 0, two.width, two.height)))


def test_a_picture_that_cannot_be_read_leaves_a_frame() -> None:
    """The others are there all the same."""
    sheet = contact_sheet("t", [Panel("", (Picture(b"no image", ("gone",)), picture("red")))])
    assert (255, 0, 0) in colours(sheet)


def test_where_a_sheet_goes(tmp_path: Path) -> None:
    """The ending names the format, the folder is there, the place can be written."""
    panels = [Panel("", (picture("red"),))]
    write_sheet(tmp_path / "a.JPG", "t", panels)
    with Image.open(tmp_path / "a.JPG") as image:
        assert image.format == "JPEG"
    with pytest.raises(UsageError, match=r"a sheet is written as .* 'a\.svg' ends otherwise"):
        check_target(tmp_path / "a.svg")
    with pytest.raises(InputError, match="no such folder"):
        check_target(tmp_path / "none" / "a.png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_sheet(tmp_path / "b.png", "t", panels)
