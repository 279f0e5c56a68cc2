"""Tests of the image tower of `vlltr-tiny` and of the configuration beside it."""

from __future__ import annotations

import torch
from PIL import Image
from torch.nn import functional as F

from vlltr_index.encoders import openclip
from vlltr_index.encoders.encoder import Encoder

TEXTS = ["greek small letter omega", "latin capital letter a with grave"]


def test_tower_equals_its_layers_written_out() -> None:
    """The fast layout and the in-place arithmetic change nothing."""
    torch.manual_seed(0)
    tower = openclip.TinyTower()
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            module.running_mean = torch.randn(module.num_features)
    x = torch.randn(3, 3, 32, 32)
    tower.eval()
    y = (x[:, :1] + x[:, 1:2] + x[:, 2:]) / 3
    y = F.pixel_unshuffle(y, 2)
    for at in range(0, 9, 3):
        stem, residual = tower.stages[at], tower.stages[at + 2]
        y = torch.relu(stem(y))
        y = torch.relu(y + residual.second(torch.relu(residual.first(y))))  # type: ignore[operator]
    assert torch.allclose(tower(x), y.flatten(1), atol=1e-5)


def test_tower_learns_under_autocast() -> None:
    """Gradients reach every weight of both towers in bfloat16, and are finite."""
    encoder = Encoder.scratch("vlltr-tiny", TEXTS).train()
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    with torch.autocast("cpu", torch.bfloat16):
        image = encoder.encode_pixels(torch.randn(4, 3, 32, 32))
        text = encoder.encode_tokens(encoder.tokenize(TEXTS * 2).ids)
    assert image.dtype == text.dtype == torch.float32
    ((F.normalize(image) * F.normalize(text)).sum() * encoder.model.logit_scale).backward()  # type: ignore[operator]
    for name, value in encoder.model.named_parameters():
        assert value.grad is not None, name
        assert torch.isfinite(value.grad).all(), name


def test_preprocessing_is_grey_and_does_not_flip() -> None:
    """Colour is taken out as PIL does it; left stays left."""
    encoder = Encoder.scratch("vlltr-tiny", TEXTS)
    image = Image.new("RGB", (32, 32), "white")
    image.paste((200, 30, 90), (0, 0, 8, 32))
    pixels = encoder.preprocess(image)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32
    grey = torch.tensor(list(image.convert("L").tobytes())).view(32, 32) / 255
    assert torch.allclose(pixels, (grey - 0.5).div(0.5).expand(3, 32, 32), atol=1e-6)
    assert pixels[0, 0, 0] < pixels[0, 0, 31]


def test_same_seed_and_texts_give_the_same_encoder() -> None:
    """And other ones do not; the caller's random numbers are not touched."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = (Encoder.scratch("vlltr-tiny", TEXTS, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert (one.text_fp, one.image_fp) == (two.text_fp, two.image_fp)
    assert one.text_fp != other.text_fp
    assert one.image_fp != other.image_fp
