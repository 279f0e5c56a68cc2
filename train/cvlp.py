"""Stage 1: class-wise visual-linguistic pre-training (CVLP), with distillation and the joint loss as options.

The baseline without texts is here too: the visual tower and a linear layer, trained with cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import BaselineConfig, CVLPConfig
from vlltr_index.tensors import unit_rows
from vlltr_index.train.augment import BatchMixer
from vlltr_index.train.data import TrainImages, TrainTexts
from vlltr_index.train.distributed import gather_rows, in_parts, join_processes, world
from vlltr_index.train.loop import ImageBatches, StageOne, TowerRun
from vlltr_index.train.lora import adapted
from vlltr_index.train.losses import (
    adjusted_cross_entropy,
    class_contrastive_loss,
    class_sigmoid_loss,
    distillation_loss,
    joint_log_adjustment,
    sampler_prior,
    text_classification_loss,
)
from vlltr_index.train.sampling import seed_of

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress

_LENGTH_GROUPS = 4
_GROUP_ROWS = 64


class Candidates(NamedTuple):
    """The classes among which the images of a step are classified.

    Attributes:
        classes: Int64 [K], first the classes in the batch, ascending, then the extra ones.
        targets: Int64 [B], the position of each image's class in `classes`.
        in_batch: Number of classes in the batch.
    """

    classes: Tensor
    targets: Tensor
    in_batch: int


def draw_candidates(labels: Tensor, present: Tensor, extra: int, generator: torch.Generator) -> Candidates:
    """Return the classes in the batch and `extra` others.

    Args:
        labels: Int64 [B], the classes of all processes' images.
        present: Int64 [P], the classes that have training images.
        extra: Number of other classes to draw, uniformly and without replacement; fewer where there are no more.
        generator: Source of the random numbers, in the same state in every process.
    """
    own, targets = labels.unique(return_inverse=True)
    others = present[~torch.isin(present, own)]
    drawn = others[torch.randperm(len(others), generator=generator)[:extra]]
    return Candidates(torch.cat([own, drawn]), targets, len(own))


def train_cvlp(
    encoder: Encoder,
    images: TrainImages,
    texts: TrainTexts,
    config: CVLPConfig,
    *,
    run_dir: Path | None = None,
    progress: Progress | None = None,
) -> StageOne:
    """Train both towers: all their weights, or low-rank adapters that are merged at the end (`tune = "lora"`).

    With `tune = "text"` the visual tower is frozen, and images may be its stored vectors.

    loss = ccl_weight * CCL (Eq. 2) + distillation_weight * distillation (Eq. 3)
         + joint_weight * (text loss + joint_visual_weight * visual loss)

    For a model with a `logit_bias` (SigLIP) the sigmoid loss replaces the CCL, and the scale has no upper bound; the
    bias is the same for all classes, so it changes none of the other losses.

    Without the joint loss a sentence is drawn for each image. With it `joint_sentences` sentences, to be averaged, are
    drawn for each class in the batch and for `extra_classes` others; the CCL then uses one sentence of each class in
    the batch.

    Args:
        encoder: The encoder to train, in place. The teacher of distillation is a frozen copy of its initial state.
        images: Training images or, for `tune = "text"`, their vectors; labels 0..C-1.
        texts: Sentences of the same C classes.
        config: The recipe's `cvlp` section.
        run_dir: Folder for the state of an unfinished run; its name must identify all that the run depends on. None: no
            state is saved.
        progress: Called after every step.

    Returns:
        The encoder, and the visual classifier if the joint loss trained one.

    Raises:
        ConfigError: Options exclude each other, or the weight of every loss is zero.
    """
    join_processes(encoder)
    distils = config.distillation != "none" and config.distillation_weight > 0
    teacher = None
    _check(encoder, config, distils)
    if distils:
        teacher = encoder.copy().eval()
        teacher.model.requires_grad_(False)
    visual = visual_classifier(encoder, images.num_classes, config.seed) if config.joint_weight > 0 else None
    rates = None
    if config.text_lr is not None:
        rates = {"encoder.visual.": config.lr, "encoder.logit_": config.lr, "encoder.": config.text_lr}
    with _tuned(encoder, config) as log_scale:
        module = nn.ModuleDict({"encoder": encoder.model})
        if visual is not None:
            module["visual"] = visual
        objective = _Objective(
            encoder=encoder,
            teacher=teacher,
            visual=visual,
            images=images,
            texts=texts,
            config=config,
            log_scale=log_scale,
        )
        run = TowerRun(
            name="train cvlp",
            config=config,
            encoder=encoder,
            module=module,
            batches=ImageBatches(images, config),
            objective=objective,
            run_dir=run_dir,
            progress=progress,
            log_scale=log_scale,
            max_scale=config.max_scale if encoder.logit_bias is None else None,
            rates=rates,
            batch_norm="eval" if config.tune != "full" else config.batch_norm,
        )
        log = run.train()
    return StageOne(encoder.eval(), visual, log)


def train_image_only(
    encoder: Encoder,
    images: TrainImages,
    config: BaselineConfig,
    *,
    run_dir: Path | None = None,
    progress: Progress | None = None,
) -> StageOne:
    """Train the visual tower, in place, and a linear classifier of its unnormalised features, without any text.

    With `config.logit_adjustment` at zero this is plain cross-entropy; for logit adjustment after training subtract the
    log of the sampler's prior from the logits.

    Args:
        encoder: The encoder whose visual tower is trained; its text tower stays as it is.
        images: Training images, labels 0..C-1.
        config: The recipe's `baseline` section.
        run_dir: Folder for the state of an unfinished run; None: no state is saved.
        progress: Called after every step.

    Returns:
        The encoder, and the trained classifier.

    Raises:
        ConfigError: The batch cannot be divided among the processes, or a process's part not into pairs to mix.
    """
    join_processes(encoder)
    visual = visual_classifier(encoder, images.num_classes, config.seed)
    tower = encoder.model.visual
    assert isinstance(tower, nn.Module)
    module = nn.ModuleDict({"tower": tower, "visual": visual})
    log_prior = sampler_prior(images.class_counts, config.sampler_power).log().float()
    mixer = BatchMixer.of(config, images.num_classes)

    def objective(
        pixels: Tensor, positions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        labels = images.labels[positions]
        soft = None
        if mixer is not None:
            pixels, soft = mixer(pixels, labels, generator)
        features = images.encode(encoder, pixels, config.micro_batch)
        with torch.autocast(features.device.type, enabled=False):
            logits = visual(features.float())
        targets = labels if soft is None else soft
        tau = config.logit_adjustment
        loss = adjusted_cross_entropy(
            logits, targets, log_prior, tau=tau, label_smoothing=config.label_smoothing
        )
        return loss, {"visual": loss}

    log = TowerRun(
        name="train baseline fc",
        config=config,
        encoder=encoder,
        module=module,
        batches=ImageBatches(images, config),
        objective=objective,
        run_dir=run_dir,
        progress=progress,
    ).train()
    return StageOne(encoder.eval(), visual, log)


def visual_classifier(encoder: Encoder, classes: int, seed: int) -> nn.Linear:
    """Make a linear layer over unnormalised features, initialised from `seed`, on the encoder's device."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "visual"))
        return nn.Linear(encoder.dim, classes).to(encoder.device)


def _check(encoder: Encoder, config: CVLPConfig, distils: bool) -> None:
    """Refuse options that exclude each other, and a training without any loss."""
    if config.distillation == "paired" and config.joint_weight > 0:
        raise ConfigError(
            "paired distillation needs a sentence for every image, the joint stage draws one for every class",
            "Use --set cvlp.distillation=full, or --set cvlp.joint_weight=0",
        )
    if encoder.logit_bias is not None and config.ccl_weight > 0 and config.label_smoothing > 0:
        raise ConfigError(
            f"{encoder.name} is trained with SigLIP's sigmoid loss, which has no label smoothing",
            "Use --set cvlp.label_smoothing=0",
        )
    if not (config.ccl_weight > 0 or config.joint_weight > 0 or distils):
        raise ConfigError("cvlp: every weight is zero, there is nothing to train", "Set cvlp.ccl_weight=1")


@contextmanager
def _tuned(encoder: Encoder, config: CVLPConfig) -> Iterator[nn.Parameter]:
    """Freeze and adapt the encoder's weights as the configuration says, within the block; yield its log scale."""
    log_scale = encoder.model.logit_scale
    bias = encoder.logit_bias
    visual = encoder.model.visual
    assert isinstance(log_scale, nn.Parameter)
    assert isinstance(visual, nn.Module)
    learned = [log_scale] if bias is None else [log_scale, bias]
    if config.temperature is not None:
        with torch.no_grad():
            log_scale.fill_(-math.log(config.temperature))
    with adapted(encoder, config.lora if config.tune == "lora" else None, False, config.seed):
        if config.tune == "text":
            visual.requires_grad_(False)
        for parameter in learned:
            parameter.requires_grad_(config.learn_scale)
        yield log_scale
    encoder.model.requires_grad_(True)


class _Objective:
    """Loss of one step, from this process's pixels or vectors and the labels of all processes."""

    def __init__(
        self,
        encoder: Encoder,
        teacher: Encoder | None,
        visual: nn.Linear | None,
        images: TrainImages,
        texts: TrainTexts,
        config: CVLPConfig,
        log_scale: nn.Parameter,
    ) -> None:
        self.encoder = encoder
        self.teacher = teacher
        self.visual = visual
        self.config = config
        self.teacher_scale = 1.0 if teacher is None else teacher.logit_scale
        self.images = images
        self.texts = texts
        self.log_scale = log_scale
        self.present = images.class_counts.nonzero()[:, 0]
        prior = sampler_prior(images.class_counts, config.sampler_power)
        self.visual_prior = prior.log().float()
        self.text_prior = joint_log_adjustment(prior, config.batch_size, config.extra_classes).float()

    def __call__(
        self, pixels: Tensor, positions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss and its parts, as `Objective` says."""
        config = self.config
        labels = self.images.labels[positions]
        text_labels = labels
        draws = 1
        paired = slice(None)
        candidates = None
        if config.joint_weight > 0:
            candidates = draw_candidates(labels, self.present, config.extra_classes, generator)
            text_labels = candidates.classes
            draws = config.joint_sentences
            # The CCL uses sentences of the batch's classes alone: the others have no positive among the images.
            paired = slice(candidates.in_batch)
        rows = torch.cat([self.texts.draw(text_labels, generator) for _ in range(draws)])
        ids, lengths = self.texts.tokens(rows, config.word_dropout, generator)
        image = self.images.encode(self.encoder, pixels, config.micro_batch)
        features = _gather_texts(self.encoder, ids, lengths, config.micro_batch)
        drawn = features.view(draws, len(text_labels), -1)
        text = drawn[0]
        parts = dict[str, Tensor]()
        loss = image.new_zeros(())
        if config.ccl_weight > 0:
            parts["ccl"] = self._contrast(image, text[paired], labels, text_labels[paired])
            loss = loss + config.ccl_weight * parts["ccl"]
        if self.teacher is not None:
            with torch.no_grad():
                target_image = self.images.encode(self.teacher, pixels, config.micro_batch)
                first = slice(len(text))
                target_text = _gather_texts(self.teacher, ids[first], lengths[first], config.micro_batch)
            parts["distillation"] = self._distil(image, text[paired], target_image, target_text[paired])
            loss = loss + config.distillation_weight * parts["distillation"]
        if candidates is not None:
            assert self.visual is not None
            with torch.autocast(image.device.type, enabled=False):
                logits = self.visual(image.float())
            prior = self.text_prior[candidates.classes]
            scale = self.log_scale.exp()
            joint = text_classification_loss(
                image, drawn.mean(0), candidates.targets, log_adjustment=prior, logit_scale=scale
            )
            parts |= {"text": joint, "visual": adjusted_cross_entropy(logits, labels, self.visual_prior)}
            loss = loss + config.joint_weight * (parts["text"] + config.joint_visual_weight * parts["visual"])
        return loss, parts

    def _contrast(self, image: Tensor, text: Tensor, labels: Tensor, text_labels: Tensor) -> Tensor:
        """Compute the CCL, or the sigmoid loss for a model with a bias, of features [B, D] and [K, D]: a scalar."""
        scale = self.log_scale.exp()
        labels = labels.to(image.device, non_blocking=True)
        text_labels = text_labels.to(image.device, non_blocking=True)
        bias = self.encoder.logit_bias
        if bias is not None:
            return class_sigmoid_loss(
                image, text, labels, text_labels=text_labels, logit_scale=scale, logit_bias=bias
            )
        smoothing = self.config.label_smoothing
        sides = class_contrastive_loss(
            image, text, labels, text_labels=text_labels, logit_scale=scale, label_smoothing=smoothing
        )
        return (sides[0] + sides[1]) / (1 if self.config.ccl_reduction == "sum" else 2)

    def _distil(self, image: Tensor, text: Tensor, target_image: Tensor, target_text: Tensor) -> Tensor:
        """Compute the distillation loss from the student's and the teacher's features, [B, D] and [K, D]: a scalar."""
        assert self.config.distillation != "none"
        with torch.autocast(image.device.type, enabled=False):
            logits = self.log_scale.exp() * unit_rows(image) @ unit_rows(text).T
        own = self.config.distillation_scale == "teacher"
        scale = self.teacher_scale if own else self.log_scale.detach().exp()
        target = scale * unit_rows(target_image) @ unit_rows(target_text).T
        return distillation_loss(logits, target, self.config.distillation)


def _gather_texts(encoder: Encoder, ids: Tensor, lengths: Tensor, micro_batch: int | None) -> Tensor:
    """Encode sentences, each process a share of them, and return the features float [K, D] of all in every process.

    Args:
        encoder: The encoder whose text tower is used.
        ids: Int64 [K, L], on the CPU.
        lengths: Int64 [K]; sentences of similar length are encoded together, cut to the longest of them.
        micro_batch: See `in_parts`.
    """
    rank, processes = world()
    order = lengths.argsort(stable=True)
    share = -(-len(ids) // processes)
    padded = torch.cat([order, order[-1:].expand(share * processes - len(ids))])
    own = padded[rank * share : (rank + 1) * share]
    pieces = own.chunk(min(_LENGTH_GROUPS, -(-share // _GROUP_ROWS)))
    cut = (ids[rows, : int(lengths[rows].max())] for rows in pieces)
    placed = (part.to(encoder.device, non_blocking=True) for part in cut)
    features = torch.cat([in_parts(encoder.encode_tokens, part, micro_batch) for part in placed])
    return gather_rows(features)[: len(ids)][order.argsort().to(features.device)]
