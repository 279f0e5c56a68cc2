"""Draw contact sheets: pictures in a grid, each with a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlltr_index.data.decoding import open_image
from vlltr_index.data.writing import whole_file
from vlltr_index.errors import InputError, UsageError
from vlltr_index.wording import shown

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_SIDE = 160  # pixels of a picture, at most
_GAP = 12
_LINE = 17
_LONGEST = 500  # characters of a line that are measured
_PAPER = "white"
_INK = "#1a1a1a"
_GREY = "#595959"
_FRAME = "#d0d0d0"
_ENLARGED = 96  # smaller pictures are enlarged by a whole factor, so that their pixels stay sharp


@dataclass(frozen=True)
class Picture:
    """A picture and the lines of its caption: the first in black, the others in grey."""

    source: bytes | str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """Pictures under one heading, in order, row by row."""

    heading: str
    pictures: tuple[Picture, ...]


def check_target(path: Path) -> Path:
    """Return `path` if a sheet can be written there.

    Raises:
        UsageError: If its ending names no picture format.
        InputError: If its folder is not there.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(
            f"a sheet is written as {', '.join(_ENDINGS)}; {path.name!r} ends otherwise",
            "For example: --out sheet.png",
        )
    if not path.absolute().parent.is_dir():
        raise InputError(f"no such folder: {path.absolute().parent}", "Make it first.")
    return path


def write_sheet(path: Path, title: str, panels: Sequence[Panel], columns: int = 5) -> None:
    """Write a contact sheet into a file.

    Raises:
        UsageError: If the ending names no picture format.
        InputError: If it cannot be written.
    """
    try:
        with whole_file(check_target(path)) as unfinished:
            kind = Image.registered_extensions()[path.suffix.lower()]
            contact_sheet(title, panels, columns).save(unfinished, kind)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}", "Choose another place.") from None


def contact_sheet(title: str, panels: Sequence[Panel], columns: int = 5) -> Image.Image:
    """Draw panels side by side under a title; an unreadable picture becomes an empty frame that says so.

    Args:
        title: Title of the sheet.
        panels: One or more.
        columns: Pictures in a row of a panel, at most.
    """
    columns = max(1, min(columns, max(len(panel.pictures) for panel in panels)))
    lines = max((len(p.lines) for panel in panels for p in panel.pictures), default=1)
    rows = max(1, max(-(-len(panel.pictures) // columns) for panel in panels))
    cell = _SIDE + _LINE * lines + _GAP
    width = columns * (_SIDE + _GAP) + _GAP
    top = 2 * _GAP + 26
    heading = 24 if any(panel.heading for panel in panels) else 0
    size = (width * len(panels), top + heading + rows * cell + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), _fit(draw, title, size[0] - 2 * _GAP, _font(19)), fill=_INK, font=_font(19))
    for number, panel in enumerate(panels):
        left = number * width
        if number:
            draw.line([(left, top), (left, size[1] - _GAP)], fill=_FRAME)
        if panel.heading:
            text = _fit(draw, panel.heading, width - 2 * _GAP, _font(14))
            draw.text((left + _GAP, top - 4), text, fill=_GREY, font=_font(14))
        for at, picture in enumerate(panel.pictures):
            x = left + _GAP + at % columns * (_SIDE + _GAP)
            y = top + heading + at // columns * cell
            _place(sheet, draw, picture, x, y=y)
    return sheet


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Picture, x: int, y: int) -> None:
    """Draw one picture, centred in its square, and its caption."""
    try:
        image = _scaled(open_image(picture.source))
        sheet.paste(image, (x + (_SIDE - image.width) // 2, y + (_SIDE - image.height) // 2))
    except InputError:
        draw.rectangle([x, y, x + _SIDE - 1, y + _SIDE - 1], outline=_FRAME)
        draw.text((x + 8, y + _SIDE // 2 - 8), "cannot be read", fill=_GREY, font=_font(13))
    for number, line in enumerate(picture.lines):
        text = _fit(draw, line, _SIDE, _font(13))
        place = (x, y + _SIDE + 2 + _LINE * number)
        draw.text(place, text, fill=_GREY if number else _INK, font=_font(13))


def _scaled(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    if longest <= _ENLARGED:
        factor = _SIDE // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return image


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(
    draw: ImageDraw.ImageDraw, text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    """Put `text` on one line, cut with three dots if it is too long."""
    text = shown(" ".join(text.split()))[:_LONGEST]
    fitting = text
    while draw.textlength(fitting, font) > width and text:
        text = text[:-1].rstrip()
        fitting = text + "..."
    return fitting
