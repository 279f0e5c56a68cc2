"""Stage 2 without a workspace: what `vlltr embed`, `select` and `train lgr` do, on pictures and sentences in memory."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor

from vlltr_index.anchors.anss import ranks_in_runs, score_sentences
from vlltr_index.anchors.selection import choose_anchors
from vlltr_index.data.decoding import UNREADABLE, ImageSource, open_image
from vlltr_index.data.text import class_prompts, normalise_text, sentence_id, split_sentences, text_hash
from vlltr_index.data.text_readers import read_text
from vlltr_index.data.words import number_words
from vlltr_index.embedding.loading import thumbnail_tensor
from vlltr_index.embedding.pixels import ReadAhead, Reader, image_features, in_batches
from vlltr_index.embedding.vectors import LocalEngine, StoredImage
from vlltr_index.errors import InputError, UsageError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.bursts import folder_of
from vlltr_index.heads.checkpoint import SavedHead
from vlltr_index.heads.moments import class_sums
from vlltr_index.heads.units import join_copies, units_of
from vlltr_index.recognition.anchors import Anchors
from vlltr_index.recognition.model import Model
from vlltr_index.recognition.parameters import ClassParameters, ClassStats
from vlltr_index.schemas.fingerprint import digest_bytes
from vlltr_index.schemas.records import ImageRecord, SentenceRecord
from vlltr_index.schemas.tables import content_id
from vlltr_index.store.class_table import ClassTable
from vlltr_index.store.ingestion import probe_all
from vlltr_index.tensors import unit_rows
from vlltr_index.train.augment import ViewAugment
from vlltr_index.train.stage_two import StageTwoResult, fit_stage_two
from vlltr_index.train.training_set import TrainingSet

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.config import Recipe, SelectConfig

Texts = Mapping[Any, Any] | str | os.PathLike[str] | None
"""By class a list of sentences, a text that is split into them, or vectors float [n, D]; or a source of `read_text`."""


@dataclass(frozen=True, eq=False)
class Images:
    """Training images.

    Attributes:
        features: Float32 [V, N, D], V views, the plain one first, unnormalised.
        labels: Int64 [N], 0 to C - 1.
        units: The unit of each image, see `units_of`.
        contents: The hash of each one's content.
    """

    features: Tensor
    labels: Tensor
    units: list[str]
    contents: list[str]

    @classmethod
    def of_features(cls, features: Tensor, labels: Tensor, groups: Sequence[str | None]) -> Images:
        """Make it of float32 [N, D], unnormalised, the labels int64 [N], and the group of each image, None without."""
        contents = [digest_bytes(row.numpy().tobytes()) for row in features]
        units = join_copies(units_of(features, labels, groups), contents)
        return cls(features[None], labels, units, contents)

    @classmethod
    def of_pictures(
        cls,
        pictures: Sequence[ImageSource],
        labels: Tensor,
        groups: Sequence[str | None],
        encoder: Encoder,
        recipe: Recipe,
    ) -> Images:
        """Encode pictures in the recipe's number of views; what belongs together is found as in a workspace.

        Args:
            pictures: N pictures.
            labels: Int64 [N].
            groups: The group of each picture, None without.
            encoder: The encoder.
            recipe: Says how many views, and how they are augmented.

        Raises:
            InputError: A picture cannot be read.
        """
        records = [_record(picture) for picture in pictures]
        probes = probe_all(records)
        for place, found in enumerate(probes):
            if found.problem is not None:
                raise InputError(f"pictures[{place}] cannot be read: {found.problem}", UNREADABLE)
        contents = [found.content_hash or "" for found in probes]
        stored: list[StoredImage] = [
            (content_id("", content), record.uri if record.data is None else record.data)
            for content, record in zip(contents, records, strict=True)
        ]
        engine = LocalEngine(encoder, ViewAugment(recipe.lgr.augment, encoder))
        vectors = []
        for batch in engine.images(in_batches(stored), range(recipe.lgr.views)):
            for why in batch.problems.values():
                raise InputError(why, UNREADABLE)
            vectors.append(batch.vectors)
        features = torch.cat(vectors, 1)
        units = units_of(
            features[0],
            labels,
            groups,
            taken=[found.taken for found in probes],
            places=[folder_of(record.uri) for record in records],
            thumbnails=thumbnail_tensor([found.thumbnail for found in probes]),
        )
        return cls(features, labels, join_copies(units, contents), contents)


def picture_features(encoder: Encoder, pictures: Sequence[ImageSource]) -> Tensor:
    """Encode N pictures to float32 [N, D] on the CPU, unnormalised.

    Raises:
        InputError: A picture cannot be read.
    """
    features = [torch.empty(0, encoder.dim)]
    by_place = ((str(place), picture) for place, picture in enumerate(pictures))
    for batch in ReadAhead(Reader(encoder), in_batches(by_place)):
        for place, why in zip(batch.names, batch.problems, strict=True):
            if why is not None:
                raise InputError(f"pictures[{place}]: {why}", UNREADABLE)
        features.append(image_features(encoder, batch.pixels)[:, 0].cpu())
    return torch.cat(features)


def _record(picture: ImageSource) -> ImageRecord:
    """Make a record of a picture; one that is in memory decoded becomes a PNG file's bytes."""
    if isinstance(picture, str | os.PathLike):
        path = os.fspath(picture)
        return ImageRecord(path, path, None, "train")
    if not isinstance(picture, bytes):
        file = BytesIO()
        open_image(picture).save(file, "PNG")
        picture = file.getvalue()
    return ImageRecord("", "", None, "train", data=picture)


@dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences of the classes.

    Attributes:
        vectors: Float32 [N_t, D], unnormalised.
        owner: Int64 [N_t], the class of each.
        prompts: Bool [N_t], which are prompts.
        ids: Their ids.
        hashes: Hashes of what they say, which break ties.
        texts: What they say; empty texts where that is not known.
        logit_scale: The multiplier of the cosine.
    """

    vectors: Tensor
    owner: Tensor
    prompts: Tensor
    ids: list[str]
    hashes: list[str]
    texts: list[str]
    logit_scale: float

    @classmethod
    def of_texts(
        cls, texts: Mapping[int, Sequence[str]], names: Sequence[str], encoder: Encoder, recipe: Recipe
    ) -> Sentences:
        """Encode the sentences of classes 0 to C - 1, and the recipe's prompts for the classes' names."""
        told: dict[tuple[int, str], tuple[str, bool]] = {}
        for number, name in enumerate(names):
            prompts = [one.text for one in class_prompts(name, recipe.templates)]
            own = texts.get(number, ())
            for text, prompt in [*((text, False) for text in own), *((text, True) for text in prompts)]:
                told.setdefault((number, text_hash(text)), (normalise_text(text), prompt))
        different = {hashed: text for (_, hashed), (text, _) in told.items()}
        rows = {hashed: row for row, hashed in enumerate(different)}
        vectors = [torch.empty(0, encoder.dim)]
        vectors += [part for _, part, _ in LocalEngine(encoder).texts(list(different.items()))]
        return cls(
            torch.cat(vectors)[[rows[hashed] for _, hashed in told]],
            torch.tensor([number for number, _ in told], dtype=torch.int64),
            torch.tensor([prompt for _, prompt in told.values()], dtype=torch.bool),
            [sentence_id(number, hashed) for number, hashed in told],
            [hashed for _, hashed in told],
            [text for text, _ in told.values()],
            encoder.logit_scale,
        )

    @classmethod
    def of_vectors(cls, vectors: Mapping[int, Tensor], dim: int, logit_scale: float) -> Sentences:
        """Make it of the vectors of some classes' sentences, each float32 [n, D]."""
        whole = torch.cat([torch.empty(0, dim), *vectors.values()])
        owner = torch.tensor([n for n, rows in vectors.items() for _ in rows], dtype=torch.int64)
        ids = [digest_bytes(row.numpy().tobytes()) for row in whole]
        prompts = torch.zeros(len(owner), dtype=torch.bool)
        return cls(whole, owner, prompts, ids, ids, [""] * len(ids), logit_scale)

    def anchors(self, images: Images, out: Tensor, config: SelectConfig) -> tuple[AnchorBank, list[int]]:
        """Select the anchors by all images but `out`, bool [N]; return them and their positions among the sentences."""
        if not self.ids:
            none = torch.empty(0, dtype=torch.int64)
            return AnchorBank(self.vectors, none.new_zeros(1), none, none, self.vectors.new_empty(0)), []
        owned = zip(images.labels.tolist(), images.contents, range(len(out)), strict=True)
        at = torch.tensor([n for *_, n in sorted(owned) if not out[n]], dtype=torch.int64)
        at = at[ranks_in_runs(images.labels[at]) < config.images_per_class]
        labels = images.labels[at]
        features = images.features[0, at]
        losses = score_sentences(self.vectors, self.owner, features, labels, self.logit_scale).loss
        ranked = torch.isin(self.owner, labels)
        chosen = choose_anchors(losses, self.owner, self.hashes, self.prompts, ranked, config).positions
        chosen = chosen[self.owner[chosen].argsort(stable=True)]
        return self._bank(chosen, losses[chosen].float()), chosen.tolist()

    @cached_property
    def words(self) -> Tensor:
        """The words of each, int16 [N_t, K], see `number_words`."""
        return number_words(self.texts)

    def _bank(self, at: Tensor, losses: Tensor) -> AnchorBank:
        """Return the bank of the sentences at the positions int64 [A]."""
        owner = self.owner[at]
        return AnchorBank.build(self.vectors[at], owner, owner.unique(), losses, self.words[at])


def texts_by_class(texts: Texts, labels: Sequence[Hashable]) -> dict[int, Any]:
    """Return what is said of each class by its number; texts of other classes are left out.

    Args:
        texts: See `Texts`.
        labels: C labels.

    Raises:
        InputError: The texts are of other classes alone, or their source cannot be read.
    """
    if texts is None:
        return {}
    if isinstance(texts, str | os.PathLike):
        numbers: dict[Hashable, int] = {str(label): number for number, label in enumerate(labels)}
        told: dict[Any, Any] = {}
        for one in read_text(Path(texts)):
            if isinstance(one, SentenceRecord):
                told.setdefault(one.class_name, []).append(one.text)
    elif isinstance(texts, Mapping):
        numbers = {label: number for number, label in enumerate(labels)}
        told = dict(texts)
    else:
        raise InputError(
            f"texts is a {type(texts).__name__}", "Give the sentences by class: {label: [sentence, ...]}"
        )
    found = {numbers[name]: said for name, said in told.items() if name in numbers}
    if not found:
        raise InputError(
            f"the texts are of {', '.join(map(repr, list(told)[:3])) or 'no class'}, "
            f"the labels are {', '.join(map(repr, labels[:3]))}",
            "Give the texts by the labels in y.",
        )
    return dict(sorted(found.items()))


def sentences_in(said: Any) -> list[str]:
    """Return the sentences of a text, or of a list of them.

    Raises:
        InputError: It holds something else.
    """
    if isinstance(said, str):
        return split_sentences(said)
    found = list(said)
    if not all(isinstance(one, str) for one in found):
        raise InputError(
            "the texts of a class are no sentences", "Give vectors with features alone, and name no encoder."
        )
    return found


def fit_in_memory(
    images: Images, sentences: Sentences, classes: int, recipe: Recipe
) -> tuple[Model, StageTwoResult]:
    """Select anchors and fit all parts, as `vlltr select` and `vlltr train lgr` do without a stage 1.

    Args:
        images: Images of C classes.
        sentences: Of all or some of them.
        classes: Number of classes, C.
        recipe: The settings.

    Returns:
        The model, and the result of stage 2: what was decided, and the models of the folds.

    Raises:
        UsageError: The recipe is of another protocol than `ours`, or trains the tower in stage 2.
    """
    select = recipe.select
    if recipe.fusion.rule != "ours" or recipe.lgr.live or select.augmented or select.split != "train":
        raise UsageError(
            f"the recipe {recipe.name} cannot be fitted in memory: its rule is not 'ours', pictures pass the tower in "
            "stage 2, or sentences are selected by other pictures than the plain ones of split train",
            "Take the recipe ours, or a workspace: vlltr init DIR --recipe NAME",
        )
    bank, chosen = sentences.anchors(images, torch.zeros_like(images.labels, dtype=torch.bool), select)
    places = torch.full((classes,), -1)
    places[bank.class_ids] = torch.arange(bank.num_classes)
    data = TrainingSet(
        features=images.features,
        labels=images.labels,
        bank=bank,
        places=places,
        units=images.units,
        keys=images.contents,
        unseen=torch.zeros_like(images.labels, dtype=torch.bool),
        unseen_classes=torch.zeros(classes, dtype=torch.bool),
        visual_init=None,
        logit_scale=sentences.logit_scale,
        anchors_without=lambda out: (sentences.anchors(images, out, select)[0], []),
    )
    decision = fit_stage_two(data, recipe.lgr)
    assert decision.rows is not None
    every = torch.arange(classes)
    counts, sums = class_sums(unit_rows(images.features[0]), images.labels, classes, data.weights)
    anchors = Anchors(
        bank=bank,
        keys=torch.arange(len(chosen)),
        read={
            "sentence_id": pa.array([sentences.ids[n] for n in chosen], pa.string()),
            "text": pa.array([sentences.texts[n] for n in chosen], pa.string()),
        }.__getitem__,
        selection_id="",
    )
    saved = SavedHead(decision.head, every[decision.rows], text_fp="", image_fp="", parts=decision.parts)
    model = Model(
        known=ClassParameters(anchors, saved, ClassStats(every, counts, sums), merged={}),
        fusion=recipe.fusion,
        classes=ClassTable({number: str(number) for number in range(classes)}, {}),
    )
    return model, decision
