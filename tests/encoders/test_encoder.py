"""Tests of `vlltr_index.encoders.encoder`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from tests.support import small_clip
from vlltr_index.encoders import openclip
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import EncoderError, InputError

TEXTS = ["greek small letter omega", "latin capital letter a with grave", "an arrow", "a", ""]


@pytest.fixture(scope="module", params=["vlltr-tiny", small_clip.NAME])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Both kinds of tokenizer and tower; not to be changed."""
    return Encoder.scratch(request.param, TEXTS, seed=3)


def _prints(encoder: Encoder) -> tuple[str, str]:
    return encoder.text_fp, encoder.image_fp


def test_saving_and_opening_changes_nothing(encoder: Encoder, tmp_path: Path) -> None:
    """Fingerprints, features, tokens and preprocessing come back as they were."""
    encoder.save(tmp_path)
    again = Encoder.open(tmp_path)
    assert _prints(again) == _prints(encoder)
    assert torch.equal(again.encode_texts(TEXTS), encoder.encode_texts(TEXTS))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.encode_pixels(pixels), encoder.encode_pixels(pixels))
    image = Image.effect_noise((50, 40), 90)
    assert torch.equal(again.preprocess(image), encoder.preprocess(image))
    assert (again.name, again.config, again.precision) == (encoder.name, encoder.config, encoder.precision)
    assert not again.model.training


def test_each_tower_has_its_own_fingerprint(encoder: Encoder) -> None:
    """A changed tower changes its own, at once, and not the other's; the scale belongs to neither."""
    other = encoder.copy()
    text, image = _prints(other)
    with torch.no_grad():
        other.model.logit_scale.add_(1)  # type: ignore[operator]
        assert _prints(other) == (text, image)
        next(p for n, p in other.model.named_parameters() if n.startswith("visual.")).add_(1e-3)
        assert other.text_fp == text
        assert other.image_fp != image
        changed = other.image_fp
        next(p for n, p in other.model.named_parameters() if "ln_final" in n).add_(1e-3)
    assert other.text_fp != text
    assert other.image_fp == changed
    assert _prints(encoder) == (text, image)


def test_fingerprints_know_tokenizer_preprocessing_activation_and_precision(encoder: Encoder) -> None:
    """The same weights used otherwise give other vectors."""

    def changed(precision: Any = "fp32", **parts: Any) -> tuple[str, str]:
        config = encoder.config
        for part, values in parts.items():
            config[part] = {**config[part], **values}
        return _prints(Encoder(encoder.model, encoder.tokenizer, config, name="x", precision=precision))

    text, image = _prints(encoder)
    assert changed() == (text, image)
    mean = changed(preprocess_cfg={"mean": [0.1, 0.1, 0.1]})
    assert (mean[0] == text, mean[1] == image) == (True, False)
    quick = changed(model_cfg={"quick_gelu": True})
    assert (quick[0] == text, quick[1] == image) == (False, False)
    bf16 = changed(precision="bf16")
    assert (bf16[0] == text, bf16[1] == image) == (False, False)
    if encoder.name == "vlltr-tiny":
        words = Encoder.scratch("vlltr-tiny", ["omega greek small letter"], 3)
        assert words.text_fp != Encoder.scratch("vlltr-tiny", ["alpha greek small letter"], 3).text_fp


def test_texts_are_encoded_in_their_order(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorting by length and small batches change nothing: each row equals its text alone at the full context."""
    monkeypatch.setattr("vlltr_index.encoders.encoder._TOKENS_A_BATCH", 12)
    texts = [TEXTS[at % 5] for at in (1, 4, 0, 2, 3, 1, 0, 4)]
    found = encoder.encode_texts(texts)
    context = encoder.tokenizer.context_length
    for row, text in zip(found, texts, strict=True):
        ids = encoder.tokenize([text]).ids
        with torch.no_grad():
            alone = encoder.model.encode_text(F.pad(ids, (0, context - ids.shape[1])))  # type: ignore[operator]
        assert torch.allclose(row, alone[0], atol=1e-5)
    assert not found.requires_grad


def test_long_texts_are_cut_and_counted(encoder: Encoder) -> None:
    """What lies beyond the context changes nothing, and the count says so."""
    start = "a " * 100
    tokens = encoder.tokenize([start + "omega", start + "arrow", "a"])
    assert tokens.truncated == 2
    assert tokens.ids.shape[1] == encoder.tokenizer.context_length
    assert torch.equal(tokens.ids[0], tokens.ids[1])
    vectors = encoder.encode_texts(tokens)
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-5, rtol=1e-5)


def test_pixels_and_tokens_of_another_shape_are_refused(encoder: Encoder) -> None:
    """The message names what was expected and what came."""
    for pixels in (torch.zeros(2, 1, 32, 32), torch.zeros((2, 3, 32, 32), dtype=torch.uint8)):
        with pytest.raises(InputError, match=r"pixels must be floating \[B, 3, H, W\], got "):
            encoder.encode_pixels(pixels)
    context = encoder.tokenizer.context_length
    for ids in (torch.zeros(1, context + 1).long(), torch.zeros(1, 4)):
        with pytest.raises(InputError, match=rf"ids must be int64 \[B, 1..{context}\]"):
            encoder.encode_tokens(ids)


def test_bfloat16_is_close_and_returns_float32(encoder: Encoder) -> None:
    """Also inside inference mode, where torch's attention would otherwise copy its weights for every token."""
    fast = Encoder(encoder.model, encoder.tokenizer, encoder.config, name="x", precision="bf16")
    pixels = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        exact, found = encoder.encode_pixels(pixels), fast.encode_pixels(pixels)
        assert torch.is_inference_mode_enabled()
    assert not exact.is_inference()  # the tower ran outside of it
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert F.cosine_similarity(found, exact).min() > 0.99
    assert F.cosine_similarity(fast.encode_texts(TEXTS), encoder.encode_texts(TEXTS)).min() > 0.99
    with pytest.raises(EncoderError) as caught:
        Encoder(encoder.model, encoder.tokenizer, encoder.config, name="x", precision="fp8")  # type: ignore[arg-type]
    assert str(caught.value) == "precision is fp32, tf32 or bf16, got 'fp8'"


def test_another_image_size(tmp_path: Path) -> None:
    """The choice is saved, and can be changed again; the text tower stays the same."""
    save_file(dict(small_clip.make().state_dict()), str(tmp_path / "w.safetensors"))
    encoder = Encoder.load(small_clip.NAME, str(tmp_path / "w.safetensors"), image_size=64)
    assert encoder.image_size == (64, 64)
    assert encoder.preprocess(Image.new("RGB", (90, 80))).shape == (3, 64, 64)
    encoder.save(tmp_path / "saved")
    again = Encoder.open(tmp_path / "saved")
    assert _prints(again) == _prints(encoder)
    assert Encoder.load(str(tmp_path / "saved"), image_size=32).image_size == (32, 32)
    assert encoder.text_fp == Encoder.load(small_clip.NAME, str(tmp_path / "w.safetensors")).text_fp


def test_a_larger_resize_takes_the_middle(tmp_path: Path) -> None:
    """Another fingerprint, kept when saved, in step with the size."""
    weights = str(tmp_path / "w.safetensors")
    save_file(dict(small_clip.make().state_dict()), weights)
    plain, encoder = (Encoder.load(small_clip.NAME, weights, resize=side) for side in (None, 40))
    image = Image.effect_noise((50, 90), 80)
    assert encoder.text_fp == plain.text_fp
    assert encoder.image_fp != plain.image_fp
    encoder.save(tmp_path / "saved")
    again = Encoder.load(str(tmp_path / "saved"))
    assert _prints(again) == _prints(encoder)
    assert torch.equal(again.preprocess(image), encoder.preprocess(image))
    larger = Encoder.load(str(tmp_path / "saved"), image_size=64)
    assert (larger.image_size, larger.config["preprocess_cfg"]["resize"]) == ((64, 64), 80)
    assert Encoder.scratch(small_clip.NAME, resize=36).config["preprocess_cfg"]["resize"] == 36
    with pytest.raises(EncoderError, match="resize 31 is less than size 32"):
        Encoder.load(small_clip.NAME, weights, resize=31)


def test_another_image_size_of_a_timm_tower(tmp_path: Path) -> None:
    """timm interpolates its own positions; the saved folder opens at the new size."""
    cfg = {
        "embed_dim": 24,
        "vision_cfg": {
            "timm_model_name": "test_vit",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 160,
        },
        "text_cfg": small_clip.MODEL_CFG["text_cfg"],
    }
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}), encoding="utf-8")
    save_file(dict(openclip.build_model(cfg).state_dict()), str(folder / "open_clip_model.safetensors"))
    with pytest.raises(EncoderError, match="a multiple of 16 pixels, not 100"):
        Encoder.load(str(folder), image_size=100)
    encoder = Encoder.load(str(folder), image_size=96)
    pixels = torch.randn(1, 3, 96, 96)
    encoder.save(tmp_path / "saved")
    again = Encoder.open(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again.encode_pixels(pixels), encoder.encode_pixels(pixels))
    assert _prints(again) == _prints(encoder)
    assert Encoder.load(str(tmp_path / "saved"), image_size=160).encode_pixels(
        torch.zeros(1, 3, 160, 160)
    ).shape == (1, 24)


def test_a_word_vocabulary_needs_texts() -> None:
    """Without sentences there is nothing to build it from."""
    with pytest.raises(
        EncoderError, match=r"builds its vocabulary from the sentences, and there are none\nRun: "
    ):
        Encoder.scratch("vlltr-tiny", ["", "!?"])


@pytest.mark.parametrize(
    ("vision", "preprocess", "why"),
    [
        ({"image_size": 33}, {"size": 33}, "a multiple of 8 pixels, not 33"),
        ({"image_size": 64}, {}, "it takes images of 64 pixels, and preprocessing makes them 32"),
        ({"image_size": 10**6}, {"size": 10**6}, "images of 1000000 pixels a side; 1 to 4096 can be"),
        ("none", {}, "is damaged"),
    ],
)
def test_a_size_that_cannot_be_is_refused(tmp_path: Path, vision: Any, preprocess: Any, why: str) -> None:
    """Whoever wrote it into the description."""
    Encoder.scratch("vlltr-tiny", TEXTS).save(tmp_path)
    facts = json.loads((tmp_path / "encoder.json").read_text())
    model = facts["config"]["model_cfg"]
    model["vision_cfg"] = vision if isinstance(vision, str) else model["vision_cfg"] | vision
    facts["config"]["preprocess_cfg"] |= preprocess
    (tmp_path / "encoder.json").write_text(json.dumps(facts))
    with pytest.raises(EncoderError, match=why):
        Encoder.open(tmp_path)


def test_a_tokenizer_of_another_text_tower_is_refused(tmp_path: Path) -> None:
    """With fewer words all later ones would be read as others, with more some are unknown to the tower."""
    Encoder.scratch("vlltr-tiny", TEXTS).save(tmp_path)
    words = tmp_path / "words.json"
    words.write_text(json.dumps(json.loads(words.read_text())[1:]))
    with pytest.raises(EncoderError, match="makes 14 tokens, its text tower has 15"):
        Encoder.open(tmp_path)
    facts = json.loads((tmp_path / "encoder.json").read_text())
    facts["config"]["tokenizer"] = "open_clip"
    (tmp_path / "encoder.json").write_text(json.dumps(facts))
    with pytest.raises(EncoderError, match="makes 49,408 tokens, its text tower has 15"):
        Encoder.open(tmp_path)


@pytest.mark.parametrize("name", ["encoder.json", "model.safetensors", "words.json"])
def test_damaged_folders_are_refused(tmp_path: Path, name: str) -> None:
    """Whichever file is cut short, empty of facts or gone: one error that names the folder."""
    Encoder.scratch("vlltr-tiny", TEXTS).save(tmp_path)
    path = tmp_path / name
    for content in (path.read_bytes()[: path.stat().st_size // 2], b"{}", None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(EncoderError) as caught:
            Encoder.open(tmp_path)
        assert str(tmp_path) in str(caught.value)
    for content, why in (
        ('{"format": 2}', r"encoder\.json has format 2, but this vlltr-index .* reads format 1: "),
        ("[]", "Input should be an object"),
        ("[" * 100_000, "Invalid JSON"),
    ):
        (tmp_path / "encoder.json").write_text(content)
        with pytest.raises(EncoderError, match=why):
            Encoder.open(tmp_path)
