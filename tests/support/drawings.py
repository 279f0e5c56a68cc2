"""A few classes of simple drawings with sentences, small enough to train on within a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.support.pictures import encoded
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.schemas.config import AugmentConfig
from vlltr_index.schemas.recipes import load_recipe, override
from vlltr_index.store.workspace import Workspace
from vlltr_index.train.checkpoint import Log
from vlltr_index.train.data import TrainImages, TrainTexts

COUNTS = (20, 12, 8, 6, 4, 3, 2, 1)
WORDS = ("ring", "cross", "bar", "dot", "wedge", "arch", "hook", "wave")
AUGMENT = AugmentConfig(kind="glyph")
QUICK = ("lgr.epochs=1", "lgr.views=1", "lgr.batch_size=28")


def labels() -> Tensor:
    """int64 [56], long-tailed."""
    return torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))


def pixels(seed: int = 0) -> Tensor:
    """uint8 [56, 1, 32, 32]: a pattern a class, with noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(len(COUNTS), 1, 4, 4, generator=torch.Generator().manual_seed(1)).gt(0.5).float()
    large = torch.nn.functional.interpolate(patterns, size=32)[labels()]
    noise = torch.rand(large.shape, generator=generator) * 0.3
    return ((0.7 * large + noise) * 255).to(torch.uint8)


def texts() -> list[list[str]]:
    """Three sentences a class."""
    return [
        [f"the {w} number {i}", f"a drawing of one {w}", f"{w} {WORDS[i - 1]} made of lines and other things"]
        for i, w in enumerate(WORDS)
    ]


def encoder(seed: int = 0) -> Encoder:
    """`vlltr-tiny` with random weights."""
    return Encoder.scratch("vlltr-tiny", [t for group in texts() for t in group], seed, device="cpu")


def stop_at(step: int | None) -> Callable[[str, int, int | None], None]:
    """A progress callback that is as Ctrl-C after that many steps; with None it does nothing."""

    def progress(name: str, done: int, total: int | None) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def images(of: Encoder, augment: AugmentConfig = AUGMENT) -> TrainImages:
    """The drawings as training images."""
    return TrainImages([png(values[0]) for values in pixels()], labels(), of, augment)


def sentences(of: Encoder) -> TrainTexts:
    """The sentences as training texts."""
    return TrainTexts(texts(), of)


def png(values: Tensor) -> bytes:
    """A PNG of uint8 [H, W] or [3, H, W]."""
    array = values.numpy() if values.dim() == 2 else values.permute(1, 2, 0).contiguous().numpy()
    return encoded(Image.fromarray(array))


def write(folder: Path, seed: int = 0) -> Path:
    """The drawings as `folder` / CLASS / NUMBER.png."""
    for number, (values, label) in enumerate(zip(pixels(seed), labels().tolist(), strict=True)):
        path = folder / WORDS[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(values[0]))
    return folder


def write_texts(folder: Path) -> Path:
    """The sentences as `folder` / texts.json."""
    folder.mkdir(parents=True, exist_ok=True)
    told = dict(zip(WORDS, texts(), strict=True))
    (folder / "texts.json").write_text(json.dumps(told), encoding="utf-8")
    return folder / "texts.json"


def workspace(folder: Path, *settings: str) -> Workspace:
    """A workspace in `folder` / workspace with the drawings and their sentences, nothing trained."""
    made = Workspace.create(folder / "workspace", override(load_recipe("glyphs_lt/fast"), settings))
    ingest_text(made, write_texts(folder))
    ingest_images(made, write(folder / "images"), "train", group="name:.+")  # all alike, but not one
    return made


def trained_tensors(of: Workspace) -> dict[str, Tensor]:
    """The weights of the newest commit's encoder and visual classifier."""
    folder = of.objects.path("checkpoints", str(of.history.last().checkpoint))
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def same_weights(one: Encoder, other: Encoder) -> bool:
    """Whether all weights and buffers are equal to the last bit."""
    first, second = one.model.state_dict(), other.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def untimed(log: Log) -> Log:
    """The log of a training without what the clock says."""
    return [{k: v for k, v in entry.items() if k not in {"seconds", "images_per_s"}} for entry in log]
