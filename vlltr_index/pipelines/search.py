"""Find images by a text, and draw what was found (`vlltr search images`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlltr_index.embedding.vectors import load_sources
from vlltr_index.recognition.search import search_images
from vlltr_index.recognition.sheet import Panel, Picture, check_target, write_sheet

if TYPE_CHECKING:
    from vlltr_index.recognition.search import ImageHit, ImageSearch
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.workspace import Workspace


def find_images(
    workspace: Workspace,
    text: str,
    *,
    split: str | None = None,
    top: int = 20,
    compare: bool = False,
    sheet: Path | None = None,
    progress: Progress | None = None,
) -> ImageSearch:
    """Find the images nearest to a text, as `search_images` does, and write a contact sheet of them.

    Args:
        workspace: With embedded images.
        text: What to look for.
        split: Images of this split alone; default: all.
        top: How many.
        compare: Show beside it what the encoder found that training started from.
        sheet: The picture to write; default: none.
        progress: Called with the step's name, what is done, and the total.

    Raises:
        UsageError: As for `search_images`, or if the ending of `sheet` names no picture format.
        InputError: If `sheet` cannot be written.
        MissingStepError: As for `search_images`.
    """
    if sheet is not None:
        check_target(sheet)
    found = search_images(workspace, text, split=split, top=top, compare=compare, progress=progress)
    if sheet is not None:
        sides = {"": found.hits}
        if found.base is not None:
            sides = {"Encoder trained here": found.hits, "Encoder before training": found.base}
        title = f'"{text}" among {found.searched:,} images' + (f" of split {split}" if split else "")
        write_sheet(sheet, title, [_panel(workspace, heading, hits) for heading, hits in sides.items()])
    return found


def _panel(workspace: Workspace, heading: str, hits: Sequence[ImageHit]) -> Panel:
    """Return the pictures of hits with their class, similarity and split."""
    sources = load_sources(workspace.snapshot(), [hit.image_id for hit in hits])
    pictures = tuple(
        Picture(source, (hit.class_name, f"{hit.similarity:+.3f}  {hit.split}"))
        for hit, (_, source) in zip(hits, sources, strict=True)
    )
    return Panel(heading, pictures)
