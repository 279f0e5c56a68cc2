"""Tests of decoding."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps, PngImagePlugin

from tests.support.pictures import COLOURS, RNG, encoded, put
from vlltr_index.data.decoding import MAX_PIXELS, MAX_RATIO, THUMBNAIL, Probe, open_image, probe, read_image
from vlltr_index.encoders.openclip import MAX_RESIZED, Preprocessing
from vlltr_index.errors import InputError
from vlltr_index.schemas.records import ImageRecord


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def pixels(image: Image.Image) -> list[Any]:
    """The first row of pixels."""
    return np.asarray(image)[0].tolist()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG"])
def test_every_format_decodes_to_rgb(kind: str, tmp_path: Path) -> None:
    """By bytes, by path and by record: RGB of the right size; lossless formats bit for bit."""
    data = encoded(COLOURS, kind, **({"lossless": True} if kind == "WEBP" else {}))
    path = put(tmp_path / f"x.{kind.lower()}", data)
    record = ImageRecord("x", str(path), None, "train")
    inside = ImageRecord("x", "a.parquet#0", None, "train", data)
    for source in (data, path, str(path), record, inside):
        image = open_image(source)
        assert (image.mode, image.size) == ("RGB", (7, 5))
        if kind not in ("JPEG", "GIF"):
            assert np.array_equal(np.asarray(image), np.asarray(COLOURS))
        found = probe(source)
        assert found[:4] == (hashlib.sha256(data).hexdigest(), 7, 5, None)
        assert len(found.thumbnail or b"") == THUMBNAIL**2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_rotation_is_applied(kind: str, orientation: int) -> None:
    """All eight orientations come out as Pillow's own transposition has them, the size of the probe too."""
    smooth = Image.fromarray(np.add.outer(np.arange(16), np.arange(24) * 3).astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    naive = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(naive))
    assert probe(data)[1:3] == naive.size == ((24, 16) if orientation < 5 else (16, 24))


@pytest.mark.parametrize(
    ("size", "expected"), [((800, 600), (341, 256)), ((5000, 300), (4267, 256)), ((9, 900), (9, 900))]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_images_are_reduced(size: tuple[int, int], expected: tuple[int, int], kind: str) -> None:
    """The shorter side is at most `side`, the ratio is kept, nothing is enlarged."""
    image = open_image(encoded(Image.new("L", size, 90), kind), side=256)
    assert (image.size, image.getpixel((0, 0))) == (expected, (90, 90, 90))


def test_damaged_exif_does_not_lose_the_picture() -> None:
    """EXIF data that cannot be parsed is ignored."""
    data = encoded(COLOURS, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert open_image(data).size == (7, 5)


def test_transparent_parts_become_white() -> None:
    """RGBA, LA, a palette with a transparent colour, and a colour key."""
    rgba = Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8))
    assert pixels(open_image(encoded(rgba))) == [[255, 0, 0], [255, 255, 255], [127, 127, 127]]
    assert pixels(open_image(encoded(rgba.convert("LA"))))[1] == [255, 255, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.putdata([0, 1])
    assert pixels(open_image(encoded(palette, transparency=1))) == [[9, 8, 7], [255, 255, 255]]
    assert pixels(open_image(encoded(palette, "GIF", transparency=0)))[0] == [255, 255, 255]
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert pixels(open_image(encoded(keyed, transparency=(1, 2, 3)))) == [[255, 255, 255], [4, 5, 6]]


def test_deep_and_grey_images_are_scaled() -> None:
    """16 bits keep the high byte, 32-bit integers and floats are scaled, one bit is black and white."""
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    for kind in ("PNG", "TIFF"):
        assert pixels(open_image(encoded(deep, kind))) == [[0] * 3, [100] * 3, [255] * 3]
    small = Image.fromarray(np.array([[0, 100, 255]], np.int32))
    assert pixels(open_image(encoded(small, "TIFF"))) == [[0] * 3, [100] * 3, [255] * 3]
    unit = Image.fromarray(np.array([[0, 0.5, 1, np.nan, -3]], np.float32))
    assert pixels(open_image(encoded(unit, "TIFF"))) == [[0] * 3, [128] * 3, [255] * 3, [0] * 3, [0] * 3]
    wide = Image.fromarray(np.array([[0, 60.4, 300]], np.float32))
    assert pixels(open_image(encoded(wide, "TIFF"))) == [[0] * 3, [60] * 3, [255] * 3]
    assert pixels(open_image(encoded(Image.new("1", (1, 1), 1)))) == [[255] * 3]
    assert pixels(open_image(encoded(Image.new("L", (1, 1), 77)))) == [[77] * 3]


def test_cmyk_is_converted() -> None:
    """A CMYK JPEG without ink is white, with all black it is black."""
    for ink, value in ((0, 255), (255, 0)):
        image = open_image(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, ink)), "JPEG"))
        assert (image.mode, image.getpixel((4, 4))) == ("RGB", (value,) * 3)


def test_animations_give_their_first_frame() -> None:
    """Of a GIF, WebP or TIFF with several frames the first is taken."""
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for kind in ("GIF", "TIFF", "WEBP"):
        data = encoded(first, kind, save_all=True, append_images=[second])
        red, _, blue = open_image(data).getpixel((1, 1))  # type: ignore[misc]  # RGB has three
        assert red > 240 > 15 > blue


def test_missing_and_empty_files(tmp_path: Path) -> None:
    """Exact messages for files that cannot be read, and no hang on a pipe."""
    cases = {
        tmp_path / "no.png": "no such file",
        put(tmp_path / "text.png", b"hello"): "not a JPEG, PNG, WebP, BMP, GIF or TIFF image, or damaged",
        put(tmp_path / "eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"): (
            "not a JPEG, PNG, WebP, BMP, GIF or TIFF image, or damaged"
        ),
    }
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    cases[pipe] = "not a file"
    for path, why in cases.items():
        with pytest.raises(InputError) as caught:
            open_image(path)
        assert str(caught.value) == f"cannot read the image {path}: {why}"
        assert probe(path).problem == why
    assert probe(tmp_path / "no.png") == Probe(None, None, None, "no such file")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_truncated_files_are_found(kind: str) -> None:
    """Half a file is a problem with a reason, which the header alone would not show."""
    data = encoded(Image.fromarray(RNG.integers(0, 255, (64, 64, 3), np.uint8)), kind)
    found = probe(data[: len(data) // 2])
    assert found.width is None
    assert (found.problem or "").startswith(("truncated or corrupt: ", "not a "))


def test_bombs_are_refused_by_their_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size beyond the limit is refused before a pixel is decoded, Pillow's own limit included."""
    assert MAX_PIXELS == 64_000_000
    assert probe(png_header(9000, 8000)).problem == "9,000 x 8,000 pixels, more than the 64,000,000 allowed"
    assert probe(png_header(60_000, 60_000)).problem == "more than the 64,000,000 pixels allowed"
    monkeypatch.setattr("vlltr_index.data.decoding.MAX_PIXELS", 34)
    with pytest.raises(InputError) as caught:
        open_image(encoded(COLOURS))
    assert caught.value.message.endswith(": 7 x 5 pixels, more than the 34 allowed")
    monkeypatch.setattr("vlltr_index.data.decoding.MAX_PIXELS", 35)
    assert open_image(encoded(COLOURS)).size == (7, 5)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"]),
    place=st.floats(0, 1, exclude_max=True),
    patch=st.binary(min_size=1, max_size=8),
    cut=st.floats(0.2, 1),
)
def test_damaged_files_never_raise_anything_else(kind: str, place: float, patch: bytes, cut: float) -> None:
    """Overwritten and cut files either decode to RGB or raise InputError, and the probe says the same."""
    data = bytearray(encoded(COLOURS, kind))
    at = int(place * len(data))
    data[at : at + len(patch)] = patch
    broken = bytes(data[: int(cut * len(data))])
    problem = probe(broken).problem
    try:
        outcome = open_image(broken).mode
    except InputError as error:
        outcome = error.message.partition(": ")[2]
    assert outcome == ("RGB" if problem is None else problem)


def test_too_large_a_picture_is_refused_wherever_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is decoded, as a file and as bytes."""
    monkeypatch.setattr("vlltr_index.data.decoding.MAX_BYTES", 2**20)
    path = tmp_path / "large.png"
    path.write_bytes(bytes(2**20 + 1))
    for source in (path, path.read_bytes()):
        with pytest.raises(InputError, match="larger than 1 MiB"):
            open_image(source)


def thin(long: int) -> bytes:
    """A picture of one pixel by `long`."""
    return encoded(Image.new("1", (1, long)))


def test_thin_pictures_are_refused_by_their_header() -> None:
    """Resizing keeps the ratio, so that the longer side of a thin picture would grow beyond all memory."""
    assert MAX_RATIO == 1000
    for size in ((1, 200_000), (2_000_000, 1), (3, 3001)):
        why = f"{size[0]:,} x {size[1]:,} pixels: one side is more than 1,000 times the other"
        assert probe(png_header(*size)).problem == why
        with pytest.raises(InputError) as caught:
            open_image(png_header(*size))
        assert caught.value.message.endswith(f": {why}")
    assert probe(thin(1000))[:4] == (hashlib.sha256(thin(1000)).hexdigest(), 1, 1000, None)
    assert open_image(Image.new("L", (4000, 4))).size == (4000, 4)


def test_what_is_made_of_a_picture_is_its_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Too little memory, and a refusal by what comes after decoding, name the picture."""
    path = put(tmp_path / "x.png")

    def refuse(image: Image.Image) -> None:
        raise InputError("it is too thin")

    def fill(image: Image.Image) -> None:
        raise MemoryError

    for transform, why in ((refuse, "it is too thin"), (fill, "there is not enough memory for it")):
        with pytest.raises(InputError) as caught:
            read_image(path, transform)
        assert caught.value.message == f"cannot read the image {path}: {why}"
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", Mock(side_effect=MemoryError))
    assert probe(path).problem == "there is not enough memory for it"
    with pytest.raises(InputError, match=r"x\.png: there is not enough memory for it"):
        open_image(path)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_the_size_after_resizing_is_bounded(mode: str) -> None:
    """Whatever the encoder's size: a refusal, or the square; a panorama passes, and is what open_clip makes of it."""
    for size in (32, 384):
        cfg = {"size": size, "resize_mode": mode}
        preprocess = Preprocessing(cfg)
        panorama = Image.fromarray(RNG.integers(0, 255, (30, 600, 3), np.uint8))
        theirs = image_transform_v2(PreprocessCfg(**cfg), is_train=False)  # type: ignore[arg-type]  # one is a number
        assert torch.equal(preprocess(panorama), theirs(panorama))
        for ratio in (400, 1000, 2_000_000):
            image = Image.new("RGB", (1, ratio))
            lost = {
                "shortest": size * size * ratio > MAX_RESIZED,
                "longest": 2 * size < ratio,
                "squash": False,
            }
            if lost[mode]:
                with pytest.raises(InputError, match=f"1 x {ratio:,} pixels"):
                    preprocess(image)
            else:
                assert preprocess(image).shape == (3, size, size)
