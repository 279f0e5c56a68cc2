"""`vlltr-tiny`: its image tower, its vocabulary that grows with new texts, and the weights that ship."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from vlltr_index.encoders import openclip
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.openclip import WordTokenizer
from vlltr_index.pipelines.training import starting_encoder
from vlltr_index.schemas.config import EncoderConfig, Recipe

OLD = ["a small letter", "a capital letter with a stroke"]
NEW = ["a glyph with serifs and serifs", "a small letter"]


@pytest.fixture
def encoder() -> Encoder:
    """A tiny encoder that knows the words of `OLD`."""
    return Encoder.scratch("vlltr-tiny", OLD, seed=1)


def test_new_words_follow_the_old_ones() -> None:
    """Known words keep their ids, new ones come behind them by count, start and end stay the two largest."""
    first = WordTokenizer.build(OLD, 32)
    wider = first.extended(NEW)
    assert wider.words == (*first.words, "serifs", "and", "glyph")
    assert (wider.start_id, wider.end_id) == (wider.vocab_size - 2, wider.vocab_size - 1)
    assert wider.encode("a letter")[1:-1] == first.encode("a letter")[1:-1]
    assert first.extended(OLD).words == first.words


def test_features_of_known_words_stay(encoder: Encoder, tmp_path: Path) -> None:
    """New rows change no features of old texts; unknown words get rows of their own, which survive saving."""
    before, fingerprint = encoder.encode_texts(OLD), encoder.text_fp
    assert encoder.learn_words(NEW, seed=7) == 3
    assert torch.equal(encoder.encode_texts(OLD), before)
    assert encoder.text_fp != fingerprint
    apart = encoder.encode_texts(["glyph", "serifs"])
    assert not torch.equal(apart[0], apart[1])
    assert encoder.learn_words(NEW, seed=8) == 0
    encoder.save(tmp_path)

    again = Encoder.open(tmp_path)
    assert again.text_fp == encoder.text_fp
    assert torch.equal(again.encode_texts(NEW), encoder.encode_texts(NEW))


def test_training_starts_with_a_vocabulary_that_covers_its_texts(encoder: Encoder, tmp_path: Path) -> None:
    """A run from pretrained weights knows every word of its texts, twice in the same way."""
    encoder.save(tmp_path)
    recipe = Recipe(name="t", encoder=EncoderConfig(model="vlltr-tiny", pretrained=str(tmp_path)))
    first, second = (starting_encoder(recipe, [NEW], 3) for _ in range(2))
    assert 1 not in first.tokenize(NEW).ids
    assert first.text_fp == second.text_fp
    assert starting_encoder(recipe, None, 3).text_fp == encoder.text_fp


SHIPPED = Path(str(files("vlltr_index.recipes.glyphs_lt"))) / "pretrained"


def test_the_weights_that_ship_are_what_they_say() -> None:
    """Digests are those of the files, the size stays small, and the counts stand in the manifest and on the page."""
    lines = (SHIPPED / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    names = [line.split("  ")[1] for line in lines]
    found = {name: hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() for name in names}
    assert [f"{digest}  {name}" for name, digest in found.items()] == lines
    assert sorted(found) == ["encoder.json", "model.safetensors", "words.json"]
    assert (SHIPPED / "model.safetensors").stat().st_size <= 7_000_000
    manifest = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    page = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for count in (manifest["classes"], manifest["images"]["train"], manifest["sentences"]):
        assert f"{count:,}" in page


def test_the_weights_that_ship_load_by_their_tag() -> None:
    """In float32, the same each time, with a vocabulary of their own; texts about other things lie apart."""
    encoder = Encoder.load("vlltr-tiny", "glyphs", device="cpu")
    assert (encoder.name, encoder.dim, encoder.image_size) == ("vlltr-tiny", 192, (32, 32))
    assert all(p.dtype == torch.float32 for p in encoder.model.parameters())
    assert isinstance(encoder.tokenizer, WordTokenizer)
    assert {"combining", "acute", "hiragana"} <= set(encoder.tokenizer.words)
    assert Encoder.load("vlltr-tiny", "glyphs", device="cpu").text_fp == encoder.text_fp
    a, b = encoder.encode_texts(
        ["a picture of the hiragana letter ka.", "a picture of the box drawings light up."]
    )
    assert float(torch.cosine_similarity(a, b, dim=0)) < 0.9


TEXTS = ["greek small letter omega", "latin capital letter a with grave"]


def test_tower_equals_its_layers_written_out() -> None:
    """The fast layout, the in-place arithmetic and, without a gradient, the folded BatchNorm change nothing."""
    torch.manual_seed(0)
    tower = openclip.TinyTower()
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    tower.double().eval()  # what float32 rounds would look like a difference
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    y = (x[:, :1] + x[:, 1:2] + x[:, 2:]) / 3
    y = F.pixel_unshuffle(y, 2)
    for at in range(0, 9, 3):
        stem, residual = tower.stages[at], tower.stages[at + 2]
        y = torch.relu(stem(y))
        y = torch.relu(y + residual.second(torch.relu(residual.first(y))))  # type: ignore[operator]
    torch.testing.assert_close(tower(x), y.flatten(1))
    with torch.inference_mode():
        torch.testing.assert_close(tower(x), y.flatten(1))
        tower.stages[0][0] = torch.nn.Sequential(tower.stages[0][0])  # type: ignore[index,operator]  # as an adapter does
        torch.testing.assert_close(tower(x), y.flatten(1))


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
