"""Which pictures of different classes are near duplicates."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.bursts import scenes
from vlltr_index.heads import duplicates_across as module
from vlltr_index.heads.duplicates_across import near_duplicates_across

CLASSES = 6
SCENES = 60
CHANGED = ("exact", "recompressed", "reduced", "turned", "cut", "darker")


def thumbnail(picture: Image.Image) -> Tensor:
    """The small grey copy of a picture."""
    small = picture.convert("L").resize((32, 32), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small))


def changed(scene: Tensor, how: str) -> Tensor:
    """The small grey copy of a scene that was changed a little."""
    if how == "exact":
        return scene
    whole = Image.fromarray(scene.numpy()).resize((160, 160), Image.Resampling.BICUBIC)
    if how == "recompressed":
        out = io.BytesIO()
        whole.save(out, "JPEG", quality=30)
        return thumbnail(Image.open(out))
    if how == "reduced":
        return thumbnail(whole.resize((70, 70)))
    if how == "turned":
        return thumbnail(whole.rotate(3, Image.Resampling.BILINEAR, fillcolor=128))
    if how == "cut":
        return thumbnail(whole.crop((0, 4, 154, 158)))
    return thumbnail(Image.eval(whole, lambda value: int(0.75 * value)))


def collection() -> tuple[Tensor, Tensor, set[tuple[int, int]]]:
    """Scenes of classes, then changed copies of some in other classes; labels, and the pairs."""
    generator = torch.Generator().manual_seed(0)
    pictures = scenes(generator, SCENES)
    labels = torch.arange(SCENES) % CLASSES
    some = torch.randperm(SCENES, generator=generator)[: 2 * len(CHANGED)].tolist()
    copies = [changed(pictures[n], how) for n, how in zip(some, CHANGED * 2, strict=True)]
    theirs = (labels[some] + torch.randint(1, CLASSES, (len(some),), generator=generator)) % CLASSES
    pairs = {(n, SCENES + at) for at, n in enumerate(some)}
    return torch.cat([pictures, torch.stack(copies)]), torch.cat([labels, theirs]), pairs


def as_set(pairs: Tensor) -> set[tuple[int, int]]:
    """The pairs, the smaller position first."""
    return {(min(pair), max(pair)) for pair in pairs.tolist()}


@pytest.mark.parametrize("vectors", [False, True])
def test_changed_copies_are_found_and_no_other_pictures(vectors: bool) -> None:
    """By their thumbnails alone, and beside vectors that say nothing."""
    thumbnails, labels, planted = collection()
    features = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(1)) if vectors else None
    pairs = near_duplicates_across(features, thumbnails, labels)
    assert as_set(pairs) == planted
    assert len(pairs) == len(planted)


def test_the_most_alike_come_first() -> None:
    """Exact copies before all others."""
    thumbnails, labels, planted = collection()
    first = near_duplicates_across(None, thumbnails, labels)[:2]
    exact = {(n, copy) for n, copy in planted if CHANGED[(copy - SCENES) % len(CHANGED)] == "exact"}
    assert as_set(first) == exact


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_of_the_pictures_does_not_matter(seed: int) -> None:
    """Nor do the numbers of the classes."""
    thumbnails, labels, planted = collection()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    pairs = near_duplicates_across(None, thumbnails[order], 7 * (CLASSES - labels[order]))
    assert as_set(order[pairs]) == planted


def test_pictures_of_one_class_are_no_pair() -> None:
    """Whatever they look like."""
    thumbnails, labels, _ = collection()
    assert near_duplicates_across(None, thumbnails, torch.zeros_like(labels)).shape == (0, 2)
    assert near_duplicates_across(torch.ones(3, 2), None, torch.zeros(3, dtype=torch.int64)).shape == (0, 2)


@pytest.mark.parametrize("how", ["exact", "recompressed", "darker"])
def test_classes_of_a_single_picture(how: str) -> None:
    """A copy is found where nothing tells what is usual in either class; other pictures are not."""
    pictures = scenes(torch.Generator().manual_seed(2), 10)
    thumbnails = torch.cat([pictures, changed(pictures[3], how)[None]])
    assert as_set(near_duplicates_across(None, thumbnails, torch.arange(11))) == {(3, 10)}


def test_single_pictures_have_to_be_more_alike_than_those_of_classes() -> None:
    """Where nothing tells what is usual, copies of which something was cut off are found less often."""
    thumbnails, labels, planted = collection()
    alone = as_set(near_duplicates_across(None, thumbnails, torch.arange(len(labels))))
    cut = {(n, copy) for n, copy in planted if CHANGED[(copy - SCENES) % len(CHANGED)] == "cut"}
    assert planted - cut <= alone < planted


def test_a_copy_in_a_class_of_its_own() -> None:
    """What is usual is told by the class of the original alone."""
    thumbnails, labels, planted = collection()
    labels[SCENES:] = torch.arange(CLASSES, CLASSES + len(planted))
    assert as_set(near_duplicates_across(None, thumbnails, labels)) == planted


def test_something_else_at_the_same_place_is_no_duplicate() -> None:
    """Though the whole pictures are much closer than is usual."""
    place = scenes(torch.Generator().manual_seed(4), 1)[0]
    other = place.clone()
    other[12:19, 12:19] = place[12:19, 12:19].float().mean()
    elsewhere = scenes(torch.Generator().manual_seed(5), 20)
    thumbnails = torch.cat([place[None], other[None], elsewhere])
    labels = torch.arange(22) % 2
    apart, difference = module._compare_parts(thumbnails.float(), torch.tensor([[0, 1]]))
    usual = module._usual_distances(thumbnails.float(), labels, torch.tensor([0, 1]))
    assert float(apart) < 0.1 * float(usual.min())
    assert float(difference) > 0.2
    assert len(near_duplicates_across(None, thumbnails, labels)) == 0


def test_images_without_thumbnails_go_by_their_vectors() -> None:
    """As do pictures of one grey."""
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 0])
    flat = torch.zeros(4, 32, 32, dtype=torch.uint8)
    assert as_set(near_duplicates_across(vectors, None, labels)) == {(0, 1), (1, 3)}
    assert as_set(near_duplicates_across(vectors, flat, labels)) == {(0, 1), (1, 3)}
    assert len(near_duplicates_across(vectors, None, labels)) == 2
    assert len(near_duplicates_across(None, flat, labels)) == 0


def test_candidates_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing all pairs finds what comparing the nearest finds."""
    thumbnails, labels, _ = collection()
    some = as_set(near_duplicates_across(None, thumbnails, labels))
    monkeypatch.setattr(module, "_NEAREST", len(labels))
    monkeypatch.setattr(module, "_LEAST", -1.0)
    every = module._candidates(thumbnails.float(), None, labels)
    assert len(every) == int((labels[:, None] != labels).sum()) // 2
    assert some == as_set(near_duplicates_across(None, thumbnails, labels))


def test_a_copy_that_only_the_vectors_know_is_a_candidate() -> None:
    """Where more pictures than are compared look more alike, on both sides."""
    generator = torch.Generator().manual_seed(6)
    one, noise = scenes(generator, 2).float()
    other = one + 0.5 * noise
    many = [picture + 2 * torch.randn(6, 32, 32, generator=generator) for picture in (one, other)]
    pictures = torch.cat([one[None], many[0], other[None], many[1]])
    vectors = torch.eye(14)
    vectors[7] = vectors[0]
    labels = torch.arange(14)
    assert (0, 7) not in as_set(module._candidates(pictures, None, labels))
    assert (0, 7) in as_set(module._candidates(pictures, vectors, labels))


def test_parts_are_compared_as_a_plain_loop_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is turned or resized."""
    monkeypatch.setattr(module, "_VIEWS", ((0.0, 1.0),))
    monkeypatch.setattr(module, "_APART", 2.0)
    pictures = scenes(torch.Generator().manual_seed(8), 2).double()
    pictures[1] = 0.7 * pictures[0].roll(1, 1) + 0.3 * pictures[1]
    apart, difference = module._compare_parts(pictures.float(), torch.tensor([[0, 1]]))
    plain = min(
        plain_comparison(pictures[0].numpy(), pictures[1].numpy()),
        plain_comparison(pictures[1].numpy(), pictures[0].numpy()),
    )
    assert float(apart) == pytest.approx(plain[0], abs=1e-4)
    assert float(difference) == pytest.approx(plain[1], abs=1e-4)


def plain_comparison(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The distance of the middle of one picture from its best place in the other, and the largest difference there."""

    def alike(picture: np.ndarray) -> np.ndarray:
        return (picture - picture.mean()) / np.linalg.norm(picture - picture.mean())

    middle = alike(one[1:31, 1:31])
    windows = [alike(other[y : y + 30, x : x + 30]) for y in range(3) for x in range(3)]
    window = max(windows, key=lambda place: float((place * middle).sum()))
    padded = np.pad(middle, 1, mode="edge")
    corners = [(y, x) for y in range(0, 23, 4) for x in range(0, 23, 4)]
    shares = []
    for top in range(3):
        for left in range(3):
            moved = padded[top : top + 30, left : left + 30]
            contrasts = [
                [p[y : y + 8, x : x + 8].var() for y, x in corners] for p in (window, moved, moved - window)
            ]
            both = np.add(contrasts[0], contrasts[1])
            shares.append(contrasts[2] / (both + 0.5 * both.mean()))
    return 1 - float((window * middle).sum()), float(np.min(shares, 0).max())
