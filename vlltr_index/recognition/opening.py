"""What a model opens on first use, and what it takes from an older model of the same workspace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import compress
from typing import TYPE_CHECKING, NoReturn

import pyarrow as pa
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.anchors.index import AnchorIndex, load_index
from vlltr_index.embedding.loading import content_ids, content_vectors
from vlltr_index.embedding.vectors import embedded
from vlltr_index.errors import UsageError
from vlltr_index.schemas.config import EncoderConfig, FusionConfig
from vlltr_index.schemas.model import ModelRecord
from vlltr_index.store.snapshot import Snapshot

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.store.objects import Kept
    from vlltr_index.store.snapshot import ModelSource

ClassImages = Callable[[int], tuple[pa.Table, Tensor]]
"""Returns ids and URIs of a class's embedded training images, by class id, and their unit vectors [N, D]."""

_FIT = "Make a workspace: vlltr fit DIR"
_CLASSES = 32  # whose training vectors are kept


class Memory:
    """The source of a model that was fitted in memory: it has no commit, and nothing can be read from it.

    Attributes:
        record: Names nothing.
    """

    record = ModelRecord(
        commit=0,
        first_commit=0,
        encoder=EncoderConfig(),
        head=None,
        parts=(),
        index=None,
        text_fp=None,
        image_fp=None,
        reading=0,
        selection_id=None,
        fusion=FusionConfig(),
        merged={},
        offsets={},
    )

    @property
    def objects(self) -> Kept:
        """Refuse: nothing is stored."""
        self._refuse()

    def rows(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Refuse: nothing is stored."""
        self._refuse()

    def vectors(self, name: str, keys: Tensor) -> Tensor:
        """Refuse: nothing is stored."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError("a model that was fitted in memory has no workspace", _FIT)


def no_encoder() -> Encoder:
    """Refuse: a model that was fitted on features has no encoder."""
    raise UsageError("this model was fitted in memory: it has no encoder", "Score features.")


def no_index() -> AnchorIndex | None:
    """Return None: there is no index."""
    return None


def no_class_images(class_id: int) -> tuple[pa.Table, Tensor]:
    """Refuse: a model that was fitted in memory has no images."""
    raise UsageError("a model that was fitted in memory has no training images to show", _FIT)


def unchanged(part: str, record: ModelRecord, older: ModelRecord) -> bool:
    """Say whether a part of a model is the same in an older record; never where it is read from tables."""
    facts = _FACTS[part](record)
    return facts is not None and facts == _FACTS[part](older)


def _of_parts(record: ModelRecord, *others: object) -> tuple[object, ...] | None:
    """Return what rows depend on; None where they are made of tables, which may have changed."""
    return (record.parts, *others) if record.parts else None


_FACTS: Mapping[str, Callable[[ModelRecord], object]] = {
    "encoder": lambda r: (r.encoder, r.text_fp, r.image_fp),
    "head": lambda r: (r.head, r.text_fp, r.image_fp),
    "index": lambda r: (r.index,),
    "anchors": lambda r: _of_parts(r, r.selection_id),
    "class_stats": lambda r: _of_parts(r, r.image_fp, r.head),
    "texts": _of_parts,
    "classes": _of_parts,
    "taxonomy": _of_parts,
}
"""What each part depends on; None: it is always read anew."""


def open_index(source: ModelSource) -> AnchorIndex | None:
    """Read the index over anchors, which may have changed since; None if there is none.

    Raises:
        WorkspaceError: Its files are damaged.
    """
    own = source.record.index
    return None if own is None else load_index(source.objects.whole("index", own.digest))


def class_images_of(source: ModelSource) -> ClassImages:
    """Return what reads a class's training images, and keeps those of the last classes.

    What it returns raises:
        UsageError: The source is no commit, and has no images.
        MissingStepError: No image at all has been embedded.
    """
    return lru_cache(_CLASSES)(partial(_read_class_images, source))


def _read_class_images(source: ModelSource, class_id: int) -> tuple[pa.Table, Tensor]:
    snapshot = snapshot_of(source)
    where = f"split = 'train' AND class_id = {class_id} AND problem IS NULL"
    rows = snapshot.table("images", ["image_id", "uri"], where).sort_by("image_id")
    contents = content_ids(snapshot, rows["image_id"].to_pylist())
    there = embedded(snapshot, snapshot.commit.image_fp or "", contents)
    vectors = content_vectors(snapshot, list(compress(contents, there)))
    return rows.filter(pa.array(there, pa.bool_())), F.normalize(vectors, dim=1)


def snapshot_of(source: ModelSource) -> Snapshot:
    """Return the commit or transaction.

    Raises:
        UsageError: The source is no commit, and has no images.
    """
    if isinstance(source, Snapshot):
        return source
    what = "an exported folder has no training images to show as neighbours"
    raise UsageError(what, "Ask the workspace that it came from, or leave neighbours out.")
