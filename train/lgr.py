"""Stage 2: training the language-guided recognition head on stored vectors, or on images through the tower."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.anchors.anss import class_means
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.lgr import CosineClassifier, LGRHead
from vlltr_index.heads.weighing import fit_temperature, nll
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.tensors import unit_rows, work_device
from vlltr_index.train.augment import BatchMixer
from vlltr_index.train.checkpoint import Log
from vlltr_index.train.data import TrainImages
from vlltr_index.train.distributed import join_processes
from vlltr_index.train.loop import Batch, ImageBatches, Run, TowerRun, check_finite
from vlltr_index.train.lora import adapted
from vlltr_index.train.losses import adjusted_cross_entropy, sampler_prior
from vlltr_index.train.sampling import epoch_batches, seed_of, steps_per_epoch, stream
from vlltr_index.train.schedule import Constant

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress

_LEAST_STEPS = 20
_MOST_CHECKS = 200
_PATIENCE = 2
_GAIN = 0.005
_LEAST_GAIN = 0.002
_WARM_STEPS = 20
_AT_ONCE = 512
BRANCHES = ("visual", "text")
_PROJECTIONS = ("query_proj", "key_proj", "query_norm", "key_norm")


def trainable_branches(bank: AnchorBank) -> tuple[str, ...]:
    """Return the branches of a head that can be trained over a bank: of a blank one there is nothing to attend to."""
    return ("visual",) if bank.is_blank else BRANCHES


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Training images as stored vectors, with the anchors of their classes.

    Attributes:
        features: Float [V, N, D], V views of N images, unnormalised.
        labels: Int64 [N], rows of the visual classifier.
        bank: Anchors of the classes that have a sentence.
        places: Int64 [C], the position in the bank of each row's class; -1 for a class without a sentence.
    """

    features: Tensor
    labels: Tensor
    bank: AnchorBank
    places: Tensor


class _VectorBatches:
    """Batches of stored vectors, in which each image has one of its views at random.

    Args:
        images: The vectors, on the device to train on; their labels on the CPU.
        config: Gives the sampler's power and the seed.
        steps: Steps of an epoch.
        size: Images of a step.
    """

    def __init__(self, images: StoredImages, config: LGRConfig, steps: int, size: int) -> None:
        self.steps = steps
        self._images = images
        self._config = config
        self._size = size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0."""
        seed = self._config.seed
        features = self._images.features
        draws = stream(seed, epoch, "lgr")
        batches = epoch_batches(
            self._images.labels, self._size, self._config.sampler_power, draws, steps=self.steps
        )
        chosen = torch.randint(len(features), batches.shape, generator=stream(seed, epoch, "views"))
        generator = stream(seed, epoch, "anchors")
        for positions, views in zip(batches, chosen, strict=True):
            columns = positions.to(features.device, non_blocking=True)
            rows = features[views.to(features.device, non_blocking=True), columns]
            yield Batch(rows.float(), positions, generator)


def train_until(
    head: LGRHead,
    images: StoredImages,
    config: LGRConfig,
    stop: int | tuple[Tensor, Tensor] | None,
    *,
    branches: Sequence[str] = BRANCHES,
    run_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[LGRHead, Log]:
    """Train a head on stored vectors: for a number of steps, until a held-out loss has converged, or for the epochs of
    the recipe.

    Each step takes one of an image's views at random. Anchors of other classes (distractors) are mixed into each
    class, and some anchors are left out of each step: attention that was trained on well chosen sentences alone trusts
    any that resembles the image. Vectors on the CPU are moved to the device of `choose_device`, and the head comes
    back.

    With steps or a held-out loss the learning rate is constant after a short warm-up. The held-out loss is measured
    every epoch, or every 20 steps where an epoch is shorter. It has converged once two measurements have not lowered it
    by both 0.5 % and 0.002; the head then has its state at the lowest one, which may be that before the first step. It
    is measured at the best temperature, so that overconfidence alone does not count as a higher loss.

    Args:
        head: The head to train, in place.
        images: The training images.
        config: The recipe's `lgr` section; `tune`, `precision` and `clip_grad` are ignored.
        stop: Number of steps; or features float [M, D] and labels int64 [M] of held-out images; or None for
            `config.epochs` with a cosine schedule.
        branches: The branches that are trained, and whose held-out loss counts: `visual`, `text` or both.
        run_dir: Folder for the state after each epoch, from which an interrupted run goes on; its name must identify
            all that the run depends on. None saves no state, which a held-out loss asks for.
        progress: Called after every step.

    Returns:
        The head in eval mode, on the device of the vectors, and the log. Unless `stop` is None each entry has the
        `steps` so far, and the last one the `best` number of steps.

    Raises:
        VlltrError: The loss, or a weight at the end, is not finite.
        WorkspaceError: The state in `run_dir` is damaged.
    """
    home = images.features.device
    device = work_device(images.features)
    head = head.to(device)
    images = replace(
        images, features=images.features.to(device), labels=images.labels.cpu(), places=images.places.cpu()
    )
    steps = steps_per_epoch(len(images.labels), config.batch_size)
    size = config.batch_size
    epochs = config.epochs
    schedule = None
    if stop is not None:
        steps = max(steps, _LEAST_STEPS)
        size = min(size, len(images.labels))
        epochs = max(round(stop / steps), 1) if isinstance(stop, int) else _MOST_CHECKS
        schedule = Constant(_WARM_STEPS)
    objective = _HeadLoss(
        head=head,
        anchors=_training_anchors(images, float(head.logit_scale.detach()), config),
        labels=images.labels,
        config=config,
        places=images.places,
        branches=branches,
    )
    stopping = None
    if isinstance(stop, tuple):
        held_out = partial(objective.held_out, stop[0], stop[1].cpu(), images.bank.to(device))
        stopping = _EarlyStopping(head, held_out)
    log = Run(
        name="train lgr",
        config=config.model_copy(update={"epochs": epochs, "clip_grad": None}),
        module=head,
        batches=_VectorBatches(images, config, steps, size),
        objective=objective,
        run_dir=run_dir,
        progress=progress,
        log_scale=head.log_logit_scale,
        max_scale=config.max_scale,
        rates=dict.fromkeys(_PROJECTIONS, config.projection_lr),
        schedule=schedule,
        callbacks=[] if stopping is None else [stopping],
    ).train()
    if stopping is not None:
        stopping.restore()
    check_finite(head, "train lgr")
    if stop is not None:
        for entry in log:
            entry["steps"] = entry["epoch"] * steps
        log[-1]["best"] = float((epochs if stopping is None else stopping.best) * steps)
    return head.to(home).eval(), log


class _EarlyStopping:
    """Callback that ends a run when its held-out loss has converged, and keeps the state at the lowest one.

    Args:
        head: The head, before its first step.
        held_out: Gives its loss.
    """

    def __init__(self, head: nn.Module, held_out: Callable[[], float]) -> None:
        self.best = 0
        self._epochs = 0
        self._head = head
        self._held_out = held_out
        self._lowest = held_out()
        self._state = deepcopy(head.state_dict())

    def __call__(self, entry: dict[str, float]) -> bool:
        """Add the loss to an epoch's entry as `held_out`; say whether it has converged."""
        self._epochs += 1
        loss = self._held_out()
        entry["held_out"] = loss
        if loss < min((1.0 - _GAIN) * self._lowest, self._lowest - _LEAST_GAIN):
            self.best = self._epochs
            self._lowest = loss
            self._state = deepcopy(self._head.state_dict())
        return self._epochs - self.best >= _PATIENCE

    def restore(self) -> None:
        """Give the head the state at the lowest loss."""
        self._head.load_state_dict(self._state)


def tune_visual(
    encoder: Encoder,
    images: TrainImages,
    bank: AnchorBank,
    config: LGRConfig,
    *,
    visual_init: tuple[Tensor, Tensor] | None = None,
    run_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[LGRHead, Log]:
    """Train the head on images that pass the visual tower in every step; the anchors' vectors stay as they are.

    With `tune = "visual"` the tower is trained in place with `config.encoder_lr`; with `lora` low-rank adapters are
    trained and merged at the end; with `head` the tower stays as it is, and images are augmented and mixed (mixup,
    cutmix) in each step. The text tower never changes, so stored sentence vectors stay valid; image vectors become
    invalid where the tower learns. Anchors are left out of steps as in `train_until`, but there are no distractors.
    Over blank anchors the visual classifier alone is trained.

    Args:
        encoder: The encoder that encodes the images; its visual tower may be trained in place.
        images: Training images; labels are positions among the bank's classes.
        bank: The anchors of the C classes.
        config: The recipe's `lgr` section.
        visual_init: Weight [C, D] and bias [C] to start a linear visual classifier from.
        run_dir: Folder for the state of an unfinished run; None: no state is saved.
        progress: Called after every step.

    Returns:
        The head in eval mode, and the log.

    Raises:
        ConfigError: The batch cannot be divided among the processes, or a process's part not into pairs to mix.
    """
    join_processes(encoder)
    encoder.eval()
    head = new_head(bank, config, visual_init, encoder.logit_scale).to(encoder.device)
    anchors = TrainingAnchors(bank.to(encoder.device), len(bank.vectors), config.anchor_dropout)
    head_loss = _HeadLoss(
        head=head,
        anchors=anchors,
        labels=images.labels,
        config=config,
        places=torch.arange(bank.num_classes),
        branches=trainable_branches(bank),
    )
    tower = encoder.model.visual
    learns = config.tune != "head"
    assert isinstance(tower, nn.Module)
    mixer = BatchMixer.of(config, bank.num_classes)

    def objective(
        pixels: Tensor, positions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        soft = None
        if mixer is not None:
            pixels, soft = mixer(pixels, images.labels[positions], generator)
        with torch.set_grad_enabled(learns):
            features = images.encode(encoder, pixels, config.micro_batch)
        return head_loss(features, positions, generator, soft)

    with adapted(encoder, config.lora if config.tune == "lora" else None, True, config.seed):
        module = nn.ModuleDict({"head": head, "tower": tower} if learns else {"head": head})
        rates = {f"head.{name}": config.projection_lr for name in _PROJECTIONS}
        rates["tower."] = config.encoder_lr
        log = TowerRun(
            name="train lgr",
            config=config,
            encoder=encoder,
            module=module,
            batches=ImageBatches(images, config),
            objective=objective,
            run_dir=run_dir,
            progress=progress,
            log_scale=head.log_logit_scale,
            max_scale=config.max_scale,
            rates=rates,
            batch_norm="train" if config.tune == "visual" and config.batch_norm == "train" else "eval",
        ).train()
    encoder.eval()
    return head.cpu().eval(), log


def new_head(
    bank: AnchorBank, config: LGRConfig, visual_init: tuple[Tensor, Tensor] | None, logit_scale: float
) -> LGRHead:
    """Make an untrained head: identity projections, visual classifier from stage 1 or, for `cosine`, from the texts.

    Args:
        bank: The anchors of C classes.
        config: The recipe's `lgr` section.
        visual_init: Weight [R, D] and bias [R] to start a linear visual classifier from; a classifier of another kind
            has R rows too. None: C rows, drawn at random.
        logit_scale: The multiplier of the cosine to start from.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(config.seed, "head"))
        head = LGRHead(
            bank.dim,
            bank.num_classes if visual_init is None else len(visual_init[1]),
            visual=config.visual,
            logit_scale=logit_scale,
            learn_scale=config.learn_scale,
            normalise_values=config.normalise_values,
            detach_value_norm=config.detach_value_norm,
            loss_bias=config.loss_bias,
        )
    with torch.no_grad():
        if isinstance(head.visual_head, CosineClassifier) and head.num_visual_classes:
            start = bank.prototypes(config.normalise_values)
            if visual_init is not None and len(visual_init[1]) != bank.num_classes:
                start = visual_init[0]  # a class has no sentence
            head.visual_head.weight.copy_(unit_rows(start))
        elif isinstance(head.visual_head, nn.Linear) and visual_init is not None:
            head.visual_head.weight.copy_(visual_init[0])
            head.visual_head.bias.copy_(visual_init[1])
    return head


def _training_anchors(images: StoredImages, logit_scale: float, config: LGRConfig) -> TrainingAnchors:
    """Add distractors to the anchors, for the device of the images."""
    bank = images.bank
    features = images.features
    places = images.places[images.labels]
    told = (places >= 0).nonzero()[:, 0]
    classes, means = class_means(features[0, told.to(features.device)], places[told])
    centres = torch.zeros(bank.num_classes, bank.dim, dtype=means.dtype)
    centres[classes] = means.cpu()
    noisy = with_distractors(
        bank,
        centres.to(bank.vectors),
        logit_scale,
        share=config.distractors,
        generator=stream(config.seed, "strays"),  # the name decides what is drawn
    )
    return TrainingAnchors(noisy.to(features.device), len(bank.vectors), config.anchor_dropout)


class _HeadLoss:
    """Sum of the visual and the text cross-entropy, both adjusted by the sampler's prior."""

    def __init__(
        self,
        head: LGRHead,
        anchors: TrainingAnchors,
        labels: Tensor,
        config: LGRConfig,
        places: Tensor,
        branches: Sequence[str],
    ) -> None:
        self.head = head
        self.anchors = anchors
        self.labels = labels
        self.config = config
        self.places = places
        self.branches = branches
        prior = sampler_prior(torch.bincount(labels, minlength=len(places)), config.sampler_power)
        self.log_prior = prior.log().float()
        told = (places >= 0).nonzero()[:, 0]
        self.text_prior = self.log_prior.new_full((anchors.bank.num_classes,), -math.inf)
        self.text_prior[places[told]] = self.log_prior[told]

    def __call__(
        self, features: Tensor, positions: Tensor, generator: torch.Generator, soft: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss and its parts for features [B, D] of the images at `positions` [B].

        Mixed images have the targets `soft`, float [B, C]. `generator` draws the anchors that are left out. The text's
        part is over the images whose class has a sentence.
        """
        kept = self.anchors.kept(generator) if self.anchors.bank.num_classes else None
        labels = self.labels[positions]
        parts = dict[str, Tensor]()
        tau = self.config.logit_adjustment
        smoothing = self.config.label_smoothing
        places = self.places[labels]
        told = (places >= 0).nonzero()[:, 0]
        if "visual" in self.branches:
            logits = self.head.visual_logits(features)
            targets = labels if soft is None else soft
            parts["visual"] = adjusted_cross_entropy(
                logits, targets, self.log_prior, tau=tau, label_smoothing=smoothing
            )
        if "text" in self.branches and len(told):
            if len(told) < len(places):
                features = features[told.to(features.device, non_blocking=True)]
            logits = self.head.text_logits(features, self.anchors.bank, kept)
            targets = places[told] if soft is None else soft
            parts["text"] = adjusted_cross_entropy(
                logits, targets, self.text_prior, tau=tau, label_smoothing=smoothing
            )
        return sum(parts.values(), features.new_zeros(())), parts

    @torch.no_grad()
    def held_out(self, features: Tensor, labels: Tensor, bank: AnchorBank) -> float:
        """Compute the sum of the branches' losses over held-out images, among the classes that are trained on.

        Each branch's loss is taken at its best temperature; images weigh n^-power, n being the size of their class.

        Args:
            features: Float [M, D], unnormalised.
            labels: Int64 [M] on the CPU, rows of the visual classifier.
            bank: The anchors without distractors, on the head's device.
        """
        counts = torch.bincount(self.labels, minlength=len(self.places)).double()
        total = 0.0
        weights = counts[labels].clamp(min=1.0) ** -self.config.sampler_power
        device = self.head.log_logit_scale.device
        places = self.places[labels]
        parts = [part.float().to(device) for part in features.split(_AT_ONCE)]

        def loss(logits: list[Tensor], prior: Tensor, targets: Tensor, told: Tensor) -> float:
            known = prior.isfinite()
            kept = torch.cat(logits)[told][:, known]
            targets = (known.cumsum(0) - 1)[targets[told]]
            return nll(fit_temperature(kept, targets, weights[told]) * kept, targets, weights[told])

        if "visual" in self.branches:
            logits = [self.head.visual_logits(part).cpu() for part in parts]
            total += loss(logits, self.log_prior, labels, torch.ones_like(places, dtype=torch.bool))
        if "text" in self.branches and bool((places >= 0).any()):
            logits = [self.head.text_logits(part, bank).cpu() for part in parts]
            total += loss(logits, self.text_prior, places, places >= 0)
        return total


class TrainingAnchors:
    """Anchors of a training run, of which each step leaves some out.

    Args:
        bank: The anchors, with or without distractors; see `with_distractors`.
        own: Number of anchors that are the classes' own, not distractors.
        dropout: Probability with which each anchor is left out of a step, 0 <= dropout < 1.
    """

    def __init__(self, bank: AnchorBank, own: int, dropout: float) -> None:
        self.bank = bank
        self.dropout = dropout
        self._class_of_row = bank.class_of_row.cpu()
        self._own = (bank.rows < own).cpu()

    def kept(self, generator: torch.Generator) -> Tensor | None:
        """Draw the anchors of a step, bool [A] on the bank's device; each class keeps one of its own. None: all."""
        if not self.dropout:
            return None
        draws = torch.rand(len(self._own), generator=generator)
        best = torch.zeros(self.bank.num_classes).scatter_reduce(
            0, self._class_of_row, draws * self._own, "amax"
        )
        kept = (draws >= self.dropout) | (self._own & (draws == best[self._class_of_row]))
        return kept.to(self.bank.vectors.device, non_blocking=True)


def with_distractors(
    bank: AnchorBank, centres: Tensor, logit_scale: float, share: float, generator: torch.Generator
) -> AnchorBank:
    """Add distractors to each class: anchors of other classes, drawn at random.

    In class c the loss of sentence t of class o is L(t) + scale * (t . m_o - t . m_c): the logsumexp term stays, and
    the mean cosine is the one with the images of c.

    Args:
        bank: The anchors of C classes, with their losses.
        centres: Float [C, D], the mean of each class's normalised image vectors, itself not normalised.
        logit_scale: The multiplier of the cosine.
        share: Number of a class's distractors as a share of the number of its anchors, rounded up.
        generator: Source of the random numbers.

    Returns:
        The bank with the distractors, whose `rows` are len(bank.vectors) and above; with a single class there are none.
    """
    classes = torch.arange(bank.num_classes)
    counts = torch.tensor(bank.bounds).diff()
    host = torch.repeat_interleave(classes, (counts * share).ceil().long())
    others = len(bank.vectors) - counts[host]
    if not len(host) or bank.num_classes == 1:
        return bank
    drawn = (torch.rand(len(host), generator=generator, dtype=torch.float64) * others).long()
    drawn += counts[host] * (drawn >= torch.tensor(bank.bounds)[host])  # skip the class's own anchors
    host = host.to(bank.vectors.device)
    drawn = drawn.to(bank.vectors.device)
    owner = bank.class_of_row[drawn]
    unit = unit_rows(bank.vectors[drawn])
    nearer = (unit * (centres[owner] - centres[host]).to(unit)).sum(1)
    return AnchorBank.build(
        torch.cat([bank.vectors, bank.vectors[drawn]]),
        bank.class_ids[torch.cat([bank.class_of_row, host])],
        bank.class_ids,
        torch.cat([bank.losses, bank.losses[drawn] + logit_scale * nearer]),
    )
