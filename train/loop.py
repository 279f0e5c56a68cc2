"""The loop that the stages share: seeded batches, one optimizer step each, a log line and a saved state an epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vlltr_index.errors import VlltrError, WorkspaceError
from vlltr_index.schemas.fingerprint import digest_json
from vlltr_index.tensors import device_name, float32_by, memory_mended_by
from vlltr_index.train.checkpoint import STATE, load_state, pack_optimizer, save_state, unpack_optimizer
from vlltr_index.train.data import TrainImages
from vlltr_index.train.distributed import by_first, own_part, share_batch_norm, world
from vlltr_index.train.micro import check_micro_batch
from vlltr_index.train.sampling import epoch_batches, seed_of, steps_per_epoch, stream
from vlltr_index.train.schedule import parameter_groups, set_rates

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.schemas.records import Progress

__all__ = ["Objective", "RunPlan", "StageOne", "check_finite", "run"]

_log = logging.getLogger(__name__)

Log = list[dict[str, float]]

_LESS_MEMORY = "Try --set {0}.micro_batch=32, or less, or {0}.precision=auto, or --device cpu."


@dataclass(frozen=True)
class StageOne:
    """What the first stage, or a baseline, gives.

    Attributes:
        encoder: The trained encoder, in eval mode.
        visual_weight: float32 [C, D] of the linear visual classifier, which takes unnormalised features; None
            where the stage has none.
        visual_bias: float32 [C], or None.
        log: One entry an epoch: the means of the loss parts, scale, lr, images_per_s, seconds.
    """

    encoder: Encoder
    visual_weight: Tensor | None
    visual_bias: Tensor | None
    log: Log

    @classmethod
    def of(cls, encoder: Encoder, visual: nn.Linear | None, log: Log) -> StageOne:
        """With the weights of `visual` on the CPU, the encoder put into eval mode."""
        if visual is None:
            return cls(encoder.eval(), None, None, log)
        weight, bias = (part.detach().float().cpu() for part in (visual.weight, visual.bias))
        return cls(encoder.eval(), weight, bias, log)


@dataclass(frozen=True)
class RunPlan:
    """The numbers of one run; see the configurations for their meaning."""

    name: str
    epochs: int
    batch_size: int
    lr: float
    min_lr: float
    weight_decay: float
    warmup_epochs: float
    clip_grad: float | None
    sampler_power: float
    precision: str
    checkpoint_every: int
    seed: int
    max_scale: float | None = None
    lr_by_prefix: Mapping[str, float] | None = None
    batch_norm: str = "train"  # | "eval": BatchNorm keeps its statistics and uses them
    micro_batch: int | None = None

    @property
    def section(self) -> str:
        """The recipe's section that the run goes by: "train cvlp" by `cvlp`."""
        return self.name.split()[1]

    @classmethod
    def of(cls, name: str, config: Any, **more: Any) -> RunPlan:
        """From a configuration that has the fields of the same names."""
        fields = set(cls.__dataclass_fields__) - {"name", "max_scale", "lr_by_prefix", "batch_norm"}
        return cls(name, **{f: getattr(config, f) for f in fields if f not in more}, **more)


class Objective(Protocol):
    """The loss of one step. Every process gives the same value, over the whole batch."""

    def __call__(
        self, pixels: Tensor, positions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts, of this process's pixels [b, 3, H, W] or vectors [b, D], and all positions [B]."""
        ...


def check_finite(module: nn.Module, name: str) -> None:
    """See that the last step left all weights finite: the next loss would show it, but there may be none.

    Raises:
        VlltrError: If one is not.
    """
    for key, value in module.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise VlltrError(f"{name}: the weights {key} are not finite any more", "Try a lower lr.")


def run(
    plan: RunPlan,
    encoder: Encoder,
    module: nn.Module,
    images: TrainImages,
    objective: Objective,
    *,
    run_dir: Path | None,
    log_dir: Path | None = None,
    progress: Progress | None = None,
    log_scale: nn.Parameter | None = None,
) -> Log:
    """Train `module` for `plan.epochs` epochs, from the state in `run_dir` where there is one.

    All randomness depends on the seed and the epoch alone, so a resumed run equals an uninterrupted one.

    Raises:
        ConfigError: The batch cannot be shared out, or the encoder cannot be shared by several processes.
        WorkspaceError: The saved state is damaged or of another run.
        VlltrError: The loss, or a weight after an epoch, is not finite.
    """
    trainer = _Trainer(plan, encoder, module, images, objective, run_dir, progress, log_scale)
    board = _board(log_dir, plan.name)
    rank, _ = world()
    precision = _resolved(plan.precision, encoder.device)
    _log.info("%s on %s, %s", plan.name, device_name(encoder.device), precision)
    with (
        torch.random.fork_rng(devices=_cuda_devices(encoder.device)),
        float32_by(tf32=precision == "tf32"),
        memory_mended_by(plan.name, _LESS_MEMORY.format(plan.section)),
    ):
        for epoch in range(trainer.restore(), plan.epochs):
            torch.manual_seed(seed_of(plan.seed, epoch, rank))
            entry = trainer.epoch(epoch)
            _log.info("%s epoch %d: %s", plan.name, epoch + 1, _in_words(entry))
            for key, value in entry.items():
                if board is not None and key != "epoch":
                    board.add_scalar(key, value, epoch + 1)
            if (epoch + 1) % plan.checkpoint_every == 0 or epoch + 1 == plan.epochs:
                trainer.save(epoch + 1)
    if board is not None:
        board.close()
    module.eval()
    _lay_out(encoder.model, torch.contiguous_format)
    return trainer.log


def _in_words(entry: Mapping[str, float]) -> str:
    """An epoch's numbers for people: the loss and its parts, the settings of the moment, and the speed."""
    parts = [f"{k} {v:.4g}" for k, v in entry.items() if k not in ("epoch", "seconds", "images_per_s")]
    return ", ".join([*parts, f"{entry['images_per_s']:,.0f} images/s"])


class _StepLoss(nn.Module):
    """The objective with the weights that it learns, for DistributedDataParallel."""

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.module, self.objective = module, objective

    def forward(
        self, pixels: Tensor, positions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(pixels, positions, generator)


class _Trainer:
    def __init__(
        self,
        plan: RunPlan,
        encoder: Encoder,
        module: nn.Module,
        images: TrainImages,
        objective: Objective,
        run_dir: Path | None,
        progress: Progress | None,
        log_scale: nn.Parameter | None,
    ) -> None:
        self.plan, self.encoder, self.module, self.images = plan, encoder, module, images
        self.log_scale, self.log = log_scale, []
        self.progress = progress if world()[0] == 0 else None
        self.state_path = run_dir / STATE if run_dir is not None else None
        self.part = own_part(plan.batch_size)
        if plan.batch_norm == "train":
            check_micro_batch(module, plan.micro_batch, plan.section)
            share_batch_norm(module, encoder.device)
        _lay_out(encoder.model, torch.channels_last)
        self.named = dict(module.named_parameters())
        groups = parameter_groups(self.named.items(), plan.lr, plan.weight_decay, plan.lr_by_prefix)
        self.learned = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.steps = steps_per_epoch(len(images), plan.batch_size)
        self.step_loss: nn.Module = _StepLoss(module, objective)
        if world()[1] > 1:
            self.step_loss = DistributedDataParallel(self.step_loss, find_unused_parameters=True)

    log: Log

    def epoch(self, epoch: int) -> dict[str, float]:
        """One pass; returns its log entry."""
        plan, started = self.plan, time.perf_counter()
        batches = epoch_batches(
            self.images.labels, plan.batch_size, plan.sampler_power, stream(plan.seed, epoch, "images")
        )
        generator = stream(plan.seed, epoch, "step")
        sums: dict[str, Tensor] = {}
        self.module.train()
        if plan.batch_norm == "eval":
            _freeze_batch_norm(self.module)
        for step, pixels in enumerate(self.images.epoch(batches, self.part, plan.seed, epoch)):
            done = epoch * self.steps + step
            parts = self._step(pixels, batches[step], generator, done)
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value.detach()
            if self.progress:
                self.progress(plan.name, done + 1, self.steps * plan.epochs)
        entry = {key: float(value) / self.steps for key, value in sums.items()}
        if not math.isfinite(entry["loss"]):
            raise VlltrError(
                f"{plan.name}: the loss is {entry['loss']} in epoch {epoch + 1}",
                "Try a lower lr, or precision fp32",
            )
        check_finite(self.module, plan.name)
        seconds = time.perf_counter() - started
        entry |= {"epoch": float(epoch + 1), "lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds}
        entry["images_per_s"] = self.steps * plan.batch_size / seconds
        if self.log_scale is not None:
            entry["scale"] = float(self.log_scale.detach().exp())
        self.log.append(entry)
        return entry

    def _step(
        self, pixels: Tensor, positions: Tensor, generator: torch.Generator, done: int
    ) -> dict[str, Tensor]:
        plan = self.plan
        warmup = round(self.steps * plan.warmup_epochs)
        set_rates(self.optimizer, done, self.steps * plan.epochs, warmup, plan.min_lr)
        device = self.encoder.device
        pixels = pixels.to(device, non_blocking=True)
        if pixels.dim() == 4:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with _autocast(plan.precision, device):
            loss, parts = self.step_loss(pixels, positions, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if plan.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.learned, plan.clip_grad)
        self.optimizer.step()
        if plan.max_scale is not None and self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(plan.max_scale))
        return {"loss": loss, **parts}

    def identity(self) -> str:
        """What a saved state must have been made with."""
        shapes = {name: list(p.shape) for name, p in self.named.items()}
        numbers = {k: v for k, v in vars(self.plan).items() if k not in ("checkpoint_every", "micro_batch")}
        return digest_json({"plan": numbers, "shapes": shapes, "labels": self.images.labels.tolist()})

    def restore(self) -> int:
        """Put the saved state back; returns the epochs it has behind it."""
        found = load_state(self.state_path) if self.state_path is not None else None
        if found is None:
            return 0
        tensors, facts = found
        if facts["identity"] != self.identity():
            raise WorkspaceError(
                f"{self.state_path} is the state of another run: configuration, model or images differ",
                "Start the run anew: the same command with --restart",
            )
        own = self.module.state_dict()
        for name, value in own.items():
            value.copy_(tensors[f"module/{name}"])
        kept = {k.removeprefix("optimizer/"): v for k, v in tensors.items() if k.startswith("optimizer/")}
        unpack_optimizer(self.optimizer, self.named, kept)
        self.log[:] = facts["log"]
        return int(facts["epoch"])

    def save(self, epoch: int) -> None:
        """Write the state after `epoch` epochs; the first process does it for all."""
        by_first(lambda: self._write(epoch))

    def _write(self, epoch: int) -> None:
        if self.state_path is not None:
            tensors = {f"module/{k}": v for k, v in self.module.state_dict().items()}
            tensors |= {f"optimizer/{k}": v for k, v in pack_optimizer(self.optimizer, self.named).items()}
            facts = {"identity": self.identity(), "epoch": epoch, "log": self.log}
            save_state(self.state_path, tensors, facts)


def _resolved(precision: str, device: torch.device) -> str:
    """What a recipe's precision means on a device: fp32, tf32 or bf16."""
    if precision != "auto":
        return precision
    return "bf16" if _bfloat16_is_fast(device) else "fp32"


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    bf16 = _resolved(precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def _bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; emulated it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in checks)


def _freeze_batch_norm(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def _lay_out(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Change the memory layout of all weights with four dimensions, in place."""
    module.to(memory_format=memory_format)  # type: ignore[call-overload] # missing in torch's annotations


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _board(log_dir: Path | None, name: str) -> Any:
    """A TensorBoard writer, where there is a folder for it and the package is installed."""
    if log_dir is None or world()[0] != 0:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: Callable[..., Any] = SummaryWriter
    return writer(str(log_dir / name.replace(" ", "-")))
