"""Two processes with half a batch each equal one process with all of it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import drawings
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import BaselineConfig, CVLPConfig
from vlltr_index.train.baseline import train_image_only
from vlltr_index.train.checkpoint import load_state
from vlltr_index.train.cvlp import train_cvlp
from vlltr_index.train.distributed import (
    average_gradients,
    gather_rows,
    join_processes,
    own_part,
    prepare_batch_norm,
    restore_batch_norm,
    world,
)
from vlltr_index.train.mixing import BatchMixer
from vlltr_index.train.sampling import stream

JOINT = CVLPConfig(
    epochs=1,
    batch_size=28,
    lr=1e-3,
    joint_weight=1.0,
    ccl_weight=0.5,
    extra_classes=1,
    word_dropout=0.1,
    distillation="full",
    distillation_weight=0.3,
    augment=drawings.AUGMENT,
)
PAPER = CVLPConfig(epochs=1, batch_size=28, lr=1e-3, augment=drawings.AUGMENT)
LORA = CVLPConfig(
    epochs=1, batch_size=28, lr=1e-3, tune="lora", joint_weight=1.0, extra_classes=1, augment=drawings.AUGMENT
)
BASELINE = BaselineConfig(epochs=1, batch_size=28, lr=1e-3, augment=drawings.AUGMENT)


def train(name: str, folder: Path) -> None:
    """Two steps of one epoch; what the first process saves goes to a file named by the number of processes."""
    encoder = drawings.encoder()
    images = drawings.images(encoder)
    if name == "baseline":
        train_image_only(encoder, images, BASELINE, run_dir=folder)
    else:
        config = {"joint": JOINT, "paper": PAPER, "lora": LORA}[name]
        train_cvlp(encoder, images, drawings.sentences(encoder), config, run_dir=folder)
    if world()[0] == 0:
        (folder / "state.safetensors").rename(folder / f"{world()[1]}.safetensors")


def arithmetic(folder: Path) -> None:
    """Gathering with gradients, averaged gradients, and a shared BatchNorm, against one process."""
    rank, processes = world()
    rows = torch.arange(12.0, dtype=torch.float64).view(4, 3) + 1
    own = rows[own_part(4)].clone().requires_grad_()
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    gathered = gather_rows(own * weight)
    assert torch.equal(gathered.detach(), rows)
    gathered.pow(3).sum().backward()
    average_gradients([weight])
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, (3 * rows.pow(3)).sum(0))
    assert own.grad is not None
    torch.testing.assert_close(own.grad / processes, 3 * rows[own_part(4)].pow(2))
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    alone, shared = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    expected = alone(x)
    part = x[own_part(4)].clone().requires_grad_()
    prepare_batch_norm(nn.Sequential(shared), torch.device("cpu"))
    found = gather_rows(shared(part))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared.running_var, alone.running_var, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared.running_mean, alone.running_mean, rtol=1e-5, atol=1e-5)
    assert int(shared.num_batches_tracked) == 1
    restore_batch_norm(shared)
    assert "forward" not in vars(shared)
    with pytest.raises(ConfigError, match=r"5 cannot be shared out evenly among 2 processes\n.*batch_size=4"):
        own_part(5)
    mixing()
    (folder / f"done-{rank}").touch()


def mixing() -> None:
    """Each process mixes within its own part, by the same share, and knows the targets of all."""
    labels, pixels = torch.arange(4), torch.rand(2, 3, 4, 4)
    mixed, targets = BatchMixer(0.8, 0.0, 0.0, 4)(pixels, labels, stream("mixing"))
    share = targets[0, 0]
    torch.testing.assert_close(mixed, share * pixels + (1 - share) * pixels.flip(0))
    mirrored = torch.tensor([1, 0, 3, 2])
    hot = torch.eye(4)
    torch.testing.assert_close(targets, share * hot + (1 - share) * hot[mirrored])


def process(rank: int, folder: Path, port: int) -> None:
    """Everything that is compared, in one of two processes that meet as `accelerate launch` lets them."""
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    join_processes(drawings.encoder())
    assert dist.is_initialized()
    arithmetic(folder)
    for name in ("joint", "paper", "lora", "baseline"):
        train(name, folder / name)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes and one process gave."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("joint", "paper", "lora", "baseline"):
        (folder / name).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(process, (folder, port), nprocs=2)
    for name in ("joint", "paper", "lora", "baseline"):
        train(name, folder / name)
    return folder


def test_gathering_and_batch_norm_equal_one_process(both: Path) -> None:
    """The checks in `arithmetic` passed in both processes."""
    assert (both / "done-0").exists()
    assert (both / "done-1").exists()


@pytest.mark.parametrize("name", ["joint", "paper", "lora", "baseline"])
def test_two_processes_train_as_one(both: Path, name: str) -> None:
    """Loss parts and mean gradients (Adam's first moment) of two steps agree: distillation, BatchNorm, adapters."""
    states = [load_state(both / name / f"{processes}.safetensors") for processes in (1, 2)]
    assert states[0] is not None
    assert states[1] is not None
    (alone, alone_facts), (shared, shared_facts) = states
    for key, value in alone_facts["log"][0].items():
        if key not in {"seconds", "images_per_s"}:
            assert shared_facts["log"][0][key] == pytest.approx(value, rel=1e-4), key
    moments = [k for k in alone if k.endswith("/exp_avg")]
    largest = max(float(alone[k].abs().max()) for k in moments)
    assert largest > 1e-4
    for key in moments:
        error = float((shared[key] - alone[key]).abs().max())
        # Behind a BatchNorm that starts at zero a gradient is all rounding, and how much is the processor's matter.
        assert error < 2e-3 * max(float(alone[key].abs().max()), 1e-2 * largest), key


def test_one_process_needs_no_group() -> None:
    """Without a process group rows and gradients are as they are."""
    rows = torch.ones(2, 2, requires_grad=True)
    assert gather_rows(rows) is rows
    assert world() == (0, 1)
    assert own_part(7) == slice(0, 7)
