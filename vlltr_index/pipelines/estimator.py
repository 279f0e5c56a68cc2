"""A classifier for scikit-learn: stage 2 on pictures or their features, with `fit`, `predict` and `predict_proba`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np
import torch
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data
from torch import Tensor

from vlltr_index.data.decoding import ImageSource
from vlltr_index.data.ready_made import is_ready_made, ready_made_labels, ready_made_pictures
from vlltr_index.embedding.loading import recipe_encoder
from vlltr_index.errors import FingerprintMismatch, InputError, UsageError
from vlltr_index.pipelines.in_memory import (
    Images,
    Sentences,
    Texts,
    fit_in_memory,
    picture_features,
    sentences_in,
    texts_by_class,
)
from vlltr_index.schemas.options import Measurable
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.tensors import check_matrix, computing_on

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.config import Recipe

_MISSING = ("None", "nan", "<NA>")
_SCALE = 100.0  # multiplier of the cosine of published CLIPs, for vectors of an encoder that is not named


class VLLTRClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Classifier of pictures or their features that may know its classes through text, for scikit-learn.

    It is fitted as `vlltr fit` fits stage 2 on the vectors of an encoder as it is: the same anchors, head, generative
    model and weights.

    Args:
        texts: By class, as y names it, a list of sentences, or a text that is split into them; or a file or folder as
            for `vlltr ingest text`. With features and no encoder, by class the vectors of its sentences, float [n, D].
            Texts of other classes than those in y are left out. None: an encoder gives each class its prompts; without
            one there is no text.
        encoder: `MODEL`, `MODEL:TAG` or `MODEL:FILE`. None: for pictures the recipe's; for features there is none.
        recipe: Name of a recipe that ships with the package, or path of a TOML file; None: `ours`.
        overrides: `section.key=value` strings that change values of the recipe.
        prior: How common the classes are: `balanced`, all equally, so that each class counts alike; `training`, as
            among the pictures of `fit`, so that each picture does, as `score` measures.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; None: the value of VLLTR_DEVICE, else the recipe's.
        random_state: A number is the seed of the head's training; None: the recipe's seed, so that a fit can be
            repeated.

    Attributes:
        classes_: The classes [C] in the order of the columns of `predict_proba`.
        n_features_in_: Width D of the features, given or made of pictures.
        notes_: What was decided in fitting, in sentences.
        model_: The model; it scores features, and has no workspace.
    """

    def __init__(
        self,
        *,
        texts: Texts = None,
        encoder: str | None = None,
        recipe: str | None = None,
        overrides: Sequence[str] = (),
        prior: str = "balanced",
        device: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.texts = texts
        self.encoder = encoder
        self.recipe = recipe
        self.overrides = overrides
        self.prior = prior
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Fit anchors, head, generative model and their weights.

        Args:
            X: Pictures: paths, encoded bytes, PIL images, or arrays uint8 [H, W, 3]. Or their features, float [N, D],
                unnormalised as an encoder gives them. Or a `datasets.Dataset` or an `ImageFolder`.
            y: The class of each. None: those of the data set, by name.
            groups: What each picture belongs to, None for one by itself: pictures of a group are one observation, and
                held out together. Near duplicates are looked for besides.

        Raises:
            ValueError: Features or labels are of a wrong shape or not finite, or there is one class alone.
            InputError: A picture cannot be read or has no label, or there are no texts of these classes.
            UsageError: The prior is neither `balanced` nor `training`.
            EncoderError: The encoder's weights are not there, and cannot be downloaded.
        """
        if self.prior not in get_args(Measurable):
            raise UsageError(f"the prior is 'balanced' or 'training', got {self.prior!r}")
        pictures = _pictures_of(X)
        y = _labels_of(X, y)
        if pictures is None:
            X, y = validate_data(self, X, y, dtype=np.float32)
        elif y is None:
            raise ValueError("VLLTRClassifier requires y to be passed, but the target y is None")
        else:
            y = column_or_1d(y, warn=True)
            check_consistent_length(pictures, y)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("VLLTRClassifier tells classes apart, and there is 1 class")
        together = _groups_of(groups, len(y))
        check_consistent_length(y, together)
        recipe = _seeded(self._recipe(), self.random_state)
        labels = torch.from_numpy(numbers).long()
        with computing_on(self.device, recipe.device):
            if pictures is None:
                encoder = None if self.encoder is None else recipe_encoder(recipe.encoder)
                images = Images.of_features(torch.tensor(X), labels, together)
            else:
                encoder = recipe_encoder(recipe.encoder)
                images = Images.of_pictures(pictures, labels, together, encoder, recipe)
                self.n_features_in_ = encoder.dim
            sentences = self._sentences(encoder, recipe)
            model, decision = fit_in_memory(images, sentences, len(self.classes_), recipe)
        self.notes_ = decision.notes
        self.model_ = model.under("training") if self.prior == "training" else model
        self._encoder = encoder
        self._image_fp = None if encoder is None else encoder.image_fp
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Predict the probability of every class, float64 [B, C]; columns as `classes_`, rows sum to 1.

        Args:
            X: Pictures, features or a data set, as for `fit`.

        Raises:
            InputError: A picture cannot be read, or features were fitted without the encoder that they are of.
            FingerprintMismatch: The encoder's weights have changed since.
        """
        check_is_fitted(self)
        pictures = _pictures_of(X)
        if pictures is None:
            features = torch.tensor(validate_data(self, X, dtype=np.float32, reset=False))
        else:
            features = picture_features(self._opened_encoder(), pictures)
        found: NDArray[np.float64] = self.model_.exhaustive(features).probabilities.double().numpy()
        found /= found.sum(axis=1, keepdims=True)
        return found

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the most probable class of each picture, as y names it; X and errors as for `predict_proba`."""
        best = self.predict_proba(X).argmax(axis=1)
        found: NDArray[Any] = self.classes_[best]
        return found

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy on pictures or features with the classes y, by default those of the data set X."""
        return float(super().score(X, _labels_of(X, y), sample_weight))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the encoder out of a pickle: its weights may be large, and can be read again."""
        return {**super().__getstate__(), "_encoder": None}

    def _recipe(self) -> Recipe:
        """Read the recipe, with this estimator's encoder."""
        return load_recipe(self.recipe, tuple(self.overrides), self.encoder)

    def _sentences(self, encoder: Encoder | None, recipe: Recipe) -> Sentences:
        """Return the sentences of the classes, as vectors."""
        told = texts_by_class(self.texts, self.classes_.tolist())
        if encoder is not None:
            if encoder.dim != self.n_features_in_:
                raise InputError(
                    f"X has {self.n_features_in_} features, the encoder {encoder.name} makes {encoder.dim}",
                    "Name the encoder that made them, or none, and give texts as vectors.",
                )
            names = [str(label) for label in self.classes_]
            said = {number: sentences_in(texts) for number, texts in told.items()}
            return Sentences.of_texts(said, names, encoder, recipe)
        labels = self.classes_.tolist()
        vectors = {number: self._vectors(labels[number], rows) for number, rows in told.items() if len(rows)}
        return Sentences.of_vectors(vectors, self.n_features_in_, _SCALE)

    def _vectors(self, label: Any, rows: Any) -> Tensor:
        """Return the vectors of a class's sentences, float32 [n, D]."""
        try:
            found = torch.tensor(check_array(rows, dtype=np.float32))
        except ValueError as error:
            raise InputError(
                f"the texts of class {label!r} are no vectors [n, {self.n_features_in_}], and no encoder is named that "
                f"reads sentences: {error}",
                "Name the encoder that X was made by: encoder='MODEL:TAG'",
            ) from None
        check_matrix(f"the vectors of the sentences of class {label!r}", found, columns=self.n_features_in_)
        return found

    def _opened_encoder(self) -> Encoder:
        """Return the encoder that pictures are read by."""
        if self._image_fp is None:
            raise InputError(
                "pictures cannot be read: this model was fitted on features, and no encoder is named",
                "Name the encoder that they were made by: encoder='MODEL:TAG', and fit again.",
            )
        if self._encoder is None:
            recipe = self._recipe()
            with computing_on(self.device, recipe.device):
                self._encoder = recipe_encoder(recipe.encoder)
        if self._encoder.image_fp != self._image_fp:
            raise FingerprintMismatch(
                f"this model was fitted with the encoder {self._image_fp}, the one that loads now is "
                f"{self._encoder.image_fp}",
                "Put the old weights back, or fit again.",
            )
        return self._encoder


def _seeded(recipe: Recipe, random_state: Any) -> Recipe:
    """Return the recipe with the seed that `random_state` gives."""
    if random_state is None:
        return recipe
    seed = random_state
    if not isinstance(seed, int | np.integer):
        seed = check_random_state(seed).randint(2**31 - 1)
    return recipe.model_copy(update={"lgr": recipe.lgr.model_copy(update={"seed": int(seed)})})


def _pictures_of(X: Any) -> Sequence[ImageSource] | None:
    """Return X as a sequence of pictures; None if it is a table of features."""
    if is_ready_made(X):
        return ready_made_pictures(X)
    if isinstance(X, str | os.PathLike | bytes | Image.Image | Iterator):
        raise InputError(
            "X is one picture, or can be read once only", "Give a list: [picture], list(pictures)"
        )
    dimensions = getattr(X, "ndim", None)
    if dimensions in (None, 1) and hasattr(X, "__iter__"):
        first = next(iter(X), None)
        one = isinstance(first, str | os.PathLike | bytes | Image.Image) or getattr(first, "ndim", 0) == 3
        return list(X) if one else None
    return list(X) if dimensions == 4 else None


def _groups_of(groups: Any, number: int) -> list[str | None]:
    """Return the group of each picture as text; None, and what a table has in its place, are none."""
    if groups is None:
        return [None] * number
    given = column_or_1d(groups, dtype=object).tolist()
    return [None if not isinstance(g, str) and str(g) in _MISSING else str(g) for g in given]


def _labels_of(X: Any, y: Any) -> Any:
    """Return the labels y, or where there are none those of the data set X."""
    return ready_made_labels(X) if y is None and is_ready_made(X) else y
