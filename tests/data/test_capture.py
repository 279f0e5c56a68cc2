"""When a picture was taken."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.pictures import COLOURS, encoded, timed
from vlltr_index.data.capture import time_taken

NOON = datetime(2024, 5, 6, 12, 0, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_time_and_its_part_of_a_second(kind: str) -> None:
    """From DateTimeOriginal in every format that has EXIF data."""
    assert time_taken(timed("2024:05:06 12:00:00", kind=kind)) == NOON
    assert time_taken(timed("2024:05:06 12:00:00", part="25", kind=kind)) == NOON + 0.25


def test_the_time_of_the_file_where_there_is_no_other() -> None:
    """DateTime; of both, DateTimeOriginal counts."""
    assert time_taken(timed(None, changed="2024:05:06 12:00:00")) == NOON
    assert time_taken(timed("2024:05:06 12:00:00", changed="2025:05:06 12:00:00")) == NOON


@pytest.mark.parametrize(
    "text",
    [
        "",
        "    :  :     :  :  ",
        "0000:00:00 00:00:00",
        "2024:13:06 12:00:00",
        "yesterday",
        "2024:05:06",
        "9" * 60_000,
    ],
)
def test_what_is_no_time_is_none(text: str) -> None:
    """As cameras without a clock write it."""
    assert time_taken(timed(text)) is None


def test_files_without_a_time() -> None:
    """Or without a picture."""
    assert time_taken(encoded(COLOURS)) is None
    assert time_taken(b"") is None
    assert time_taken(b"no picture") is None


@given(st.data())
def test_damaged_data_raise_nothing(data: st.DataObject) -> None:
    """Bytes of the EXIF data are others, or the file is cut."""
    good = bytearray(
        timed("2024:05:06 12:00:00", part="25", kind=data.draw(st.sampled_from(["JPEG", "TIFF", "WEBP"])))
    )
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(0, min(200, len(good) - 1)))] = data.draw(st.integers(0, 255))
    found = time_taken(bytes(good[: data.draw(st.integers(0, len(good)))]))
    assert found is None or isinstance(found, float)


def test_entries_of_other_kinds() -> None:
    """A number, or bytes, where text is expected."""
    exif = Image.Exif()
    exif[0x0132] = 5
    assert time_taken(encoded(COLOURS, "JPEG", exif=exif)) is None
