"""Resizing for exported graphs: the pixels of the library in Python, and the same bytes in JavaScript."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from vlltr_index.data.decoding import open_image
from vlltr_index.encoders.openclip import Preprocessing
from vlltr_index.recognition.exported import preprocess
from vlltr_index.recognition.exported.preprocess import read_picture, resized_pixels

SCRIPT = Path(preprocess.__file__).with_suffix(".mjs")
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
WAYS = [
    {
        "mode": mode,
        "resize_mode": resize_mode,
        "interpolation": by,
        "resize": resize,
        "size": 32,
        "fill_color": 9,
    }
    for mode in ("RGB", "L")
    for resize_mode in ("shortest", "longest", "squash")
    for by in ("bicubic", "bilinear")
    for resize in (32, 37)
]
SIZES = [(1, 1), (32, 32), (31, 33), (37, 64), (200, 120), (33, 97), (640, 37), (5, 3), (256, 32), (64, 37)]


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of random pixels, each of full colour or none, where filters overshoot most."""
    bits = np.random.default_rng(seed).integers(0, 2, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(255 * bits)


def by_library(image: Image.Image, how: dict[str, Any]) -> np.ndarray:
    """The pixels that the encoder's own preprocessing gives."""
    cfg = {**how, **PLAIN}
    if cfg["resize"] == cfg["size"]:
        del cfg["resize"]
    return (255 * Preprocessing(cfg)(image)).round().to(torch.uint8).permute(1, 2, 0).numpy()


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), how=st.sampled_from(WAYS), seed=st.integers(0, 9))
def test_pixels_are_those_of_the_library(width: int, height: int, how: dict[str, Any], seed: int) -> None:
    """Byte for byte, whatever the shape; a picture that is too thin is refused by both."""
    image = drawn(width, height, seed)
    if how["resize_mode"] == "longest" and max(width, height) >= 2 * how["resize"] * min(width, height):
        with pytest.raises(ValueError, match="must be > 0"):
            resized_pixels(image, how)
        return
    found = resized_pixels(image, how)
    assert found.shape == (32, 32, 3)
    np.testing.assert_array_equal(found, by_library(image, how))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "CMYK"])
def test_pictures_are_read_as_the_library_reads_them(tmp_path: Path, mode: str) -> None:
    """Transparent parts are white, and the picture stands as its EXIF says."""
    image = drawn(7, 5).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)))
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    path = tmp_path / f"one.{'tiff' if mode == 'CMYK' else 'png'}"
    image.save(path, exif=exif)
    found = read_picture(path)
    assert found.size == (5, 7)
    assert found.tobytes() == open_image(path).tobytes()


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    """The library scales them; a silent cut would give other answers."""
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="convert them to 8 bits first"):
        read_picture(tmp_path / "deep.png")


def test_javascript_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every way of resizing, for small, large, thin and square pictures, where rows come before columns.

    Pillow 13 begins with the columns of some pictures, so that single pixels are rounded otherwise.
    """
    resize = Image.Image.resize

    def rows_first(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        return resize(resize(image, (size[0], image.height), resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", rows_first)
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not there: that preprocess.mjs gives the bytes of preprocess.py was not tried")
    cases = []
    for number, (width, height) in enumerate(SIZES):
        (tmp_path / f"{number}.rgb").write_bytes(drawn(width, height, number).tobytes())
        for how in WAYS:
            if how["resize_mode"] != "longest" or min(width, height) * 32 > max(width, height):
                cases.append({"file": f"{number}.rgb", "width": width, "height": height, "how": how})
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    program = f"""
        import {{ readFileSync, writeFileSync }} from "node:fs";
        import {{ resizedPixels }} from {json.dumps(SCRIPT.as_uri())};
        JSON.parse(readFileSync("cases.json")).forEach(({{ file, width, height, how }}, number) =>
          writeFileSync(`${{number}}.out`, resizedPixels({{ data: readFileSync(file), width, height }}, how)));
    """
    subprocess.run([node, "--input-type=module", "-e", program], cwd=tmp_path, check=True)
    for number, case in enumerate(cases):
        image = drawn(case["width"], case["height"], int(Path(case["file"]).stem))
        expected = resized_pixels(image, case["how"])
        found = np.frombuffer((tmp_path / f"{number}.out").read_bytes(), np.uint8).reshape(expected.shape)
        np.testing.assert_array_equal(found, expected, err_msg=str(case))


def test_pictures_that_could_do_harm_are_refused(tmp_path: Path) -> None:
    """Kinds of files that run programs are no pictures, and a side is at most a thousand times as long as the other."""
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(UnidentifiedImageError):
        read_picture(tmp_path / "a.eps")
    Image.new("L", (1, 1001)).save(tmp_path / "thin.png")
    with pytest.raises(ValueError, match="1 x 1001 pixels are too thin"):
        read_picture(tmp_path / "thin.png")
