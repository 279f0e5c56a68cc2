"""What the tests of reports share: a class that means harm."""

from __future__ import annotations

from pathlib import Path

from vlltr_index.classes import add_class
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.train_baseline import train_baseline_stage
from vlltr_index.schemas.recipes import override
from vlltr_index.store.workspace import Workspace

HARM = "</title><script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>\" \u202eokapi"


def spoil(workspace: Workspace, folder: Path) -> Workspace:
    """Add a class whose name and sentences are markup, with a test image, a broken image of a telling name, and a
    baseline.
    """
    sentences = [f"It has {HARM}.", "It is <b>bold</b> & {{ 7 * 7 }}."]
    add_class(workspace, f"{HARM} {'x' * 90}", sentences, aliases=["hostile"])
    row = workspace.snapshot().table("images", ["uri", "data"], "split = 'test'").to_pylist()[0]
    images = folder / "more" / "hostile"
    images.mkdir(parents=True)
    (images / "1.png").write_bytes(row["data"] or Path(row["uri"]).read_bytes())
    (images / "<i>broken.png").write_bytes(b"no image")
    ingest_images(workspace, folder / "more", "test")
    embed(workspace)
    train_baseline_stage(workspace, override(workspace.recipe, ("baseline.epochs=1",)).baseline)
    return workspace
