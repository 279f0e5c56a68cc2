"""Stage 2: training the language-guided recognition head, on stored vectors or together with the visual tower."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlltr_index.errors import InputError, VlltrError
from vlltr_index.lgr import AnchorBank, CosineClassifier, LGRHead
from vlltr_index.losses import logit_adjusted_cross_entropy, sampler_prior
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.tensors import check_labels, unit_rows
from vlltr_index.train.data import TrainImages
from vlltr_index.train.distributed import gather_rows, join_processes
from vlltr_index.train.loop import RunPlan, run
from vlltr_index.train.sampling import epoch_batches, seed_of, stream
from vlltr_index.train.schedule import cosine_factor, parameter_groups

if TYPE_CHECKING:
    from vlltr_index.encoder import Encoder
    from vlltr_index.schemas.records import Progress

__all__ = ["new_head", "train_lgr", "tune_visual"]

_MAX_SCALE = 100.0
_PROJECTIONS = ("query_proj", "key_proj", "query_norm", "key_norm")


def train_lgr(
    features: Tensor,
    labels: Tensor,
    bank: AnchorBank,
    config: LGRConfig,
    *,
    visual_init: tuple[Tensor, Tensor] | None = None,
    logit_scale: float,
    progress: Progress | None = None,
    log: list[dict[str, float]] | None = None,
) -> LGRHead:
    """Train the head on stored vectors; each step takes one of an image's views at random.

    Args:
        features: Float [V, N, D], V views of N images, unnormalised.
        labels: Integers [N], positions among the bank's classes.
        bank: The anchors of the C classes.
        config: The recipe's `lgr` section; `tune` is the caller's affair.
        visual_init: Weight [C, D] and bias [C] to start a linear visual classifier from.
        logit_scale: The multiplier of the cosine, stage 1's.
        progress: Called after every step.
        log: Receives one entry an epoch.

    Returns:
        The head, in eval mode.

    Raises:
        InputError: Shapes do not fit, or a label is out of range.
        VlltrError: The loss is not finite.
    """
    if features.dim() != 3 or not features.is_floating_point() or not features.shape[0]:
        raise InputError(f"features must be floating [V, N, D], got {features.dtype} {list(features.shape)}")
    check_labels("labels", labels, features.shape[1], bank.num_classes)
    labels = labels.long()
    head = new_head(features.shape[2], bank, config, visual_init, logit_scale)
    objective = _HeadLoss(head, bank, labels, config)
    optimizer = torch.optim.AdamW(_groups(head, config, ""), fused=True)
    views, total = features.shape[0], 0
    for epoch in range(config.epochs):
        batches = epoch_batches(
            labels, config.batch_size, config.sampler_power, stream(config.seed, epoch, "lgr")
        )
        chosen = torch.randint(views, batches.shape, generator=stream(config.seed, epoch, "views"))
        total, warmup = len(batches) * config.epochs, round(len(batches) * config.warmup_epochs)
        sums: dict[str, float] = {}
        for step, (positions, view) in enumerate(zip(batches, chosen, strict=True)):
            done = epoch * len(batches) + step
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * cosine_factor(done, total, warmup)
            loss, parts = objective(features[view, positions].float(), positions)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            head.clamp_scale_(_MAX_SCALE)
            for key, value in {"loss": loss, **parts}.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach()) / len(batches)
            if progress:
                progress("train lgr", done + 1, total)
        if not sums["loss"] < float("inf"):
            raise VlltrError(
                f"train lgr: the loss is {sums['loss']} in epoch {epoch + 1}", "Try a lower lgr.lr"
            )
        if log is not None:
            scale = float(head.logit_scale.detach())
            log.append({**sums, "epoch": epoch + 1.0, "scale": scale, "lr": optimizer.param_groups[0]["lr"]})
    return head.eval()


def tune_visual(
    encoder: Encoder,
    images: TrainImages,
    bank: AnchorBank,
    config: LGRConfig,
    *,
    visual_init: tuple[Tensor, Tensor] | None = None,
    precision: str = "fp32",
    run_dir: Path | None = None,
    log_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[LGRHead, list[dict[str, float]]]:
    """Train head and visual tower together (`tune = "visual"`); the anchors' vectors stay as they are.

    BatchNorm keeps its statistics. The tower is trained in place with `config.encoder_lr`; the text tower is not
    touched, so stored sentence vectors stay valid, and image vectors do not.

    Args:
        encoder: Where to start.
        images: Training images, labels are positions among the bank's classes.
        bank: The anchors of the C classes.
        config: The recipe's `lgr` section.
        visual_init: Weight [C, D] and bias [C] to start a linear visual classifier from.
        precision: Of the tower: fp32 or bf16. The head always computes in float32.
        run_dir: Where the state of an unfinished run is kept; None keeps none.
        log_dir: For TensorBoard, where it is installed.
        progress: Called after every step.

    Returns:
        The head in eval mode, and the log.

    Raises:
        InputError: Images and anchors have different classes.
        ConfigError: The batch cannot be shared out among the processes.
    """
    join_processes(encoder)
    check_labels("labels", images.labels, classes=bank.num_classes)
    head = new_head(encoder.dim, bank, config, visual_init, encoder.logit_scale).to(encoder.device)
    bank = bank.to(encoder.device)
    head_loss = _HeadLoss(head, bank, images.labels, config)
    tower = encoder.model.visual
    assert isinstance(tower, nn.Module)
    module = nn.ModuleDict({"head": head, "tower": tower})

    def objective(
        pixels: Tensor, positions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        _freeze_batch_norm(tower)
        return head_loss(gather_rows(encoder.encode_pixels(pixels)), positions)

    rates = {f"head.{name}": config.projection_lr for name in _PROJECTIONS} | {"tower.": config.encoder_lr}
    plan = RunPlan.of(
        "train lgr",
        config,
        clip_grad=1.0,
        precision=precision,
        checkpoint_every=1,
        max_scale=_MAX_SCALE,
        lr_by_prefix=rates,
    )
    log = run(
        plan,
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

    def __call__(self, features: Tensor, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and parts of features [B, D] of the images at `positions` [B]."""
        targets = self.labels[positions].to(features.device)
        log_prior = self.log_prior.to(features.device)
        parts = {
            name: logit_adjusted_cross_entropy(
                logits, targets, log_prior, self.config.logit_adjustment, self.config.label_smoothing
            )
            for name, logits in zip(("visual", "text"), self.head(features, self.bank), strict=True)
        }
        return parts["visual"] + parts["text"], parts


def _groups(head: LGRHead, config: LGRConfig, prefix: str) -> list[dict[str, object]]:
    rates = {prefix + name: config.projection_lr for name in _PROJECTIONS}
    named = ((prefix + name, parameter) for name, parameter in head.named_parameters())
    return parameter_groups(named, config.lr, config.weight_decay, rates)


def _freeze_batch_norm(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
