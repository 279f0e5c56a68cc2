"""Recognizer: predictions of a workspace, by its newest commit or a fixed one, or of an exported folder."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vlltr_index.errors import UsageError, WorkspaceError
from vlltr_index.recognition import answering
from vlltr_index.recognition.model import Model, named
from vlltr_index.schemas.options import USUAL, PredictOptions, Prior, checked_retrieval
from vlltr_index.schemas.records import ClassScore, Prediction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vlltr_index.data.decoding import ImageSource
    from vlltr_index.heads.fusion import FusedScores
    from vlltr_index.recognition.exported.writing import ExportReport
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)


class Recognizer:
    """Model of a workspace or an exported folder, which predicts and explains; several threads may share it.

    It is made by `Recognizer.open` or `Recognizer.from_pretrained`. The latter never changes. The former, without `at`,
    looks for a newer commit before `predict` and `explain`, and loads it; the encoder is loaded again only if it has
    changed. A newer commit that cannot answer, for instance because its head is not trained yet, is skipped with a
    warning, and the one before is used.
    """

    def __init__(
        self,
        workspace: Workspace | None,
        model: Model,
        follow: bool = True,
        folder: Path | None = None,
    ) -> None:
        self._workspace = workspace
        self._folder = folder
        self._model = model
        self._follow = follow
        self._reloading = threading.Lock()
        self._passed_over = 0

    @classmethod
    def open(
        cls, workspace: Workspace | str | Path, at: int | None = None, reload: bool = True
    ) -> Recognizer:
        """Open a workspace.

        Args:
            workspace: The workspace or its folder.
            at: The commit that answers, always; None: the newest.
            reload: Whether newer commits are loaded as they appear; only without `at`.

        Raises:
            MissingStepError: A command must be run first; the hint names it.
            FingerprintMismatch: Encoder, vectors and head do not belong together.
            WorkspaceError: There is no commit `at`.
        """
        from vlltr_index.store.workspace import Workspace

        if not isinstance(workspace, Workspace):
            workspace = Workspace.open(workspace)
        return cls(workspace, Model.open(workspace.snapshot(at)), follow=reload and at is None)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        device: str | None = None,
        trust_index: bool = False,
    ) -> Recognizer:
        """Load a model that `export`, `push_to_hub` or `vlltr export` wrote; it answers like the exported commit.

        Digests, shapes, sizes and values are checked first, and nothing that was fetched is executed.

        Args:
            name: A folder, or a repository on the Hugging Face hub, `user/name`.
            revision: Branch, tag or commit of the repository.
            token: Token of the hub; None: the stored one; False: none.
            cache_dir: Folder for fetched files; None: huggingface_hub's cache.
            device: Device of the encoder; None: a GPU if there is one.
            trust_index: Whether FAISS may read the index file, if the folder has one. FAISS is not safe against
                maliciously changed files; without it the anchors are searched exactly.

        Raises:
            UsageError: `name` is neither a folder nor a repository's name.
            PretrainedError: It cannot be downloaded, or something in it is invalid.
        """
        from vlltr_index.recognition.exported.reading import locate, read_model

        folder = locate(name, revision, token, cache_dir)
        return cls(None, read_model(folder, device, trust_index), follow=False, folder=folder)

    def export(self, folder: str | Path, *, force: bool = False, with_index: bool = False) -> ExportReport:
        """Export this model, at the commit that answers now, for `from_pretrained`; completely or not at all.

        Args:
            folder: A new or empty folder.
            force: Replace an export in that folder; anything else is never replaced.
            with_index: Include the FAISS index, if there is one.

        Raises:
            PretrainedError: The folder may not be written.
            UsageError: This model is of an exported folder, which can be copied.
        """
        from vlltr_index.recognition.exported.writing import export_model

        if self._workspace is None:
            raise UsageError("this model is of an exported folder already", "Copy the folder.")
        commit = self.current().commit
        return export_model(self._workspace, folder, commit, force=force, with_index=with_index)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        commit_message: str | None = None,
        token: str | bool | None = None,
        with_index: bool = False,
    ) -> str:
        """Export this model and upload it to the repository `repo_id` on the Hugging Face hub, in one commit there.

        A model that was loaded from an exported folder is uploaded as it is.

        Args:
            repo_id: `user/name`; made if it does not exist.
            private: Whether a new repository is private; None: the default of the user or organisation.
            commit_message: Message of the hub's commit; None: one that names the workspace's commit.
            token: Token of the hub; None: the stored one.
            with_index: As for `export`; an exported folder is uploaded with all that it has.

        Returns:
            The address of the hub's commit.

        Raises:
            UsageError: `repo_id` is not a valid name.
            PretrainedError: The hub refuses it.
        """
        import tempfile

        from vlltr_index.recognition.exported.reading import check_repository
        from vlltr_index.recognition.exported.writing import push_model

        check_repository(repo_id)
        with tempfile.TemporaryDirectory(prefix="vlltr-export-") as place:
            folder = self._folder or Path(place) / "model"
            if self._folder is None:
                self.export(folder, with_index=with_index)
            return push_model(folder, repo_id, private=private, commit_message=commit_message, token=token)

    @property
    def commit(self) -> int:
        """Number of the commit that answered last."""
        return self._model.commit

    def current(self) -> Model:
        """Return the model of the newest commit, loaded now if it is new; with `at` or without `reload` the opened one.

        Use it for several calls that must be answered by the same commit: the returned object never changes.
        """
        if not self._follow or self._workspace is None:
            return self._model
        with self._reloading:
            if self._workspace.history.newer_than(max(self.commit, self._passed_over)):
                self._reload(self._workspace)
            return self._model

    def _reload(self, workspace: Workspace) -> None:
        """Load the newest commit, or skip it if it cannot answer."""
        newest = workspace.history.ids()[-1]
        try:
            self._model = Model.open(workspace.snapshot(newest), before=self._model)
        except WorkspaceError as error:
            self._passed_over = newest
            _log.warning("answering as of commit %d: commit %d cannot yet: %s", self.commit, newest, error)

    def is_of(self, workspace: Workspace) -> bool:
        """Say whether the answers are those of a workspace."""
        return self._workspace is not None and self._workspace.address == workspace.address

    def adopt(self, model: Model) -> None:
        """Answer with the model of a newer commit that was just made; not with `at`, or without `reload`."""
        with self._reloading:
            if self._follow and model.commit > self.commit:
                self._model = model

    def predict(
        self,
        images: Sequence[ImageSource],
        options: PredictOptions = USUAL,
        groups: Sequence[str | None] | None = None,
    ) -> list[Prediction]:
        """The best classes of each image, best first, each with its nearest sentences; all from one commit.

        An image that cannot be read gets a `Prediction` with `problem` set; the others are answered.

        Args:
            images: Paths, encoded bytes, PIL images, or arrays uint8 [H, W, 3] of red, green and blue.
            options: See there.
            groups: The group of each image, None for one by itself: images of a group show one thing, and have one
                answer together.

        Raises:
            UsageError: If there is not a group for each image, no such number of crops, `only` names no class, or
                `neighbours` are asked of an exported folder.
            MissingStepError: If `reject` or `min_accuracy` are asked for and the head cannot say, one of `only` has
                neither anchors nor images, there is no tree of classes, or the training images that `neighbours` asks
                for have no vectors.
            UnknownClassError: If there is no class of a name in `only`, or no such parent.
        """
        return answering.predict(self.current(), images, options, groups)

    def stream(self, images: Iterable[ImageSource], options: PredictOptions = USUAL) -> Iterator[Prediction]:
        """Predict any number of images, one after the other in their order, in flat memory."""
        return answering.stream(self.current(), named(images), options)

    @property
    def classes_(self) -> NDArray[np.str_]:
        """Names of the classes [C] in the order of `predict_proba`'s columns, by the commit that answered last."""
        import numpy as np

        model = self._model
        return np.array([model.names[i] for i in model.class_ids.tolist()], dtype=np.str_)

    def predict_proba(
        self, images: Sequence[ImageSource], crops: int = 1, prior: Prior = "balanced"
    ) -> NDArray[np.float64]:
        """Predict the probability of every class for each image, float64 [B, C]; columns as `classes_`, rows sum to 1.

        Every class is scored exactly, as by `predict` with `retrieval="exhaustive"`.

        Args:
            images: Paths, encoded bytes, PIL images, or arrays uint8 [H, W, 3] of red, green and blue.
            crops, prior: As in `PredictOptions`.

        Raises:
            InputError: An image cannot be read; the message names it, and its position in `images`. (`predict` answers
                the others.)
            UsageError: The number of crops is not supported, or the prior is none, or does not fit the classes.
            MissingStepError: The head knows no prior.
        """
        return _under(self.current(), images, crops, prior).probabilities(images, crops)

    def predict_names(
        self, images: Sequence[ImageSource], crops: int = 1, prior: Prior = "balanced"
    ) -> list[str]:
        """Predict the name of the most probable class of each image; arguments and errors as for `predict_proba`."""
        model = _under(self.current(), images, crops, prior)
        best = model.probabilities(images, crops).argmax(axis=1)
        return [model.names[int(model.class_ids[c])] for c in best]

    def explain(self, image: ImageSource, name: str, crops: int = 1) -> ClassScore:
        """Explain one class's score for one image by all its anchor sentences, by share; `crops` as in `predict`.

        Raises:
            InputError: The image cannot be read.
            UnknownClassError: There is no such class.
            MissingStepError: The class has neither anchors nor images, since it was added after the selection.
        """
        return self.current().explain(image, name, crops)

    def features(self, images: Sequence[ImageSource], crops: int = 1) -> tuple[Tensor, list[str | None]]:
        """Compute features [B, D] of the readable images, unnormalised; and say for each image why it is unreadable."""
        return self.current().features(images, crops)

    def score(self, features: Tensor, retrieval: str = "faiss") -> tuple[FusedScores, Tensor]:
        """Score features [B, D], unnormalised, by the commit that answered last: scores [B, C], and the residual [B].

        `retrieval` is as for `predict`. The residual is the probability of the classes that were not scored exactly: 0
        for `exhaustive`.

        Raises:
            InputError: The features are not [B, D] of the head's width.
        """
        return self._model.score(features, checked_retrieval(retrieval))


def _under(model: Model, images: Sequence[ImageSource], crops: int, prior: Prior) -> Model:
    """Return the model for classes as common as `prior` says."""
    options = PredictOptions(crops=crops, prior=prior)
    return model.under(answering.with_frequencies(model, partial(named, images), options).prior)
