"""From classes of pictures and sentences to a draw of vectors; an encoder's vectors are computed once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.collections.clip import SCALE, ClipGeometry
from benchmarks.collections.sources import Kind, Picture
from benchmarks.studies.side_by_side.worker import NAME, OWN, PROMPT, Draw
from vlltr_index.data.decoding import probe
from vlltr_index.data.text import class_prompts, normalise_text, sentence_id, text_hash
from vlltr_index.embedding.loading import recipe_encoder, thumbnail_tensor
from vlltr_index.embedding.pixels import in_batches
from vlltr_index.embedding.vectors import LocalEngine
from vlltr_index.heads.units import join_copies, units_of
from vlltr_index.schemas.fingerprint import digest_bytes
from vlltr_index.schemas.recipes import load_recipe

__all__ = ["CLIP", "Encoding", "noisy"]

CLIP = "clip"
"""In place of an encoder: vectors of CLIP's geometry."""
_SHOTS = 5  # training images of an added class


class Encoding:
    """Computes the vectors of one encoder, and keeps those of images in a file.

    Args:
        name: For `load_recipe`, or `CLIP`.
        folder: Where the file is.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = "" if name == CLIP else name
        self.templates = load_recipe("ours", (), self.name or None).templates
        self.logit_scale = SCALE
        self._engine: LocalEngine | ClipGeometry = ClipGeometry()
        if self.name:
            encoder = recipe_encoder(load_recipe("ours", (), self.name).encoder).eval()
            self.logit_scale = encoder.logit_scale
            self._engine = LocalEngine(encoder)
        self._path = folder / f"vectors-{re.sub(r'[^a-z0-9]+', '-', name)}.safetensors"
        self._images = self._stored()
        self._texts: dict[str, Tensor] = {}

    def images(self, pictures: Sequence[Picture]) -> tuple[Tensor, list[str]]:
        """Return float32 [N, D], and the hash of each picture's content; one without bytes is known by its name."""
        contents = [digest_bytes(data or name.encode()) for name, data in pictures]
        sources = {content: data or name for content, (name, data) in zip(contents, pictures, strict=True)}
        missing = [(content, source) for content, source in sources.items() if content not in self._images]
        if missing:
            for batch in self._engine.images(in_batches(missing), range(1)):
                if batch.problems:
                    raise ValueError(f"a picture cannot be read: {next(iter(batch.problems.values()))}")
                self._images |= {
                    one: row.clone() for one, row in zip(batch.ids, batch.vectors[0], strict=True)
                }
            self._keep()
        return torch.stack([self._images[content] for content in contents]), contents

    def _stored(self) -> dict[str, Tensor]:
        """Read the vectors in the file. They are copied: what is mapped from it may change when it is replaced."""
        if not self._path.exists():
            return {}
        return {content: vector.clone() for content, vector in load_file(self._path).items()}

    def _keep(self) -> None:
        """Write the vectors, with those that another process has written."""
        if not self.name:
            return  # they are drawn from names
        with FileLock(self._path.with_suffix(".lock")):
            self._images = self._stored() | self._images
            part = self._path.with_suffix(".part")
            save_file(self._images, part)
            part.replace(self._path)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return float32 [T, D]."""
        missing = [(text, text) for text in dict.fromkeys(texts) if text not in self._texts]
        for keys, vectors, _ in self._engine.texts(missing):
            self._texts |= dict(zip(keys, vectors, strict=True))
        return torch.stack([self._texts[text] for text in texts])

    def draw(
        self,
        kinds: Sequence[Kind],
        added: Sequence[Kind] = (),
        group: str | None = None,
        names: Sequence[str] | None = None,
    ) -> Draw:
        """Make a draw of classes and of those that are added to them.

        Args:
            kinds: The classes that are there from the start.
            added: The others, in the order in which they are added.
            group: As for `vlltr ingest --group`: `name:REGEX`, or None.
            names: The names of all classes in the results; default: their own.
        """
        first = len(kinds)
        few = [replace(kind, train=kind.train[:_SHOTS]) for kind in added]
        train = self._part([kind.train for kind in kinds], 0, group)
        new = self._part([kind.train for kind in few], first, group)
        test = self._part([kind.test for kind in kinds], 0, None)
        new_test = self._part([kind.test for kind in few], first, None)
        return Draw(
            classes=first,
            names=np.array(names or [kind.name for kind in (*kinds, *added)], dtype=np.str_),
            encoder=self.name,
            logit_scale=self.logit_scale,
            train=train.features,
            labels=train.labels,
            units=train.units,
            contents=train.contents,
            test=test.features,
            test_labels=test.labels,
            added=new.features,
            added_labels=new.labels,
            added_units=np.char.add("added ", new.units),
            added_contents=new.contents,
            added_test=new_test.features,
            added_test_labels=new_test.labels,
            **self._sentences([*kinds, *added]),
        )

    def _part(self, pictures: Sequence[Sequence[Picture]], first: int, group: str | None) -> _Part:
        """Encode the pictures of classes, which are numbered from `first`."""
        counts = torch.tensor([len(some) for some in pictures], dtype=torch.int64)
        labels = torch.arange(len(pictures)).repeat_interleave(counts)
        every = [picture for some in pictures for picture in some]
        if not every:
            width = self.texts(["a"]).shape[1]
            none = np.empty(0, dtype=np.str_)
            return _Part(np.empty((0, width), np.float32), np.empty(0, np.int64), none, none)
        features, contents = self.images(every)
        probes = [probe(data) if data else None for _, data in every]
        thumbnails = thumbnail_tensor([None if one is None else one.thumbnail for one in probes])
        groups = [_group_of(name, group) for name, _ in every]
        units = units_of(features, labels, groups, thumbnails=thumbnails)
        units = join_copies(units, contents)
        return _Part(features.numpy(), (labels + first).numpy(), np.asarray(units), np.asarray(contents))

    def _sentences(self, kinds: Sequence[Kind]) -> dict[str, Any]:
        """Encode the sentences of the classes; where no class has any, there are none at all."""
        found: dict[tuple[int, str], tuple[str, str]] = {}
        written = any(kind.sentences for kind in kinds)
        for number, kind in enumerate(kinds if written else ()):
            prompts = [one.text for one in class_prompts(kind.name, self.templates)]
            roles = [(OWN, kind.sentences), (PROMPT, prompts), (NAME, () if prompts else (kind.name,))]
            for role, texts in roles:
                for text in texts:
                    found.setdefault((number, text_hash(text)), (normalise_text(text), role))
        texts = [text for text, _ in found.values()]
        vectors = self.texts(texts) if texts else self.texts(["a"])[:0]
        return {
            "texts": vectors.numpy(),
            "text_owners": np.array([number for number, _ in found], dtype=np.int64),
            "text_roles": np.array([role for _, role in found.values()], dtype=np.str_),
            "text_ids": np.array([sentence_id(*key) for key in found], dtype=np.str_),
            "sentences": np.array(texts, dtype=np.str_),
        }


@dataclass(frozen=True, eq=False)
class _Part:
    """Encoded images: vectors [N, D], labels, units and hashes of contents [N]."""

    features: Any
    labels: Any
    units: Any
    contents: Any


def _group_of(name: str, group: str | None) -> str | None:
    """Return the group that a file's name has by `name:REGEX`."""
    found = None if group is None else re.search(group.removeprefix("name:"), name)
    return None if found is None else found[1]


def noisy(draw: Draw, seed: int) -> Draw:
    """Add Gaussian noise to all images, as much as the training images differ from their class means.

    The noise of an image has on average the squared length that a training image's distance to its class mean has.
    """
    means = np.stack([draw.train[draw.labels == number].mean(0) for number in range(draw.classes)])
    squared = np.square(draw.train - means[draw.labels]).sum(1).mean()
    deviation = float(np.sqrt(squared / draw.train.shape[1]))
    rng = np.random.default_rng(seed)
    parts = {
        name: getattr(draw, name) + deviation * rng.standard_normal(getattr(draw, name).shape, np.float32)
        for name in ("train", "test", "added", "added_test")
    }
    return replace(draw, **parts)
