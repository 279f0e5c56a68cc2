"""Training augmentation: batches of small images as tensors, single photographs as PIL images, mixup and cutmix."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import AugmentConfig, BaselineConfig, LGRConfig
from vlltr_index.train.distributed import gather_rows, world

if TYPE_CHECKING:
    from vlltr_index.encoders.encoder import Encoder

_ROTATE = 0.14  # radians, about 8 degrees
_SHEAR = 0.12
_ZOOM = 0.12
_SHIFT = 0.08  # of the side
_SEEDED = threading.Lock()
_Transform = Callable[[Image.Image], Image.Image]
_NEAR = 8  # photographs that fit into the processor's cache
_THICKEN = 0.2  # share of a batch
_THIN = 0.15  # share of a batch
_BLUR = 0.2  # share of a batch


class BatchAugment:
    """Augmentation of batches of images with values in 0..1 and any number of channels.

    Random numbers are drawn for a whole batch and may be applied to a part of it, so that several processes that divide
    a batch augment it as a single process would.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self._auto = auto_augment(config) if config.kind == "photo" else None

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the random numbers for `count` images, uniform in 0..1: float32 [count, 12]."""
        return torch.rand(count, 12, generator=generator)

    def apply(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Augment float [B, C, H, W] with values in 0..1 by the rows of `draws` [B, 12]; same shape and range."""
        if self.config.kind == "none" or not len(pixels):
            return pixels
        if self.config.kind == "glyph":
            return _reshape_strokes(_warp(pixels, _glyph_matrices(draws)), draws)
        if self._auto is not None:
            pixels = _each(self._auto, pixels, draws)
        pixels = _warp(pixels, _crop_matrices(draws, self.config.crop_min, self.config.flip))
        pixels = _jitter(pixels, draws, self.config.color_jitter)
        return _erase(pixels, draws, self.config.random_erase)


class ViewAugment:
    """Augmentation of pixels that are already normalised for `encoder`; it can be pickled.

    Args:
        config: The recipe's `augment` section.
        encoder: Encoder whose mean and standard deviation the pixels have.
    """

    def __init__(self, config: AugmentConfig, encoder: Encoder) -> None:
        self._augment = BatchAugment(config)
        self._mean = torch.as_tensor(encoder.mean, dtype=torch.float32).view(1, 3, 1, 1)
        self._std = torch.as_tensor(encoder.std, dtype=torch.float32).view(1, 3, 1, 1)

    def __call__(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Augment float [B, 3, H, W], each image by the random numbers of its seed; same shape and normalisation."""
        draws = torch.cat([self._augment.draw(1, torch.Generator().manual_seed(seed)) for seed in seeds])
        done = torch.empty_like(pixels)
        for part in torch.arange(len(pixels)).split(_NEAR):
            raw = torch.addcmul(self._mean, pixels[part], self._std).clamp_(0.0, 1.0)
            done[part] = (self._augment.apply(raw, draws[part]) - self._mean).div_(self._std)
        return done


def _glyph_matrices(draws: Tensor) -> Tensor:
    """Make the inverse maps of a small rotation, shear, zoom and shift for `affine_grid`, [B, 2, 3]."""
    turn, shear, across, down, right, below = (draws[:, :6] * 2 - 1).unbind(1)
    cos = torch.cos(_ROTATE * turn)
    sin = torch.sin(_ROTATE * turn)
    sx = 1 + _ZOOM * across
    sy = 1 + _ZOOM * down
    lean = _SHEAR * shear
    upper = [sx * cos, sy * (lean * cos - sin), 2 * _SHIFT * right]
    lower = [sx * sin, sy * (lean * sin + cos), 2 * _SHIFT * below]
    return torch.stack(upper + lower, 1).view(-1, 2, 3)


def _crop_matrices(draws: Tensor, crop_min: float, flip: bool) -> Tensor:
    """Make the maps of random resized crops (area `crop_min` to 1, aspect 3/4 to 4/3) and flips, [B, 2, 3]."""
    area, aspect, right, below, mirror = draws[:, :5].unbind(1)
    side = (crop_min + (1 - crop_min) * area).sqrt()
    ratio = torch.exp((aspect - 0.5) * float(np.log(16 / 9)) / 2)
    width = (side * ratio).clamp(max=1.0)
    height = (side / ratio).clamp(max=1.0)
    sign = torch.where(mirror < 0.5, -1.0, 1.0) if flip else torch.ones_like(mirror)
    zero = torch.zeros_like(width)
    rows = [width * sign, zero, (1 - width) * (2 * right - 1), zero, height, (1 - height) * (2 * below - 1)]
    return torch.stack(rows, 1).view(-1, 2, 3)


def _warp(pixels: Tensor, matrices: Tensor) -> Tensor:
    """Resample images [B, C, H, W] under affine maps [B, 2, 3]."""
    grid = F.affine_grid(matrices, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _reshape_strokes(pixels: Tensor, draws: Tensor) -> Tensor:
    """Widen bright areas in some images and dark ones in others, mixed with the original, and blur some."""
    choice = draws[:, 6]
    amount = draws[:, 7].view(-1, 1, 1, 1)
    blur = draws[:, 8]
    result = pixels.clone()
    brighter = (choice < _THICKEN).nonzero()[:, 0]
    darker = ((choice >= _THICKEN) & (choice < _THICKEN + _THIN)).nonzero()[:, 0]
    for rows, sign in ((brighter, 1.0), (darker, -1.0)):
        if len(rows):
            part = pixels[rows]
            result[rows] = torch.lerp(part, sign * F.max_pool2d(sign * part, 3, 1, 1), amount[rows])
    rows = (blur < _BLUR).nonzero()[:, 0]
    if len(rows):
        result[rows] = F.avg_pool2d(result[rows], 3, 1, 1, count_include_pad=False)
    return result


def _jitter(pixels: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and saturation by factors between 1 - `strength` and 1 + `strength`."""
    if strength == 0:
        return pixels
    bright, contrast, colour = (1 + strength * (2 * draws[:, 5:8] - 1)).view(-1, 3, 1, 1, 1).unbind(1)
    # All three in one linear map: contrast is about the image's mean, saturation about each pixel's grey.
    mean = pixels.mean((1, 2, 3), keepdim=True)
    grey = pixels.mean(1, keepdim=True)
    scale = bright * contrast
    shift = grey.mul_((1 - colour) * scale).add_((1 - contrast) * bright * mean)
    return (pixels * (colour * scale)).add_(shift).clamp_(0.0, 1.0)


def _erase(pixels: Tensor, draws: Tensor, share: float) -> Tensor:
    """Blank a rectangle of a third of height and width, in a `share` of the images."""
    if share == 0:
        return pixels
    height, width = pixels.shape[2:]
    rows = torch.arange(height, device=pixels.device)
    columns = torch.arange(width, device=pixels.device)
    top = draws[:, 9, None] * height * 2 / 3
    left = draws[:, 10, None] * width * 2 / 3
    in_rows = (rows >= top) & (rows < top + height / 3)
    in_columns = (columns >= left) & (columns < left + width / 3)
    inside = in_rows[:, :, None] & in_columns[:, None]
    erased = inside & (draws[:, 8] < share)[:, None, None]
    return pixels.masked_fill(erased[:, None], 0.5)


def auto_augment(config: AugmentConfig) -> _Transform | None:
    """Make timm's RandAugment from its spelling in `config.auto_augment`; None if there is none.

    Raises:
        ConfigError: The spelling is not timm's.
    """
    if config.auto_augment is None:
        return None
    if not re.fullmatch(r"rand(-(m|n|p|w|t|mstd|mmax|inc)\d+(\.\d+)?)*", config.auto_augment):
        raise ConfigError(
            f"augment.auto_augment is {config.auto_augment!r}, which is not a RandAugment in timm's spelling",
            'For example: auto_augment = "rand-m6-mstd0.5-inc1", or leave it out',
        )
    from timm.data.auto_augment import rand_augment_transform

    transform: _Transform = rand_augment_transform(config.auto_augment, {"img_mean": (128, 128, 128)})
    return transform


def seeded(seed: int, work: Callable[[], Any]) -> Any:
    """Run `work` with the global generators of Python, NumPy and torch (CPU) seeded, and restore them afterwards.

    One thread at a time does so, for these generators belong to the whole process.
    """
    with _SEEDED, torch.random.fork_rng(devices=[]):
        python = random.getstate()
        array = np.random.get_state()
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)  # leaves the GPUs' alone
            return work()
        finally:
            random.setstate(python)
            np.random.set_state(array)


def _each(transform: _Transform, pixels: Tensor, draws: Tensor) -> Tensor:
    """Apply a PIL transform to every image of a batch [B, C, H, W], seeded by its row of `draws`; [B, 3, H, W]."""
    whole = (pixels * 255).add_(0.5).to(torch.uint8).expand(-1, 3, -1, -1).cpu()
    seeds = (draws[:, 11].double() * 2**24).long().tolist()
    done = torch.empty_like(whole)
    for image, seed, into in zip(whole, seeds, done, strict=True):
        array = image.movedim(0, 2).contiguous().numpy()
        changed = np.array(seeded(seed, partial(transform, Image.fromarray(array))))
        into.copy_(torch.from_numpy(changed).movedim(2, 0))
    return done.to(pixels.device, pixels.dtype).mul_(1 / 255)


class PhotoTransform:
    """Augmentation of single PIL images to float32 [3, H, W], normalised for `encoder`; it can be pickled."""

    def __init__(self, config: AugmentConfig, encoder: Encoder) -> None:
        from torchvision.transforms import v2

        jitter = config.color_jitter
        grey = encoder.config["preprocess_cfg"].get("mode") == "L"
        steps: list[Any] = [
            v2.Grayscale(3) if grey else None,  # as the encoder sees pictures otherwise
            v2.RandomResizedCrop(
                encoder.image_size, scale=(config.crop_min, 1.0), interpolation=v2.InterpolationMode.BICUBIC
            ),
            v2.RandomHorizontalFlip(0.5 if config.flip else 0.0),
            auto_augment(config),
            v2.ColorJitter(jitter, jitter, jitter) if jitter else None,
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(torch.as_tensor(encoder.mean).tolist(), torch.as_tensor(encoder.std).tolist()),
            v2.RandomErasing(config.random_erase) if config.random_erase else None,
        ]
        self._steps = v2.Compose([step for step in steps if step is not None])

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        """Augment one image by the random numbers of `seed`."""
        made: Tensor = seeded(seed, partial(self._steps, image))
        return made.as_subclass(torch.Tensor)


class BatchMixer:
    """Mixup and cutmix: each image of a batch is mixed with the one at the mirrored position.

    All images of a batch are mixed in the same way and proportion. With both `mixup` and `cutmix` above 0 one of them
    is drawn for each batch. Processes that divide a batch draw the same, and mix within their own parts of it.

    Args:
        mixup: Parameter of the beta distribution; 0 turns mixup off.
        cutmix: The same for cutmix.
        label_smoothing: Share of the target spread evenly over all classes.
        classes: Number of classes, C.
    """

    def __init__(self, mixup: float, cutmix: float, label_smoothing: float, classes: int) -> None:
        from timm.data.mixup import Mixup

        self._mix: Any = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=classes)

    @classmethod
    def of(cls, config: LGRConfig | BaselineConfig, classes: int) -> BatchMixer | None:
        """Make the mixer that the configuration describes; None where it mixes nothing.

        Raises:
            ConfigError: A process's part of the batch is odd.
        """
        if not (config.mixup or config.cutmix):
            return None
        share, left = divmod(config.batch_size, world()[1])
        if left == 0 and share % 2:
            section = "lgr" if isinstance(config, LGRConfig) else "baseline"
            raise ConfigError(
                f"mixup and cutmix pair images up: each process has {share} of the batch, which is odd",
                f"Use --set {section}.batch_size={(share + 1) * world()[1]}",
            )
        return cls(config.mixup, config.cutmix, config.label_smoothing, classes)

    def __call__(self, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix a process's part of a batch.

        Args:
            pixels: Float [b, 3, H, W], this process's part, b even; not changed.
            labels: Int64 [B], the classes of all processes' images.
            generator: Source of the random numbers, in the same state in every process.

        Returns:
            Mixed pixels [b, 3, H, W], and the targets of all processes' images, float32 [B, C], on the pixels' device.
        """
        seed = int(torch.randint(2**31, (1,), generator=generator))
        own = labels.to(pixels.device).split(len(pixels))[world()[0]]
        mixed, targets = seeded(seed, lambda: self._mix(pixels.clone(), own))
        return mixed, gather_rows(targets)
