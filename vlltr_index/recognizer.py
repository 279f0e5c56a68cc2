"""Recognizer: predictions of a workspace, as of its newest commit or one commit for good, or of an exported folder."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vlltr_index.errors import UsageError, WorkspaceError
from vlltr_index.recognition.predictor import Answers, load_answers
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.schemas.records import ClassScore, Prediction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vlltr_index.data.decoding import ImageSource
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.heads.fusion import FusedScores
    from vlltr_index.recognition.exported.writing import ExportReport
    from vlltr_index.recognition.scorer import Scorer
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)
_USUAL = PredictOptions()


class Recognizer:
    """Answers for a workspace or an exported folder; several threads may share one.

    Made by `Recognizer.open` or `Recognizer.from_pretrained`; the latter never changes. The former, without `at`, looks
    before `predict` and `explain` whether there is a newer commit, and loads it; the encoder is loaded again only where
    it is another one. A newer commit that cannot answer yet, because its head is still to be trained, say, is passed
    over with a warning: the one before goes on answering.
    """

    def __init__(
        self,
        workspace: Workspace | None,
        answers: Answers,
        follow: bool = True,
        folder: Path | None = None,
    ) -> None:
        self._workspace = workspace
        self._folder = folder
        self._answers = answers
        self._follow = follow
        self._reloading = threading.Lock()
        self._passed_over = 0

    @classmethod
    def open(
        cls, workspace: Workspace | str | Path, at: int | None = None, reload: bool = True
    ) -> Recognizer:
        """Open a workspace, or a folder that is one.

        Args:
            workspace: The workspace or its folder.
            at: Answer as of this commit, for good; default: as of the newest.
            reload: Whether newer commits are taken as they come, without `at`.

        Raises:
            MissingStepError: If a step before has not been run; the hint names it.
            FingerprintMismatch: If encoder, vectors and head do not belong together.
            WorkspaceError: If there is no commit `at`.
        """
        from vlltr_index.store.workspace import Workspace

        if not isinstance(workspace, Workspace):
            workspace = Workspace.open(workspace)
        answers = load_answers(workspace.snapshot(at))
        return cls(workspace, answers, follow=reload and at is None)

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
        """Read what `export`, `push_to_hub` or `vlltr export` wrote; it answers as the workspace did at that commit.

        Digests, shapes, sizes and values are checked first, and nothing that was fetched is executed.

        Args:
            name: A folder, or a repository on the Hugging Face hub, `user/name`.
            revision: Branch, tag or commit of the repository.
            token: For the hub; default: the one that is stored; False: none.
            cache_dir: Where fetched files are kept; default: huggingface_hub's cache.
            device: Of the encoder; default: a GPU where there is one.
            trust_index: Whether FAISS may read the index file, if the folder has one. FAISS was not made for files
                that somebody changed on purpose; without it the anchors are searched exactly.

        Raises:
            UsageError: If `name` is neither a folder nor a repository's name.
            PretrainedError: If the hub does not give it, or something in it is not what it should be.
        """
        from vlltr_index.recognition.exported.reading import locate, read_model

        folder = locate(name, revision, token, cache_dir)
        return cls(None, read_model(folder, device, trust_index), follow=False, folder=folder)

    def export(self, folder: str | Path, *, force: bool = False, with_index: bool = False) -> ExportReport:
        """Write what `from_pretrained` reads, whole or not at all: this model as of the commit that answers now.

        Args:
            folder: A new or empty folder.
            force: Replace an export that is there; anything else is left alone all the same.
            with_index: Put the FAISS index in, where there is one.

        Raises:
            PretrainedError: If the folder may not be written.
            UsageError: If this model is of an exported folder, which can be copied.
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
        """Export this model, and make that the repository `repo_id` on the Hugging Face hub, in one commit there.

        A model that was read from an exported folder is pushed as it lies there.

        Args:
            repo_id: `user/name`; made if it is not there.
            private: Whether a new repository is private; default: what the user or organisation has set.
            commit_message: Default: names the workspace's commit.
            token: For the hub; default: the one that is stored.
            with_index: As for `export`; an exported folder is pushed with what it has.

        Returns:
            The address of the hub's commit.

        Raises:
            UsageError: If `repo_id` is no name.
            PretrainedError: If the hub does not take it.
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
        """The number of the commit that answered last."""
        return self._answers.commit

    @property
    def scorer(self) -> Scorer:
        """Anchors, head and fusion values of `commit`."""
        return self._answers.scorer

    @property
    def encoder(self) -> Encoder:
        """The encoder of `commit`, loaded on first use."""
        return self._answers.encoder

    @property
    def names(self) -> dict[int, str]:
        """Class id to name."""
        return self._answers.names

    def current(self) -> Answers:
        """The newest commit's answers (with `at` or without `reload`: those opened), loaded now if they are new.

        For several calls that belong together: what this returns never changes.
        """
        if not self._follow or self._workspace is None:
            return self._answers
        with self._reloading:
            if self._workspace.history.newer_than(max(self.commit, self._passed_over)):
                self._reload(self._workspace)
            return self._answers

    def _reload(self, workspace: Workspace) -> None:
        newest = workspace.history.ids()[-1]
        try:
            answers = load_answers(workspace.snapshot(newest))
        except WorkspaceError as error:
            self._passed_over = newest
            _log.warning("answering as of commit %d: commit %d cannot yet: %s", self.commit, newest, error)
            return
        new = answers.scorer.saved
        old = self._answers.scorer.saved
        if (new.text_fp, new.image_fp) == (old.text_fp, old.image_fp):
            answers = replace(answers, open_encoder=self._answers.open_encoder)
        self._answers = answers

    def predict(self, images: Sequence[ImageSource], options: PredictOptions = _USUAL) -> list[Prediction]:
        """The best classes of each image, best first, each with its nearest sentences; all from one commit.

        An image that cannot be read gives a `Prediction` with `problem` set; the others are answered.

        Args:
            images: Paths, encoded bytes, PIL images, or arrays uint8 [H, W, 3] of red, green and blue.
            options: See there.

        Raises:
            UsageError: If there is no such number of crops, `only` names no class, or `neighbours` are asked of an
                exported folder.
            MissingStepError: If `reject` or `min_accuracy` are asked for and the head cannot say, one of `only` has
                neither anchors nor images, there is no tree of classes, or the training images that `neighbours` asks
                for have no vectors.
            UnknownClassError: If there is no class of a name in `only`, or no such parent.
        """
        return list(self.stream(images, options))

    def stream(self, images: Iterable[ImageSource], options: PredictOptions = _USUAL) -> Iterator[Prediction]:
        """Predict any number of images, one after the other in their order, in flat memory."""
        return self.current().stream(images, options)

    @property
    def classes_(self) -> NDArray[np.str_]:
        """Names of the classes [C] in the order of `predict_proba`'s columns, as of the commit that answered last."""
        import numpy as np

        return np.array([self.names[i] for i in self.scorer.class_ids.tolist()], dtype=np.str_)

    def predict_proba(self, images: Sequence[ImageSource], crops: int = 1) -> NDArray[np.float64]:
        """Probability of every class for each image, float64 [B, C]: columns as `classes_`, rows sum to one.

        Every class is scored exactly, as by `predict` with `retrieval="exhaustive"`.

        Args:
            images: Paths, encoded bytes, PIL images, or arrays uint8 [H, W, 3] of red, green and blue.
            crops: As in `predict`.

        Raises:
            InputError: If an image cannot be read; the message names it, and its place in `images`. (`predict` answers
                the others.)
            UsageError: If it is another number of crops.
        """
        return self.current().probabilities(images, crops)

    def predict_names(self, images: Sequence[ImageSource], crops: int = 1) -> list[str]:
        """The name of the most probable class of each image; arguments and errors as for `predict_proba`."""
        answers = self.current()
        best = answers.probabilities(images, crops).argmax(axis=1)
        return [answers.names[int(answers.scorer.class_ids[c])] for c in best]

    def explain(self, image: ImageSource, name: str, crops: int = 1) -> ClassScore:
        """One class's score for one image, with every one of its anchor sentences, by share; `crops` as in `predict`.

        Raises:
            InputError: If the image cannot be read.
            UnknownClassError: If there is no such class.
            MissingStepError: If the class has neither anchors nor images: it came after the selection.
        """
        return self.current().explain(image, name, crops)

    def features(self, images: Sequence[ImageSource], crops: int = 1) -> tuple[Tensor, list[str | None]]:
        """Features [B, D] of the readable images, unnormalised, and for each image why it was not readable."""
        return self._answers.features(images, crops)

    def score(self, features: Tensor, retrieval: str = "faiss") -> tuple[FusedScores, Tensor]:
        """Fused scores of features [B, D] over all classes [B, C] of `commit`, and the residual probability [B].

        `retrieval` is as for `predict`. The residual is the mass of the classes that were not scored exactly: 0 for
        `exhaustive`.

        Raises:
            InputError: If the features are not [B, D] of the head's width.
        """
        return self._answers.score(features, retrieval)
