"""Answers of one model: encoder, anchors, index and head, from image files to explained predictions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.anchors.index import AnchorIndex, WithDelta
from vlltr_index.anchors.retrieval import AnchorClasses, retrieve_text_logits
from vlltr_index.data.decoding import UNREADABLE, ImageSource, image_label, open_image
from vlltr_index.embedding.crops import Crops
from vlltr_index.errors import InputError, MissingStepError, UsageError
from vlltr_index.heads.explanation import explain_class
from vlltr_index.heads.fusion import parts_of
from vlltr_index.recognition.scorer import OTHER_RULE
from vlltr_index.schemas.records import ClassScore, Prediction, SentenceShare

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.heads.fusion import FusedScores, ImageSide
    from vlltr_index.recognition.bundle import ModelBundle

__all__ = ["Answers"]

_BATCH = 64


class Answers:
    """What one model answers; it never changes."""

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle
        self.scorer = bundle.scorer

    @property
    def encoder(self) -> Encoder:
        """The model's encoder, loaded on first use."""
        return self.bundle.encoder()

    @property
    def names(self) -> dict[int, str]:
        """Class id to name."""
        return self.bundle.classes.names

    @cached_property
    def _index(self) -> AnchorIndex | None:
        """The bundle's index with what changed since as an exact delta; None if none was built."""
        base = self.bundle.index()
        if base is None:
            return None
        keys = self.scorer.loaded.keys
        new = ~torch.isin(keys, base.keys)
        gone = base.keys[~torch.isin(base.keys, keys)]
        if not bool(new.any()) and not len(gone):
            return base
        return WithDelta(base, F.normalize(self.scorer.bank.vectors[new], dim=1), keys[new], gone)

    def predict(
        self,
        images: Sequence[ImageSource],
        top: int = 5,
        explain: int = 0,
        retrieval: str = "faiss",
        reject: bool = False,
        crops: int = 1,
    ) -> list[Prediction]:
        """The best classes of each image, best first, each with its nearest sentences.

        Args:
            images: Paths, encoded bytes, PIL images, or arrays uint8 [H, W, 3].
            top: Classes an image.
            explain: Sentences a class, those whose removal would take most away first.
            retrieval: `faiss` scores the classes that the index retrieves; `exhaustive` all of them.
            reject: Whether each prediction says if the image is of any of the classes at all.
            crops: Crops of each image that make its feature: 1, or 5, see `vlltr_index.embedding.crops`.

        Raises:
            UsageError: If `retrieval` is neither, or another number of crops.
            MissingStepError: If `reject` is asked for and the head has no level for it.

        An image that cannot be read gives a `Prediction` with `problem` set; the others are answered.
        """
        if retrieval not in ("faiss", "exhaustive"):
            raise UsageError(f"retrieval is 'faiss' or 'exhaustive', got {retrieval!r}")
        if reject and self._accept_above is None:
            raise self._no_level()
        result: list[Prediction] = []
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            features, problems = self.features(part, crops)
            result += self._predict_batch(part, features, problems, top, explain, retrieval, reject)
        return result

    def _no_level(self) -> MissingStepError:
        """Why the head has no level for 'none of these'."""
        lacking = "this head knows no level for 'none of these': "
        if self.scorer.saved.parts is None:
            return MissingStepError(
                f"{lacking}it was trained for the protocols paper or release",
                OTHER_RULE,
            )
        return MissingStepError(
            f"{lacking}no image could be held out when it was trained",
            "Bring in more images, then run: vlltr train lgr",
        )

    @property
    def _accept_above(self) -> float | None:
        """The best log-likelihood of a known image is seldom below this."""
        parts = self.scorer.saved.parts
        return parts.accept_above if parts is not None and self.scorer.model is not None else None

    def features(self, images: Sequence[ImageSource], crops: int = 1) -> tuple[Tensor, list[str | None]]:
        """Features [B, D] of the readable images, unnormalised, and for each image why it was not readable."""
        views = Crops(self.encoder, crops)
        pixels: list[Tensor] = []
        problems: list[str | None] = []
        for image in images:
            try:
                pixels.append(views.pixels(open_image(image)))
                problems.append(None)
            except InputError as error:
                problems.append(error.message)
        return views.features(pixels) if pixels else torch.empty(0, self.encoder.dim), problems

    def probabilities(self, images: Sequence[ImageSource], crops: int = 1) -> NDArray[np.float64]:
        """Probability of every class for each image, float64 [B, C], every class scored exactly; rows sum to one.

        Raises:
            InputError: If an image cannot be read, naming it.
            UsageError: If it is another number of crops.
        """
        rows: list[NDArray[np.float64]] = [np.empty((0, len(self.scorer.class_ids)))]
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            features, problems = self.features(part, crops)
            for place, problem in enumerate(problems, start):
                if problem is not None:
                    raise InputError(f"images[{place}]: {problem}", UNREADABLE)
            fused, _ = self.score(features, "exhaustive")
            rows.append(fused.probabilities.double().numpy())
        whole: NDArray[np.float64] = np.concatenate(rows)
        whole /= whole.sum(axis=1, keepdims=True)
        return whole

    @torch.inference_mode()
    def score(self, features: Tensor, retrieval: str = "faiss") -> tuple[FusedScores, Tensor]:
        """Fused scores of features [B, D] over all classes [B, C], and the residual probability [B].

        The residual is the mass of the classes that were not scored exactly: 0 for `exhaustive`.
        """
        index = self._used_index if retrieval == "faiss" else None
        if index is None:
            return self.scorer.exhaustive(features), torch.zeros(len(features))
        image, text, residual = self._retrieve(index, features)
        return self.scorer.fuse(image, text), residual

    @property
    def _used_index(self) -> AnchorIndex | None:
        """The index; none where a class has no anchor, which it could not find."""
        return self._index if self.scorer.bank.num_classes == len(self.scorer.class_ids) else None

    def _known(self, features: Tensor) -> list[tuple[bool, float]]:
        """For each of features [B, D] whether it is of any class at all, and the likelihood that this is judged by."""
        level = self._accept_above
        assert level is not None
        values = self.scorer.log_likelihoods(features).amax(1).tolist()
        return [(value >= level, value) for value in values]

    def _retrieve(self, index: AnchorIndex, features: Tensor) -> tuple[ImageSide, Tensor, Tensor]:
        """The visual side, text logits [B, C] and the residual probability [B]."""
        scorer = self.scorer
        bank, head = scorer.bank, scorer.saved.head
        image = scorer.image_side(features)

        def exact(rows: Tensor, classes: Tensor | None) -> Tensor:
            return head.text_logits(features[rows], bank if classes is None else bank.select(classes))

        def fused_parts(rows: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
            return scorer.resting(image.rows(rows), text)

        found = retrieve_text_logits(
            features,
            index,
            self._anchor_classes,
            head.prototype_logits(features, bank),
            image.scores,
            exact,
            fused_parts,
        )
        return image, found.text_logits, found.residual

    @cached_property
    def _anchor_classes(self) -> AnchorClasses:
        """Anchor key to the position of its class."""
        bank = self.scorer.bank
        return AnchorClasses(self.scorer.loaded.keys, bank.class_of_row, bank.num_classes)

    def explain(self, image: ImageSource, name: str, crops: int = 1) -> ClassScore:
        """One class's score for one image, with every one of its anchor sentences, by effect; `crops` as in `predict`.

        Raises:
            InputError: If the image cannot be read.
            UnknownClassError: If there is no such class.
            MissingStepError: If the class has neither anchors nor images: it came after the selection.
        """
        class_id = self.bundle.classes.lookup(name)
        place = (self.scorer.class_ids == class_id).nonzero()[:, 0].tolist()
        if not place:
            raise MissingStepError(
                f"class {name!r} has neither an anchor sentence nor a training image",
                "Select again: vlltr embed, then vlltr select",
            )
        features, problems = self.features([image], crops)
        if problems[0] is not None:
            raise InputError(problems[0], UNREADABLE)
        fused, _ = self.score(features, "exhaustive")
        return self._class_score(features[0], fused, 0, place[0], explain=None)

    def explained(self, feature: Tensor, class_ids: Sequence[int], explain: int) -> list[ClassScore]:
        """Scores of some classes for one image, with their first sentences by effect; all classes are scored.

        Args:
            feature: Float [D], unnormalised as the encoder gives it.
            class_ids: Classes that are among the answers.
            explain: Sentences a class.
        """
        fused, _ = self.score(feature[None], "exhaustive")
        places = [int((self.scorer.class_ids == i).nonzero()[0, 0]) for i in class_ids]
        return [self._class_score(feature, fused, 0, place, explain) for place in places]

    def _predict_batch(
        self,
        images: Sequence[ImageSource],
        features: Tensor,
        problems: Sequence[str | None],
        top: int,
        explain: int,
        retrieval: str,
        reject: bool,
    ) -> list[Prediction]:
        used = "faiss" if retrieval == "faiss" and self._used_index is not None else "exhaustive"
        number = self.bundle.state
        fused, residual = self.score(features, used) if len(features) else (None, torch.empty(0))
        known = self._known(features) if reject and len(features) else [(None, None)] * len(features)
        result, row = [], 0
        for image, problem in zip(images, problems, strict=True):
            label = image_label(image)
            if problem is not None or fused is None:
                result.append(Prediction(label, (), 0.0, used, number, problem))
                continue
            best = fused.probabilities[row].topk(min(top, fused.probabilities.shape[1])).indices
            scores = tuple(self._class_score(features[row], fused, row, int(c), explain) for c in best)
            result.append(Prediction(label, scores, float(residual[row]), used, number, None, *known[row]))
            row += 1
        return result

    def _class_score(
        self, feature: Tensor, fused: FusedScores, row: int, position: int, explain: int | None
    ) -> ClassScore:
        class_id = int(self.scorer.class_ids[position])
        cosine, shares = self._shares(feature, class_id, explain)
        image_part, text_part = parts_of(fused, row, position, self.scorer.fusion.rule)
        return ClassScore(
            class_id=class_id,
            name=self.names[class_id],
            probability=float(fused.probabilities[row, position]),
            image_part=image_part,
            text_part=text_part,
            cosine=cosine,
            sentences=shares,
            unit="probability" if self.scorer.fusion.rule == "paper" else "log-odds",
        )

    def _shares(
        self, feature: Tensor, class_id: int, explain: int | None
    ) -> tuple[float, tuple[SentenceShare, ...]]:
        """The cosine of an image with a class's sentences, and the first of these by effect; none without any."""
        place = (self.scorer.bank.class_ids == class_id).nonzero()[:, 0].tolist()
        if not place:
            return 0.0, ()
        found = explain_class(self.scorer.saved.head, self.scorer.bank, place[0], feature)
        order = found.effects.argsort(descending=True, stable=True)
        order = order if explain is None else order[:explain]
        first = self.scorer.bank.bounds[place[0]]
        ids = [self.scorer.loaded.sentence_ids[first + int(m)] for m in order]
        return float(found.cosine), tuple(
            SentenceShare(
                *self.bundle.texts()[sentence_id],
                attention=float(found.attention[m]),
                share=float(found.shares[m]),
                effect=float(found.effects[m]),
            )
            for sentence_id, m in zip(ids, order.tolist(), strict=True)
        )
