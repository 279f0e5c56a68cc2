"""Stage 1: class-wise visual-linguistic pre-training (CVLP), with distillation and the joint stage as options."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.errors import ConfigError, InputError
from vlltr_index.schemas.config import CVLPConfig
from vlltr_index.tensors import unit_rows
from vlltr_index.train.data import TrainImages, TrainTexts
from vlltr_index.train.distributed import gather_rows, join_processes, world
from vlltr_index.train.loop import RunPlan, StageOne, run
from vlltr_index.train.lora import adapted
from vlltr_index.train.losses import (
    class_contrastive_loss,
    class_sigmoid_loss,
    distillation_loss,
    joint_log_adjustment,
    logit_adjusted_cross_entropy,
    sampler_prior,
    text_classification_loss,
)
from vlltr_index.train.micro import in_parts
from vlltr_index.train.sampling import seed_of

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress

__all__ = [
    "Candidates",
    "JointPriors",
    "StageOne",
    "draw_candidates",
    "joint_losses",
    "train_cvlp",
    "visual_classifier",
]


@dataclass(frozen=True)
class Candidates:
    """The classes that a step's images are told apart from.

    Attributes:
        classes: int64 [K]; first the classes in the batch, ascending, then the extra ones.
        targets: int64 [B], the place of each image's class among them.
        in_batch: How many of them are in the batch.
    """

    classes: Tensor
    targets: Tensor
    in_batch: int


@dataclass(frozen=True)
class JointPriors:
    """What is added to the logits: log p_c - log pi_c for the text branch, log p_c for the visual one; both [C]."""

    text: Tensor
    visual: Tensor

    @classmethod
    def build(cls, class_counts: Tensor, power: float, batch_size: int, extra: int) -> JointPriors:
        """For a sampler with weights n_c^-power, `batch_size` images a step and `extra` classes drawn beside them."""
        prior = sampler_prior(class_counts, power)
        return cls(joint_log_adjustment(prior, batch_size, extra).float(), prior.log().float())


def draw_candidates(labels: Tensor, present: Tensor, extra: int, generator: torch.Generator) -> Candidates:
    """The classes in the batch and `extra` others.

    Args:
        labels: int64 [B], the classes of all processes' images.
        present: int64 [P], the classes that have training images.
        extra: Others to draw, uniformly and without replacement; fewer where there are no more.
        generator: The same in every process.
    """
    own, targets = labels.unique(return_inverse=True)
    others = present[~torch.isin(present, own)]
    drawn = others[torch.randperm(len(others), generator=generator)[:extra]]
    return Candidates(torch.cat([own, drawn]), targets, len(own))


def joint_losses(
    image_features: Tensor,
    text_features: Tensor,
    visual_logits: Tensor,
    labels: Tensor,
    candidates: Candidates,
    priors: JointPriors,
    logit_scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """The text and the visual loss of a step, both logit-adjusted.

    Args:
        image_features: Float [B, D], unnormalised.
        text_features: Float [K, D], one sentence of each candidate, unnormalised.
        visual_logits: Float [B, C].
        labels: int64 [B].
        candidates: See `draw_candidates`.
        priors: See `JointPriors`.
        logit_scale: The multiplier of the cosine.
    """
    adjustment = priors.text[candidates.classes]
    text = text_classification_loss(
        image_features, text_features, candidates.targets, adjustment, logit_scale
    )
    visual = logit_adjusted_cross_entropy(visual_logits, labels, priors.visual)
    return text, visual


_LENGTH_GROUPS, _GROUP_ROWS = 4, 64


def train_cvlp(
    encoder: Encoder,
    images: TrainImages,
    texts: TrainTexts,
    config: CVLPConfig,
    *,
    run_dir: Path | None = None,
    log_dir: Path | None = None,
    progress: Progress | None = None,
    teacher: Encoder | None = None,
) -> StageOne:
    """Train both towers: all their weights, or low-rank adapters that are merged at the end (`tune = "lora"`).

    With `tune = "text"` the visual tower stays as it is, and images may be its stored vectors.

    loss = ccl_weight * CCL (Eq. 2) + distillation_weight * distillation (Eq. 3)
         + joint_weight * (text loss + joint_visual_weight * visual loss)

    A model with a `logit_bias` (SigLIP) has the sigmoid loss in place of the CCL, and its scale has no upper bound; the
    bias is common to all classes, so that it changes none of the other losses.

    Without the joint stage every image brings a sentence of its class. With it every class in the batch does, and
    `extra_classes` others, `joint_sentences` of them averaged; the CCL then runs over one sentence of each class in the
    batch.

    Args:
        encoder: Where to start; trained in place.
        images: Training images or, for `tune = "text"`, their vectors; labels 0..C-1.
        texts: Sentences of the same C classes.
        config: The recipe's `cvlp` section.
        run_dir: Where the state of an unfinished run is kept; None keeps none.
        log_dir: For TensorBoard, where it is installed.
        progress: Called after every step.
        teacher: Frozen, for distillation; default: a copy of `encoder` as it comes in.

    Returns:
        The encoder, and the visual classifier where the joint stage trained one.

    Raises:
        ConfigError: Options that exclude each other, or every weight is zero.
        InputError: Images and texts have different numbers of classes.
    """
    join_processes(encoder)
    _check(encoder, images, texts, config)
    if config.distillation != "none" and config.distillation_weight > 0:
        teacher = encoder.copy() if teacher is None else teacher
        teacher.to(encoder.device).eval()
        teacher.model.requires_grad_(False)
    else:
        teacher = None
    visual = visual_classifier(encoder, images.num_classes, config.seed) if config.joint_weight > 0 else None
    with _tuned(encoder, config) as log_scale:
        module = nn.ModuleDict({"encoder": encoder.model})
        if visual is not None:
            module["visual"] = visual
        log = run(
            _plan(encoder, config),
            encoder,
            module,
            images,
            _Objective(encoder, teacher, module, images, texts, config, log_scale),
            run_dir=run_dir,
            log_dir=log_dir,
            progress=progress,
            log_scale=log_scale,
        )
    return StageOne.of(encoder, visual, log)


def visual_classifier(encoder: Encoder, classes: int, seed: int) -> nn.Linear:
    """A linear layer over unnormalised features, its start drawn from `seed`, on the encoder's device."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, "visual"))
        return nn.Linear(encoder.dim, classes).to(encoder.device)


def _check(encoder: Encoder, images: TrainImages, texts: TrainTexts, config: CVLPConfig) -> None:
    if images.num_classes != texts.num_classes:
        raise InputError(
            f"there are images of {images.num_classes} classes, and texts of {texts.num_classes}"
        )
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
    distils = config.distillation != "none" and config.distillation_weight > 0
    if not (config.ccl_weight > 0 or config.joint_weight > 0 or distils):
        raise ConfigError("cvlp: every weight is zero, there is nothing to train", "Set cvlp.ccl_weight=1")


def _plan(encoder: Encoder, config: CVLPConfig) -> RunPlan:
    """The run's numbers: only a full run moves BatchNorm's statistics, and the towers may have rates of their own."""
    rates = None
    if config.text_lr is not None:
        towers = {"encoder.visual.": config.lr, "encoder.logit_": config.lr}
        rates = towers | {"encoder.": config.text_lr}
    return RunPlan.of(
        "train cvlp",
        config,
        max_scale=config.max_scale if encoder.logit_bias is None else None,
        lr_by_prefix=rates,
        batch_norm="eval" if config.tune != "full" else config.batch_norm,
    )


@contextmanager
def _tuned(encoder: Encoder, config: CVLPConfig) -> Iterator[nn.Parameter]:
    """Make the encoder ready for what the configuration tunes; yields the log of its scale."""
    log_scale, bias = encoder.model.logit_scale, encoder.logit_bias
    assert isinstance(log_scale, nn.Parameter)
    learned = [log_scale] if bias is None else [log_scale, bias]
    if config.temperature is not None:
        with torch.no_grad():
            log_scale.fill_(-math.log(config.temperature))
    if config.tune == "lora":
        with adapted(encoder, config.lora, visual_only=False, seed=config.seed):
            _learn(learned, config.learn_scale)
            yield log_scale
    else:
        visual = encoder.model.visual
        assert isinstance(visual, nn.Module)
        visual.requires_grad_(config.tune == "full")
        _learn(learned, config.learn_scale)
        yield log_scale
        visual.requires_grad_(True)
    _learn(learned, True)


def _learn(parameters: list[nn.Parameter], yes: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(yes)


class _Objective:
    """The loss of one step, from this process's pixels or vectors and everybody's labels."""

    def __init__(
        self,
        encoder: Encoder,
        teacher: Encoder | None,
        module: nn.ModuleDict,
        images: TrainImages,
        texts: TrainTexts,
        config: CVLPConfig,
        log_scale: nn.Parameter,
    ) -> None:
        self.encoder, self.teacher, self.module, self.config = encoder, teacher, module, config
        self._teacher_scale = 1.0 if teacher is None else teacher.logit_scale
        self.images, self.labels, self.texts, self.log_scale = images, images.labels, texts, log_scale
        self.present = images.class_counts.nonzero()[:, 0]
        self.priors = JointPriors.build(
            images.class_counts, config.sampler_power, config.batch_size, config.extra_classes
        )

    def __call__(
        self, pixels: Tensor, positions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config, labels = self.config, self.labels[positions]
        candidates = None
        if config.joint_weight > 0:
            candidates = draw_candidates(labels, self.present, config.extra_classes, generator)
        text_labels = labels if candidates is None else candidates.classes
        draws = 1 if candidates is None else config.joint_sentences
        rows = torch.cat([self.texts.draw(text_labels, generator) for _ in range(draws)])
        sentences = self.texts.tokens(rows, config.word_dropout, generator)
        image = gather_rows(self.images.encode(self.encoder, pixels, config.micro_batch))
        drawn = _gather_texts(self.encoder, *sentences, config.micro_batch).view(draws, len(text_labels), -1)
        text = drawn[0]
        sentences = sentences[0][: len(text)], sentences[1][: len(text)]
        # The CCL sees sentences of the batch's classes only: the others have no positive among the images.
        paired = slice(None if candidates is None else candidates.in_batch)
        parts = self._contrast(image, text[paired], labels, text_labels[paired])
        if self.teacher is not None:
            parts["distillation"] = self._distil(pixels, sentences, image, text[paired], paired)
        loss = sum(
            (weight * parts[name] for name, weight in self._weights().items() if name in parts),
            image.new_zeros(()),
        )
        if candidates is not None:
            parts |= self._joint(image, drawn.mean(0), labels, candidates)
            loss = loss + config.joint_weight * (parts["text"] + config.joint_visual_weight * parts["visual"])
        return loss, parts

    def _weights(self) -> dict[str, float]:
        return {"ccl": self.config.ccl_weight, "distillation": self.config.distillation_weight}

    def _contrast(
        self, image: Tensor, text: Tensor, labels: Tensor, text_labels: Tensor
    ) -> dict[str, Tensor]:
        if self.config.ccl_weight == 0:
            return {}
        device = image.device
        if (bias := self.encoder.logit_bias) is not None:
            scale = self.log_scale.exp()
            return {
                "ccl": class_sigmoid_loss(image, text, labels.to(device), text_labels.to(device), scale, bias)
            }
        first, second = class_contrastive_loss(
            image,
            text,
            labels.to(device, non_blocking=True),
            text_labels.to(device, non_blocking=True),
            self.log_scale.exp(),
            self.config.label_smoothing,
        )
        return {"ccl": first + second if self.config.ccl_reduction == "sum" else (first + second) / 2}

    def _distil(
        self, pixels: Tensor, sentences: tuple[Tensor, Tensor], image: Tensor, text: Tensor, paired: slice
    ) -> Tensor:
        assert self.teacher is not None
        assert self.config.distillation != "none"
        with torch.no_grad():
            micro = self.config.micro_batch
            teacher_image = gather_rows(self.images.encode(self.teacher, pixels, micro))
            teacher_text = _gather_texts(self.teacher, *sentences, micro)[paired]
            own = self.config.distillation_scale == "teacher"
            scale = self._teacher_scale if own else self.log_scale.exp()
            target = scale * unit_rows(teacher_image) @ unit_rows(teacher_text).T
        with torch.autocast(image.device.type, enabled=False):
            logits = self.log_scale.exp() * unit_rows(image) @ unit_rows(text).T
        return distillation_loss(logits, target, self.config.distillation)

    def _joint(
        self, image: Tensor, text: Tensor, labels: Tensor, candidates: Candidates
    ) -> dict[str, Tensor]:
        with torch.autocast(image.device.type, enabled=False):
            logits = self.module["visual"](image.float())
        text_loss, visual_loss = joint_losses(
            image, text, logits, labels, candidates, self.priors, self.log_scale.exp()
        )
        return {"text": text_loss, "visual": visual_loss}


def _gather_texts(encoder: Encoder, ids: Tensor, lengths: Tensor, micro_batch: int | None = None) -> Tensor:
    """Features of sentences, each process encoding its share: float [K, D] in every process.

    Args:
        encoder: Whose text tower runs.
        ids: int64 [K, L] on the CPU.
        micro_batch: See `in_parts`.
        lengths: int64 [K]; sentences of like length go through the tower together, cut to their longest.
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
