"""Decoded images on disk: what is seen is the same with and without them, whatever happens to the files."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from collections import namedtuple
from io import BytesIO
from pathlib import Path

import drawings
import numpy as np
import pytest
import small_clip
import test_photos
import torch
from PIL import Image
from torch import Tensor

from vlltr_index.cli.main import main
from vlltr_index.encoder import Encoder
from vlltr_index.errors import InputError, WorkspaceError
from vlltr_index.images import cache as cache_module
from vlltr_index.images.cache import Need, PixelCache, reduced_cache, reduced_need
from vlltr_index.images.decode import content_hash, open_image, reduced_size
from vlltr_index.pixels import normalised, plain_cache, plain_need
from vlltr_index.schemas.config import AugmentConfig, ImagesConfig
from vlltr_index.train.data import TrainImages

project = test_photos.project  # the fixture
PHOTO = AugmentConfig(kind="photo")
Disk = namedtuple("Disk", "total used free")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return drawings.encoder()


def jpeg(seed: int, width: int = 300, height: int = 200, orientation: int | None = None) -> bytes:
    """A smooth JPEG, so that decoding it at a reduced scale shows the same picture."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    exif, target = Image.Exif(), BytesIO()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(target, "JPEG", quality=95, exif=exif)
    return target.getvalue()


def seen(images: TrainImages, seed: int = 0) -> Tensor:
    """Two steps of an epoch."""
    return torch.stack(list(images.epoch(torch.tensor([[0, 1, 2], [2, 0, 3]]), slice(None), seed)))


@pytest.mark.parametrize(("size", "side", "expected"), [
    ((800, 600), 256, (341, 256)), ((600, 800), 256, (256, 341)), ((256, 900), 256, (256, 900)),
    ((100, 90), 256, (100, 90)), ((1, 5000), 16, (1, 5000)), ((5000, 17), 16, (4706, 16)),
])  # fmt: skip
def test_reduced_size(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    """The shorter side is at most `side`, the ratio is kept, nothing is enlarged."""
    assert reduced_size(*size, side) == expected


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_reduced_images_show_the_same(orientation: int | None) -> None:
    """A JPEG decoded at a fraction looks like one that is decoded whole and resized, also where EXIF turns it."""
    data = jpeg(0, 1200, 800, orientation)
    small, whole = open_image(data, side=96), open_image(data)
    assert small.size == reduced_size(*whole.size, 96)
    difference = np.asarray(small, int) - np.asarray(whole.resize(small.size, Image.Resampling.BICUBIC), int)
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
def test_other_formats_are_reduced_too(kind: str) -> None:
    """Whatever the format, and palettes and 16 bits too."""
    target = BytesIO()
    Image.effect_noise((300, 200), 50).save(target, kind)
    assert open_image(target.getvalue(), side=64).size == (96, 64)
    target = BytesIO()
    Image.fromarray(np.full((300, 200), 40_000, np.uint16)).save(target, "PNG")
    image = open_image(target.getvalue(), side=64)
    assert image.size == (64, 96)
    assert image.getpixel((5, 5)) == (156, 156, 156)


def cached(
    folder: Path, sources: list[bytes | str], encoder: Encoder, augment: AugmentConfig, workers: int = 0
) -> TrainImages:
    """Streamed images with a cache of their kind."""
    kept = reduced_cache(folder, 48) if augment.kind == "photo" else plain_cache(folder, encoder)
    digests = [content_hash(s) if isinstance(s, bytes) else None for s in sources]
    return TrainImages(
        sources, torch.arange(len(sources)), encoder, augment,
        workers=workers, side=48, cache=kept, digests=digests, memory_limit=0,
    )  # fmt: skip


@pytest.mark.parametrize("augment", [PHOTO, AugmentConfig(kind="none"), drawings.AUGMENT])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_changes_nothing_that_is_seen(
    encoder: Encoder, tmp_path: Path, augment: AugmentConfig, workers: int
) -> None:
    """Bit for bit: without a cache, while it is filled, and from it, where no source is left to decode."""
    sources: list[bytes | str] = [jpeg(n) for n in range(4)]
    plain = TrainImages(
        sources, torch.arange(4), encoder, augment, workers=0, side=48, memory_limit=0
    )  # fmt: skip
    filling = cached(tmp_path, sources, encoder, augment, workers)
    assert torch.equal(seen(plain), seen(filling))
    assert torch.equal(seen(plain, 1), seen(filling, 1))
    filling._stream._read._sources = [b"gone"] * 4
    assert torch.equal(seen(plain, 2), seen(filling, 2))


def test_without_augmentation_pixels_are_the_preprocessing(encoder: Encoder, tmp_path: Path) -> None:
    """`normalised` of what is kept equals `encoder.preprocess`, bit for bit."""
    data = jpeg(3)
    kept = plain_cache(tmp_path, encoder)
    for _ in range(2):
        assert torch.equal(
            normalised(kept.image(data, content_hash(data)), encoder), encoder.preprocess(open_image(data))
        )
    assert len(list(tmp_path.glob("plain-*/??/*.npy"))) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other", "pickle"])
def test_damaged_files_are_made_again(tmp_path: Path, damage: str) -> None:
    """Whatever is in the file, the image comes out right and the file is whole afterwards; nothing is unpickled."""
    data, kept = jpeg(1), reduced_cache(tmp_path, 64)
    digest = content_hash(data)
    expected = np.asarray(kept.image(data, digest))
    (path,) = tmp_path.glob("side-64-v1/??/*.npy")
    whole = path.read_bytes()
    if damage == "other":
        np.save(path, np.zeros((3, 3), np.float32))
    elif damage == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(
            {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"\x93NUMPY nonsense"}[damage]
        )
    assert np.array_equal(np.asarray(kept.image(data, digest)), expected)
    assert path.read_bytes() == whole


def test_sources_that_changed_are_not_kept(tmp_path: Path) -> None:
    """A file that is not what it was when it came in is decoded each time, and does not take the old one's place."""
    first, second = jpeg(1), jpeg(2)
    path = tmp_path / "a.jpg"
    path.write_bytes(second)
    kept = reduced_cache(tmp_path / "cache", 64)
    image = kept.image(str(path), content_hash(first))
    assert np.array_equal(np.asarray(image), np.asarray(open_image(second, side=64)))
    assert not list((tmp_path / "cache").rglob("*.npy"))
    with pytest.raises(InputError, match="no such file"):
        kept.image(str(tmp_path / "no.jpg"), content_hash(first))


def test_what_it_takes_is_told_and_must_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The need is exact to a block, falls as files come, and a disk that is too small is refused."""
    sources = [jpeg(n) for n in range(5)]
    digests = [content_hash(s) for s in sources]
    kept = reduced_cache(tmp_path, 64)
    need = reduced_need(dict.fromkeys(digests, (300, 200)), 64)
    assert set(need.values()) == {3 * 96 * 64}
    with caplog.at_level(logging.INFO):
        assert kept.prepare(need, digests) == Need(5, 5 * 20_480)
    assert "the image cache takes 0.1 MiB for 5 images in" in caplog.text
    for source, digest in zip(sources[:3], digests, strict=False):
        kept.image(source, digest)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.npy")]
    assert sizes == [3 * 96 * 64 + 128] * 3
    assert kept.need(need) == Need(2, 2 * 20_480)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: Disk(10**6, 0, 30_000))
    with pytest.raises(WorkspaceError) as error:
        kept.prepare(need, digests)
    assert str(error.value) == (
        f"caching 2 images takes 0.0 MiB in {kept.folder}, and 0.0 MiB are free there\n"
        "Free that much, set a smaller images.side in vlltr.toml, or leave --cache-images out."
    )
    assert kept.prepare({}, digests[:1]) == Need(0, 0)
    assert [path.stem for path in tmp_path.rglob("*.npy")] == digests[:1]  # the others' images are gone


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    """An unfinished file is removed once it is old; a young one may be another process's."""
    kept = reduced_cache(tmp_path, 64)
    folder = kept.folder / "aa"
    folder.mkdir(parents=True)
    for name, age in ((".tmp-old", 1e9), (".tmp-young", 0.0)):
        (folder / name).write_bytes(b"half")
        if age:
            os.utime(folder / name, (age, age))
    kept.prepare({}, [])
    assert [p.name for p in folder.iterdir()] == [".tmp-young"]


def test_a_disk_that_fills_up_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Images are decoded all the same; it is told once, and nothing half-written stays."""

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.np, "save", full)
    kept = reduced_cache(tmp_path, 64)
    for n in range(3):
        data = jpeg(n)
        assert kept.image(data, content_hash(data)).size == (96, 64)
    assert caplog.text.count("is not filled any further: No space left on device") == 1
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def _fill(folder: Path, count: int) -> None:
    kept = reduced_cache(folder, 64)
    for n in range(count):
        data = jpeg(n)
        kept.image(data, content_hash(data))


def test_processes_fill_one_cache(tmp_path: Path) -> None:
    """Two at once leave one whole file an image."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(tmp_path, 12)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    kept = PixelCache(tmp_path / "side-64-v1", lambda data: Image.new("RGB", (1, 1)))
    assert len(list(tmp_path.rglob("*.npy"))) == 12
    assert not list(tmp_path.rglob(".tmp-*"))
    for n in range(12):
        data = jpeg(n)
        assert np.array_equal(
            np.asarray(kept.image(data, content_hash(data))), np.asarray(open_image(data, side=64))
        )


def test_another_preprocessing_has_another_cache(encoder: Encoder, tmp_path: Path) -> None:
    """Side and preprocessing stand in the folder's name."""
    other = Encoder.scratch("vlltr-tiny", ["a"], image_size=64, device="cpu")
    names = {plain_cache(tmp_path, e).folder.name for e in (encoder, other)}
    names |= {reduced_cache(tmp_path, side).folder.name for side in (64, 65)}
    assert len(names) == 4
    assert plain_need(["a"], other) == {"a": 3 * 64 * 64}


def test_digests_must_fit(encoder: Encoder, tmp_path: Path) -> None:
    """A cache without a digest for each image is refused."""
    with pytest.raises(InputError, match="a cache needs the digest of each of the 1 images"):
        TrainImages(
            [b""], torch.tensor([0]), encoder, PHOTO, cache=reduced_cache(tmp_path, 64), memory_limit=0
        )


def test_side_of_an_encoder() -> None:
    """Only a cache brings a side of its own: 8/7 of the encoder's, 256 for 224."""
    assert ImagesConfig().reduced_to((224, 224)) is None
    assert ImagesConfig(cache=True).reduced_to((224, 224)) == 256
    assert ImagesConfig(cache=True, side=320).reduced_to((224, 224)) == 320
    assert ImagesConfig(side=320).reduced_to((224, 224)) == 320


def vlltr(*args: str) -> None:
    """A command that ends well."""
    with pytest.raises(SystemExit) as left:
        main(list(args))
    assert left.value.code == 0


def test_commands(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`train cvlp` and `baseline fc` give the same checkpoint with the cache as with its side alone, `embed` the same
    vectors; the disk need is told; nothing in vlltr.toml changes."""
    monkeypatch.setattr("vlltr_index.train.data.SMALL_SIDE", 8)  # so that these small pictures are streamed
    vlltr("init", "ws", "--encoder", f"{small_clip.NAME}-quickgelu:clip.safetensors", "--set", "prompts=[]")
    vlltr("-w", "ws", "ingest", "text", "texts")
    vlltr("-w", "ws", "ingest", "images", "pictures", "--split", "train")
    before = Path("ws/vlltr.toml").read_text()
    shutil.copytree("ws", "plain")
    base = ("--set", "images.side=60", "--set", "cvlp.epochs=2", "--set", "cvlp.hold_out=0")
    vlltr("-w", "plain", "train", "cvlp", *base)
    capsys.readouterr()
    vlltr("-w", "ws", "train", "cvlp", *base, "--cache-images")
    assert "the image cache takes" in capsys.readouterr().err
    assert Path("ws/vlltr.toml").read_text() == before
    folder = Path("ws/cache/images/side-60-v1")
    assert len(list(folder.rglob("*.npy"))) == sum(test_photos.COUNTS.values())
    for space in ("ws", "plain"):
        vlltr("-w", space, "embed", *(["--cache-images"] if space == "ws" else []))
        vlltr(
            "-w", space, "train", "baseline", "fc", *base[:2], *(["--cache-images"] if space == "ws" else [])
        )
    first, second = (sorted(p.name for p in Path(s, "checkpoints").iterdir()) for s in ("ws", "plain"))
    assert len(list(Path("ws/cache/images").glob("plain-*"))) == 1
    assert len(first) == 2
    weights = [Path(s, "checkpoints", n, "model.safetensors").read_bytes() for s, names in
               (("ws", first), ("plain", second)) for n in names]  # fmt: skip
    assert set(weights[:2]) == set(weights[2:])
