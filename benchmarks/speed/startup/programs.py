"""The programs to compare with, as source, and the workspaces that the commands run in."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed.clock import Clock

HELP = """
import click
@click.group()
def main(): "A program."
def add(name):
    @main.command(name)
    @click.option("--flag", is_flag=True)
    def command(flag): "What it does."
for name in {names!r}:
    add(name)
main()
"""
LIST = """
import click
@click.command()
@click.argument("uri")
def main(uri):
    import lancedb
    table = lancedb.connect(uri).open_table("classes").to_arrow()
    for name in table["name"].to_pylist():
        click.echo(name)
main()
"""
PREDICT = """
import sys
import open_clip, torch
from PIL import Image
model, _, preprocess = open_clip.create_model_and_transforms(sys.argv[1], pretrained=sys.argv[2])
model.eval()
with torch.inference_mode():
    print(model.encode_image(preprocess(Image.open(sys.argv[3]).convert("RGB"))[None]).norm().item())
"""


def call(arguments: list[str]) -> tuple[dict[str, float], str]:
    """Both clocks and stdout of a program.

    Raises:
        RuntimeError: If it fails.
    """
    clock = Clock()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    took = clock.read()
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stderr}")
    return took, done.stdout


def script(source: str) -> str:
    """A file that holds the program."""
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as file:
        file.write(source)
    return file.name


def class_list(classes: int) -> Path:
    """A workspace with so many classes."""
    from vlltr_index.pipelines.ingest import ingest_text
    from vlltr_index.schemas.recipes import load_recipe
    from vlltr_index.store.workspace import Workspace

    folder = Path(tempfile.mkdtemp(prefix="vlltr-startup-"))
    texts = folder / "texts.json"
    import json

    texts.write_text(json.dumps({f"class {i:05}": [f"The sentence of class {i}."] for i in range(classes)}))
    workspace = Workspace.create(folder / "ws", load_recipe("glyphs_lt/fast"))
    ingest_text(workspace, texts)
    return workspace.path


def trained(model: str) -> tuple[Path, Path, Path]:
    """A workspace of two classes on random weights, the weights' file, and a photograph-sized picture."""
    import json

    import open_clip
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from vlltr_index.anchors.selection import select
    from vlltr_index.pipelines.build_index import index_anchors
    from vlltr_index.pipelines.embed import embed
    from vlltr_index.pipelines.ingest import ingest_images, ingest_text
    from vlltr_index.pipelines.train_lgr import train_lgr_stage
    from vlltr_index.schemas.recipes import load_recipe
    from vlltr_index.store.workspace import Workspace

    folder = Path(tempfile.mkdtemp(prefix="vlltr-startup-"))
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_file(open_clip.create_model(model).state_dict(), weights)
    rng = np.random.default_rng(0)
    for name in ("first", "second"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(2):
            noise = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((800, 600)).save(folder / "images" / name / f"{i}.jpg")
    (folder / "texts.json").write_text(json.dumps({n: [f"The {n} of the two."] for n in ("first", "second")}))
    recipe = load_recipe("ours", ("prompts=[]", "lgr.epochs=1"), encoder=f"{model}:{weights}")
    workspace = Workspace.create(folder / "ws", recipe)
    ingest_text(workspace, folder / "texts.json")
    ingest_images(workspace, folder / "images", "train")
    embed(workspace)
    select(workspace, recipe.select)
    train_lgr_stage(workspace, recipe.lgr)
    index_anchors(workspace)
    return workspace.path, weights, folder / "images" / "first" / "0.jpg"


def facts(values: list[float]) -> NDArray[np.float64]:
    """What the two programs must agree on."""
    return np.asarray(values, dtype=np.float64)


def vlltr() -> list[str]:
    """The installed command."""
    return [os.path.join(os.path.dirname(sys.executable), "vlltr")]
