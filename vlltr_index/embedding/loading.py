"""Reading a workspace into tensors: its encoder, the vectors of a split, and the anchor bank."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from vlltr_index.data.decoding import THUMBNAIL
from vlltr_index.data.words import number_words
from vlltr_index.errors import (
    EncoderError,
    FingerprintMismatch,
    MissingStepError,
    write_error,
)
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.bursts import folder_of
from vlltr_index.heads.moments import class_sums, observation_weights
from vlltr_index.heads.units import join_copies, number_observations, units_of
from vlltr_index.schemas.config import AugmentConfig, EncoderConfig
from vlltr_index.schemas.fingerprint import digest_json
from vlltr_index.schemas.tables import class_stats as class_stats_schema
from vlltr_index.schemas.tables import (
    content_id,
    image_vectors_name,
    sentence_readings_name,
    sentence_vectors_name,
)
from vlltr_index.store.tables import one_of, quote
from vlltr_index.tensors import unit_rows

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.encoders.sentence_model import SentenceModel
    from vlltr_index.store.snapshot import ModelSource, Snapshot
    from vlltr_index.store.workspace import Workspace

_EVIDENCE = ("group", "taken", "uri", "thumbnail", "content_hash")
_NO_THUMBNAIL = bytes(THUMBNAIL**2)
_FEW = 1000  # images that are looked up by a condition instead of a scan


def open_encoder(
    source: ModelSource, check: bool = True, device: str | torch.device | None = None
) -> Encoder:
    """Open the encoder that a model's record names: its checkpoint, or the recipe's weights where stage 1 has not run.

    Without `check`, weights that have changed since the commit are accepted. Default of `device`: a GPU if there is
    one.

    Raises:
        MissingStepError: The encoder starts from scratch and stage 1 has not run.
        FingerprintMismatch: The weights are not the ones that computed the commit's vectors.
    """
    record = source.record
    config = record.encoder
    if isinstance(config, str):
        folder = source.objects.path("checkpoints", config)
        try:
            encoder = saved_encoder(folder, device)
        except EncoderError as error:
            raise EncoderError(
                error.message,
                f"Bring {folder} back from a backup, or make it again: vlltr train cvlp "
                "(or vlltr import release, if it came from there)",
            ) from None
    elif config.pretrained:
        encoder = recipe_encoder(config, device)
    else:
        raise MissingStepError(
            f"the encoder {config.model} has no weights yet: the recipe starts it from scratch",
            "Train it: vlltr train cvlp",
        )
    if not check:
        return encoder
    towers = [
        ("images", record.image_fp, encoder.image_fp),
        ("sentences", record.text_fp, encoder.text_fp),
    ]
    for what, expected, found in towers:
        if expected not in (None, found):
            raise FingerprintMismatch(
                f"the vectors of the {what} were made by encoder {expected}, the encoder that loads now is {found}: "
                "its weights, preprocessing or tokenizer changed",
                "Put the old weights back, or run: vlltr embed --force, then select, train lgr, index",
            )
    return encoder


def saved_encoder(folder: Path, device: str | torch.device | None = None) -> Encoder:
    """Open the encoder in a checkpoint's folder.

    Raises:
        EncoderError: There is none, or it is damaged.
    """
    # open_clip takes seconds to import, and few commands need it.
    from vlltr_index.encoders.encoder import Encoder

    return Encoder.open(folder, device=device)


def recipe_encoder(config: EncoderConfig, device: str | torch.device | None = None) -> Encoder:
    """Load the pretrained encoder that a recipe names."""
    from vlltr_index.encoders.encoder import Encoder

    how = config.model_dump(include={"image_size", "resize", "precision"})
    return Encoder.load(config.model, config.pretrained, device=device, **how)


def open_reader(snapshot: Snapshot) -> SentenceModel | None:
    """Open the sentence-embedding model that read the sentences of a commit; None if none did.

    Raises:
        FingerprintMismatch: It is another one by now.
    """
    from vlltr_index.encoders.sentence_model import SentenceModel

    reading = snapshot.commit.info.reading
    if reading is None:
        return None
    model = SentenceModel.open(reading.model)
    if model.fingerprint != reading.fp:
        raise FingerprintMismatch(
            f"the sentences were read by {reading.fp}, the model {reading.model} is {model.fingerprint} now",
            "Put the old model back, or run: vlltr embed, then train lgr, index",
        )
    return model


def usable_images(snapshot: Snapshot, split: str, columns: list[str]) -> pa.Table:
    """Read the rows of `images` of one split that have a class and no problem, ordered by image_id."""
    where = f"split = {quote(split)} AND class_id IS NOT NULL AND problem IS NULL"
    wanted = list(dict.fromkeys(["image_id", "class_id", *columns]))
    return snapshot.table("images", wanted, where).sort_by("image_id")


def image_units(
    snapshot: Snapshot, image_ids: Sequence[str], class_ids: Tensor, features: Tensor | None
) -> list[str]:
    """Name the unit of each image: those that belong together have the same, see `units_of`; copies always do.

    Args:
        snapshot: Where the images are.
        image_ids: Ids of N readable images, all of those of a class that are to be compared.
        class_ids: Int64 [N].
        features: Float [N, D], unnormalised; None: the images have no vectors yet.
    """
    where = one_of("image_id", image_ids) if len(image_ids) <= _FEW else "problem IS NULL"
    rows = snapshot.table("images", ["image_id", *_EVIDENCE], where)
    rows = rows.take(pc.index_in(pa.array(image_ids, pa.string()), rows["image_id"].combine_chunks()))
    groups, taken, uris, small, contents = (rows[name].to_pylist() for name in _EVIDENCE)
    units = units_of(
        features,
        torch.unique(class_ids, return_inverse=True)[1],
        groups,
        taken=taken,
        places=[folder_of(uri) for uri in uris],
        thumbnails=thumbnail_tensor(small),
    )
    return join_copies(units, contents)


def thumbnail_tensor(thumbnails: Sequence[bytes | None]) -> Tensor:
    """Return small grey copies of images, see `Probe`, as uint8 [N, S, S], all 0 where there is none."""
    pixels = b"".join(one or _NO_THUMBNAIL for one in thumbnails)
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, THUMBNAIL, THUMBNAIL)


def numbers(rows: pa.Table, column: str) -> Tensor:
    """Convert an integer column to int64 [N]."""
    return torch.from_numpy(rows[column].to_numpy().copy()).long()


@dataclass(frozen=True)
class ImageSet:
    """Stored vectors of one split: features float32 [N, D] unnormalised, class ids int64 [N], in image_id order."""

    image_ids: list[str]
    class_ids: Tensor
    features: Tensor


def view_suffix(view: int, augment: AugmentConfig | None = None) -> str:
    """Return the suffix of a view, which follows the image id in a vector's key and names the augmentation."""
    if view == 0:
        return "0"
    facts = {} if augment is None else augment.model_dump(mode="json")
    return f"{view}-{digest_json(facts)[:8]}"


def augmented_view(snapshot: Snapshot) -> str:
    """Return the suffix of the first augmented view, under the augmentation of the stored vectors.

    Raises:
        MissingStepError: No augmented view has been embedded.
    """
    info = snapshot.commit.info
    if info.views < 2 or info.augment is None:
        raise MissingStepError(
            "the selection wants augmented views of the images (select.augmented), and there are none",
            "Set recipe.lgr.views in vlltr.toml to 2 or more, then run: vlltr embed",
        )
    return view_suffix(1, info.augment)


def image_set(
    snapshot: Snapshot,
    split: str,
    view: int = 0,
    augment: AugmentConfig | None = None,
    image_fp: str | None = None,
) -> ImageSet:
    """Read the vectors of the usable images of `split` in one view, by the commit's encoder or that of `image_fp`.

    Raises:
        MissingStepError: The split is empty, or not all of it has been embedded.
    """
    rows = usable_images(snapshot, split, [])
    if not rows.num_rows:
        raise MissingStepError(
            f"there are no images in split {split!r}", f"Run: vlltr ingest images PATH --split {split}"
        )
    ids: list[str] = rows["image_id"].to_pylist()
    features = image_vectors_of(snapshot, ids, view_suffix(view, augment), image_fp)
    return ImageSet(ids, numbers(rows, "class_id"), features)


def image_vectors_of(
    snapshot: Snapshot, image_ids: Sequence[str], suffix: str = "0", image_fp: str | None = None
) -> Tensor:
    """Read vectors of images, float32 [N, D] unnormalised, in the given order; by the commit's encoder or `image_fp`.

    Raises:
        MissingStepError: An image has not been embedded in that view.
    """
    return content_vectors(snapshot, content_ids(snapshot, image_ids), suffix, image_fp)


def content_vectors(
    snapshot: Snapshot, contents: Sequence[str], suffix: str = "0", image_fp: str | None = None
) -> Tensor:
    """Read vectors as `image_vectors_of` does, by the ids of the images' contents."""
    image_fp = image_fp or snapshot.commit.image_fp
    if not image_fp:
        raise MissingStepError("no image has been embedded yet", "Run: vlltr embed")
    keys = [f"{i}:{suffix}" for i in contents]
    return _vectors(snapshot, image_vectors_name(image_fp), "vector_key", keys)


def content_ids(snapshot: Snapshot, image_ids: Sequence[str]) -> list[str]:
    """Return the id under which each image's vectors are stored, see `schemas.tables.content_id`.

    Args:
        snapshot: Where the images are.
        image_ids: Ids of readable images.
    """
    where = one_of("image_id", image_ids) if len(image_ids) <= _FEW else "content_hash IS NOT NULL"
    rows = snapshot.table("images", ["image_id", "content_hash"], where)
    found = dict(zip(rows["image_id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))
    return [content_id(i, found[i]) for i in image_ids]


def text_vectors_of(snapshot: Snapshot, hashes: Sequence[str]) -> Tensor:
    """Read vectors of sentences by their text hashes, float32 [N, D] unnormalised, in the given order.

    Raises:
        MissingStepError: A sentence has not been embedded.
    """
    return _vectors(snapshot, sentence_vectors_name(snapshot.commit.text_fp or ""), "text_hash", hashes)


def _vectors(snapshot: Snapshot, name: str, column: str, keys: Sequence[str]) -> Tensor:
    """Read vectors from a table by the values of its key column, float32 [N, D]; N may be 0."""
    return snapshot.store.vectors(name, column, keys) if keys else torch.empty(0, snapshot.commit.info.dim)


def stats_rows(
    features: Tensor, class_ids: Tensor, units: Sequence[str], image_fp: str, correlation: float
) -> pa.Table:
    """Count and sum training images as observations, as rows of `class_stats`.

    Args:
        features: Float [N, D], unnormalised.
        class_ids: Int64 [N].
        units: The name of each image's unit, see `units_of`.
        image_fp: Fingerprint of the encoder.
        correlation: How alike the images of a unit are, see `observation_weights`.
    """
    owners, labels = torch.unique(class_ids, return_inverse=True)
    weights = observation_weights(number_observations(labels, units), correlation)
    counts, sums = class_sums(unit_rows(features), labels, len(owners), weights)
    columns = {
        "class_id": owners.numpy(),
        "image_fp": [image_fp] * len(owners),
        "images": counts.numpy(),
        "sum": pa.FixedSizeListArray.from_arrays(pa.array(sums.flatten().numpy()), features.shape[1]),
    }
    return pa.table(columns).cast(class_stats_schema(features.shape[1]))


def with_words(snapshot: Snapshot, bank: AnchorBank, sentence_ids: Sequence[str]) -> AnchorBank:
    """Return a bank with the words and readings of its sentences, whose ids are in its order."""
    bank = with_readings(snapshot, bank, sentence_ids)
    return replace(bank, words=number_words(_sentence_column(snapshot, "text", sentence_ids)))


def with_readings(snapshot: Snapshot, bank: AnchorBank, sentence_ids: Sequence[str]) -> AnchorBank:
    """Return a bank with the readings of its sentences, whose ids are in its order; as it is if there are none."""
    if not snapshot.commit.info.reading:
        return bank
    hashes = _sentence_column(snapshot, "text_hash", sentence_ids).to_pylist()
    return replace(bank, readings=readings_of(snapshot, hashes))


def _sentence_column(snapshot: Snapshot, column: str, sentence_ids: Sequence[str]) -> pa.ChunkedArray:
    """Read one column of some sentences, in their order."""
    rows = snapshot.table("sentences", ["sentence_id", column])
    at = pc.index_in(pa.array(sentence_ids, pa.string()), value_set=rows["sentence_id"].combine_chunks())
    return rows[column].take(at)


def readings_of(snapshot: Snapshot, hashes: Sequence[str]) -> Tensor | None:
    """Read what the sentence-embedding model made of texts, float32 [N, P] by their hashes; None if there is none.

    Raises:
        MissingStepError: It has not read a text.
    """
    reading = snapshot.commit.info.reading
    if reading is None:
        return None
    return snapshot.store.vectors(sentence_readings_name(reading.fp), "text_hash", hashes)


def run_folder(workspace: Workspace, key: str = "") -> Path:
    """Make the folder for the state of the unfinished run with this key; without a key, the folder of all runs.

    Raises:
        WorkspaceError: The folder cannot be made, or is not writable.
    """
    folder = workspace.path / "runs" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise write_error(folder, error) from error
    return folder
