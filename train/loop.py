"""Training loop of all stages: seeded batches, one optimizer step each, a log entry and a saved state per epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from vlltr_index.errors import ConfigError, VlltrError
from vlltr_index.schemas.config import BaselineConfig, CVLPConfig, LGRConfig
from vlltr_index.tensors import device_name, float32_by, memory_mended_by
from vlltr_index.train.checkpoint import Log, load_state, save_state
from vlltr_index.train.data import TrainImages
from vlltr_index.train.distributed import by_first, own_part, share_batch_norm, world
from vlltr_index.train.sampling import epoch_batches, seed_of, steps_per_epoch, stream
from vlltr_index.train.schedule import Cosine, Schedule, parameter_groups, set_rates

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress

_log = logging.getLogger(__name__)

_LESS_MEMORY = "Try --set {0}.micro_batch=32, or less, or {0}.precision=auto, or --device cpu."

TrainingConfig = CVLPConfig | LGRConfig | BaselineConfig
"""The recipe's sections that a run takes its settings from."""

Objective = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
"""Takes the fields of a `Batch`; gives the loss and its parts over the whole batch, the same in every process."""

Callback = Callable[[dict[str, float]], bool]
"""Called after each epoch with its log entry, to which it may add; True ends the run."""


class Batch(NamedTuple):
    """Images of one step.

    Attributes:
        rows: Pixels [b, 3, H, W] or vectors [b, D] of this process.
        positions: Int64 [B], the images of all processes.
        generator: Source of the objective's random numbers, in the same state in every process.
    """

    rows: Tensor
    positions: Tensor
    generator: torch.Generator


class Batches(Protocol):
    """Source of a run's batches: images, or stored vectors."""

    @property
    def steps(self) -> int:
        """Number of steps of an epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0; they depend on the seed and the epoch alone."""


class ImageBatches:
    """Augmented pixels, of which each process gets its part.

    Args:
        images: The training images.
        config: Gives the size of a batch over all processes, the sampler's power, and the seed.

    Raises:
        ConfigError: The batch cannot be divided among the processes.
    """

    def __init__(self, images: TrainImages, config: TrainingConfig) -> None:
        self.steps = steps_per_epoch(len(images), config.batch_size)
        self._images = images
        self._config = config
        self._part = own_part(config.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0."""
        config = self._config
        draws = stream(config.seed, epoch, "images")
        batches = epoch_batches(self._images.labels, config.batch_size, config.sampler_power, draws)
        generator = stream(config.seed, epoch, "step")
        pixels = self._images.epoch(batches, self._part, config.seed, epoch)
        for positions, part in zip(batches, pixels, strict=True):
            yield Batch(part, positions, generator)


@dataclass(frozen=True)
class StageOne:
    """Result of the first stage, or of a baseline.

    Attributes:
        encoder: The trained encoder, in eval mode.
        visual: The linear classifier of unnormalised features, weight [C, D] and bias [C]; None if none was trained.
        log: One entry for each epoch: the means of the loss parts, scale, lr, images_per_s, seconds.
    """

    encoder: Encoder
    visual: nn.Linear | None
    log: Log


def check_finite(module: nn.Module, name: str) -> None:
    """Check that all weights are finite after the last step, which no later loss can show.

    Raises:
        VlltrError: A weight is not finite.
    """
    for key, value in module.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise VlltrError(f"{name}: the weights {key} are not finite any more", "Try a lower lr.")


@dataclass(eq=False, kw_only=True)
class Run:
    """Training of `module` by an objective, from the state in `run_dir` where there is one.

    All randomness depends on the seed and the epoch alone, so a resumed run equals an uninterrupted one.

    Attributes:
        name: Name for the user, such as `train cvlp`; its second word is the recipe's section.
        config: The recipe's section.
        module: The weights to train, on one device.
        batches: What it is trained on.
        objective: The loss of one step.
        run_dir: Folder for the state of an unfinished run; its name must identify all that the run depends on. None: no
            state is saved.
        progress: Called after every step, in the first process.
        log_scale: A parameter that is clamped to at most the logarithm of `max_scale` after each step.
        max_scale: None: no bound.
        rates: Peaks of the learning rate other than `config.lr`, by the prefix of a weight's name.
        schedule: The learning rate of each step; None: a cosine over all epochs, after the warm-up of `config`.
        callbacks: Called after each epoch, before its state is saved.
        precision: `bf16` computes the objective by autocast; `fp32` and `tf32` do not.
    """

    name: str
    config: TrainingConfig
    module: nn.Module
    batches: Batches
    objective: Objective
    run_dir: Path | None
    progress: Progress | None = None
    log_scale: nn.Parameter | None = None
    max_scale: float | None = None
    rates: Mapping[str, float] | None = None
    schedule: Schedule | None = None
    callbacks: Sequence[Callback] = ()
    precision: str = "fp32"
    log: Log = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the optimizer and the schedule."""
        config = self.config
        self.device = next(self.module.parameters()).device
        named = self.module.named_parameters()
        groups = parameter_groups(named, config.lr, config.weight_decay, self.rates)
        self.learned = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.total = self.batches.steps * config.epochs
        warmup = round(self.batches.steps * config.warmup_epochs)
        self.rate = self.schedule or Cosine(self.total, warmup=warmup, min_lr=config.min_lr)

    def train(self) -> Log:
        """Train for all epochs that are not done yet; return the log of all epochs, from the first.

        Raises:
            WorkspaceError: The saved state is damaged or of another run.
            VlltrError: The loss of an epoch is not finite.
        """
        config = self.config
        every = getattr(config, "checkpoint_every", 1)
        done = load_state(self.run_dir, self.module, self.optimizer, self.log)
        for epoch in range(done, config.epochs):
            self._begin(epoch)
            entry = self._epoch(epoch)
            self.log.append(entry)
            ended = [callback(entry) for callback in self.callbacks]
            if (epoch + 1) % every == 0 or epoch + 1 == config.epochs:
                by_first(save_state)(self.run_dir, self.module, self.optimizer, self.log)
            if any(ended):
                break
        return self.log

    def _epoch(self, epoch: int) -> dict[str, float]:
        """Train for one epoch; return its log entry."""
        started = time.perf_counter()
        steps = self.batches.steps
        sums: dict[str, Tensor] = {}
        images = 0
        for done, batch in enumerate(self.batches.epoch(epoch), epoch * steps):
            for key, value in self._step(batch, done).items():
                sums[key] = sums.get(key, 0.0) + value.detach()
            images += len(batch.positions)
            if self.progress and world()[0] == 0:
                self.progress(self.name, done + 1, self.total)
        entry = {key: float(value) / steps for key, value in sums.items()}
        if not math.isfinite(entry["loss"]):
            hint = "Try a lower lr" if self.precision == "fp32" else "Try a lower lr, or precision fp32"
            raise VlltrError(f"{self.name}: the loss is {entry['loss']} in epoch {epoch + 1}", hint)
        seconds = time.perf_counter() - started
        entry |= {"epoch": float(epoch + 1), "lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds}
        entry["images_per_s"] = images / seconds
        if self.log_scale is not None:
            entry["scale"] = float(self.log_scale.detach().exp())
        return entry

    def _step(self, batch: Batch, done: int) -> dict[str, Tensor]:
        """Take one optimizer step, the `done`-th of the run from 0; return the loss and its parts."""
        set_rates(self.optimizer, self.rate, done)
        rows = batch.rows.to(self.device, non_blocking=True)
        if rows.dim() == 4:
            rows = rows.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss, parts = self.objective(rows, batch.positions, batch.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.learned, self.config.clip_grad)
        self.optimizer.step()
        if self.max_scale is not None and self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(self.max_scale))
        return {"loss": loss, **parts}

    def _begin(self, epoch: int) -> None:
        """Prepare for the steps of an epoch."""
        self.module.train()


class _StepLoss(nn.Module):
    """Objective together with the weights that it trains, as a module for DistributedDataParallel."""

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.module = module
        self.objective = objective

    def forward(
        self, pixels: Tensor, positions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss and its parts, as `Objective` says."""
        return self.objective(pixels, positions, generator)


@dataclass(eq=False, kw_only=True)
class TowerRun(Run):
    """Run whose batches pass the towers of an encoder, shared among all processes.

    Attributes:
        encoder: The encoder; it may be a part of `module` or not.
        batch_norm: `train`; or `eval`: BatchNorm uses its stored statistics and does not change them.

    Raises:
        ConfigError: BatchNorm needs the batch as a whole.
    """

    encoder: Encoder
    batch_norm: str = "train"

    def __post_init__(self) -> None:
        """Make optimizer and schedule, and prepare the module for the device and the processes."""
        config = self.config
        self.norms = [part for part in self.module.modules() if isinstance(part, _BatchNorm)]
        if self.batch_norm == "train" and self.norms:
            if config.micro_batch is not None:
                section = self.name.split()[1]
                raise ConfigError(
                    f"{section}.micro_batch is {config.micro_batch}, and the model's BatchNorm needs the whole batch at"
                    " once",
                    f"Leave it out with --set {section}.micro_batch=none"
                    + ("." if section == "baseline" else f", or use --set {section}.batch_norm=eval."),
                )
            share_batch_norm(self.module, self.encoder.device)
        self._lay_out(torch.channels_last)
        super().__post_init__()
        if world()[1] > 1:
            step_loss = _StepLoss(self.module, self.objective)
            self.objective = DistributedDataParallel(step_loss, find_unused_parameters=True)
        self.callbacks = (*self.callbacks, self._report)
        self.precision = config.precision
        if self.precision == "auto":
            self.precision = "bf16" if _bfloat16_is_fast(self.device) else "fp32"

    def train(self) -> Log:
        """Train as `Run.train` does, and leave the module in eval mode.

        Raises:
            VlltrError: Also where a weight after an epoch is not finite, or the device's memory does not suffice.
        """
        _log.info("%s on %s, %s", self.name, device_name(self.device), self.precision)
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            float32_by(tf32=self.precision == "tf32"),
            memory_mended_by(self.name, _LESS_MEMORY.format(self.name.split()[1])),
        ):
            log = super().train()
        self.module.eval()
        self._lay_out(torch.contiguous_format)
        return log

    def _report(self, entry: dict[str, float]) -> bool:
        """Check the weights after an epoch and log its figures; never end the run."""
        check_finite(self.module, self.name)
        shown = {k: v for k, v in entry.items() if k not in ("epoch", "seconds")}
        told = ", ".join(f"{k} {v:.4g}" for k, v in shown.items())
        _log.info("%s epoch %d: %s", self.name, len(self.log), told)
        return False

    def _begin(self, epoch: int) -> None:
        """Seed what the towers draw for themselves, such as dropout, and keep BatchNorm as it is to be."""
        torch.manual_seed(seed_of(self.config.seed, epoch, world()[0]))
        super()._begin(epoch)
        if self.batch_norm == "eval":
            for norm in self.norms:
                norm.eval()

    def _lay_out(self, memory_format: torch.memory_format) -> None:
        """Change the memory layout of the encoder's four-dimensional weights, in place."""
        self.encoder.model.to(memory_format=memory_format)  # type: ignore[call-overload] # missing in torch's annotations


def _bfloat16_is_fast(device: torch.device) -> bool:
    """Say whether the hardware multiplies bfloat16 natively; emulated, bfloat16 is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)
