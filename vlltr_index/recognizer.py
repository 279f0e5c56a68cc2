"""Recognizer: predictions of a workspace, as of its newest commit or of one commit for good."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vlltr_index.answers import Answers
from vlltr_index.errors import WorkspaceError
from vlltr_index.schemas.records import ClassScore, Prediction
from vlltr_index.scoring import Scorer, load_scorer

if TYPE_CHECKING:
    from vlltr_index.encoder import Encoder
    from vlltr_index.fusion import FusedScores
    from vlltr_index.history import Commit
    from vlltr_index.workspace import Workspace

__all__ = ["Recognizer"]

_log = logging.getLogger(__name__)


class Recognizer:
    """Answers for a workspace; several threads may share one.

    Made by `Recognizer.open`. Without `at`, `predict` and `explain` look first whether there is a newer commit, and
    load it; the encoder is loaded again only where it is another one. A newer commit that cannot answer yet, because
    its head is still to be trained, say, is passed over with a warning: the one before goes on answering.
    """

    def __init__(self, workspace: Workspace, answers: Answers, follow: bool = True) -> None:
        self._workspace = workspace
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
            WorkspaceError: If there is no commit `at`, or it was pruned.
        """
        from vlltr_index.workspace import Workspace

        if not isinstance(workspace, Workspace):
            workspace = Workspace.open(workspace)
        snapshot = workspace.snapshot(at)
        answers = Answers(workspace, snapshot, load_scorer(workspace, snapshot))
        return cls(workspace, answers, follow=reload and at is None)

    @property
    def commit(self) -> Commit:
        """The commit that answered last."""
        commit = self._answers.snapshot.commit
        assert commit is not None  # without one there is no head, and `open` fails
        return commit

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
        if not self._follow:
            return self._answers
        with self._reloading:
            if self._workspace.history.newer_than(self.commit.id):
                self._reload()
            return self._answers

    def _reload(self) -> None:
        newest = self._workspace.history.ids()[-1]
        if newest == self._passed_over:
            return
        try:
            snapshot = self._workspace.snapshot(newest)
            assert snapshot.commit is not None
            encoder = self._answers.loaded_encoder if _same_encoder(self.commit, snapshot.commit) else None
            self._answers = Answers(
                self._workspace, snapshot, load_scorer(self._workspace, snapshot), encoder
            )
        except WorkspaceError as error:
            self._passed_over = newest
            _log.warning("answering as of commit %d: commit %d cannot yet: %s", self.commit.id, newest, error)

    def predict(
        self,
        images: Sequence[str | Path | bytes],
        top: int = 5,
        explain: int = 0,
        retrieval: str = "faiss",
        reject: bool = False,
        crops: int = 1,
    ) -> list[Prediction]:
        """The best classes of each image, best first, each with its nearest sentences; all from one commit.

        Args:
            images: Paths or encoded bytes.
            top: Classes an image.
            explain: Sentences a class, those whose removal would take most away first.
            retrieval: `faiss` scores the classes that the index retrieves; `exhaustive` all of them.
            reject: Whether each prediction says if the image is of any of the classes at all (`known`).
            crops: Crops of each image that make its feature: 1, or 5 (the centre and the corners).

        Raises:
            UsageError: If `retrieval` is neither, or another number of crops.
            MissingStepError: If `reject` is asked for and no threshold has been calibrated.

        An image that cannot be read gives a `Prediction` with `problem` set; the others are answered.
        """
        return self.current().predict(images, top, explain, retrieval, reject, crops)

    def explain(self, image: str | Path | bytes, name: str, crops: int = 1) -> ClassScore:
        """One class's score for one image, with every one of its anchor sentences, by effect; `crops` as in `predict`.

        Raises:
            InputError: If the image cannot be read.
            UnknownClassError: If there is no such class.
            MissingStepError: If the class has no anchors: it came after the selection.
        """
        return self.current().explain(image, name, crops)

    def features(
        self, images: Sequence[str | Path | bytes], crops: int = 1
    ) -> tuple[Tensor, list[str | None]]:
        """Features [B, D] of the readable images, unnormalised, and for each image why it was not readable."""
        return self._answers.features(images, crops)

    def score(self, features: Tensor, retrieval: str = "faiss") -> tuple[FusedScores, Tensor]:
        """Fused scores of features [B, D] over all classes [B, C] of `commit`, and the residual probability [B].

        The residual is the mass of the classes that were not scored exactly: 0 for `exhaustive`.
        """
        return self._answers.score(features, retrieval)


def _same_encoder(old: Commit, new: Commit) -> bool:
    return (old.checkpoint, old.text_fp, old.image_fp) == (new.checkpoint, new.text_fp, new.image_fp)
