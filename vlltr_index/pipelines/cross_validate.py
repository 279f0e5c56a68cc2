"""Cross-validate stage 2 (`vlltr cross-validate`): models that were fitted without a part of the images each.

Their answers for these images are what `evaluate` and `report` measure where there is no split test, and what the loss
of a change of classes is measured on.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.anchors.selection import anchors_without
from vlltr_index.data.writing import scratch_folder, settle
from vlltr_index.embedding.loading import ImageSet, usable_images, with_words
from vlltr_index.errors import MissingStepError
from vlltr_index.heads.checkpoint import SavedHead
from vlltr_index.heads.dealing import answerable, deal_units
from vlltr_index.heads.units import is_group
from vlltr_index.pipelines import training
from vlltr_index.pipelines.train_lgr import HeadData, head_data, head_facts, stage_two_data
from vlltr_index.recognition.folds import save_deal, save_fold
from vlltr_index.recognition.model import Model
from vlltr_index.recognition.scorer import OTHER_RULE
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.store.holdout import read_held_out
from vlltr_index.store.snapshot import CrossValidated
from vlltr_index.tensors import class_positions
from vlltr_index.train.distributed import by_first, meet
from vlltr_index.train.stage_two import fit_stage_two
from vlltr_index.train.stage_two_data import StageTwoData

if TYPE_CHECKING:
    from vlltr_index.heads.anchor_bank import AnchorBank
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.transaction import Transaction
    from vlltr_index.store.workspace import Workspace

_FOLDS = 5
_WEIGHED_IN = 3  # folds in which the parts are weighed in each; with five the whole would take too long
_MANY_UNITS = 5000  # from so many on one part of them is held out
_ONE_PART = 10


@dataclass(frozen=True)
class CrossValidation:
    """Report of a cross-validation.

    Attributes:
        digest: Of the stored models.
        folds: How many models were fitted.
        images: Images that one of them was fitted without.
        units: Units of these images: near duplicates and groups, which are in one fold.
        alike: Images that belong together with another by their time or by what they show, and not by a group.
        classes: Classes of these images.
        untested: Names of the classes with training images that have a single unit, which is not held out.
        resumed: Whether an interrupted run went on.
    """

    digest: str
    folds: int
    images: int
    units: int
    alike: int
    classes: int
    untested: tuple[str, ...]
    resumed: bool


def cross_validate(
    workspace: Workspace, progress: Progress | None = None, resume: bool = True
) -> CrossValidation:
    """Fit stage 2 anew without each of five parts of the training images, and commit these models.

    Anchors, head, generative model, weights and thresholds are fitted without the part, by the settings that the
    head was trained with and on the classes that it was trained on; vectors are those of the encoder as it is. Units
    of images stay whole, and each class with two is tested, a later one too. From 5,000 units on there is one part, a
    tenth. After a stage 1 the parts are of the images that it did not see. An interrupted run goes on with the next
    part.

    Args:
        workspace: With a trained head.
        progress: Called with what is done, the number done, and the total.
        resume: Whether the state of an interrupted run is used.

    Raises:
        MissingStepError: If there is no head, it is of another rule than `ours`, stage 1 was trained on all images, or
            no class has two units.
        WorkspaceError: If the head or the training images changed meanwhile.
    """
    meet()
    return by_first(lambda: _cross_validate(workspace, progress, resume))


@dataclass(frozen=True, eq=False)
class _Deal:
    """What is cross-validated.

    Attributes:
        head: The commit's anchors, and its training images with their views and units.
        images: All N training images.
        contents: The hash of each one's content.
        trained: Bool [N], whether its class is one that the head was trained on.
        fold: Int64 [N], -1 for images that are never held out.
        config: Settings of the head.
    """

    head: HeadData
    images: ImageSet
    contents: list[str]
    trained: Tensor
    fold: Tensor
    config: LGRConfig

    @property
    def folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    def without(self, fold: int) -> tuple[StageTwoData, Tensor]:
        """Return the training data of one fold's model but for its anchors, and the ids of its classes."""
        rest = self.trained & (self.fold != fold)
        ids = list(compress(self.images.image_ids, rest.tolist()))
        learned = ImageSet(ids, self.images.class_ids[rest], self.images.features[rest])
        units = list(compress(self.head.units, rest.tolist()))
        return stage_two_data(self.head.state, learned, self.head.features[:, rest], units)

    def anchors_without(self, gone: Tensor) -> tuple[AnchorBank, list[str]]:
        """Select the anchors of all classes without the images bool [N]; return them and their sentences."""
        state = self.head.state
        selected = state.snapshot.commit.info.select
        assert selected is not None
        out = frozenset(compress(self.images.image_ids, gone.tolist()))
        return anchors_without(state.snapshot, selected, state.anchors.bank.class_ids, images=out)

    def anchors_too(self, fold: int, classes: Tensor, out: Tensor) -> AnchorBank:
        """Select the anchors of some classes without a fold's images, and without those `out` of its training data."""
        gone = self.fold == fold
        gone[self.trained & ~gone] = out
        bank, names = self.anchors_without(gone)
        return _of_classes(with_words(self.head.state.snapshot, bank, names), classes)


def _of_classes(bank: AnchorBank, class_ids: Tensor) -> AnchorBank:
    return bank.select(class_positions(bank.class_ids, class_ids))


def _cross_validate(workspace: Workspace, progress: Progress | None, resume: bool) -> CrossValidation:
    def prepare(snapshot: Snapshot) -> tuple[_Deal, str]:
        return _dealt(snapshot), f"folds-{short(digest_json(_facts(snapshot)))}"

    with training.training_run(workspace, "cross-validate", resume, prepare, facts=_facts) as run:
        deal = run.data
        for fold in range(deal.folds):
            _fit(deal, fold, run.folder / str(fold), progress)
        digest = run.commit(lambda tx: _keep(tx, deal, run.folder))
    owners = deal.images.class_ids
    names = deal.head.state.snapshot.class_table().names
    asked = answerable(owners, deal.fold)
    size = Counter(compress(deal.head.units, asked.tolist()))
    return CrossValidation(
        digest=digest,
        folds=deal.folds,
        images=int(asked.sum()),
        units=len(size),
        alike=sum(many for name, many in size.items() if many > 1 and not is_group(name)),
        classes=len(owners[asked].unique()),
        untested=tuple(names[i] for i in sorted({*owners.tolist()} - {*owners[asked].tolist()})),
        resumed=run.resumed,
    )


def _facts(snapshot: Snapshot) -> dict[str, object]:
    """Return what must not change until the models are committed."""
    evidence = usable_images(snapshot, "train", ["content_hash", "group", "taken", "uri"])
    return {
        **head_facts(snapshot),
        "the head": snapshot.commit.head,
        "what tells which training images belong together": digest_json(evidence.to_pydict()),
    }


def _dealt(snapshot: Snapshot) -> _Deal:
    """Read the training data, and deal its units."""
    commit = snapshot.commit
    if not commit.head or commit.info.lgr is None:
        raise MissingStepError("no head has been trained yet", "Run: vlltr train lgr")
    if snapshot.recipe.fusion.rule != "ours":
        what = "only a head of the rule 'ours' can be cross-validated"
        raise MissingStepError(what, OTHER_RULE)
    config = LGRConfig.model_validate(commit.info.lgr)
    head = head_data(snapshot, config)
    images = head.images
    if images is None:
        raise MissingStepError("there are no training images", "Run: vlltr ingest images PATH --split train")
    model = Model.of(head.state)
    trained = torch.isin(images.class_ids, model.row_owners)
    able = torch.isin(images.class_ids, model.class_ids)
    if commit.checkpoint:
        held = read_held_out(snapshot.objects.path("checkpoints", commit.checkpoint))
        unseen = torch.tensor([held.has(image_id) for image_id in images.image_ids], dtype=torch.bool)
        if not bool((trained & unseen).any()):
            raise MissingStepError(
                "stage 1 was trained on all training images: no figure on them would be honest",
                "Keep some out, and train again: vlltr ingest images PATH --split train --hold-out 0.2, then vlltr"
                " train all",
            )
        able &= unseen | ~trained
    fold = torch.full_like(images.class_ids, -1)
    fold[able] = _dealt_units(images.class_ids[able], list(compress(head.units, able.tolist())))
    if not bool(answerable(images.class_ids, fold).any()):
        raise MissingStepError(
            "no class has two pictures that do not belong together: none can be held out",
            "Bring in more pictures, or group them otherwise: vlltr ingest images PATH --split train --group HOW",
        )
    return _Deal(
        head,
        images,
        contents=usable_images(snapshot, "train", ["content_hash"])["content_hash"].to_pylist(),
        trained=trained,
        fold=fold,
        config=config,
    )


def _dealt_units(labels: Tensor, units: list[str]) -> Tensor:
    """Deal units into folds that are numbered from 0; of many units one part is held out."""
    one_part = len(set(units)) >= _MANY_UNITS
    dealt = deal_units(labels, units, _ONE_PART if one_part else _FOLDS)
    if one_part:
        dealt = torch.where(dealt == 0, 0, -1)
    used = dealt[dealt >= 0].unique()
    return torch.where(dealt >= 0, torch.searchsorted(used, dealt), -1)


def _fit(deal: _Deal, fold: int, folder: Path, progress: Progress | None) -> None:
    """Fit one fold's model into `folder`, unless an interrupted run did."""
    if folder.is_dir():
        return
    state = deal.head.state
    data, class_ids = deal.without(fold)
    bank = state.anchors.bank
    names: Sequence[str] = state.anchors.sentence_ids
    # Else no image that can be held out took part in the selection.
    if data.anchors_without is not None:
        bank, names = deal.anchors_without(deal.fold == fold)
        bank = with_words(state.snapshot, bank, names)
        again = partial(deal.anchors_too, fold, data.bank.class_ids)
        data = replace(data, bank=_of_classes(bank, data.bank.class_ids), anchors_without=again)
    step = None if progress is None else partial(_told, progress, f"fold {fold + 1} of {deal.folds}")
    decision = fit_stage_two(data, deal.config, progress=step, folds=_WEIGHED_IN)
    commit = state.snapshot.commit
    saved = SavedHead(
        decision.head,
        class_ids[decision.rows],
        text_fp=commit.text_fp or "",
        image_fp=commit.image_fp or "",
        parts=decision.parts,
    )
    with scratch_folder(folder.parent) as unfinished:
        save_fold(unfinished, saved, bank, names)
        settle(unfinished, folder)


def _told(progress: Progress, fold: str, step: str, done: int, total: int) -> None:
    progress(f"{fold}: {step}", done, total)


def _keep(tx: Transaction, deal: _Deal, folder: Path) -> str:
    """Store the folds' models, and commit them."""

    def write(place: Path) -> None:
        for fold in range(deal.folds):
            shutil.copytree(folder / str(fold), place / str(fold))
        save_deal(place, deal.contents, deal.images.class_ids, fold=deal.fold, units=deal.head.units)

    digest = tx.objects.put("heads", write)
    tx.note(folds=CrossValidated(digest=digest, head=tx.commit.head or ""))
    return digest
