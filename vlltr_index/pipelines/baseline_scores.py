"""Scores of the baselines on images (`vlltr evaluate`): as they were committed, or fitted anew for each fold."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from pydantic import AliasPath, Field
from safetensors.torch import load_file
from torch import Tensor

from vlltr_index.embedding.loading import content_ids, image_vectors_of, saved_encoder
from vlltr_index.embedding.vectors import embedded
from vlltr_index.errors import FingerprintMismatch, MissingStepError, WorkspaceError
from vlltr_index.evaluation.baselines import BY_NAME, Linear
from vlltr_index.evaluation.compared import ADJUSTED
from vlltr_index.evaluation.rules import adjusted_logits
from vlltr_index.pipelines import training
from vlltr_index.pipelines.train_baseline import (
    BaselineManifest,
    BaselineRow,
    Making,
    absent_baselines,
    embed_missing,
    fc_checkpoint,
    kept_folder,
    made_of,
    sentences_of,
    stored_texts,
)
from vlltr_index.schemas.baselines import BASELINES
from vlltr_index.schemas.manifests import Manifest
from vlltr_index.tensors import choose_device, class_positions
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

FC = "image-only"


@dataclass(frozen=True, eq=False)
class ScoredRow:
    """A baseline with its scores of N images.

    Attributes:
        row: The baseline.
        scores: Float [N, C].
        common: The same where classes are as common as in training; None if it knows no prior.
    """

    row: BaselineRow
    scores: Tensor
    common: Tensor | None


@dataclass(frozen=True, eq=False)
class ClassFrequencies:
    """How common classes are, float [C] as logarithms, by their ids, int64 [C]."""

    class_ids: Tensor
    logarithms: Tensor

    def of(self, class_ids: Tensor) -> Tensor:
        """Return the logarithm for each of some classes; minus infinity for one that is gone."""
        at = class_positions(self.class_ids, class_ids)
        return torch.where(at >= 0, self.logarithms[at.clamp(min=0)], -torch.inf)


class ImageOnlySettings(Manifest):
    """The part of `train.json` that says how the image-only baseline was trained; see `BaselineConfig`."""

    logit_adjustment: float = Field(validation_alias=AliasPath("config", "logit_adjustment"))
    sampler_power: float = Field(validation_alias=AliasPath("config", "sampler_power"))


def _load(snapshot: Snapshot, name: str, digest: str) -> BaselineRow:
    """Read a committed baseline.

    Raises:
        MissingStepError: If its files are gone.
        WorkspaceError: If they are damaged, or of another format.
    """
    folder = kept_folder(snapshot, "heads", digest, name)
    try:
        facts = BaselineManifest.load(folder / "baseline.json")
    except ValueError as error:
        mend = f"Make it again: vlltr train baseline {name}"
        raise WorkspaceError(f"the baseline in {folder} cannot be read: {error}", mend) from None
    tensors = load_file(folder / "baseline.safetensors")
    class_ids = tensors.pop("class_ids")
    return BaselineRow(
        label=facts.label,
        baseline=BY_NAME[name].of(tensors, facts.settings),
        tower=facts.tower,
        checkpoint=facts.checkpoint,
        image_fp=facts.image_fp,
        class_ids=class_ids,
        note=facts.note,
        made_of=facts.made_of,
    )


def _rows(snapshot: Snapshot) -> Iterator[tuple[str, BaselineRow]]:
    """Yield name and row of each committed baseline, in the order of the table."""
    info = snapshot.commit.info
    if info.baseline_fc:
        folder = fc_checkpoint(snapshot)
        settings = ImageOnlySettings.load(folder / "train.json")
        visual = load_file(folder / "visual.safetensors")
        linear = Linear(weight=visual["weight"], bias=visual["bias"])
        adjusted = replace(linear, parts=1.0)  # knows the prior by Bayes' rule
        ids = visual["class_ids"]
        row = BaselineRow(FC, linear, "fc", info.baseline_fc, image_fp=None, class_ids=ids)
        if settings.logit_adjustment == 0:
            yield "fc", row
            bias = adjusted_logits(visual["bias"], visual["counts"], settings.sampler_power)
            yield "fc", replace(row, label=ADJUSTED, baseline=replace(adjusted, bias=bias))
        else:
            yield "fc", replace(row, baseline=adjusted)
    for name in BASELINES:
        if name in info.baselines:
            yield name, _load(snapshot, name, info.baselines[name])


def _rows_of_folds(snapshot: Snapshot) -> Iterator[tuple[str, BaselineRow]]:
    """Yield the committed baselines that can be fitted again for each fold."""
    absent = absent_baselines(snapshot)
    for name, row in _rows(snapshot):
        if row.tower == "own" and name not in absent:
            yield name, row


def baseline_labels(snapshot: Snapshot, of_folds: bool = False) -> list[str]:
    """Return the names of the rows that `score_baselines` gives, or `cross_validated_baselines`, in their order.

    Raises:
        MissingStepError: If a baseline's files are gone.
        WorkspaceError: If they are damaged.
    """
    return [row.label for _, row in (_rows_of_folds if of_folds else _rows)(snapshot)]


def absence_notes(snapshot: Snapshot, rows: Container[str]) -> dict[str, str]:
    """Return a note, by name, on each baseline that cannot be fitted and is none of the rows."""
    return {name: f"absent, as {why}" for name, why in absent_baselines(snapshot).items() if name not in rows}


def score_baselines(
    workspace: Workspace,
    snapshot: Snapshot,
    split: str,
    image_ids: list[str],
    progress: Progress | None = None,
) -> Iterator[tuple[BaselineRow, Tensor]]:
    """Yield each baseline row of the commit with its scores float [N, C] for `image_ids` of `split`, in their order.

    The image-only baseline has a row as trained and, if it was trained without logit adjustment, one with logit
    adjustment after training. Images without vectors are embedded first (resumable), with `progress`.

    Raises:
        MissingStepError: If a baseline's files are gone, or an image cannot be read any more.
        WorkspaceError: If they are damaged.
        FingerprintMismatch: If the encoder a baseline was made with is not there any more.
    """
    known: dict[tuple[str | None, str | None], Tensor] = {}  # of the last row's tower
    for name, row in _rows(snapshot):
        tower = row.checkpoint, row.image_fp
        if tower not in known:
            image_fp = row.image_fp
            contents = content_ids(snapshot, image_ids)
            if image_fp is None or not all(embedded(snapshot, image_fp, contents)):
                encoder = _encoder_of(snapshot, row, name)
                image_fp = encoder.image_fp
                embed_missing(workspace, encoder, split, contents=contents, progress=progress)
                _check_read(workspace.snapshot(), contents, image_fp=image_fp)
            features = image_vectors_of(snapshot, image_ids, image_fp=image_fp)
            known = {tower: features.to(choose_device())}
        note = "; ".join(filter(None, (row.note, _age(row, snapshot, name))))
        yield replace(row, note=note), _scores(snapshot, row, known[tower])


def _check_read(snapshot: Snapshot, contents: list[str], image_fp: str) -> None:
    """Refuse images that could not be read when they were embedded, and are kept aside since."""
    if unread := embedded(snapshot, image_fp, contents).count(False):
        what = f"{plural(unread, 'image')} can no longer be read, and {'is' if unread == 1 else 'are'} kept aside now"
        raise MissingStepError(what, "Run the same command again: it goes on without.")


def _scores(snapshot: Snapshot, row: BaselineRow, features: Tensor) -> Tensor:
    """Score features [N, D], by the sentences as they are now if it reads them; the scores [N, C] lie on the CPU."""
    baseline = row.baseline.to(features.device)
    if baseline.reads_texts:
        sentences = sentences_of(snapshot, row.class_ids)
        texts = stored_texts(snapshot, sentences, str(row.settings["text_fp"]))
        baseline = replace(baseline, texts=texts)
    return baseline.scores(features).cpu()


def cross_validated_baselines(
    workspace: Workspace,
    snapshot: Snapshot,
    parts: Sequence[tuple[Sequence[str], frozenset[str], ClassFrequencies]],
    progress: Progress | None = None,
) -> Iterator[ScoredRow]:
    """Yield each baseline of the commit with its scores for the training images of all parts, in order.

    It is fitted again for each part, on vectors of the commit's encoder and for the classes that there are. Baselines
    over the image-only baseline's tower, which was trained on all images, are left out, and absent ones.

    Args:
        workspace: Where vectors are.
        snapshot: The commit.
        parts: Ids of the images that are scored, and of those that it is fitted without; how common classes are in the
            rest.
        progress: Called while vectors are made.

    Raises:
        MissingStepError: If a baseline's files are gone.
        WorkspaceError: If they are damaged.
    """
    making = Making(workspace, snapshot, workspace.recipe.baselines, progress)
    for name, row in _rows_of_folds(snapshot):
        classes = []
        scores = []
        common = []
        for part, without, frequencies in parts:
            fitted = making.row(BY_NAME[name], without, own_tower=True)
            features = image_vectors_of(snapshot, part, image_fp=fitted.image_fp).to(choose_device())
            found = _scores(snapshot, fitted, features)
            classes.append(fitted.class_ids)
            scores.append(found)
            under = fitted.baseline.under_prior(found, frequencies.of(fitted.class_ids))
            common += [] if under is None else [under]
        class_ids = torch.cat(classes).unique()
        yield ScoredRow(
            replace(row, class_ids=class_ids),
            _joined(scores, classes, class_ids),
            _joined(common, classes, class_ids) if len(common) == len(parts) else None,
        )


def _joined(scores: Sequence[Tensor], classes: Sequence[Tensor], class_ids: Tensor) -> Tensor:
    """Join scores [N, C] that are of different classes, int64 [C]; minus infinity for the others of `class_ids`."""
    found = []
    for some, of in zip(scores, classes, strict=True):
        wider = torch.cat([some, some.new_full((len(some), 1), -torch.inf)], 1)
        found.append(wider[:, class_positions(of, class_ids)])
    return torch.cat(found)


def _encoder_of(snapshot: Snapshot, row: BaselineRow, name: str) -> Encoder:
    """Open the encoder that a row was made with."""
    if row.checkpoint is not None:
        encoder = saved_encoder(snapshot.objects.path("checkpoints", row.checkpoint))
    else:
        encoder = training.starting_encoder(snapshot.recipe)
    if row.image_fp not in (None, encoder.image_fp):
        raise FingerprintMismatch(
            f"baseline {name!r} was made with encoder {row.image_fp}, the one that loads now is {encoder.image_fp}",
            f"Make it again: vlltr train baseline {name}",
        )
    return encoder


def _age(row: BaselineRow, snapshot: Snapshot, name: str) -> str:
    """Return a note if the row was fitted with another tower than the commit's, or on other data, else nothing."""
    now = snapshot.commit.info.baseline_fc if row.tower == "fc" else snapshot.commit.checkpoint
    if now != row.checkpoint:
        return f"made with an earlier tower: vlltr train baseline {name}"
    if row.made_of and row.made_of != made_of(snapshot, BY_NAME[name]):
        what = "training pictures or texts" if row.baseline.sentences else "training pictures"
        return f"made of other {what} than there are now: vlltr train baseline {name}"
    return ""
