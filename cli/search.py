"""Commands `vlltr search images` and `vlltr search sentences`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.options import FILE, device_option
from vlltr_index.wording import plural

_top_option = click.option("--top", type=click.IntRange(1, 1000), default=20, help="How many.")


@click.group("search")
def search_command() -> None:
    """Find images by a text, and sentences by an image or a text."""


@search_command.command("images")
@click.argument("text")
@click.option("--split", help="Images of this split alone; default: all.")
@_top_option
@click.option("--out", type=FILE, help="Write a contact sheet, too.")
@click.option("--compare", is_flag=True, help="Show beside it what the encoder found before training.")
@device_option
@pass_context
def images(context: Context, text: str, split: str | None, top: int, out: Path | None, compare: bool) -> None:
    """Find the images nearest to TEXT, such as "a spotted texture", by the cosine of their vectors."""
    from vlltr_index.pipelines.search import find_images

    found = find_images(
        context.open(), text, split=split, top=top, compare=compare, sheet=out, progress=context.progress
    )
    sides = {"": found.hits}
    if found.base is not None:
        sides = {"trained here:": found.hits, "before training:": found.base}
    lines = []
    for heading, hits in sides.items():
        lines += [heading] if heading else []
        lines += [f"{hit.similarity:+.3f}  {hit.class_name}  [{hit.split}]  {hit.uri}" for hit in hits]
    context.show({**asdict(found), "sheet": str(out) if out else None}, lines, always=True)
    if found.without_vector:
        lacking = plural(found.without_vector, "image has", "images have")
        context.say(f"{lacking} no vector yet: vlltr embed")
    if out is not None:
        context.say(f"Wrote {out}.")


@search_command.command("sentences")
@click.argument("query", metavar="IMAGE-OR-TEXT")
@click.option("--class", "class_name", metavar="CLASS", help="Sentences of this class alone.")
@_top_option
@click.option("--no-hybrid", is_flag=True, help="Rank a text by vectors alone, not by its words too.")
@device_option
@pass_context
def sentences(context: Context, query: str, class_name: str | None, top: int, no_hybrid: bool) -> None:
    """Find the sentences nearest to an image file or a text, by the cosine of their vectors, and by their words."""
    from vlltr_index.recognition.search import is_image_path, search_sentences

    found = search_sentences(
        context.open(),
        os.path.expanduser(query) if is_image_path(query) else query,
        class_name=class_name,
        top=top,
        hybrid=False if no_hybrid else None,
        is_image=is_image_path(query),
    )
    lines = []
    for hit in found.hits:
        places = ["-" if n is None else n for n in (hit.by_vector, hit.by_words)]
        ranks = "  vector {:>4}  words {:>4}".format(*places) if found.hybrid else ""
        where = " ".join(part for part in (hit.source, hit.source_ref, hit.licence) if part)
        lines.append(f"{hit.similarity:+.3f}{ranks}  {hit.class_name}: {hit.text}  [{where}]")
    context.show(found, lines, always=True)
