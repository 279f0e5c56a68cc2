"""Image towers of timm: the same pixels and features as timm's own, from safe files alone, and no text."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support.hubserver import NOWHERE, Repo, hub_server, point_at
from tests.support.image_towers import write_tower
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.openclip import build_model
from vlltr_index.encoders.weights import check_source, missing_weights
from vlltr_index.errors import ConfigError, EncoderError
from vlltr_index.schemas.recipes import load_recipe

ZERO = "0" * 40


def _picture() -> Image.Image:
    return Image.linear_gradient("L").resize((90, 60)).convert("RGB").rotate(30)


def _change(folder: Path, **values: Any) -> None:
    """Change a folder's config.json; keys with __ are of `pretrained_cfg`."""
    path = folder / "config.json"
    facts = json.loads(path.read_text())
    for key, value in values.items():
        if key.startswith("pre__"):
            facts["pretrained_cfg"][key.removeprefix("pre__")] = value
        else:
            facts[key] = value
    path.write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.parametrize(
    ("architecture", "args", "changes"),
    [
        ("test_resnet", {}, {}),
        ("test_resnet", {}, {"pre__crop_mode": "squash", "pre__crop_pct": 0.8}),
        ("test_convnext", {}, {"pre__crop_pct": 1.0}),
        ("test_vit", {"img_size": 64, "global_pool": "avg"}, {"pre__input_size": [3, 64, 64]}),
        # Classifiers that are more than the layer that `pretrained_cfg` names.
        ("levit_128s", {}, {"pre__input_size": [3, 224, 224]}),
        pytest.param("caformer_s18", {}, {}, marks=pytest.mark.slow),
        pytest.param("repvit_m0_9", {}, {}, marks=pytest.mark.slow),
        pytest.param("efficientvit_m0", {}, {"pre__input_size": [3, 224, 224]}, marks=pytest.mark.slow),
        pytest.param("shvit_s1", {}, {"pre__input_size": [3, 224, 224]}, marks=pytest.mark.slow),
        pytest.param(
            "vit_small_patch14_dinov2",
            {"img_size": 56},
            {"pre__input_size": [3, 56, 56]},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "vit_small_patch16_dinov3", {}, {"pre__input_size": [3, 256, 256]}, marks=pytest.mark.slow
        ),
    ],
)
def test_it_sees_as_timm_does(
    tmp_path: Path, architecture: str, args: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Without the classifier, with the preprocessing that timm evaluates by; so does the saved encoder."""
    side = changes.get("pre__input_size", [3, 32, 32])[1]
    folder = write_tower(tmp_path / "tower", architecture, side, **args)
    _change(folder, **changes)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    encoder = Encoder.load("timm", str(folder))
    assert encoder.name == f"timm:{architecture}"
    pixels = prepare(_picture())[None]
    torch.testing.assert_close(encoder.preprocess(_picture())[None], pixels)
    with torch.no_grad():
        features = encoder.encode_pixels(pixels)
        torch.testing.assert_close(features, model(pixels))
        assert features.shape == (1, encoder.dim)
        encoder.save(tmp_path / "saved")
        again = Encoder.open(tmp_path / "saved")
        assert torch.equal(again.encode_pixels(pixels), features)
    assert (again.image_fp, again.text_fp) == (encoder.image_fp, encoder.text_fp)
    assert not again.has_text_tower
    assert not again.encode_texts(["a ring", "a cross made of lines"]).any()


def test_a_saved_tower_is_no_encoder_to_start_from(tmp_path: Path) -> None:
    """A recipe would not say that there is no text tower."""
    Encoder.load("timm", str(write_tower(tmp_path / "tower"))).save(tmp_path / "saved")
    with pytest.raises(EncoderError, match="holds an image tower without a text tower"):
        check_source("local-dir", str(tmp_path / "saved"))


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved encoder of a small ViT for images of 64 pixels."""
    folder = tmp_path_factory.mktemp("saved")
    tower = write_tower(folder / "tower", "test_vit", side=64, img_size=64)
    Encoder.load("timm", str(tower)).save(folder / "encoder")
    return folder / "encoder"


@pytest.mark.parametrize(
    ("keys", "value", "why"),
    [
        ("model_cfg.embed_dim", 7, "the image tower's vectors are 64 wide, not 7"),
        (
            "model_cfg.vision_cfg.image_size",
            96,
            "it takes images of 96 pixels, and preprocessing makes them 64",
        ),
        (
            "model_cfg.vision_cfg.timm_args.num_heads",
            5,
            "this encoder takes no images of 64 pixels: AssertionE",
        ),
        ("model_cfg.vision_cfg.timm_args.depth", 1000, "it has more than 10,000 tensors"),
        ("preprocess_cfg.std", [0, 0, 0], "std is three finite numbers above 0"),
        ("preprocess_cfg.mean", [math.nan] * 3, "mean is three finite numbers"),
        ("preprocess_cfg.mean", [0.5], "mean is three finite numbers"),
        ("preprocess_cfg.resize", 10**6, "images of 1000000 pixels a side; 1 to 4096 can be"),
        (
            "tokenizer",
            "x",
            "config.tokenizer in encoder.json: Input should be 'open_clip', 'words' or 'none'",
        ),
    ],
)
def test_a_description_that_is_not_of_these_weights_is_refused(
    saved_once: Path, tmp_path: Path, keys: str, value: Any, why: str
) -> None:
    """Also where the weights alone would fit."""
    shutil.copytree(saved_once, tmp_path / "saved")
    path = tmp_path / "saved" / "encoder.json"
    facts = json.loads(path.read_text())
    *parents, last = keys.split(".")
    part = facts["config"]
    for key in parents:
        part = part[key]
    part[last] = value
    path.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(EncoderError) as caught:
        Encoder.open(tmp_path / "saved")
    assert why in caught.value.message


def test_it_takes_images_of_another_size(tmp_path: Path) -> None:
    """Also when it is opened again; a size that no patch divides is refused, before it is read."""
    folder = write_tower(tmp_path / "tower", "test_vit", side=64, img_size=64)
    encoder = Encoder.load("timm", str(folder), image_size=96)
    encoder.save(tmp_path / "saved")
    again = Encoder.open(tmp_path / "saved")
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(again.encode_pixels(pixels), encoder.encode_pixels(pixels))
    assert again.preprocess(_picture()).shape == (3, 96, 96)
    with pytest.raises(EncoderError, match="multiple of 16 pixels, not 40"):
        Encoder.load("timm", str(folder), image_size=40)


@pytest.mark.parametrize(
    ("architecture", "args", "side", "why"),
    [
        ("test_vit", {"img_size": 64}, 40, "a multiple of 16 pixels, not 40"),
        ("levit_128s", {}, 96, "takes no images of 96 pixels: RuntimeError: "),
    ],
)
def test_a_size_that_cannot_be_is_refused_at_once(
    tmp_path: Path, architecture: str, args: dict[str, Any], side: int, why: str
) -> None:
    """Without the weights."""
    folder = write_tower(tmp_path / "tower", architecture, 64 if args else 224, **args)
    (folder / "model.safetensors").write_bytes(b"not read")
    check_source("timm", str(folder))
    check_source("timm", str(folder), 128 if args else 224)
    with pytest.raises(EncoderError, match=why):
        check_source("timm", str(folder), side)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architecture": "hf-hub:user/evil"}, "has no model 'hf-hub:user/evil'"),
        ({"architecture": "nothing_of_timm"}, "has no model 'nothing_of_timm'"),
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "'checkpoint_path' is no argument that is passed"),
        ({"model_args": {"pretrained_cfg": {"file": "evil.pth"}}}, "'pretrained_cfg' is no argument"),
        ({"model_args": {"global_pool": ""}, "global_pool": None}, "gives no single vector for an image"),
        ({"pre__input_size": [1, 32, 32]}, "it takes images of 1 x 32 x 32, not colour images"),
        ({"pre__input_size": [3, 32, 64]}, "it takes images of 3 x 32 x 64, not colour images"),
        ({"pre__interpolation": "lanczos"}, "images are resized by 'lanczos', crop mode 'center'"),
        ({"pre__crop_mode": "border"}, "images are resized by 'bilinear', crop mode 'border'"),
        ({"pre__crop_pct": 0.0}, "pretrained_cfg.crop_pct in config.json: Input should be greater than"),
        ({"pre__crop_pct": 1e-300}, "pretrained_cfg.crop_pct in config.json: Input should be greater than"),
        ({"pre__input_size": [3, 20000, 20000]}, "input_size.1 in config.json: Input should be less than"),
        ({"pre__input_size": [3, 0, 0]}, "input_size.1 in config.json: Input should be greater than"),
        ({"pre__std": [0.0, 0.2, 0.2]}, "pretrained_cfg.std.0 in config.json: Input should be greater than"),
        ({"pre__std": [0.2, math.inf, 0.2]}, "pretrained_cfg.std.1 in config.json: Input should be"),
        ({"pre__mean": [0.2, 0.2, math.nan]}, "pretrained_cfg.mean.2 in config.json: Input should be"),
        ({"pre__mean": [1e300, 0.2, 0.2]}, "pretrained_cfg.mean.0 in config.json: Input should be less than"),
        (
            {"model_args": {"layers": [1, 1, 1, 1_000_000]}},
            "'layers' is no argument that is passed to timm: [1,",
        ),
        ({"model_args": {"layers": [1] * 65}}, "'layers' is no argument that is passed to timm"),
        ({"model_args": {"mlp_ratio": math.nan}}, "'mlp_ratio' is no argument that is passed to timm: nan"),
        ({"model_args": {"layers": [1, 1]}}, "cannot be used: "),
        ({"model_args": {"layers": [2000, 1, 1, 1]}}, "it has more than 10,000 tensors"),
        ({"pretrained_cfg": None}, "pretrained_cfg in config.json: Input should be"),
    ],
)
def test_what_could_be_fetched_or_is_not_followed_is_refused(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    """Before the weights are read."""
    folder = write_tower(tmp_path / "tower")
    _change(folder, **changes)
    (folder / "model.safetensors").write_bytes(b"not read")
    for call in (check_source, Encoder.load):
        with pytest.raises(EncoderError) as caught:
            call("timm", str(folder))
        assert why in caught.value.message
        assert not caught.value.message.endswith(": ")
        assert caught.value.hint is None


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("hf-hub:user/evil", {}),
        ("test_resnet", {"checkpoint_path": "evil.pth"}),
        ("test_resnet", {"pretrained_cfg": {"file": "evil.pth"}}),
    ],
)
def test_nor_does_an_export_name_what_is_fetched(name: str, args: dict[str, Any]) -> None:
    """Also where nothing has looked at its description before."""
    vision = {"timm_model_name": name, "timm_args": args, "image_size": 32}
    with pytest.raises(EncoderError, match=r"has no model|is no argument"):
        build_model({"embed_dim": 96, "vision_cfg": vision, "text_cfg": {}})


def test_weights_that_need_pickle_or_are_others_are_refused(tmp_path: Path) -> None:
    """Each with what mends it."""
    folder = write_tower(tmp_path / "tower")
    weights = folder / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "strange": torch.zeros(1)}, weights)
    with pytest.raises(EncoderError, match="holds the weights of another model") as caught:
        Encoder.load("timm", str(folder))
    assert "strange" in caught.value.message
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EncoderError, match=r"model\.safetensors cannot be read"):
        Encoder.load("timm", str(folder))
    weights.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(EncoderError) as caught:
        Encoder.load("timm", str(folder))
    assert str(caught.value) == (
        f"{folder} is no folder of a timm model: it has no model.safetensors\n"
        "timm writes both files: timm.models.save_for_hf(model, FOLDER, safe_serialization=True)"
    )


def test_a_model_too_large_for_its_weights_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    """By the shapes in the file; this one would have 67 billion numbers in each layer."""
    folder = write_tower(tmp_path / "tower", "test_vit", side=64, img_size=64)
    _change(folder, model_args={"img_size": 64, "embed_dim": 4_096, "mlp_ratio": 4_000})
    with pytest.raises(EncoderError, match="holds the weights of another model"):
        Encoder.load("timm", str(folder))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layer1.0.conv1.weight", lambda value: value.fill_(math.nan)),
        ("layer1.0.conv1.weight", lambda value: value.double() + 1e300),
        ("bn1.running_var", lambda value: value - math.inf),
        ("layer1.0.conv1.weight", lambda value: value.to(torch.int8)),
        ("layer1.0.conv1.weight", lambda value: value > 0),
        ("layer1.0.conv1.weight", lambda value: value.to(torch.complex64)),
        ("bn1.num_batches_tracked", lambda value: value.float()),
    ],
)
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """The message names the file and the tensor; float16 is converted."""
    folder = write_tower(tmp_path / "tower")
    weights = folder / "model.safetensors"
    state = {
        key: value.half() if key.endswith("conv2.weight") else value
        for key, value in load_file(weights).items()
    }
    save_file(state, weights)
    Encoder.load("timm", str(folder))
    save_file({**state, name: change(state[name])}, weights)
    with pytest.raises(EncoderError, match="holds weights that are not finite numbers") as caught:
        Encoder.load("timm", str(folder))
    assert str(weights) in caught.value.message
    assert name in caught.value.message


def test_a_folder_of_timm_is_named_with_timm(tmp_path: Path) -> None:
    """The hint says how; with `timm` a folder or repository must be named."""
    folder = write_tower(tmp_path / "tower")
    with pytest.raises(EncoderError) as caught:
        check_source(str(folder), None)
    assert caught.value.hint is not None
    assert f"--encoder timm:{folder}" in caught.value.hint
    for name in ("timm", "timm:"):
        with pytest.raises(ConfigError, match="names no folder or repository: --encoder timm:FOLDER"):
            load_recipe(encoder=name)


@pytest.mark.parametrize(
    "name",
    ["nowhere", "owner/name", "owner/name@main"]
    + [f"{name}@{ZERO}" for name in ("a/b/c", "../..", "-x/--y", "a/-y", "./a", "a/.b", "a/\u00e9")],
)
def test_a_repository_needs_its_commit(name: str) -> None:
    """Before anything is fetched."""
    for call in (check_source, Encoder.load):
        with pytest.raises(EncoderError, match="no folder or repository is named"):
            call("timm", "")
        with pytest.raises(EncoderError) as caught:
            call("timm", name)
        assert str(caught.value) == (
            f"{name} is neither a folder here nor a repository with its commit\n"
            "--encoder timm: takes a folder, or OWNER/NAME@COMMIT with all 40 digits of the commit."
        )


def test_a_repository_is_fetched_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its description and its safetensors alone; `init` fetches nothing."""
    asked: list[tuple[str, str, list[str]]] = []
    folder = write_tower(tmp_path / "tower")

    def download(repository: str, *, revision: str, allow_patterns: list[str], **_: Any) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    name = f"timm/small@{ZERO}"
    check_source("timm", name)
    assert missing_weights("timm", name) is None
    assert missing_weights("hf-hub", "owner/name") is None
    assert not asked
    assert Encoder.load("timm", name).name == f"timm:{name}"
    assert asked == [("timm/small", ZERO, ["config.json", "model.safetensors"])]


def test_a_fetched_repository_is_opened_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, without another try to reach it."""
    folder = write_tower(tmp_path / "tower")
    with hub_server() as server:
        point_at(server.url, tmp_path / "cache", monkeypatch)
        repo = server.repos["owner/small"] = Repo()
        repo.commits.append({path.name: path.read_bytes() for path in folder.iterdir()})
        repo.messages.append("put")
        name = f"owner/small@{repo.sha()}"
        assert Encoder.load("timm", name).name == f"timm:{name}"
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    assert Encoder.load("timm", name).name == f"timm:{name}"
    assert not waited
