"""One model, of a commit, an exported folder or memory: features to probabilities, images to explained answers."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vlltr_index.anchors.index import AnchorIndex, current_index
from vlltr_index.anchors.retrieval import AnchorClasses, Retrieved, choose_index, retrieval_of, retrieve
from vlltr_index.data.decoding import UNREADABLE, ImageSource, image_label
from vlltr_index.embedding.loading import open_encoder
from vlltr_index.embedding.pixels import ReadAhead, Reader, image_features, in_batches, pool_crops
from vlltr_index.errors import InputError, MissingStepError, UsageError, WorkspaceError
from vlltr_index.heads.fusion import FusedScores
from vlltr_index.recognition.anchors import read_anchors, read_texts
from vlltr_index.recognition.explaining import Explainer, nearest
from vlltr_index.recognition.lazy import Lazy
from vlltr_index.recognition.opening import (
    ClassImages,
    Memory,
    class_images_of,
    no_class_images,
    no_encoder,
    no_index,
    open_index,
    snapshot_of,
    unchanged,
)
from vlltr_index.recognition.parameters import ClassParameters, read_class_stats, read_head
from vlltr_index.recognition.priors import frequencies_given
from vlltr_index.recognition.ranks import NO_TREE, Ranks, classes_below, ranks_holding, tree_above
from vlltr_index.recognition.rules import FusionRule, rule_for
from vlltr_index.schemas.options import Prior, checked_prior
from vlltr_index.schemas.records import ClassScore, Neighbour
from vlltr_index.store.class_table import ClassTable
from vlltr_index.store.taxonomy import taxonomy_of
from vlltr_index.tensors import check_matrix, choose_device, class_positions
from vlltr_index.wording import share_within

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlltr_index.embedding.pixels import NamedImage
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.heads.checkpoint import SavedHead
    from vlltr_index.heads.tree import ClassTree
    from vlltr_index.recognition.anchors import Anchors, Texts
    from vlltr_index.recognition.parameters import ClassStats
    from vlltr_index.schemas.config import FusionConfig
    from vlltr_index.store.snapshot import ModelSource, Snapshot
    from vlltr_index.store.taxonomy import Taxonomy

_log = logging.getLogger(__name__)
_BATCH = 64
_AT_ONCE = 512
_SCORES_AT_ONCE = 2**21  # images times classes: dozens of tensors of 8 MiB
_PASSES = 8
_CPU = torch.device("cpu")
_KEPT_RANKS = 8  # trees, each above the classes of one `only` or `parent`


@dataclass(frozen=True, eq=False)
class Model:
    """One immutable model: scores features, predicts images, explains.

    Its classes are those that have an anchor sentence or training images, ascending. Encoder, index, texts and the
    images of classes are opened on first use.

    Attributes:
        known: What is known of the classes.
        fusion: The rule; `ours` only for a head with its parameters.
        classes: Names and aliases.
        taxonomy: The tree above the classes; empty if there is none.
        offsets: Offset of added classes by class id; a class that is not listed has 0.
        log_prior: Float64 [C], the logarithm of each class's prior up to a constant; None: the prior is uniform.
        source: What it was opened from.
        device: Device that images are scored on, usually the encoder's; scores are moved to the CPU.
        lazy_encoder: The encoder in eval mode.
        lazy_index: The index over anchors, which may have changed since; None: all classes are scored.
        lazy_texts: Texts of the anchors by sentence id.
        class_images: Returns the training images of a class.
    """

    known: ClassParameters
    fusion: FusionConfig
    classes: ClassTable
    taxonomy: Taxonomy = field(default_factory=dict)
    offsets: Mapping[int, float] = field(default_factory=dict)
    log_prior: Tensor | None = None
    source: ModelSource = field(default_factory=Memory)
    device: torch.device = _CPU
    lazy_encoder: Lazy[Encoder] = field(default_factory=partial(Lazy, no_encoder))
    lazy_index: Lazy[AnchorIndex | None] = field(default_factory=partial(Lazy, no_index))
    lazy_texts: Lazy[Texts] = field(default_factory=partial(Lazy, dict))
    class_images: ClassImages = no_class_images

    @classmethod
    def open(
        cls, source: ModelSource, before: Model | None = None, device: str | torch.device | None = None
    ) -> Model:
        """Open the model of a commit, of a transaction that will become one, or of an exported folder.

        Args:
            source: See above.
            before: The model of another commit of the same workspace; what has not changed since is taken from it.
            device: Device of the encoder; None: that of `before`, or a GPU if there is one.

        Raises:
            MissingStepError: If anchors or head are not there yet.
            WorkspaceError: If the head's files are damaged.
            FingerprintMismatch: If the head was trained on another encoder's vectors.
        """
        record = source.record
        chosen = before.device if before is not None and device is None else choose_device(device)

        def older(part: str) -> Model | None:
            """Return the model before if it has the same part."""
            return before if before is not None and unchanged(part, record, before.source.record) else None

        anchors = model.known.anchors if (model := older("anchors")) else read_anchors(source)
        saved = model.known.saved if (model := older("head")) else read_head(source)
        stats = model.known.stats if (model := older("class_stats")) else read_class_stats(source)
        rows = source.rows
        classes = model.classes if (model := older("classes")) else ClassTable.from_arrow(rows("classes"))
        taxonomy = model.taxonomy if (model := older("taxonomy")) else taxonomy_of(rows("taxonomy"), classes)
        opens_encoder = partial(open_encoder, source, device=chosen)
        fusion = record.fusion
        if fusion.rule == "ours" and saved.parts is None:
            fusion = fusion.model_copy(update={"rule": "paper"})
        return cls(
            known=ClassParameters(anchors, saved, stats, record.merged),
            fusion=fusion,
            classes=classes,
            taxonomy=taxonomy,
            offsets=record.offsets,
            source=source,
            device=chosen,
            lazy_encoder=model.lazy_encoder if (model := older("encoder")) else Lazy(opens_encoder),
            lazy_index=model.lazy_index if (model := older("index")) else Lazy(partial(open_index, source)),
            lazy_texts=model.lazy_texts if (model := older("texts")) else Lazy(partial(read_texts, source)),
            class_images=class_images_of(source),
        )

    def committed(self, snapshot: Snapshot) -> Model:
        """Return the model of the commit that a transaction became, which this is the model of.

        What is opened on first use is read from the commit: the transaction's tables may be another writer's by now.
        """
        anchors = replace(self.known.anchors, selection_id=snapshot.commit.selection_id or "")
        return replace(
            self,
            known=replace(self.known, anchors=anchors),
            source=snapshot,
            lazy_texts=Lazy(partial(read_texts, snapshot)),
            class_images=class_images_of(snapshot),
        )

    # What it is made of.

    @property
    def saved(self) -> SavedHead:
        """The trained head."""
        return self.known.saved

    @property
    def anchors(self) -> Anchors:
        """The anchors."""
        return self.known.anchors

    @property
    def bank(self) -> AnchorBank:
        """The anchors' vectors and classes."""
        return self.known.anchors.bank

    @property
    def stats(self) -> ClassStats:
        """Statistics of the classes' images."""
        return self.known.stats

    @property
    def class_ids(self) -> Tensor:
        """The class of each column, int64 [C], ascending."""
        return self.known.class_ids

    @property
    def trained(self) -> Tensor:
        """Mask of the classes that the head was trained on, bool [C]."""
        return self.known.trained

    @property
    def snapshot(self) -> Snapshot:
        """The commit or transaction; UsageError if the model is not of one."""
        return snapshot_of(self.source)

    @property
    def commit(self) -> int:
        """The number of the workspace's commit."""
        return self.source.record.commit

    @property
    def first_commit(self) -> int:
        """The commit that first held this state, which differs from `commit` after a rollback."""
        return self.source.record.first_commit

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded on first use."""
        return self.lazy_encoder.value

    @property
    def texts(self) -> Texts:
        """Texts of the anchors by sentence id, read on first use."""
        return self.lazy_texts.value

    @property
    def names(self) -> dict[int, str]:
        """Names of classes by class id."""
        return self.classes.names

    # From features to fused scores, on the model's device.

    @torch.inference_mode()
    def score(self, features: Tensor, retrieval: str = "faiss") -> tuple[FusedScores, Tensor]:
        """Score features as `Recognizer.score`; the result lies on the CPU."""
        check_matrix("features", features, columns=self.saved.head.dim)
        residual = torch.zeros(len(features))
        features = features.to(self.device, non_blocking=True)
        index = self._index_for(retrieval, len(features))
        if index is None:
            found = self.exhaustive(features)
        else:
            found, residual = self._retrieve(features, index)
        if self.device.type != "cpu":  # stacked, so that there is one transfer to wait for
            found = FusedScores(*torch.stack(found.tensors).cpu())
        _check_finite(features, found)
        return found, residual.cpu()

    @torch.inference_mode()
    def exhaustive(self, features: Tensor) -> FusedScores:
        """Score features [B, D], unnormalised, against every class, on their device."""
        return FusedScores.joined(self._scores(features), len(features))

    def _scores(self, features: Tensor) -> Iterator[FusedScores]:
        """Score features, some at a time: of more at once by the anchors, which are read for each of these parts."""
        at_once = self._images_at_once
        for some in features.split(_PASSES * at_once):
            texts = self.text_logits(some)
            for part, text in zip(some.split(at_once), texts.split(at_once), strict=True):
                yield self.rule.fuse(self.rule.visual_scores(part), text)

    @property
    def _images_at_once(self) -> int:
        """How many images are scored at once, for memory."""
        return max(1, min(_AT_ONCE, _SCORES_AT_ONCE // max(1, len(self.class_ids))))

    def text_logits(self, features: Tensor) -> Tensor:
        """Return text logits [B, C] of features [B, D]; a class without anchors gets the mean of the others."""
        head, bank = self.known.on(features.device)
        return self.whole(head.text_logits(features, bank))

    def whole(self, bank_logits: Tensor) -> Tensor:
        """Expand text logits of the anchors' classes [B, C_a] to all classes [B, C]."""
        if self.bank.num_classes == len(self.class_ids):
            return bank_logits
        missing = bank_logits.mean(1, keepdim=True).nan_to_num()  # NaN if no class has an anchor
        logits = missing.expand(-1, len(self.class_ids)).clone()
        logits[:, self.known.bank_columns] = bank_logits
        return logits

    @cached_property
    def rule(self) -> FusionRule:
        """The rule by which images and texts give one answer.

        Raises:
            MissingStepError: It is `ours` and the head was trained for another protocol.
        """
        return rule_for(self.fusion, self.known, self.offsets, self.log_prior)

    def with_known(self, **changes: Any) -> Model:
        """Return the model with other anchors, another head, or other statistics: fields of `ClassParameters`."""
        return replace(self, known=replace(self.known, **changes))

    def used(self, retrieval: str, images: int) -> str:
        """Return the retrieval used for `images` at once where `retrieval` is requested: `faiss` or `exhaustive`."""
        return retrieval_of(self._index_for(retrieval, images))

    def _index_for(self, retrieval: str, images: int) -> AnchorIndex | None:
        """Return the index used for `images` at once where `retrieval` is requested; None: every class is scored."""
        return choose_index(retrieval, images, self.bank, self.device, lambda: self._index)

    @cached_property
    def _index(self) -> AnchorIndex | None:
        """The index with later changes as an exact delta; None if there is none, or some class has no anchor."""
        base = self.lazy_index.value
        if base is None or self.bank.num_classes < len(self.class_ids):
            return None
        return current_index(base, self.bank.vectors, self.anchors.keys)

    def known_scores(self, features: Tensor) -> Tensor:
        """Return how well each image fits the classes, float [B], on the CPU, see `rejection.fit_parts`."""
        return self.rule.known_scores(features.to(self.device)).cpu()

    def _retrieve(self, features: Tensor, index: AnchorIndex) -> tuple[FusedScores, Tensor]:
        """Return fused scores [B, C] and the residual probability [B], scoring only retrieved classes exactly."""
        residuals = list[Tensor]()

        def parts() -> Iterator[FusedScores]:
            for part in features.split(self._images_at_once):
                found = self._retrieved(part, index)
                residuals.append(found.residual)
                yield found.fused

        fused = FusedScores.joined(parts(), len(features))
        return fused, torch.cat(residuals)

    def _retrieved(self, features: Tensor, index: AnchorIndex) -> Retrieved:
        """Score some images by retrieval."""
        rule = self.rule
        image = rule.visual_scores(features)

        def fuse(rows: Tensor, text: Tensor) -> tuple[FusedScores, Tensor]:
            return rule.resting(image if len(rows) == len(features) else image.rows(rows), text)

        head, bank = self.known.on(self.device)
        classes = self._anchor_classes
        return retrieve(
            features, head, bank, index, anchor_classes=classes, visual_scores=image.scores, fuse=fuse
        )

    @cached_property
    def _anchor_classes(self) -> AnchorClasses:
        """Positions of classes by anchor key, on `device`."""
        bank = self.known.on(self.device).bank
        return AnchorClasses(self.anchors.keys.to(self.device), bank.class_of_row, bank.num_classes)

    # From images to features.

    def features(self, images: Sequence[ImageSource], crops: int = 1) -> tuple[Tensor, list[str | None]]:
        """Return features [B, D] of the readable images, unnormalised, and why each image is unreadable, or None."""
        reader = Reader(self.encoder, crops)
        features = [torch.empty(0, self.encoder.dim)]
        problems = list[str | None]()
        for batch in ReadAhead(reader, in_batches(named(images))):
            problems += batch.problems
            features.append(pool_crops(image_features(self.encoder, batch.pixels)).cpu())
        return torch.cat(features), problems

    def feature(self, image: ImageSource, crops: int = 1) -> Tensor:
        """Return the feature [D] of an image, unnormalised.

        Raises:
            InputError: If it cannot be read.
        """
        features, problems = self.features([image], crops)
        if problems[0] is not None:
            raise InputError(problems[0], UNREADABLE)
        return features[0]

    # How common the classes are.

    def under(self, prior: Prior) -> Model:
        """Return the same model for classes as common as `prior` says.

        Raises:
            MissingStepError: If the head was trained for another protocol.
            UsageError: If the rule is not `ours`.
            PriorError: If the prior has no weight for a trained class, two for one, or one for what is no class.
        """
        prior = checked_prior(prior)
        if prior == "balanced":
            return self
        key = prior if isinstance(prior, str) else tuple(sorted(prior.items()))
        found = self._kept_priors.get(key)
        if found is None:
            found = self.under_prior(self._log_frequency(prior))
            self._kept_priors.clear()  # one is kept: a model may be large
            self._kept_priors[key] = found
        return found

    def under_prior(self, log_frequency: Tensor) -> Model:
        """Return the same model under a class prior; the answers on held-out images are those under it, too.

        Args:
            log_frequency: Float64 [C], up to a constant.
        """
        return replace(self, log_prior=log_frequency)

    @cached_property
    def _kept_priors(self) -> dict[Hashable, Model]:
        return {}

    def _log_frequency(self, prior: Prior) -> Tensor:
        """Return the logarithm of how common each class is, float64 [C], up to a constant; errors as for `under`."""
        if prior == "estimated":
            raise UsageError(
                "images that come one by one cannot be looked at twice, as the prior 'estimated' has to",
                "Give them as a list: predict(images, options)",
            )
        training = self.rule.training_frequencies()
        return training if isinstance(prior, str) else frequencies_given(self.known, self.classes, prior)

    def columns_among(self, only: Sequence[str] | None, parent: str | None) -> Tensor:
        """Return the columns of the classes that may be the answer, int64, ascending."""
        wanted = set(range(len(self.class_ids)))
        if parent is not None:
            if not self.taxonomy:
                raise MissingStepError(*NO_TREE)
            wanted = classes_below(self.tree(), self.classes, parent)
        if only is not None:
            wanted &= {self.column(name) for name in only}
        if not wanted:
            what = "an answer among some classes (only, parent) that names no class"
            raise UsageError(what, "Name others.")
        return torch.tensor(sorted(wanted))

    def column(self, name: str) -> int:
        """Return the column of a class.

        Raises:
            UnknownClassError: If there is no such class.
            MissingStepError: If it has neither anchors nor images.
        """
        column = int(class_positions(self.class_ids, torch.tensor(self.classes.lookup(name))))
        if column < 0:
            raise MissingStepError(
                f"class {name!r} has neither an anchor sentence nor a training image",
                "Select again: vlltr embed, then vlltr select",
            )
        return column

    def tree(self, columns: Tensor | None = None) -> ClassTree:
        """Return the tree above the classes, or above those in some columns, int64."""
        classes = self.class_ids if columns is None else self.class_ids[columns]
        return tree_above(self.taxonomy, [self.names[i] for i in classes.tolist()])

    def ranks_among(self, columns: Tensor, min_accuracy: float | None) -> Ranks | None:
        """Return the tree above the classes in some columns, int64, and the ranks that held an accuracy."""
        if not self.taxonomy:
            if min_accuracy is not None:
                raise MissingStepError(*NO_TREE)
            return None
        key = columns.numpy().tobytes(), min_accuracy
        found = self._kept_ranks.get(key)
        if found is None:
            tree = self.tree(columns)
            least = None
            if min_accuracy is not None:
                _, answers = self.rule.held_out("which rank held")
                classes = self.class_ids[columns]
                least = ranks_holding(
                    tree, answers, classes, self.known.row_owners, min_accuracy=min_accuracy
                )
            found = Ranks(tree, least)
            if len(self._kept_ranks) >= _KEPT_RANKS:
                self._kept_ranks.clear()
            self._kept_ranks[key] = found
        return found

    @cached_property
    def least_likely(self) -> float:
        """The score from which on an image is of a known class; what it lets in is logged, once a model."""
        level, _ = self.rule.held_out("'none of these'")
        parts = self.saved.parts
        if parts is not None and parts.unknown_accepted is not None:
            _log.info(
                "--reject lets in %s of images of other classes like these, by classes that were left out",
                share_within(parts.unknown_accepted, parts.unknown_range),
            )
        return level

    @cached_property
    def _kept_ranks(self) -> dict[tuple[bytes, float | None], Ranks]:
        return {}

    def probabilities(self, images: Sequence[ImageSource], crops: int = 1) -> NDArray[np.float64]:
        """Return class probabilities, float64 [B, C], as `Recognizer.predict_proba`."""
        rows: list[NDArray[np.float64]] = [np.empty((0, len(self.class_ids)))]
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

    # What is said of a class.

    @cached_property
    def explainer(self) -> Explainer:
        """Scores as records, and the sentences behind text scores."""
        return Explainer(self.rule, self.lazy_texts, self.names)

    def explain(self, image: ImageSource, name: str, crops: int = 1) -> ClassScore:
        """Explain an image's score of one class, as `Recognizer.explain`."""
        class_id = int(self.class_ids[self.column(name)])
        return self.explained(self.feature(image, crops), [class_id], None)[0]

    def explained(self, feature: Tensor, class_ids: Sequence[int], explain: int | None) -> list[ClassScore]:
        """Score some classes for one image, with their first sentences by share; all classes are scored.

        Args:
            feature: Float [D], unnormalised as the encoder gives it.
            class_ids: The classes.
            explain: Number of groups of sentences for each class; None: all.
        """
        fused, _ = self.score(feature[None], "exhaustive")
        columns = class_positions(self.class_ids, torch.tensor([class_ids]))
        scores = self.explainer.class_scores(fused, columns)[0]
        seen = feature[None].cpu()
        return [self.explainer.with_sentences(one, seen, explain) for one in scores]

    def nearest(self, feature: Tensor, class_id: int, count: int) -> tuple[Neighbour, ...]:
        """Return the training images of a class that are nearest to an image, by the cosine of stored vectors.

        Images that have not been embedded yet are left out.

        Args:
            feature: Float [D], unnormalised as the encoder gives it.
            class_id: The class.
            count: Number of images, at most.

        Raises:
            UsageError: If this is an exported folder, which has no training images.
            MissingStepError: If no image at all has been embedded.
        """
        return nearest(feature, *self.class_images(class_id), count=count)


def named(images: Iterable[ImageSource]) -> Iterator[NamedImage]:
    """Give each image the name by which answers call it."""
    return ((image_label(image), image) for image in images)


def _check_finite(features: Tensor, found: FusedScores) -> None:
    """Check that scores are finite numbers.

    Raises:
        InputError: If the features are not finite.
        WorkspaceError: If the features are finite, so that the model's own values must be damaged.
    """
    every = found.probabilities, found.log_scores, found.text_logits
    good = torch.stack([values.isfinite().all(1) for values in every]).all(0)
    if bool(good.all()):
        return
    wrong = f"of {int((~good).sum())} of {len(good)} images"
    if not bool(features.isfinite().all()):
        raise InputError(f"the features {wrong} are not all finite numbers", "Embed these images again.")
    raise WorkspaceError(
        f"the scores {wrong} are not all finite numbers: what they come from is damaged",
        "See what is damaged: vlltr doctor; or train the head again: vlltr train lgr",
    )
