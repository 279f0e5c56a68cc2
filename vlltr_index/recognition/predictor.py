"""Predict and explain: from image files to the answers of one model, a workspace's commit or an exported folder."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.anchors.index import MANY_ANCHORS, AnchorIndex, FaissIndex, TorchIndex, WithDelta, load_index
from vlltr_index.anchors.retrieval import AnchorClasses, retrieve
from vlltr_index.data.decoding import UNREADABLE, ImageSource, cores, image_label, read_image
from vlltr_index.embedding.loading import image_vectors_of, open_encoder
from vlltr_index.embedding.vectors import Crops
from vlltr_index.errors import InputError, MissingStepError, UsageError, WorkspaceError
from vlltr_index.heads.explanation import ClassExplanation, explain_class
from vlltr_index.heads.fusion import FusedScores, parts_of
from vlltr_index.recognition.in_words import numbered, template_groups
from vlltr_index.recognition.scorer import NO_TREE, Scorer, classes_below, load_scorer, tree_above
from vlltr_index.schemas.options import USUAL, PredictOptions
from vlltr_index.schemas.records import ClassScore, Neighbour, Prediction, RankScore, SentenceShare
from vlltr_index.store.taxonomy import load_taxonomy
from vlltr_index.tensors import check_matrix, choose_device, class_positions

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.heads.tree import ClassTree
    from vlltr_index.store.class_table import ClassTable
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.taxonomy import Taxonomy

_BATCH = 64
_READERS = 8
_CPU = torch.device("cpu")
_DENSE = 32  # anchors a class
_CLASSES = 32  # whose training vectors are kept
_KEPT_RANKS = 8  # trees, each above the classes of one `only` or `parent`
_SPOKESMEN = 5  # classes whose sentences explain an answer above them

TEXT_COLUMNS = ("sentence_id", "text", "source", "source_ref", "licence")

_Ranks = tuple["ClassTree | None", dict[str, float] | None]
Texts = Mapping[str, tuple[str, str, str | None, str | None]]
"""Sentence id to text, source, its reference there, and licence."""


class ReadImage(NamedTuple):
    """An image that was decoded elsewhere: label, and pixels as `Crops` returns them or why it has none."""

    label: str
    pixels: Tensor | None
    problem: str | None


@dataclass(frozen=True, eq=False)
class Answers:
    """One immutable model that predicts; encoder, index and texts may be loaded on first use.

    Attributes:
        commit: The number of the workspace's commit.
        state: The commit that first held this state, which differs from `commit` after a rollback.
        scorer: Anchors, head and fusion.
        classes: Names and aliases.
        open_encoder: Returns the encoder, in eval mode.
        open_index: Returns an index over anchors, which may have changed since; None: all classes are scored.
        texts: Returns texts by sentence id, those of the anchors at least.
        training_images: Returns ids, URIs and unit vectors [N, D] of a class's training images; None in an export.
        device: Device that images are scored on, usually the encoder's; scores are moved to the CPU.
        taxonomy: The tree above the classes; empty if there is none.
    """

    commit: int
    state: int
    scorer: Scorer
    classes: ClassTable
    open_encoder: Callable[[], Encoder]
    open_index: Callable[[], FaissIndex | TorchIndex | None]
    texts: Callable[[], Texts]
    training_images: Callable[[int], tuple[pa.Table, Tensor]] | None = None
    device: torch.device = _CPU
    taxonomy: Taxonomy = field(default_factory=dict)

    @property
    def encoder(self) -> Encoder:
        """The model's encoder, loaded on first use."""
        return self.open_encoder()

    @property
    def names(self) -> dict[int, str]:
        """Names of classes by class id."""
        return self.classes.names

    @cached_property
    def places(self) -> dict[int, int]:
        """Positions in the anchor bank by class id; a class without an anchor has none."""
        return {class_id: place for place, class_id in enumerate(self.scorer.bank.class_ids.tolist())}

    @cached_property
    def _index(self) -> AnchorIndex | None:
        """The index with later changes as an exact delta; None if there is none, or some class has no anchor."""
        base = self.open_index()
        if base is None or self.scorer.bank.num_classes < len(self.scorer.class_ids):
            return None
        keys = self.scorer.loaded.keys
        new = ~torch.isin(keys, base.keys)
        gone = base.keys[~torch.isin(base.keys, keys)]
        if not bool(new.any()) and not len(gone):
            return base
        return WithDelta(base, F.normalize(self.scorer.bank.vectors[new], dim=1), keys[new], gone)

    def stream(
        self, images: Iterable[ImageSource | ReadImage], options: PredictOptions = USUAL
    ) -> Iterator[Prediction]:
        """Predict as `Recognizer.stream` does; images may be decoded already."""
        level = self.scorer.held_out("'none of these'")[0] if options.reject else None
        columns = self._columns(options.only, options.parent)
        tree, least = self._ranks(columns, options.min_accuracy)
        views = Crops(self.encoder, options.crops)
        for batch in self._read(images, views):
            pixels = [read for _, read, _ in batch if read is not None]
            used = "exhaustive" if options.some else self._used(options.retrieval, len(pixels))
            answered: Iterator[Prediction] = iter(())
            if pixels:
                features = views.features(pixels)
                fused, residual = self.score(features, used)
                if options.some:
                    fused = fused.among(columns, self.scorer.fusion.rule)
                best = fused.probabilities.topk(min(options.top, len(columns))).indices
                scores = self._class_scores(
                    features, fused, best, options.explain, columns=columns, neighbours=options.neighbours
                )
                above = self._above(
                    tree, least, features, fused.probabilities, columns=columns, explain=options.explain
                )
                rows = zip(scores, residual.tolist(), self._known(features, level), above, strict=True)
                answered = (
                    Prediction("", classes, rest, used, self.state, None, *known, *placed)
                    for classes, rest, known, placed in rows
                )
            for label, read, problem in batch:
                if read is None:
                    yield Prediction(label, (), 0.0, used, commit=self.state, problem=problem)
                else:
                    yield replace(next(answered), image=label)

    def _columns(self, only: Sequence[str] | None, parent: str | None) -> Tensor:
        """Return the columns of the classes that may be the answer, int64, ascending."""
        wanted = set(range(len(self.scorer.class_ids)))
        if parent is not None:
            if not self.taxonomy:
                raise MissingStepError(*NO_TREE)
            wanted = classes_below(self.tree(), self.classes, parent)
        if only is not None:
            wanted &= {self._column(name) for name in only}
        if not wanted:
            what = "an answer among some classes (--only, --parent) that names no class"
            raise UsageError(what, "Name others.")
        return torch.tensor(sorted(wanted))

    def tree(self, columns: Tensor | None = None) -> ClassTree:
        """Return the tree above the classes, or above those in some columns, int64."""
        classes = self.scorer.class_ids if columns is None else self.scorer.class_ids[columns]
        return tree_above(self.taxonomy, [self.names[i] for i in classes.tolist()])

    def _ranks(self, columns: Tensor, min_accuracy: float | None) -> _Ranks:
        """Return the tree above the classes in columns int64 [C], and the least probability of an answer by rank."""
        if not self.taxonomy:
            if min_accuracy is not None:
                raise MissingStepError(*NO_TREE)
            return None, None
        key = columns.numpy().tobytes(), min_accuracy
        found = self._kept_ranks.get(key)
        if found is None:
            tree = self.tree(columns)
            least = None
            if min_accuracy is not None:
                least = self.scorer.ranks_holding(tree, columns, min_accuracy)
            found = tree, least
            if len(self._kept_ranks) >= _KEPT_RANKS:
                self._kept_ranks.clear()
            self._kept_ranks[key] = found
        return found

    @cached_property
    def _kept_ranks(self) -> dict[tuple[bytes, float | None], _Ranks]:
        return {}

    def _above(
        self,
        tree: ClassTree | None,
        least: dict[str, float] | None,
        features: Tensor,
        probabilities: Tensor,
        columns: Tensor,
        explain: int,
    ) -> list[tuple[tuple[RankScore, ...], RankScore | None]]:
        """Return the ancestors of each image's best class, and the answer at a rank, with sentences."""
        if tree is None:
            return [((), None)] * len(features)
        sums = tree.sums(probabilities)
        found = list[tuple[tuple[RankScore, ...], RankScore | None]]()
        nodes = [-1] * len(sums) if least is None else tree.answers(sums, least).tolist()
        for feature, row, own, node in zip(features.cpu(), probabilities, sums, nodes, strict=True):
            path = tree.paths[tree.nodes[int(row.argmax())]]
            scores = tuple(RankScore(tree.names[n], tree.ranks[n], float(own[n])) for n in path)
            answer = None
            if node >= 0:
                said = self._said(feature, row, tree.below(node), columns, explain=explain)
                answer = RankScore(tree.names[node], tree.ranks[node], float(own[node]), said)
            found.append((scores, answer))
        return found

    def _said(
        self, feature: Tensor, probabilities: Tensor, below: Tensor, columns: Tensor, explain: int
    ) -> tuple[SentenceShare, ...]:
        """Return the first groups of sentences of the most probable classes below a node, weighted by these classes.

        `feature` is float [D], `probabilities` float [C] of the classes in `columns` int64 [C], `below` int64 the
        places in `columns` of the classes below the node, and `explain` the number of groups.
        """
        if not explain:
            return ()
        chances = probabilities[below]
        parts, best = (chances / chances.sum()).topk(min(_SPOKESMEN, len(below)))
        found: dict[tuple[int, int], list[SentenceShare]] = {}
        class_ids = self.scorer.class_ids[columns[below[best]]].tolist()
        for class_id, part in zip(class_ids, parts.tolist(), strict=True):
            for share in self._shares(feature, class_id, None)[1]:
                weighed = replace(share, percent=part * share.percent)
                found.setdefault((class_id, share.group), []).append(weighed)
        groups = sorted(found.values(), key=lambda group: -sum(share.percent for share in group))[:explain]
        return tuple(replace(share, group=n) for n, group in enumerate(groups) for share in group)

    def _read(self, images: Iterable[ImageSource | ReadImage], views: Crops) -> Iterator[list[ReadImage]]:
        """Yield batches of labels, pixels and problems; the next batch is read while the caller works on one."""

        def read(image: ImageSource | ReadImage) -> ReadImage:
            if isinstance(image, ReadImage):
                return image
            try:
                return ReadImage(image_label(image), read_image(image, views.pixels), None)
            except InputError as error:
                return ReadImage(image_label(image), None, error.message)

        source = iter(images)
        with ThreadPoolExecutor(min(_READERS, len(cores()))) as pool:
            coming = pool.map(read, islice(source, _BATCH))
            while batch := list(coming):
                coming = pool.map(read, islice(source, _BATCH))
                yield batch

    def features(self, images: Sequence[ImageSource], crops: int = 1) -> tuple[Tensor, list[str | None]]:
        """Return features [B, D] of the readable images, unnormalised, and why each image is unreadable, or None."""
        views = Crops(self.encoder, crops)
        features = [torch.empty(0, self.encoder.dim)]
        problems = list[str | None]()
        for batch in self._read(images, views):
            problems += [problem for _, _, problem in batch]
            if pixels := [read for _, read, _ in batch if read is not None]:
                features.append(views.features(pixels).cpu())
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

    def probabilities(self, images: Sequence[ImageSource], crops: int = 1) -> NDArray[np.float64]:
        """Return class probabilities, float64 [B, C], as `Recognizer.predict_proba`."""
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
        """Score features as `Recognizer.score`; the result lies on the CPU."""
        check_matrix("features", features, columns=self.scorer.saved.head.dim)
        residual = torch.zeros(len(features))
        features = features.to(self.device, non_blocking=True)
        if self._used(retrieval, len(features)) == "exhaustive":
            found = self._placed.exhaustive(features)
        else:
            found, residual = self._retrieve(features)
        if self.device.type != "cpu":  # stacked, so that there is one transfer to wait for
            found = FusedScores(*torch.stack(list(found)).cpu())
        _check_finite(features, found)
        return found, residual.cpu()

    def _used(self, retrieval: str, images: int) -> str:
        """Return `faiss` or `exhaustive`: the retrieval used for `images` at once where `retrieval` is requested.

        `auto` uses the index where it is quicker: on a CPU, with many anchors and an index that does not search all of
        them; for several images only with many anchors per class, since retrieval scores each class's prototype.
        """
        anchors = len(self.scorer.bank.vectors)
        classes = self.scorer.bank.num_classes
        quick = self.device.type != "cuda" and anchors >= MANY_ANCHORS
        quick = quick and (images == 1 or anchors >= _DENSE * classes)
        wanted = retrieval == "faiss" or (retrieval == "auto" and quick)
        index = self._index if wanted else None  # loaded only if it is wanted
        if index is None or (retrieval == "auto" and index.kind in ("torch", "flat")):
            return "exhaustive"
        return "faiss"

    @cached_property
    def _placed(self) -> Scorer:
        """The scorer with anchors and head on `device`; class ids stay on the CPU."""
        scorer = self.scorer
        if self.device.type == "cpu":
            return scorer
        bank = replace(scorer.bank.to(self.device), class_ids=scorer.bank.class_ids)
        saved = replace(scorer.saved, head=deepcopy(scorer.saved.head).to(self.device))
        return replace(scorer, loaded=replace(scorer.loaded, bank=bank), saved=saved)

    def _known(self, features: Tensor, level: float | None) -> list[tuple[bool | None, float | None]]:
        """Return for each of features [B, D] whether it is of any class at all, and the likelihood that decides it."""
        if level is None:
            return [(None, None)] * len(features)
        values = self._placed.log_likelihoods(features).amax(1).tolist()
        return [(value >= level, value) for value in values]

    def _retrieve(self, features: Tensor) -> tuple[FusedScores, Tensor]:
        """Return fused scores [B, C] and the residual probability [B], scoring only retrieved classes exactly."""
        scorer = self._placed
        index = self._index
        assert index is not None
        image = scorer.image_side(features)

        def fuse(rows: Tensor, text: Tensor) -> tuple[FusedScores, Tensor]:
            return scorer.resting(image if len(rows) == len(features) else image.rows(rows), text)

        head = scorer.saved.head
        classes = self._anchor_classes
        found = retrieve(
            features, head, scorer.bank, index, anchor_classes=classes, visual_scores=image.scores, fuse=fuse
        )
        return found.fused, found.residual

    @cached_property
    def _anchor_classes(self) -> AnchorClasses:
        """Positions of classes by anchor key, on `device`."""
        bank = self._placed.bank
        return AnchorClasses(self.scorer.loaded.keys.to(self.device), bank.class_of_row, bank.num_classes)

    def explain(self, image: ImageSource, name: str, crops: int = 1) -> ClassScore:
        """Explain an image's score of one class, as `Recognizer.explain`."""
        class_id = int(self.scorer.class_ids[self._column(name)])
        return self.explained(self.feature(image, crops), [class_id], None)[0]

    def _column(self, name: str) -> int:
        """Return the column of a class."""
        column = int(class_positions(self.scorer.class_ids, torch.tensor(self.classes.lookup(name))))
        if column < 0:
            raise MissingStepError(
                f"class {name!r} has neither an anchor sentence nor a training image",
                "Select again: vlltr embed, then vlltr select",
            )
        return column

    def explained(self, feature: Tensor, class_ids: Sequence[int], explain: int | None) -> list[ClassScore]:
        """Score some classes for one image, with their first sentences by share; all classes are scored.

        Args:
            feature: Float [D], unnormalised as the encoder gives it.
            explain: Number of groups of sentences for each class; None: all.
        """
        fused, _ = self.score(feature[None], "exhaustive")
        columns = class_positions(self.scorer.class_ids, torch.tensor([class_ids]))
        return list(self._class_scores(feature[None], fused, columns, explain)[0])

    def _class_scores(
        self,
        features: Tensor,
        fused: FusedScores,
        positions: Tensor,
        explain: int | None,
        columns: Tensor | None = None,
        neighbours: int = 0,
    ) -> list[tuple[ClassScore, ...]]:
        """Return the scores of each image's classes, with their first groups of sentences.

        Args:
            features: Float [B, D].
            fused: Their scores.
            positions: Int64 [B, K], columns of `fused`.
            explain: Number of groups of sentences for each class; None: all.
            columns: Int64, columns of the classes in `fused`; None: all.
            neighbours: Number of nearest training images of each image's first class.
        """
        classes = self.scorer.class_ids if columns is None else self.scorer.class_ids[columns]
        rule = self.scorer.fusion.rule
        scale = float(self.scorer.saved.head.logit_scale.detach())
        told = torch.isin(classes, self.scorer.bank.class_ids)
        cosines = torch.where(told, fused.text_logits / scale, 0.0)
        chances = fused.probabilities.gather(1, positions)
        values = classes[positions], chances, *parts_of(fused, positions, rule), cosines.gather(1, positions)
        unit = "probability" if rule == "paper" else "log-odds"
        features = features if explain == 0 else features.cpu()
        found = []
        for feature, row in zip(features, torch.stack([v.double() for v in values], 2).tolist(), strict=True):
            scores = list[ClassScore]()
            for number, probability, image_part, text_part, cosine in row:
                class_id = int(number)
                shares = tuple[SentenceShare, ...]()
                if explain != 0:
                    cosine, shares = self._shares(feature, class_id, explain)
                parts = probability, image_part, text_part, cosine
                near = self.nearest(feature, class_id, neighbours) if neighbours and not scores else ()
                scores.append(ClassScore(class_id, self.names[class_id], *parts, shares, unit, near))
            found.append(tuple(scores))
        return found

    def _shares(
        self, feature: Tensor, class_id: int, explain: int | None
    ) -> tuple[float, tuple[SentenceShare, ...]]:
        """Return an image's cosine with a class's text and the first groups of sentences; 0 and () without anchors."""
        if class_id not in self.places:
            return 0.0, ()
        found = explain_class(self.scorer.saved.head, self.scorer.bank, self.places[class_id], feature)
        told = self.by_share(found)
        first = list(dict.fromkeys(share.group for _, _, share in told))[:explain]
        return float(found.cosine), tuple(share for _, _, share in told if share.group in first)

    def by_share(self, found: ClassExplanation) -> list[tuple[int, str, SentenceShare]]:
        """List a class's sentences as (place, id, record): groups by summed share, then by share, both descending."""
        first, last = self.scorer.bank.bounds[found.position : found.position + 2]
        texts = self.texts()
        groups = numbered(self._template_groups[first:last])
        told = []
        percents = found.percents
        for m, sentence_id in enumerate(self.scorer.loaded.sentence_ids[first:last]):
            share = SentenceShare(
                *texts[sentence_id],
                attention=float(found.attention[m]),
                share=float(found.shares[m]),
                effect=float(found.effects[m]),
                percent=float(percents[m]),
                group=groups[m],
            )
            told.append((m, sentence_id, share))
        sums = torch.zeros(len(told)).double().index_add(0, torch.tensor(groups), found.shares.cpu()).tolist()
        return sorted(told, key=lambda one: (-sums[one[2].group], one[2].group, -one[2].share))

    @cached_property
    def _template_groups(self) -> list[Hashable]:
        """Group key of each anchor whose text is a template around its class's name, else None."""
        bank = self.scorer.bank
        texts = self.texts()
        owners = bank.class_ids[bank.class_of_row].tolist()
        told = (texts[sentence_id][:2] for sentence_id in self.scorer.loaded.sentence_ids)
        return template_groups(((owner, *one) for owner, one in zip(owners, told, strict=True)), self.names)

    def nearest(self, feature: Tensor, class_id: int, count: int) -> tuple[Neighbour, ...]:
        """Return the training images of a class that are nearest to an image, by the cosine of stored vectors.

        Args:
            feature: Float [D], unnormalised as the encoder gives it.
            class_id: The class.
            count: Number of images, at most.

        Raises:
            UsageError: If this is an exported folder, which has no training images.
            MissingStepError: If one of them has no vector.
        """
        if self.training_images is None:
            what = "an exported folder has no training images to show as neighbours"
            raise UsageError(what, "Ask the workspace that it came from, or leave neighbours out.")
        rows, vectors = self.training_images(class_id)
        if not rows.num_rows:
            return ()
        best = (vectors @ F.normalize(feature.cpu(), dim=0)).topk(min(count, rows.num_rows))
        found = rows.take(best.indices.tolist()).to_pylist()
        return tuple(Neighbour(**row, cosine=c) for row, c in zip(found, best.values.tolist(), strict=True))


def _check_finite(features: Tensor, found: FusedScores) -> None:
    """Check that scores are finite numbers.

    Raises:
        InputError: If the features are not finite.
        WorkspaceError: If the features are finite, so that the model's own values must be damaged.
    """
    good = (found.probabilities + found.visual_part + found.text_part + found.text_logits).isfinite().all(1)
    if bool(good.all()):
        return
    wrong = f"of {int((~good).sum())} of {len(good)} images"
    if not bool(features.isfinite().all()):
        raise InputError(f"the features {wrong} are not all finite numbers", "Embed these images again.")
    raise WorkspaceError(
        f"the scores {wrong} are not all finite numbers: what they come from is damaged",
        "See what is damaged: vlltr doctor; or train the head again: vlltr train lgr",
    )


def load_answers(snapshot: Snapshot) -> Answers:
    """What a commit of a workspace answers with; errors as for `load_scorer`."""
    scorer = load_scorer(snapshot)
    commit = snapshot.commit

    def index() -> FaissIndex | TorchIndex | None:
        own = commit.own_index
        return None if own is None else load_index(snapshot.objects.whole("index", own.digest))

    return Answers(
        commit.id,
        commit.state,
        scorer,
        snapshot.class_table(),
        open_encoder=cache(lambda: open_encoder(snapshot)),
        device=choose_device(),
        open_index=cache(index),
        texts=cache(partial(_anchor_texts, snapshot)),
        training_images=lru_cache(_CLASSES)(partial(_training_images, snapshot)),
        taxonomy=load_taxonomy(snapshot),
    )


def _training_images(snapshot: Snapshot, class_id: int) -> tuple[pa.Table, Tensor]:
    """Read the ids and URIs of a class's usable training images, and their unit vectors [N, D]."""
    where = f"split = 'train' AND class_id = {class_id} AND problem IS NULL"
    rows = snapshot.table("images", ["image_id", "uri"], where).sort_by("image_id")
    return rows, F.normalize(image_vectors_of(snapshot, rows["image_id"].to_pylist()), dim=1)


def _anchor_texts(snapshot: Snapshot) -> Texts:
    rows = snapshot.table("sentences", TEXT_COLUMNS) if snapshot.parts is None else snapshot.parts("anchors")
    return texts_of(rows)


def texts_of(rows: pa.Table) -> Texts:
    """Return the texts of rows that have `TEXT_COLUMNS`, by sentence id."""
    ids, *columns = rows.select(TEXT_COLUMNS).to_pydict().values()
    return dict(zip(ids, zip(*columns, strict=True), strict=True))
