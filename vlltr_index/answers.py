"""Answers from one commit: encoder, anchors, index and head, from image files to explained predictions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.crops import Crops
from vlltr_index.errors import InputError, MissingStepError, UsageError
from vlltr_index.explanation import explain_class
from vlltr_index.images.decode import UNREADABLE, ImageSource, image_label, open_image
from vlltr_index.index import AnchorIndex, WithDelta, load_index
from vlltr_index.loading import open_encoder
from vlltr_index.rejection import known_scores
from vlltr_index.retrieval import AnchorClasses, best_row_logits, retrieve_text_logits
from vlltr_index.schemas.records import ClassScore, Prediction, SentenceShare
from vlltr_index.scoring import Scorer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlltr_index.encoder import Encoder
    from vlltr_index.fusion import FusedScores
    from vlltr_index.rejection import Score
    from vlltr_index.snapshot import Snapshot
    from vlltr_index.workspace import Workspace

__all__ = ["Answers"]

_BATCH = 64


class Answers:
    """What one commit of a workspace answers; it never changes.

    Args:
        workspace: Where the encoder and the index lie; None where both are given: an exported folder has no more.
        snapshot: The commit.
        scorer: Its anchors, head and fusion values.
        encoder: Its encoder, where that is loaded already.
        index: Without a workspace, the index over its anchors; None: all classes are scored.
    """

    def __init__(
        self,
        workspace: Workspace | None,
        snapshot: Snapshot,
        scorer: Scorer,
        encoder: Encoder | None = None,
        index: AnchorIndex | None = None,
    ) -> None:
        self._workspace = workspace
        self.snapshot = snapshot
        self.scorer = scorer
        self.loaded_encoder = encoder
        self._given_index = index
        self._loading = threading.Lock()

    @property
    def encoder(self) -> Encoder:
        """The commit's encoder, loaded on first use."""
        with self._loading:
            if self.loaded_encoder is None:
                assert self._workspace is not None  # without one the encoder is given
                encoder = open_encoder(self._workspace, self.snapshot)
                encoder.eval()
                self.loaded_encoder = encoder
            return self.loaded_encoder

    @cached_property
    def names(self) -> dict[int, str]:
        """Class id to name."""
        return self.snapshot.class_table().names

    @cached_property
    def _index(self) -> AnchorIndex | None:
        """The commit's index with what changed since as an exact delta; None if none was built."""
        base = self._base_index()
        if base is None:
            return None
        keys = self.scorer.loaded.keys
        new = ~torch.isin(keys, base.keys)
        gone = base.keys[~torch.isin(base.keys, keys)]
        if not bool(new.any()) and not len(gone):
            return base
        return WithDelta(base, F.normalize(self.scorer.bank.vectors[new], dim=1), keys[new], gone)

    def _base_index(self) -> AnchorIndex | None:
        if self._workspace is None:
            return self._given_index
        commit = self.snapshot.commit
        if commit is None or commit.index is None or commit.index.get("text_fp") != commit.text_fp:
            return None
        return load_index(self._workspace.object_path("index", commit.index["digest"]))

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
            crops: Crops of each image that make its feature: 1, or 5, see `vlltr_index.crops`.

        Raises:
            UsageError: If `retrieval` is neither, or another number of crops.
            MissingStepError: If `reject` is asked for and no threshold has been calibrated.

        An image that cannot be read gives a `Prediction` with `problem` set; the others are answered.
        """
        if retrieval not in ("faiss", "exhaustive"):
            raise UsageError(f"retrieval is 'faiss' or 'exhaustive', got {retrieval!r}")
        limit = self._limit() if reject else None
        result: list[Prediction] = []
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            features, problems = self.features(part, crops)
            result += self._predict_batch(part, features, problems, top, explain, retrieval, limit)
        return result

    def _limit(self) -> tuple[Score, float]:
        """The score by which images are rejected, and its threshold."""
        commit = self.snapshot.commit
        fusion = commit.fusion if commit is not None else None
        if fusion is None and self._workspace is not None:
            fusion = self._workspace.recipe.fusion
        if fusion is None or fusion.reject_score is None or fusion.reject_threshold is None:
            raise MissingStepError(
                "no threshold for 'none of these' has been calibrated", "Run: vlltr calibrate"
            )
        return fusion.reject_score, fusion.reject_threshold

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
        index = self._index if retrieval == "faiss" else None
        if index is None:
            return self.scorer.exhaustive(features), torch.zeros(len(features))
        visual, text, residual = self._retrieve(index, features)
        return self.scorer.fuse(visual, text), residual

    @torch.inference_mode()
    def _judge(
        self, features: Tensor, retrieval: str, limit: tuple[Score, float] | None
    ) -> tuple[FusedScores, Tensor, list[tuple[bool | None, float | None]]]:
        """As `score`, and for each image whether it is known and by what score, where there is a `limit`."""
        if limit is None:
            fused, residual = self.score(features, retrieval)
            return fused, residual, [(None, None)] * len(features)
        scorer, index = self.scorer, self._index if retrieval == "faiss" else None
        if index is None:
            text = scorer.saved.head.text_logits(features, scorer.bank)
            visual, residual = scorer.visual_logits(features), torch.zeros(len(features))
        else:
            visual, text, residual = self._retrieve(index, features)
        name, threshold = limit
        values = known_scores(visual, text, scorer.row_class, scorer.trained, scorer.params, (name,))[name]
        return scorer.fuse(visual, text), residual, [(v >= threshold, v) for v in values.tolist()]

    def _retrieve(self, index: AnchorIndex, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Visual logits [B, C_v + R], text logits [B, C] and the residual probability [B]."""
        scorer = self.scorer
        bank, head = scorer.bank, scorer.saved.head
        visual = scorer.visual_logits(features)

        def exact(rows: Tensor, classes: Tensor | None) -> Tensor:
            return head.text_logits(features[rows], bank if classes is None else bank.select(classes))

        def fused_parts(rows: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
            fused = scorer.fuse(visual[rows], text)
            # Under `logits` a part is a logit, and all of a probability rests on the text's.
            logits = scorer.params.rule == "logits"
            return fused.probabilities, fused.probabilities if logits else fused.text_part

        found = retrieve_text_logits(
            features,
            index,
            self._anchor_classes,
            head.prototype_logits(features, bank),
            best_row_logits(visual, scorer.row_class, bank.num_classes),
            exact,
            fused_parts,
        )
        return visual, found.text_logits, found.residual

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
            MissingStepError: If the class has no anchors: it came after the selection.
        """
        class_id = self.snapshot.class_table().lookup(name)
        place = (self.scorer.class_ids == class_id).nonzero()[:, 0].tolist()
        if not place:
            raise MissingStepError(
                f"class {name!r} has no anchor sentence", "Select again: vlltr embed, then vlltr select"
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
            class_ids: Classes that have anchors.
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
        limit: tuple[Score, float] | None,
    ) -> list[Prediction]:
        used = "faiss" if retrieval == "faiss" and self._index is not None else "exhaustive"
        commit = self.snapshot.commit
        number = commit.state if commit is not None else 0
        fused, residual, known = (
            self._judge(features, used, limit) if len(features) else (None, torch.empty(0), [])
        )
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
        found = explain_class(self.scorer.saved.head, self.scorer.bank, position, feature)
        order = found.effects.argsort(descending=True, stable=True)
        order = order if explain is None else order[:explain]
        first = self.scorer.bank.bounds[position]
        ids = [self.scorer.loaded.sentence_ids[first + int(m)] for m in order]
        sentences = self.sentences(ids)
        shares = tuple(
            SentenceShare(
                *sentences[sentence_id],
                attention=float(found.attention[m]),
                share=float(found.shares[m]),
                effect=float(found.effects[m]),
            )
            for sentence_id, m in zip(ids, order.tolist(), strict=True)
        )
        class_id = int(self.scorer.class_ids[position])
        return ClassScore(
            class_id,
            self.names[class_id],
            float(fused.probabilities[row, position]),
            float(fused.visual_part[row, position]),
            float(fused.text_part[row, position]),
            float(found.cosine),
            shares,
            "logit" if self.scorer.params.rule == "logits" else "probability",
        )

    @cached_property
    def _sentence_rows(self) -> dict[str, tuple[str, str, str | None, str | None]]:
        columns = ["sentence_id", "text", "source", "source_ref", "licence"]
        rows = self.snapshot.table("sentences", columns=columns)
        return {
            i: (t, s, r, x) for i, t, s, r, x in zip(*(rows[c].to_pylist() for c in columns), strict=True)
        }

    def sentences(self, ids: Sequence[str]) -> dict[str, tuple[str, str, str | None, str | None]]:
        """Sentence id to text, source, its reference there, and licence."""
        return {i: self._sentence_rows[i] for i in ids}
