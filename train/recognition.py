"""Stage 2: training the language-guided recognition head, on stored vectors or on images that pass the tower."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.errors import InputError, VlltrError
from vlltr_index.lgr import AnchorBank, CosineClassifier, LGRHead
from vlltr_index.losses import logit_adjusted_cross_entropy, sampler_prior, soft_cross_entropy
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.tensors import check_labels, unit_rows, work_device
from vlltr_index.train.checkpoint import STATE, load_state, pack_optimizer, save_state, unpack_optimizer
from vlltr_index.train.data import TrainImages
from vlltr_index.train.distributed import gather_rows, join_processes
from vlltr_index.train.loop import RunPlan, check_finite, run
from vlltr_index.train.lora import adapted
from vlltr_index.train.mixing import BatchMixer
from vlltr_index.train.sampling import epoch_batches, seed_of, stream
from vlltr_index.train.schedule import cosine_factor, parameter_groups

if TYPE_CHECKING:
    from vlltr_index.encoder import Encoder
    from vlltr_index.schemas.records import Progress

__all__ = ["new_head", "train_lgr", "tune_visual"]

_PROJECTIONS = ("query_proj", "key_proj", "query_norm", "key_norm")


def train_lgr(
    features: Tensor,
    labels: Tensor,
    bank: AnchorBank,
    config: LGRConfig,
    *,
    visual_init: tuple[Tensor, Tensor] | None = None,
    logit_scale: float,
    run_dir: Path | None = None,
    progress: Progress | None = None,
    log: list[dict[str, float]] | None = None,
) -> LGRHead:
    """Train the head on stored vectors; each step takes one of an image's views at random.

    Vectors on the CPU stay there, and batches are worked on by a GPU where there is one.

    Args:
        features: Float [V, N, D], V views of N images, unnormalised.
        labels: Integers [N], positions among the bank's classes.
        bank: The anchors of the C classes.
        config: The recipe's `lgr` section; `tune` is the caller's affair.
        visual_init: Weight [C, D] and bias [C] to start a linear visual classifier from.
        logit_scale: The multiplier of the cosine, stage 1's.
        run_dir: Where the state of an unfinished run is kept after each epoch, and gone on from; its name must stand
            for all that the run depends on. None keeps none.
        progress: Called after every step.
        log: Receives one entry an epoch.

    Returns:
        The head, in eval mode, where the vectors lie.

    Raises:
        InputError: Shapes do not fit, or a label is out of range.
        VlltrError: The loss, or a weight at the end, is not finite.
        WorkspaceError: The state in `run_dir` is damaged.
    """
    if features.dim() != 3 or not features.is_floating_point() or not features.shape[0]:
        raise InputError(f"features must be floating [V, N, D], got {features.dtype} {list(features.shape)}")
    check_labels("labels", labels, features.shape[1], bank.num_classes)
    labels, device = labels.long(), work_device(features)
    head = new_head(features.shape[2], bank, config, visual_init, logit_scale).to(device)
    objective = _HeadLoss(head, bank.to(device), labels, config)
    optimizer = torch.optim.AdamW(_groups(head, config, ""), fused=True)
    state, log = run_dir / STATE if run_dir is not None else None, [] if log is None else log
    for epoch in range(_restore_head(state, head, optimizer, log), config.epochs):
        entry = _head_epoch(epoch, features, objective, optimizer, progress)
        if not entry["loss"] < float("inf"):
            raise VlltrError(
                f"train lgr: the loss is {entry['loss']} in epoch {epoch + 1}", "Try a lower lgr.lr"
            )
        log.append(entry)
        if state is not None:
            _keep_head_state(state, head, optimizer, log)
    check_finite(head, "train lgr")
    return head.to(features.device).eval()


def _head_epoch(
    epoch: int,
    features: Tensor,
    objective: _HeadLoss,
    optimizer: torch.optim.Optimizer,
    progress: Progress | None,
) -> dict[str, float]:
    """One epoch over stored vectors; what the log says of it."""
    config, head = objective.config, objective.head
    device = head.log_logit_scale.device
    draws = stream(config.seed, epoch, "lgr")
    batches = epoch_batches(objective.labels, config.batch_size, config.sampler_power, draws)
    chosen = torch.randint(features.shape[0], batches.shape, generator=stream(config.seed, epoch, "views"))
    total, warmup = len(batches) * config.epochs, round(len(batches) * config.warmup_epochs)
    sums: dict[str, float] = {}
    for done, (positions, view) in enumerate(zip(batches, chosen, strict=True), epoch * len(batches)):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * cosine_factor(done, total, warmup)
        loss, parts = objective(features[view, positions].float().to(device), positions)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if config.max_scale is not None:
            head.clamp_scale_(config.max_scale)
        for key, value in {"loss": loss, **parts}.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach()) / len(batches)
        if progress:
            progress("train lgr", done + 1, total)
    scale = float(head.logit_scale.detach())
    return {**sums, "epoch": epoch + 1.0, "scale": scale, "lr": optimizer.param_groups[0]["lr"]}


def _keep_head_state(
    path: Path, head: LGRHead, optimizer: torch.optim.Optimizer, log: list[dict[str, float]]
) -> None:
    """Write head, optimizer and log after an epoch."""
    tensors = {f"head/{name}": value for name, value in head.state_dict().items()}
    moments = pack_optimizer(optimizer, dict(head.named_parameters()))
    save_state(path, tensors | {f"optimizer/{name}": value for name, value in moments.items()}, {"log": log})


def _restore_head(
    path: Path | None, head: LGRHead, optimizer: torch.optim.Optimizer, log: list[dict[str, float]]
) -> int:
    """Put back what `_keep_head_state` wrote; how many epochs are done."""
    found = load_state(path) if path is not None else None
    if found is None:
        return 0
    tensors, facts = found
    parts: dict[str, dict[str, Tensor]] = {"head": {}, "optimizer": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = value
    head.load_state_dict(parts["head"])
    unpack_optimizer(optimizer, dict(head.named_parameters()), parts["optimizer"])
    log.extend(facts["log"])
    return len(log)


def tune_visual(
    encoder: Encoder,
    images: TrainImages,
    bank: AnchorBank,
    config: LGRConfig,
    *,
    visual_init: tuple[Tensor, Tensor] | None = None,
    run_dir: Path | None = None,
    log_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[LGRHead, list[dict[str, float]]]:
    """Train the head on images that pass the visual tower in every step; the anchors' vectors stay as they are.

    With `tune = "visual"` the tower is trained in place with `config.encoder_lr`; with `lora` low-rank adapters are,
    and merged at the end; with `head` it stays as it is, and images are augmented and mixed (mixup, cutmix) anew.
    The text tower is not touched, so stored sentence vectors stay valid; image vectors do not where the tower learns.

    Args:
        encoder: Where to start.
        images: Training images, labels are positions among the bank's classes.
        bank: The anchors of the C classes.
        config: The recipe's `lgr` section.
        visual_init: Weight [C, D] and bias [C] to start a linear visual classifier from.
        run_dir: Where the state of an unfinished run is kept; None keeps none.
        log_dir: For TensorBoard, where it is installed.
        progress: Called after every step.

    Returns:
        The head in eval mode, and the log.

    Raises:
        InputError: Images and anchors have different classes.
        ConfigError: The batch cannot be shared out among the processes, or not into pairs to mix.
    """
    join_processes(encoder)
    encoder.eval()
    check_labels("labels", images.labels, classes=bank.num_classes)
    head = new_head(encoder.dim, bank, config, visual_init, encoder.logit_scale).to(encoder.device)
    head_loss = _HeadLoss(head, bank.to(encoder.device), images.labels, config)
    tower = encoder.model.visual
    assert isinstance(tower, nn.Module)
    learns = config.tune != "head"
    mixer = BatchMixer.of(config, bank.num_classes)

    def objective(
        pixels: Tensor, positions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        soft = None
        if mixer is not None:
            pixels, soft = mixer(pixels, images.labels[positions], generator)
        with torch.set_grad_enabled(learns):
            features = gather_rows(encoder.encode_pixels(pixels))
        return head_loss(features, positions, soft)

    with ExitStack() as stack:
        if config.tune == "lora":
            stack.enter_context(adapted(encoder, config.lora, visual_only=True, seed=config.seed))
        module = nn.ModuleDict({"head": head} | ({"tower": tower} if learns else {}))
        log = run(
            _plan(config),
            encoder,
            module,
            images,
            objective,
            run_dir=run_dir,
            log_dir=log_dir,
            progress=progress,
            log_scale=head.log_logit_scale,
        )
    encoder.eval()
    return head.cpu().eval(), log


def _plan(config: LGRConfig) -> RunPlan:
    """The numbers of a run over images; without a tower that learns, only the head's parameters are in it."""
    rates = {f"head.{name}": config.projection_lr for name in _PROJECTIONS} | {"tower.": config.encoder_lr}
    return RunPlan.of(
        "train lgr",
        config,
        checkpoint_every=1,
        max_scale=config.max_scale,
        lr_by_prefix=rates,
        batch_norm="train" if config.tune == "visual" and config.batch_norm == "train" else "eval",
    )


def new_head(
    dim: int,
    bank: AnchorBank,
    config: LGRConfig,
    visual_init: tuple[Tensor, Tensor] | None,
    logit_scale: float,
) -> LGRHead:
    """An untrained head: identity projections, its visual classifier from stage 1 or, for `cosine`, from the texts.

    Raises:
        InputError: `visual_init` does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "head"))
        head = LGRHead(
            dim,
            bank.num_classes,
            visual=config.visual,
            logit_scale=logit_scale,
            learn_scale=config.learn_scale,
            normalise_values=config.normalise_values,
            detach_value_norm=config.detach_value_norm,
        )
    with torch.no_grad():
        if isinstance(head.visual_head, CosineClassifier):
            head.visual_head.weight.copy_(unit_rows(bank.prototypes(config.normalise_values)))
        elif isinstance(head.visual_head, nn.Linear) and visual_init is not None:
            weight, bias = visual_init
            if weight.shape != head.visual_head.weight.shape or bias.shape != head.visual_head.bias.shape:
                raise InputError(
                    f"the visual classifier to start from is {list(weight.shape)}, "
                    f"the head needs {list(head.visual_head.weight.shape)}"
                )
            head.visual_head.weight.copy_(weight)
            head.visual_head.bias.copy_(bias)
    return head


class _HeadLoss:
    """Visual plus text cross-entropy, both adjusted by the sampler's prior."""

    def __init__(self, head: LGRHead, bank: AnchorBank, labels: Tensor, config: LGRConfig) -> None:
        self.head, self.bank, self.labels, self.config = head, bank, labels, config
        counts = torch.bincount(labels, minlength=bank.num_classes)
        self.log_prior = sampler_prior(counts, config.sampler_power).log().float()

    def __call__(
        self, features: Tensor, positions: Tensor, soft: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and parts of features [B, D] of the images at `positions` [B], or of mixed ones with targets [B, C]."""
        config = self.config
        targets = self.labels[positions].to(features.device)
        log_prior = self.log_prior.to(features.device)
        parts = {}
        for name, logits in zip(("visual", "text"), self.head(features, self.bank), strict=True):
            parts[name] = (
                soft_cross_entropy(logits, soft, log_prior, config.logit_adjustment)
                if soft is not None
                else logit_adjusted_cross_entropy(
                    logits, targets, log_prior, config.logit_adjustment, config.label_smoothing
                )
            )
        return parts["visual"] + parts["text"], parts


def _groups(head: LGRHead, config: LGRConfig, prefix: str) -> list[dict[str, object]]:
    rates = {prefix + name: config.projection_lr for name in _PROJECTIONS}
    named = ((prefix + name, parameter) for name, parameter in head.named_parameters())
    return parameter_groups(named, config.lr, config.weight_decay, rates)
