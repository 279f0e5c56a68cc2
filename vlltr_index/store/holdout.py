"""Choose the training images and classes that stage 1 is not trained on, to fit fusion weights and offsets on them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from vlltr_index.errors import WorkspaceError
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.store.tables import quote

if TYPE_CHECKING:
    from vlltr_index.schemas.config import SelectConfig
    from vlltr_index.store.snapshot import Snapshot


SHARE = 10  # at most one training image in this many is held out
LEAST_LEFT = 2  # images that are left of every class
SMALL = 5  # groups of up to this many images always stay whole
CLASS_SHARE = 50  # one class in this many is held out
MOST_CLASSES = 20
LEAST_CLASSES = 100  # with fewer classes none is held out
LEAST_IMAGES = 10  # images that a held-out class has at least
_FILE = "held_out.json"


@dataclass(frozen=True)  # pydantic's
class HeldOut:
    """Images and classes that a stage 1 was not trained on.

    Attributes:
        images: Ids of held-out images of the other classes, without the suffix of their stored size.
        classes: Ids of classes held out with all their images and sentences.
    """

    images: frozenset[str] = frozenset()
    classes: frozenset[int] = frozenset()

    @classmethod
    def of(cls, image_ids: Iterable[str], classes: frozenset[int] = frozenset()) -> HeldOut:
        """Build from image ids with their suffix of the stored size."""
        return cls(frozenset(map(_without_side, image_ids)), classes)

    def has(self, image_id: str) -> bool:
        """Say whether an image is held out, whatever size it is stored at now."""
        return _without_side(image_id) in self.images


def _without_side(image_id: str) -> str:
    return image_id.partition("-")[0]


def choose_held_out(
    image_ids: Sequence[str],
    class_ids: Sequence[int],
    groups: Sequence[str | None],
    content_hashes: Sequence[str | None],
    most: int,
) -> list[int]:
    """Choose images to hold out of training: `most`, or a tenth if that is less; never one of a class's last two.

    Half of them are whole groups, in a fixed pseudo-random order, each taken if it fits the remaining budget; images
    without a group form one with those of equal content. The other half covers all classes evenly: one image of each
    class, then a second of each, and so on. Groups stay whole there too, except those of more than 5 images and a tenth
    of `most`, since a few large groups would not cover all classes. The choice does not depend on the order of the
    images.

    Args:
        image_ids: N different ids.
        class_ids: N classes.
        groups: N names of groups, None for an image without one.
        content_hashes: N hashes of contents, None where unknown.
        most: The most images to choose.

    Returns:
        Positions in the N, ascending.
    """
    budget = min(most, len(image_ids) // SHARE)
    size = Counter(groups)
    whole = dict[str, list[int]]()
    parted = dict[str, list[int]]()
    for place, (image, group, content) in enumerate(zip(image_ids, groups, content_hashes, strict=True)):
        alone = f"content\0{content}" if content else f"image\0{image}"
        grouped = f"group\0{group}" if group else alone
        whole.setdefault(grouped, []).append(place)
        small = size[group] <= max(budget // SHARE, SMALL)
        parted.setdefault(grouped if small else alone, []).append(place)
    chosen = set[int]()
    spare = Counter(class_ids)
    held = Counter[int]()
    limits = [2**n for n in range(budget.bit_length() + 1)]
    for units, room, most_of_a_class in ((whole, budget // 2, limits[-1:]), (parted, budget, limits)):
        order = sorted(units, key=_order)
        for limit in most_of_a_class:
            for unit in (units[key] for key in order if len(chosen) < room):
                wanted = Counter(class_ids[place] for place in unit)
                if (
                    len(chosen) + len(unit) <= room
                    and chosen.isdisjoint(unit)
                    and all(held[c] + n <= limit and spare[c] - n >= LEAST_LEFT for c, n in wanted.items())
                ):
                    chosen.update(unit)
                    held += wanted
                    spare -= wanted
    return sorted(chosen)


def choose_held_out_classes(images: Mapping[str, int]) -> list[str]:
    """Choose classes to hold out of training: one in 50, at most 20, among those with 10 images or more, by hash.

    Args:
        images: How many training images each class has, by its name; below 100 classes none is chosen.
    """
    if len(images) < LEAST_CLASSES:
        return []
    able = sorted((name for name, count in images.items() if count >= LEAST_IMAGES), key=_order)
    return able[: min(len(images) // CLASS_SHARE, MOST_CLASSES)]


def without_names(
    texts_of: Mapping[int, list[str]], names: Mapping[int, str], left_out: Sequence[int]
) -> dict[int, list[str]]:
    """Return the texts of each class without those that contain a left-out class's name.

    A class whose own name contains a left-out one keeps its texts, since all would contain it. Another class may be
    left without any.
    """
    patterns = [re.compile(rf"\b{re.escape(names[i].casefold())}\b") for i in left_out]
    # One pass with all names at once is quick; only its few hits are searched for each name.
    every = re.compile("|".join(p.pattern for p in patterns) or r"(?!)")
    found: dict[int, list[str]] = {}
    for i, texts in texts_of.items():
        telling = [p for p in patterns if not p.search(names[i].casefold())]
        found[i] = []
        for text in texts:
            low = text.casefold()
            if not (every.search(low) and any(p.search(low) for p in telling)):
                found[i].append(text)
    return found


def _order(key: str) -> str:
    """Return a sort key for a fixed pseudo-random order that depends on nothing but `key`."""
    return hashlib.sha256(f"hold out:{key}".encode()).hexdigest()


def write_held_out(held: HeldOut, folder: Path) -> None:
    """Write the held-out images and classes to a file in the checkpoint `folder`."""
    values = {"images": sorted(held.images), "classes": sorted(held.classes)}
    (folder / _FILE).write_text(json.dumps(values, indent=0) + "\n", encoding="utf-8")


def read_held_out(folder: Path) -> HeldOut:
    """Read the images and classes that the checkpoint in `folder` was not trained on; none if it has no such file.

    Raises:
        WorkspaceError: If the file is damaged.
    """
    try:
        return TypeAdapter(HeldOut).validate_json((folder / _FILE).read_bytes())
    except FileNotFoundError:
        return HeldOut()
    except (OSError, ValueError) as error:
        raise WorkspaceError(
            f"{folder / _FILE} does not say what stage 1 did not see: {error}",
            "Bring it back from a backup, or make it again: vlltr train cvlp",
        ) from None


def held_images(snapshot: Snapshot) -> frozenset[str]:
    """Return the ids of what stage 1 of the commit's encoder held out: images, and all of the classes held out.

    Raises:
        WorkspaceError: If the checkpoint's list of them is damaged.
    """
    commit = snapshot.commit
    if not commit.checkpoint:
        return frozenset()
    held = read_held_out(snapshot.objects.path("checkpoints", commit.checkpoint))
    rows = snapshot.table("images", ["image_id", "class_id"])
    pairs = zip(rows["image_id"].to_pylist(), rows["class_id"].to_pylist(), strict=True)
    return frozenset(image for image, owner in pairs if held.has(image) or owner in held.classes)


def digest_images(class_ids: Sequence[int], contents: Sequence[str]) -> str:
    """Compute the digest by which scores name the images that they are against: their classes and contents."""
    return short(digest_json([list(class_ids), list(contents)]))


def score_image_rows(snapshot: Snapshot, config: SelectConfig, held: frozenset[str]) -> pa.Table:
    """Return the images that sentences are scored against: rows of class_id, content_hash and image_id, in this
    order.

    Of each class in the split these are the images with the smallest content hashes, whatever the order in which they
    were ingested. Images that are `held` out, have no class, or cannot be read are left out.
    """
    where = f"split = {quote(config.split)} AND class_id IS NOT NULL AND problem IS NULL"
    columns = ["class_id", "content_hash", "image_id"]
    rows = snapshot.table("images", columns, where).sort_by([(column, "ascending") for column in columns])
    rows = rows.filter(pc.invert(pc.is_in(rows["image_id"], pa.array(sorted(held), pa.string()))))
    owners = rows["class_id"].to_numpy()
    ranks = np.arange(len(owners)) - np.searchsorted(owners, owners)
    return rows.filter(pa.array(ranks < config.images_per_class))
