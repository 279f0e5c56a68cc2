"""Training loop of all stages: seeded batches, one optimizer step each, a log entry and a saved state per epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

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
from vlltr_index.train.schedule import parameter_groups, set_rates

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress

_log = logging.getLogger(__name__)

_LESS_MEMORY = "Try --set {0}.micro_batch=32, or less, or {0}.precision=auto, or --device cpu."

Objective = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
"""Takes this process's pixels [b, 3, H, W] or vectors [b, D], the positions [B] of the whole batch, and a generator;
gives the loss and its parts over the whole batch, the same in every process."""


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


@dataclass(eq=False)
class Run:
    """Training of `module` by an objective, from the state in `run_dir` where there is one.

    All randomness depends on the seed and the epoch alone, so a resumed run equals an uninterrupted one.

    Attributes:
        name: Name for the user, such as `train cvlp`; its second word is the recipe's section.
        config: The recipe's section.
        encoder: The encoder, whose device is used; it may be a part of `module` or not.
        module: The weights to train.
        images: The training images.
        objective: The loss of one step.
        run_dir: Folder for the state of an unfinished run; its name must identify all that the run depends on. None: no
            state is saved.
        progress: Called after every step, in the first process.
        log_scale: A parameter that is clamped to at most the logarithm of `max_scale` after each step.
        max_scale: None: no bound.
        rates: Peaks of the learning rate other than `config.lr`, by the prefix of a weight's name.
        batch_norm: `train`; or `eval`: BatchNorm uses its stored statistics and does not change them.

    Raises:
        ConfigError: The batch cannot be divided among the processes, or BatchNorm needs it as a whole.
    """

    name: str
    config: CVLPConfig | LGRConfig | BaselineConfig
    encoder: Encoder
    module: nn.Module
    images: TrainImages
    objective: Objective
    run_dir: Path | None
    progress: Progress | None = None
    log_scale: nn.Parameter | None = None
    max_scale: float | None = None
    rates: Mapping[str, float] | None = None
    batch_norm: str = "train"
    log: Log = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make optimizer and schedule, and prepare the module for the device and the processes."""
        config = self.config
        self.device = self.encoder.device
        self.part = own_part(config.batch_size)
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
            share_batch_norm(self.module, self.device)
        self._lay_out(torch.channels_last)
        named = self.module.named_parameters()
        groups = parameter_groups(named, config.lr, config.weight_decay, self.rates)
        self.learned = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.steps = steps_per_epoch(len(self.images), config.batch_size)
        self.step_loss: nn.Module = _StepLoss(self.module, self.objective)
        if world()[1] > 1:
            self.step_loss = DistributedDataParallel(self.step_loss, find_unused_parameters=True)
        self.precision: str = config.precision
        if self.precision == "auto":
            self.precision = "bf16" if _bfloat16_is_fast(self.device) else "fp32"

    def train(self) -> Log:
        """Train for all epochs that are not done yet; return the log of all epochs, from the first.

        Raises:
            WorkspaceError: The saved state is damaged or of another run.
            VlltrError: The loss, or a weight after an epoch, is not finite.
        """
        config = self.config
        rank = world()[0]
        every = getattr(config, "checkpoint_every", 1)
        _log.info("%s on %s, %s", self.name, device_name(self.device), self.precision)
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            float32_by(tf32=self.precision == "tf32"),
            memory_mended_by(self.name, _LESS_MEMORY.format(self.name.split()[1])),
        ):
            done = load_state(self.run_dir, self.module, self.optimizer, self.log)
            for epoch in range(done, config.epochs):
                torch.manual_seed(seed_of(config.seed, epoch, rank))
                self.log.append(self._epoch(epoch))
                shown = {k: v for k, v in self.log[-1].items() if k not in ("epoch", "seconds")}
                told = ", ".join(f"{k} {v:.4g}" for k, v in shown.items())
                _log.info("%s epoch %d: %s", self.name, epoch + 1, told)
                if (epoch + 1) % every == 0 or epoch + 1 == config.epochs:
                    by_first(lambda: save_state(self.run_dir, self.module, self.optimizer, self.log))
        self.module.eval()
        self._lay_out(torch.contiguous_format)
        return self.log

    def _epoch(self, epoch: int) -> dict[str, float]:
        """Train for one epoch; return its log entry."""
        config = self.config
        started = time.perf_counter()
        draws = stream(config.seed, epoch, "images")
        batches = epoch_batches(self.images.labels, config.batch_size, config.sampler_power, draws)
        generator = stream(config.seed, epoch, "step")
        sums: dict[str, Tensor] = {}
        self.module.train()
        if self.batch_norm == "eval":
            for norm in self.norms:
                norm.eval()
        pixels = self.images.epoch(batches, self.part, config.seed, epoch)
        for done, (positions, part) in enumerate(zip(batches, pixels, strict=True), epoch * self.steps):
            for key, value in self._step(part, positions, generator, done).items():
                sums[key] = sums.get(key, 0.0) + value.detach()
            if self.progress and world()[0] == 0:
                self.progress(self.name, done + 1, self.steps * config.epochs)
        entry = {key: float(value) / self.steps for key, value in sums.items()}
        if not math.isfinite(entry["loss"]):
            raise VlltrError(
                f"{self.name}: the loss is {entry['loss']} in epoch {epoch + 1}",
                "Try a lower lr, or precision fp32",
            )
        check_finite(self.module, self.name)
        seconds = time.perf_counter() - started
        entry |= {"epoch": float(epoch + 1), "lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds}
        entry["images_per_s"] = self.steps * config.batch_size / seconds
        if self.log_scale is not None:
            entry["scale"] = float(self.log_scale.detach().exp())
        return entry

    def _step(
        self, pixels: Tensor, positions: Tensor, generator: torch.Generator, done: int
    ) -> dict[str, Tensor]:
        """Take one optimizer step, the `done`-th of the run from 0; return the loss and its parts."""
        config = self.config
        warmup = round(self.steps * config.warmup_epochs)
        set_rates(self.optimizer, done, self.steps * config.epochs, warmup=warmup, min_lr=config.min_lr)
        pixels = pixels.to(self.device, non_blocking=True)
        if pixels.dim() == 4:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss, parts = self.step_loss(pixels, positions, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.learned, config.clip_grad)
        self.optimizer.step()
        if self.max_scale is not None and self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(self.max_scale))
        return {"loss": loss, **parts}

    def _lay_out(self, memory_format: torch.memory_format) -> None:
        """Change the memory layout of the encoder's four-dimensional weights, in place."""
        self.encoder.model.to(memory_format=memory_format)  # type: ignore[call-overload] # missing in torch's annotations


def _bfloat16_is_fast(device: torch.device) -> bool:
    """Say whether the hardware multiplies bfloat16 natively; emulated, bfloat16 is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)
