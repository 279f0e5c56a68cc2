"""From pictures that were read to explained answers: each by itself, or those of a group together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.anchors.retrieval import possible_retrieval
from vlltr_index.data.decoding import ImageSource, image_label
from vlltr_index.embedding.pixels import ReadAhead, Reader, image_features, in_batches, pool_crops
from vlltr_index.errors import UsageError
from vlltr_index.heads.pooling import together, unit_means
from vlltr_index.recognition.frequencies import frequencies_among
from vlltr_index.recognition.model import Model, named
from vlltr_index.schemas.options import USUAL, PredictOptions
from vlltr_index.schemas.records import Prediction, Progress, RankScore, SentenceShare
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.embedding.pixels import NamedImage, PixelBatch
    from vlltr_index.heads.fusion import FusedScores

_SPOKESMEN = 5  # classes whose sentences explain an answer above them


def predict(
    model: Model,
    images: Sequence[ImageSource],
    options: PredictOptions = USUAL,
    groups: Sequence[str | None] | None = None,
) -> list[Prediction]:
    """Predict images, as `Recognizer.predict`."""
    if groups is None:
        options = with_frequencies(model, lambda: named(images), options)
        return list(stream(model, named(images), options))
    if len(groups) != len(images):
        raise UsageError(
            f"there are {plural(len(images), 'image')} and {plural(len(groups), 'group')}",
            "Give the group of each image, or None.",
        )
    group_of = {str(place): group for place, group in enumerate(groups) if group is not None}

    def numbered() -> Iterator[NamedImage]:
        return ((str(place), image) for place, image in enumerate(images))

    options = with_frequencies(model, numbered, options, group_of)
    found = {int(one.image): one for one in stream(model, numbered(), options, group_of)}
    return [replace(found[place], image=image_label(image)) for place, image in enumerate(images)]


def stream(
    model: Model,
    images: Iterable[NamedImage],
    options: PredictOptions = USUAL,
    groups: Mapping[str, str] | None = None,
) -> Iterator[Prediction]:
    """Predict any number of named images, in flat memory but for the groups that are begun.

    Args:
        model: The model.
        images: The images.
        options: How they are recognised, and what is said of each.
        groups: The group of each image by name. Its images are answered together as soon as the last of them has been
            read; images without one are answered by themselves. Default: none has one, and the order stays.
    """
    reader = Reader(model.encoder, options.crops)
    return answer_read(model, ReadAhead(reader, in_batches(images)), options, groups)


def answer_read(
    model: Model,
    batches: Iterable[PixelBatch],
    options: PredictOptions = USUAL,
    groups: Mapping[str, str] | None = None,
) -> Iterator[Prediction]:
    """Predict images that have been read, those of a group together; errors as for `Recognizer.predict`."""
    if options.prior != "balanced":
        model = model.under(options.prior)
    answering = _Answering(model, options)
    yield from answering.together(batches, groups) if groups else answering.each(batches)


def with_frequencies(
    model: Model,
    images: Callable[[], Iterable[NamedImage]],
    options: PredictOptions,
    groups: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> PredictOptions:
    """Return the options with the frequencies among images, for the prior `estimated`; see `frequencies_among`."""
    return estimate_prior(model, images, options, groups, progress)[0]


def estimate_prior(
    model: Model,
    images: Callable[[], Iterable[NamedImage]],
    options: PredictOptions,
    groups: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> tuple[PredictOptions, list[str]]:
    """Return the options of `with_frequencies` and the names of the images that the prior was estimated from."""
    if options.prior != "estimated":
        return options, []
    features = [torch.empty(0, model.encoder.dim)]
    names = list[str]()
    for batch in ReadAhead(Reader(model.encoder, options.crops), in_batches(images())):
        features.append(pool_crops(image_features(model.encoder, batch.pixels)).cpu())
        names += batch.readable
        if progress:
            progress("look", len(names), None)
    grouped = [(groups or {}).get(name) for name in names]
    return replace(options, prior=frequencies_among(model, torch.cat(features), grouped)), names


@dataclass
class _Group:
    """Pictures that are answered together."""

    name: str | None = None  # None: a picture by itself
    pictures: list[tuple[str, str | None]] = field(default_factory=list)  # why one cannot be read, or None
    features: list[Tensor] = field(default_factory=list)  # of those that can


class _Answering:
    """What a model answers under some options.

    Args:
        model: The model, which knows the prior.
        options: How images are recognised, and what is said of each.

    Raises:
        MissingStepError, UsageError, UnknownClassError: As for `Recognizer.predict`.
    """

    def __init__(self, model: Model, options: PredictOptions) -> None:
        self._model = model
        self._options = options
        self._columns = model.columns_among(options.only, options.parent)
        self._ranks = model.ranks_among(self._columns, options.min_accuracy)
        self._level = model.least_likely if options.reject else None

    def each(self, batches: Iterable[PixelBatch]) -> Iterator[Prediction]:
        """Answer pictures one by one, in their order."""
        model = self._model
        for batch in batches:
            used = self._used(len(batch.readable))
            answers = self._of_images(pool_crops(image_features(model.encoder, batch.pixels)), used)
            for name, problem in zip(batch.names, batch.problems, strict=True):
                if problem is None:
                    yield replace(next(answers), image=name)
                else:
                    yield self._unread(name, problem, used)

    def _of_images(self, features: Tensor, used: str) -> Iterator[Prediction]:
        """Answer for images by their features [B, D], each by itself."""
        fused, residual = self._score(features, used)
        yield from self._answers(fused, residual, features.split(1), self._known(features), used)

    def _used(self, images: int) -> str:
        """Return the retrieval used for so many images at once."""
        options = self._options
        return self._model.used(possible_retrieval(options.retrieval, options.prior, options.some), images)

    def _score(self, features: Tensor, used: str) -> tuple[FusedScores, Tensor]:
        """Return the scores [B, C_a] among the classes that may be the answer, and the residual [B]."""
        fused, residual = self._model.score(features, used)
        if self._options.some:
            fused = fused.among(self._columns, self._model.rule.name)
        return fused, residual

    def together(self, batches: Iterable[PixelBatch], group_of: Mapping[str, str]) -> Iterator[Prediction]:
        """Answer the pictures of a group together, as soon as all have been read, one after the other.

        Args:
            batches: The pictures.
            group_of: The group of each by name; pictures without one are answered by themselves.
        """
        left = Counter(group_of.values())
        begun: defaultdict[str, _Group] = defaultdict(_Group)
        for batch in batches:
            rows = iter(pool_crops(image_features(self._model.encoder, batch.pixels)))
            whole = []
            for name, problem in zip(batch.names, batch.problems, strict=True):
                named = group_of.get(name)
                group = _Group() if named is None else begun[named]
                group.name = named
                group.pictures.append((name, problem))
                if problem is None:
                    group.features.append(next(rows))
                if named is not None:
                    left[named] -= 1
                    if left[named] > 0:
                        continue
                    del begun[named]
                whole.append(group)
            yield from self._of_groups(whole)
        yield from self._of_groups(list(begun.values()))

    def _of_groups(self, groups: Sequence[_Group]) -> Iterator[Prediction]:
        """Answer whole groups."""
        model = self._model
        read = [torch.stack(group.features) for group in groups if group.features]
        used = self._used(sum(map(len, read)))
        answers: Iterator[Prediction] = iter(())
        if read:
            features = torch.cat(read)
            units = torch.arange(len(read)).repeat_interleave(torch.tensor([len(rows) for rows in read]))
            residuals = list[Tensor]()

            def score(rows: Tensor) -> FusedScores:
                fused, residual = self._score(rows, used)
                residuals.append(residual)
                return fused

            fused = together(score, features, units, model.rule.name, model.rule.correlation)
            known = self._known(features, units)
            residual = unit_means(torch.cat(residuals), units)
            answers = self._answers(fused, residual, read, known, used)
        for group in groups:
            answer = next(answers) if group.features else None
            for name, problem in group.pictures:
                if answer is None or problem is not None:
                    yield replace(self._unread(name, problem, used), group=group.name)
                else:
                    yield replace(answer, image=name, group=group.name)

    def _unread(self, name: str, problem: str | None, used: str) -> Prediction:
        return Prediction(name, (), 0.0, used, commit=self._model.first_commit, problem=problem)

    def _known(self, features: Tensor, units: Tensor | None = None) -> list[float] | None:
        """Return how well each image fits the classes, in the mean over its unit; None if it is not asked for."""
        if self._level is None:
            return None
        fits = self._model.known_scores(features)
        if units is not None:
            fits = unit_means(fits, units)
        found: list[float] = fits.tolist()
        return found

    def _answers(
        self,
        fused: FusedScores,
        residual: Tensor,
        features: Sequence[Tensor],
        known: Sequence[float] | None,
        used: str,
    ) -> Iterator[Prediction]:
        """Answer by scores [U, C_a] of images or groups, without a name.

        Args:
            fused: The scores.
            residual: Float [U], the probability of the classes that were not scored exactly.
            features: Float [M, D] of each, of its M images.
            known: How well it fits the classes, if that is asked for.
            used: How they were scored.
        """
        model = self._model
        options = self._options
        if options.explain:  # once, where a sentence is to be named at all
            features = torch.cat(list(features)).cpu().split([len(rows) for rows in features])
        best = fused.probabilities.topk(min(options.top, len(self._columns))).indices
        scores = model.explainer.class_scores(fused, best, self._columns)
        rows = zip(features, fused.probabilities, residual.tolist(), scores, strict=True)
        for row, (seen, chances, left, classes) in enumerate(rows):
            if options.explain:
                classes = [model.explainer.with_sentences(one, seen, options.explain) for one in classes]
            if options.neighbours:
                near = model.nearest(seen.mean(0), classes[0].class_id, options.neighbours)
                classes[0] = replace(classes[0], neighbours=near)
            ranks, answer = self._above(seen, chances)
            likely = None if known is None else known[row]
            yield Prediction(
                "",
                tuple(one for one in classes if one.probability >= options.min_probability),
                left,
                used,
                commit=model.first_commit,
                known=None if likely is None or self._level is None else likely >= self._level,
                known_score=likely,
                ranks=ranks,
                answer=answer,
            )

    def _above(
        self, features: Tensor, probabilities: Tensor
    ) -> tuple[tuple[RankScore, ...], RankScore | None]:
        """Return what the best class lies below, and the answer at a rank, with sentences.

        Args:
            features: Float [M, D], of the images that are answered together.
            probabilities: Float [C_a], of the classes that may be the answer.
        """
        if self._ranks is None:
            return (), None
        model = self._model

        def spoken(below: Tensor) -> tuple[SentenceShare, ...]:
            if not self._options.explain:
                return ()
            chances = probabilities[below]
            parts, best = (chances / chances.sum()).topk(min(_SPOKESMEN, len(below)))
            ids = model.class_ids[self._columns[below[best]]].tolist()
            weights = dict(zip(ids, parts.tolist(), strict=True))
            return model.explainer.of_several(features, weights, self._options.explain)

        return self._ranks.above(probabilities, spoken)
