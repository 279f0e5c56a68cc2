"""Which pictures of a class are near duplicates."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tests.support.bursts import bursts_of, scenes
from tests.support.pictures import encoded
from vlltr_index.data.decoding import probe
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.heads import near_duplicates as module
from vlltr_index.heads.near_duplicates import compare, fine_structure, near_duplicates


def linked(pairs: Tensor, count: int) -> list[int]:
    """The first picture that each is linked to."""
    part = list(range(count))
    for _ in range(count):
        for a, b in pairs.tolist():
            part[a] = part[b] = min(part[a], part[b])
    return part


@pytest.mark.parametrize("count", [1, 2, 8, 40])
def test_bursts_of_different_scenes(count: int) -> None:
    """Are found without any vector, in small classes and in large ones, and one burst alone, too."""
    thumbnails, burst = bursts_of(torch.Generator().manual_seed(count), count, 4)
    part = linked(near_duplicates(None, thumbnails), len(thumbnails))
    wrong = sum(burst[n] != burst[first] for n, first in enumerate(part))
    whole = sum(len({part[n] for n in range(b * 4, b * 4 + 4)}) == 1 for b in range(count))
    assert wrong == 0
    assert whole >= 0.8 * count


def test_turned_pictures_and_copies_of_another_size() -> None:
    """Turned by a few degrees, reduced and saved with losses."""
    field = bursts_of(torch.Generator().manual_seed(3), 12, 1)[0]
    pictures = []
    for one in field.numpy():
        whole = Image.fromarray(one).resize((200, 200), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        whole.resize((90, 90)).save(out, "JPEG", quality=50)
        pictures += [whole, whole.rotate(7, Image.Resampling.BILINEAR), Image.open(out)]
    small = [np.asarray(one.resize((32, 32), Image.Resampling.BOX)) for one in pictures]
    part = linked(near_duplicates(None, torch.from_numpy(np.stack(small))), len(small))
    assert part == [n // 3 * 3 for n in range(36)]


def test_mirrored_copies() -> None:
    """Beside their originals, and turned, too."""
    field = bursts_of(torch.Generator().manual_seed(3), 12, 1)[0]
    pictures = []
    for one in field.numpy():
        whole = Image.fromarray(one).resize((200, 200), Image.Resampling.BICUBIC)
        pictures += [
            whole,
            ImageOps.mirror(whole),
            ImageOps.mirror(whole).rotate(7, Image.Resampling.BILINEAR),
        ]
    small = [np.asarray(one.resize((32, 32), Image.Resampling.BOX)) for one in pictures]
    part = linked(near_duplicates(None, torch.from_numpy(np.stack(small))), len(small))
    assert part == [n // 3 * 3 for n in range(36)]


def test_copies_that_are_not_like_each_other() -> None:
    """Each has noise of its own, and is like the original alone."""
    rng = np.random.default_rng(0)
    pictures = []
    for one in bursts_of(torch.Generator().manual_seed(3), 4, 1)[0].numpy():
        noisy = [one + rng.normal(0, 15, one.shape) for _ in range(8)]
        pictures += [np.clip(picture, 0, 255).astype(np.uint8) for picture in (one, *noisy)]
    part = linked(near_duplicates(None, torch.from_numpy(np.stack(pictures))), len(pictures))
    assert part == [n // 9 * 9 for n in range(36)]


def test_two_sets_of_copies_are_not_one_by_a_likeness() -> None:
    """Copies of drawings that are alike, turned and half of them mirrored: few are joined with those of another."""
    rng = np.random.default_rng(0)
    found = strange = 0
    for own in characters()[:10]:
        copies = []
        for data in own[:6]:
            drawing = drawn(data)
            for number in range(5):
                turned = drawing.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, fillcolor=255)
                copies.append(encoded(ImageOps.mirror(turned) if number % 2 else turned))
        part = torch.tensor(linked(near_duplicates(None, thumbnails_of(copies)), len(copies)))
        one, other = torch.triu_indices(len(copies), len(copies), 1)
        same = part[one] == part[other]
        of_one = one // 5 == other // 5
        found += int((same & of_one).sum())
        strange += int((same & ~of_one).sum())
    assert found > 0.6 * 600
    assert strange < 0.08 * 3_750


def test_what_was_cut_off_at_the_sides() -> None:
    """A tenth of the picture at one side or at both, and the rest enlarged."""
    field = bursts_of(torch.Generator().manual_seed(5), 12, 1)[0]
    pictures = []
    for one in field.numpy():
        whole = Image.fromarray(one).resize((200, 200), Image.Resampling.BICUBIC)
        pictures += [whole, whole.crop((20, 20, 200, 200)), whole.crop((18, 18, 182, 182))]
    small = [np.asarray(one.resize((32, 32), Image.Resampling.BOX)) for one in pictures]
    part = linked(near_duplicates(None, torch.from_numpy(np.stack(small))), len(small))
    assert part == [n // 3 * 3 for n in range(36)]


def test_a_large_class_is_compared_by_the_nearest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And finds the bursts that comparing all pairs finds."""
    thumbnails, _ = bursts_of(torch.Generator().manual_seed(0), 20, 3)
    some = linked(near_duplicates(None, thumbnails), 60)
    monkeypatch.setattr(module, "_ALL", 100)
    assert some == linked(near_duplicates(None, thumbnails), 60)


def characters() -> list[list[bytes]]:
    """The pictures of each character of which there are more than a few, one of a family of fonts."""
    rows = pq.read_table(glyph_files(fast=True).images, columns=["image", "label", "group"]).to_pylist()
    by_label: dict[str, list[bytes]] = {}
    for row in {(row["label"], row["group"]): row for row in rows}.values():
        by_label.setdefault(row["label"], []).append(row["image"])
    return [own for own in by_label.values() if len(own) > 5][:40]


def drawn(data: bytes) -> Image.Image:
    """A character, dark on light with a margin."""
    return ImageOps.expand(ImageOps.invert(Image.open(io.BytesIO(data))), 7, 255).resize((96, 96))


def thumbnails_of(images: Sequence[bytes]) -> Tensor:
    """The small grey copies that are stored of images."""
    small = b"".join(probe(data).thumbnail or b"" for data in images)
    return torch.frombuffer(bytearray(small), dtype=torch.uint8).view(-1, 32, 32)


def test_characters_of_different_fonts_are_no_duplicates() -> None:
    """Though a character looks alike in all fonts, and an encoder that suits has their vectors close together."""
    classes = [thumbnails_of(own) for own in characters()]
    g = torch.Generator().manual_seed(0)
    alone = 0
    for own in classes:
        vectors = torch.ones(len(own), 8) + 0.1 * torch.randn(len(own), 8, generator=g)  # a cosine of 0.99
        part = linked(near_duplicates(vectors, own), len(own))
        alone += len(set(part))
        assert len(set(part)) > 0.6 * len(own)
    assert alone > 0.93 * sum(map(len, classes))


def test_scans_of_a_drawing() -> None:
    """Are found among the scans of drawings that are like it: they are much closer than is usual there."""
    rng = np.random.default_rng(0)
    whole = strange = 0
    for own in characters()[:10]:
        scans = []
        for data in own[:6]:
            drawing = drawn(data)
            for _ in range(3):
                turned = drawing.rotate(rng.normal(0, 1), Image.Resampling.BICUBIC, fillcolor=255)
                side = int(rng.integers(80, 120))
                out = io.BytesIO()
                turned.resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
                scans.append(out.getvalue())
        part = linked(near_duplicates(None, thumbnails_of(scans)), len(scans))
        whole += sum(len(set(part[n : n + 3])) == 1 for n in range(0, len(scans), 3))
        strange += sum(first // 3 != n // 3 for n, first in enumerate(part))
    assert whole >= 0.8 * 60
    assert strange <= 0.1 * 180


def test_pictures_of_one_grey_go_by_their_vectors() -> None:
    """As do images without a thumbnail."""
    flat = torch.zeros(3, 32, 32, dtype=torch.uint8)
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    assert {frozenset(pair) for pair in near_duplicates(vectors, flat).tolist()} == {frozenset((0, 1))}
    assert {frozenset(pair) for pair in near_duplicates(vectors, None).tolist()} == {frozenset((0, 1))}
    assert len(near_duplicates(None, flat)) == 0


def test_the_fit_is_the_best_correlation_of_the_middle() -> None:
    """As a plain loop over places computes it, where nothing is turned."""
    structure = fine_structure(scenes(torch.Generator().manual_seed(0), 2))
    structure[1] = structure[0].roll((2, -3), (0, 1)) + 0.5 * structure[1]
    found = compare(structure, torch.tensor([[0, 1]]))

    def best(one: Tensor, other: Tensor) -> float:
        fits = []
        for y in range(9):
            for x in range(9):
                pair = torch.stack([one[4:28, 4:28].flatten(), other[y : y + 24, x : x + 24].flatten()])
                fits.append(float(torch.corrcoef(pair)[0, 1]))
        return max(fits)

    plain = max(best(structure[0], structure[1]), best(structure[1], structure[0]))
    assert float(found.fit) == pytest.approx(np.arctanh(plain), abs=1e-3)
    assert float(found.otherwise) < float(found.fit)
    structure[1] = structure[1].flip(1)
    assert float(compare(structure, torch.tensor([[0, 1]])).fit) == pytest.approx(float(found.fit), abs=1e-3)
