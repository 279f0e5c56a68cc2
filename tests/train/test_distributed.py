"""Two processes with half a batch each equal one process with all of it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from torch import nn

from tests.support import drawings, small_clip
from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import BaselineConfig, CVLPConfig
from vlltr_index.train.augment import BatchMixer
from vlltr_index.train.checkpoint import STATE
from vlltr_index.train.cvlp import train_cvlp, train_image_only
from vlltr_index.train.data import TrainImages
from vlltr_index.train.distributed import (
    by_first,
    gather_rows,
    join_processes,
    own_part,
    share_batch_norm,
    world,
)
from vlltr_index.train.sampling import stream

pytestmark = pytest.mark.slow
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
TEXT = CVLPConfig(epochs=1, batch_size=28, lr=1e-3, tune="text", augment=drawings.AUGMENT)
CONFIGS = {"joint": JOINT, "paper": PAPER, "lora": LORA, "text": TEXT}
NAMES = (*CONFIGS, "baseline")
BASELINE = BaselineConfig(epochs=1, batch_size=28, lr=1e-3, augment=drawings.AUGMENT)


def train(name: str, folder: Path) -> None:
    """Two steps of one epoch; what the first process saves goes to a file named by the number of processes."""
    made = small_clip.encoder()
    images = drawings.images(made)
    if name == "baseline":
        train_image_only(made, images, BASELINE, run_dir=folder)
    else:
        if name == "text":
            images = TrainImages.from_features(
                torch.randn(56, made.dim, generator=stream("text")), images.labels
            )
        train_cvlp(made, images, drawings.sentences(made), CONFIGS[name], run_dir=folder)
    if world()[0] == 0:
        (folder / STATE).rename(folder / f"{world()[1]}.safetensors")


def arithmetic() -> None:
    """Gathering with gradients against one process, and what cannot be shared."""
    rows = torch.arange(12.0, dtype=torch.float64).view(4, 3) + 1
    own = rows[own_part(4)].clone().requires_grad_()
    gathered = gather_rows(own)
    assert torch.equal(gathered.detach(), rows)
    gathered.pow(3).sum().backward()
    assert own.grad is not None
    torch.testing.assert_close(own.grad / 2, 3 * rows[own_part(4)].pow(2))
    with pytest.raises(ConfigError, match=r"5 cannot be shared out evenly among 2 processes\n.*batch_size=4"):
        own_part(5)
    assert by_first(by_first(world))() == (0, 2)  # where the second call met the others, both would wait
    with pytest.raises(ConfigError, match="several processes on CPUs cannot share the statistics"):
        share_batch_norm(nn.Sequential(nn.BatchNorm2d(3)), torch.device("cpu"))


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
    """Everything that is compared, in one of two processes that meet as `torchrun` lets them."""
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    join_processes(small_clip.encoder())
    assert dist.is_initialized()
    arithmetic()
    mixing()
    for name in NAMES:
        train(name, folder / name)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes and one process gave; an error in either process ends `spawn`."""
    folder = tmp_path_factory.mktemp("runs")
    for name in NAMES:
        (folder / name).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(process, (folder, port), nprocs=2)
    for name in NAMES:
        train(name, folder / name)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_as_one(both: Path, name: str) -> None:
    """Loss parts and mean gradients (Adam's first moment) of two steps agree to 1e-5."""
    logs, states = [], []
    for n in (1, 2):
        with safe_open(both / name / f"{n}.safetensors", "pt") as file:
            logs.append(json.loads(file.metadata()["log"])[0])
            states.append({k: file.get_tensor(k) for k in file.keys() if k.endswith("/exp_avg")})  # noqa: SIM118 - not a dict
    for key, value in logs[0].items():
        if key not in {"seconds", "images_per_s"}:
            assert logs[1][key] == pytest.approx(value, rel=1e-5), key
    largest = max(float(moment.abs().max()) for moment in states[0].values())
    assert largest > 1e-4
    for key, moment in states[0].items():
        assert float((states[1][key] - moment).abs().max()) < 1e-5 * largest, key
