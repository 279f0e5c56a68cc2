"""`vlltr search images` and `vlltr search sentences`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vlltr_index.cli.context import Context, device_option, existing, pass_context

if TYPE_CHECKING:
    from vlltr_index.recognition.search import ImageHit, ImageSearch, SentenceHit
    from vlltr_index.recognition.sheet import Panel
    from vlltr_index.store.workspace import Workspace

_TRAINED, _BASE = "trained here", "before training"


@click.group("search")
def search_command() -> None:
    """Find images by a text, and sentences by an image or a text."""


@search_command.command("images")
@click.argument("text")
@click.option("--split", help="Images of this split alone; default: all.")
@click.option("--top", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@click.option("--out", metavar="FILE.png", help="Write a contact sheet, too.")
@click.option("--compare", is_flag=True, help="Show beside it what the encoder found before training.")
@device_option
@pass_context
def images(context: Context, text: str, split: str | None, top: int, out: str | None, compare: bool) -> None:
    """Find the images nearest to TEXT, such as "a spotted texture", by the cosine of their vectors."""
    from vlltr_index.recognition.search import search_images
    from vlltr_index.recognition.sheet import check_target, write_sheet

    target = check_target(existing(out)) if out else None
    workspace = context.open()
    found = search_images(workspace, text, split=split, top=top, compare=compare, progress=context.progress)
    if target is not None:
        title = f'"{text}" among {found.searched:,} images' + (f" of split {split}" if split else "")
        write_sheet(target, title, _panels(workspace, found))
    sides = [("", found.hits)] if found.base is None else [(_TRAINED, found.hits), (_BASE, found.base)]
    lines = [
        line
        for heading, hits in sides
        for line in (
            *([f"{heading}:"] if heading else []),
            *(f"{hit.similarity:+.3f}  {hit.class_name}  [{hit.split}]  {hit.uri}" for hit in hits),
        )
    ]
    context.show({**asdict(found), "sheet": str(target) if target else None}, lines, always=True)
    if found.without_vector:
        context.say(f"{found.without_vector:,} images have no vector yet: vlltr embed")
    if target is not None:
        context.say(f"Wrote {target}.")


def _panels(workspace: Workspace, found: ImageSearch) -> list[Panel]:
    """One panel an encoder, with the pictures' bytes."""
    from vlltr_index.embedding.vectors import load_sources
    from vlltr_index.recognition.sheet import Panel, Picture

    def panel(heading: str, hits: Sequence[ImageHit]) -> Panel:
        sources = load_sources(workspace.snapshot(), [hit.image_id for hit in hits])
        return Panel(
            heading,
            tuple(
                Picture(source, (hit.class_name, f"{hit.similarity:+.3f}  {hit.split}"))
                for hit, (_, source) in zip(hits, sources, strict=True)
            ),
        )

    if found.base is None:
        return [panel("", found.hits)]
    return [panel(f"Encoder {_TRAINED}", found.hits), panel(f"Encoder {_BASE}", found.base)]


@search_command.command("sentences")
@click.argument("query", metavar="IMAGE-OR-TEXT")
@click.option("--class", "class_name", metavar="CLASS", help="Sentences of this class alone.")
@click.option("--top", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@click.option(
    "--hybrid/--no-hybrid",
    default=None,
    help="Rank by the words too, and fuse both rankings; default: for a text.",
)
@device_option
@pass_context
def sentences(context: Context, query: str, class_name: str | None, top: int, hybrid: bool | None) -> None:
    """Find the sentences nearest to an image file or a text, by the cosine of their vectors, and by their words."""
    from vlltr_index.recognition.search import is_image_path, search_sentences

    is_image = is_image_path(query)
    found = search_sentences(
        context.open(),
        str(existing(query)) if is_image else query,
        class_name=class_name,
        top=top,
        hybrid=hybrid,
        is_image=is_image,
    )
    context.show(found, (_line(hit, found.hybrid) for hit in found.hits), always=True)


def _line(hit: SentenceHit, hybrid: bool) -> str:
    places = (hit.by_vector, hit.by_words)
    ranks = "  vector {:>4}  words {:>4}".format(*("-" if n is None else n for n in places)) if hybrid else ""
    where = " ".join(part for part in (hit.source, hit.source_ref, hit.licence) if part)
    return f"{hit.similarity:+.3f}{ranks}  {hit.class_name}: {hit.text}  [{where}]"
