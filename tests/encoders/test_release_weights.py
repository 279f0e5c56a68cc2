"""Tests of `release_weights`: what the release computes, our encoder and head compute from its checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.support import release_twins
from vlltr_index.encoders import openclip, weights
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.release_weights import (
    anchor_vectors,
    fusion_alpha,
    model_config,
    read_release,
    release_head,
    stage_one_encoder,
    stage_two_encoder,
)
from vlltr_index.errors import EncoderError
from vlltr_index.heads.anchor_bank import AnchorBank

TOWERS = {"vit": release_twins.vit, "resnet": release_twins.resnet}
TEXTS = ["a tench", "The tench is a fresh-water fish.", "owl " * 90]


def stage_one(path: Path, kind: str, **args: Any) -> release_twins.State:
    """Write a stage 1 checkpoint; returns its weights."""
    torch.manual_seed(3)
    state = TOWERS[kind]() | release_twins.text_tower()
    release_twins.save(path, state, **args)
    return state


@pytest.mark.parametrize("name", ["RN50-quickgelu", "ViT-B-16-quickgelu", "ViT-B-32-quickgelu"])
def test_the_releases_models_are_known_by_their_shapes(name: str) -> None:
    """The shapes of open_clip's own models, weights on no device, give back their configuration and their name."""
    with torch.device("meta"):
        model = openclip.build_model(weights.find_config(name)["model_cfg"])
    cfg = model_config(model.state_dict(), "the file")
    assert openclip.known_as(cfg) == name
    assert openclip.known_as({**cfg, "embed_dim": 7}) is None


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_stage_one_gives_the_releases_features(tmp_path: Path, kind: str) -> None:
    """Both towers equal plain functions of the checkpoint's weights, also after saving and opening."""
    state = stage_one(tmp_path / "checkpoint.pth", kind)
    checkpoint = read_release(tmp_path / "checkpoint.pth")
    assert (checkpoint.stage, checkpoint.epoch, checkpoint.args["batch_size"]) == (1, 49, 256)
    encoder = stage_one_encoder(checkpoint)
    assert encoder.config["model_cfg"]["quick_gelu"]
    assert encoder.logit_scale == pytest.approx(float(torch.tensor(4.1).exp()))
    encoder.save(tmp_path / "saved")
    ids = encoder.tokenize(TEXTS).ids
    ids = F.pad(ids, (0, 77 - ids.shape[1]))
    side = encoder.image_size[0]
    pixels = torch.randn(3, 3, side, side)
    for one in (encoder, Encoder.open(tmp_path / "saved")):
        with torch.no_grad():
            images, texts = one.encode_pixels(pixels), one.encode_tokens(ids)
        assert torch.allclose(images, release_twins.encode_image(state, pixels), atol=1e-5, rtol=1e-4)
        assert torch.allclose(texts, release_twins.encode_text(state, ids), atol=1e-5, rtol=1e-4)


def test_data_parallel_and_half_precision_checkpoints(tmp_path: Path) -> None:
    """The prefix is dropped and half precision widened; weights alone are read as well."""
    state = stage_one(tmp_path / "a.pth", "vit")
    release_twins.save(tmp_path / "b.pth", {f"module.{k}": v.half() for k, v in state.items()})
    torch.save(state, tmp_path / "c.pth")
    for name in ("b.pth", "c.pth"):
        found = read_release(tmp_path / name)
        assert found.state.keys() == state.keys()
        assert all(torch.allclose(found.state[k].float(), v.float(), atol=1e-2) for k, v in state.items())


def test_the_releases_preprocessing(tmp_path: Path) -> None:
    """Resized to 256 / 224 of the size, the middle square, the release's own rounded mean and std."""
    from torchvision import transforms

    stage_one(tmp_path / "c.pth", "vit")
    encoder = stage_one_encoder(read_release(tmp_path / "c.pth"))
    bicubic = transforms.InterpolationMode.BICUBIC
    twin = transforms.Compose(
        [
            transforms.Resize(int(256 / 224 * 32), interpolation=bicubic),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
        ]
    )
    for height, width in ((50, 90), (91, 40), (37, 36), (20, 20)):
        noise = np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)
        image = Image.fromarray(noise)
        assert torch.allclose(encoder.preprocess(image), twin(image), atol=1e-6)
    state = stage_one(tmp_path / "e.pth", "vit")
    torch.save({"model": state, "args": argparse.Namespace(clip_ms=False)}, tmp_path / "e.pth")
    other = stage_one_encoder(read_release(tmp_path / "e.pth"))
    assert torch.equal(other.mean, torch.tensor([0.485, 0.456, 0.406]))


def stage_two(path: Path, classes: int = 5, **args: Any) -> release_twins.State:
    """Write a stage 2 checkpoint of a ViT; returns its weights."""
    torch.manual_seed(4)
    state = release_twins.vit() | release_twins.head(classes, 4)
    release_twins.save(path, state, **args)
    return state


def test_stage_two_gives_the_releases_logits(tmp_path: Path) -> None:
    """Both branches equal Eqs. 4-7 with padded anchors; rows can be put into another order."""
    state = stage_two(tmp_path / "checkpoint.pth", data_set="IMNET_LT")
    checkpoint = read_release(tmp_path / "checkpoint.pth")
    assert checkpoint.stage == 2
    vectors = anchor_vectors(checkpoint)
    assert [len(v) for v in vectors] == [1, 2, 3, 4, 1]
    owner = torch.arange(5).repeat_interleave(torch.tensor([len(v) for v in vectors]))
    bank = AnchorBank.build(torch.cat(vectors), owner, range(5))
    images = 3 * torch.randn(6, 24)
    visual, text = release_twins.logits(state, images)
    with torch.no_grad():
        head = release_head(checkpoint)
        found = head.visual_logits(images), head.text_logits(images, bank)
        turned = release_head(checkpoint, torch.tensor([4, 2, 0, 1, 3])).visual_logits(images)
    assert torch.allclose(found[0], visual, atol=1e-4, rtol=1e-5)
    assert torch.allclose(found[1], text, atol=1e-3, rtol=1e-4)
    assert torch.allclose(turned, visual[:, [4, 2, 0, 1, 3]], atol=1e-4, rtol=1e-5)


def test_stage_two_takes_the_text_tower_of_stage_one(tmp_path: Path) -> None:
    """Image features are the new checkpoint's, text features the old one's; other towers are refused."""
    one = stage_one(tmp_path / "one.pth", "vit")
    two = stage_two(tmp_path / "two.pth")
    base = stage_one_encoder(read_release(tmp_path / "one.pth"))
    both = stage_two_encoder(read_release(tmp_path / "two.pth"), base)
    pixels, ids = torch.randn(2, 3, 32, 32), base.tokenize(TEXTS).ids
    full = F.pad(ids, (0, 77 - ids.shape[1]))
    with torch.no_grad():
        assert torch.allclose(both.encode_pixels(pixels), release_twins.encode_image(two, pixels), atol=1e-4)
        assert torch.allclose(both.encode_tokens(ids), release_twins.encode_text(one, full), atol=1e-4)
    assert both.text_fp == base.text_fp
    assert both.image_fp != base.image_fp
    release_twins.save(tmp_path / "other.pth", release_twins.resnet() | release_twins.head(5, 4))
    with pytest.raises(EncoderError) as caught:
        stage_two_encoder(read_release(tmp_path / "other.pth"), base)
    assert caught.value.message.startswith(f"{tmp_path / 'other.pth'} holds the weights of another model: ")
    assert caught.value.hint == (
        "Its image tower is not ViT of width 64's. Import the stage 1 checkpoint that belongs to it first."
    )


@pytest.mark.parametrize(("data", "alpha"), [("IMNET_LT", 0.2), ("INAT", 0.7), (None, None)])
def test_the_releases_fusion_weight(tmp_path: Path, data: str | None, alpha: float | None) -> None:
    """It depends on the data set, which the options name."""
    stage_two(tmp_path / "c.pth", **({"data_set": data} if data else {}))
    assert fusion_alpha(read_release(tmp_path / "c.pth")) == alpha


def test_other_files(tmp_path: Path) -> None:
    """The release's model without text, something else, a file without weights."""
    path = tmp_path / "c.pth"
    for state in (
        {"fc.weight": torch.zeros(1), **release_twins.vit()},
        {"layer1.weight": torch.zeros(1)},
        {},
    ):
        release_twins.save(path, state)
        with pytest.raises(EncoderError) as wrong:
            read_release(path)
        assert wrong.value.message.startswith(f"{path} is no checkpoint of the VL-LTR release: it holds ")


def test_incomplete_checkpoints(tmp_path: Path) -> None:
    """Missing weights, another vocabulary, a head of another kind, anchors that are empty or not finite."""
    path = tmp_path / "c.pth"
    one = stage_one(path, "vit")
    release_twins.save(path, {k: v for k, v in one.items() if k != "ln_final.weight"})
    with pytest.raises(EncoderError, match=r"lacks weights of CLIP's towers.*ln_final.weight"):
        stage_one_encoder(read_release(path))
    without_blocks = {k: v for k, v in one.items() if not k.startswith("transformer.resblocks.")}
    release_twins.save(path, without_blocks)
    with pytest.raises(EncoderError, match=r"c\.pth lacks weights of CLIP's towers.*number of layers is 0"):
        stage_one_encoder(read_release(path))
    release_twins.save(path, {**one, "token_embedding.weight": torch.zeros(100, 64)})
    with pytest.raises(EncoderError, match="has 100 tokens, CLIP's tokenizer 49,408"):
        stage_one_encoder(read_release(path))
    two = stage_two(path)
    release_twins.save(path, {k: v for k, v in two.items() if "visual_fc" not in k})
    with pytest.raises(EncoderError, match="does not hold the release's two-branch head with a scale"):
        release_head(read_release(path))
    for anchors in (torch.zeros(5, 4, 24), torch.full((5, 4, 24), float("nan"))):
        release_twins.save(path, {**two, "text_embeddings": anchors})
        with pytest.raises(EncoderError, match="holds no usable text_embeddings"):
            anchor_vectors(read_release(path))
