"""Commands `vlltr ingest images`, `text`, `classes` and `wikipedia`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlltr_index.cli.context import Context, pass_context
from vlltr_index.cli.options import DIR, FILE, PATH, dry_run_option, group_option, yes_option
from vlltr_index.cli.terminal import ask, table
from vlltr_index.wording import have, plural

if TYPE_CHECKING:
    from rich.table import Table

    from vlltr_index.pipelines.wikipedia import WikipediaReport


@click.group("ingest")
def ingest_command() -> None:
    """Bring in images and text; running it again adds only what is new, with --sync removes what is gone, too."""


def sync_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options --sync, --yes and --dry-run to a command."""
    sync = click.option(
        "--sync", is_flag=True, help="Make the rows of PATH what it is now: moved, gone and new."
    )
    return sync(yes_option(dry_run_option(command)))


@ingest_command.command("images")
@click.argument("path")
@click.option("--split", help="train, val, test or a name of your own; Parquet may have a column for it.")
@click.option("--root", "list_root", type=DIR, help="Base of a list's or JSON's paths; default: its own.")
@click.option(
    "--names",
    "label_names",
    type=FILE,
    help="Names of numeric labels: one a line, `n01440764 tench`, `airfield 0`, or categories.json.",
)
@click.option("--create-classes", is_flag=True, help="Make classes for unknown names outside train, too.")
@click.option(
    "--store",
    type=click.IntRange(16, 8192),
    metavar="SIDE",
    help="Keep the images in the workspace, larger ones reduced to this shorter side in pixels.",
)
@click.option(
    "--hold-out",
    type=click.FloatRange(0, 0.9),
    metavar="SHARE",
    help="Put this share of each class's images into split test instead of train; 0 takes all for training again.",
)
@group_option
@click.option(
    "--follow-links/--no-follow-links",
    default=None,
    help="Read the pictures behind links, also to other folders. Default: as last given for PATH, else not.",
)
@sync_options
@pass_context
def images(context: Context, /, path: str, yes: bool, **how: Any) -> None:
    """Bring in images from PATH.

    PATH is a folder of class folders, also in object storage (s3://bucket/birds); a file that names pictures and
    classes: a list of `path label` (ImageNet-LT, Places-LT), CSV, TSV, Parquet or JSONL with the columns path and class
    (and split, group), JSON of images and annotations (iNaturalist), an export of Label Studio or FiftyOne; or Parquet
    with the images in it. What cannot be used is named with its line or task. An image that cannot be read is
    kept aside with its reason; the run goes on. A class without any sentence gets the recipe's prompts.
    """
    from vlltr_index.data.objects import is_address
    from vlltr_index.pipelines.ingest import ingest_images

    place = path if is_address(path) else Path(os.path.expanduser(path))
    context.run(ingest_images, place, agree=context.agreement(yes), **how)


@ingest_command.command("text")
@click.argument("path", type=PATH)
@click.option(
    "--names",
    "label_names",
    type=FILE,
    help="Names of the class numbers of desc_N.txt; default: labels.txt or categories.json beside them.",
)
@click.option("--prompts/--no-prompts", default=None, help="Add the recipe's prompts, as by default.")
@sync_options
@pass_context
def text(context: Context, /, yes: bool, **how: Any) -> None:
    """Bring in sentences from PATH.

    PATH is a folder of .txt files (one a class), JSONL ({"class", "text", "source"}), JSON ({class: [sentence, ...]}),
    CSV, Parquet, or a folder of the VL-LTR release's text corpus (wiki/desc_N.txt beside labels.txt or
    categories.json).
    """
    from vlltr_index.pipelines.ingest import ingest_text

    context.run(ingest_text, agree=context.agreement(yes), **how)


@ingest_command.command("classes")
@click.argument("path", metavar="FILE", type=FILE)
@pass_context
def classes(context: Context, path: Path) -> None:
    """Bring in what classes lie below: genus, family, or whatever holds several of them.

    FILE is CSV, TSV or Parquet with the columns name and parent (and rank, and aliases with ; between), or
    iNaturalist's categories.json. A name that has a parent already gets the file's. No class is made.
    """
    from vlltr_index.pipelines.taxonomy import ingest_classes

    context.show(ingest_classes(context.open(), path))


@ingest_command.command("wikipedia")
@click.option("--lang", default="en", help="Wikipedia's language.")
@click.option("--hint", help="What all classes have in common, such as bird: it settles which page is meant.")
@click.option("--title", "titles", multiple=True, metavar="CLASS=TITLE", help="Settle a class; repeatable.")
@click.option("--interactive", is_flag=True, help="Ask where a name may mean several things.")
@click.option("--api", metavar="URL", help="Another wiki's api.php.")
@click.option("--contact", metavar="MAIL", help="How the wiki's operators can reach you; they ask for it.")
@click.option("--refresh", is_flag=True, help="Ask the wiki again for what is in the cache.")
@click.option("--prompts/--no-prompts", default=True, help="Add the recipe's prompts for each class.")
@pass_context
def wikipedia(
    context: Context,
    lang: str,
    hint: str | None,
    titles: tuple[str, ...],
    interactive: bool,
    api: str | None,
    contact: str | None,
    refresh: bool,
    prompts: bool,
) -> None:
    """Bring in the sentences of the Wikipedia article about each class.

    The article is found by the class's name and aliases, with the help of --hint. Names that may mean several things
    are reported with the candidates. Every sentence keeps its page, revision and licence.
    """
    from vlltr_index.pipelines.wikipedia import ingest_wikipedia, open_wiki, parse_titles

    workspace = context.open()
    again = {"--lang": lang if lang != "en" else None, "--hint": hint, "--api": api}
    given = [f" {option} {shlex.quote(value)}" for option, value in again.items() if value]
    report = ingest_wikipedia(
        workspace,
        open_wiki(workspace, api, lang, contact, refresh=refresh),
        lang=lang,
        hint=hint,
        titles=parse_titles(titles),
        prompts=prompts,
        choose=_choose if interactive else None,
        command="vlltr ingest wikipedia" + "".join(given),
        progress=None if interactive else context.progress,
    )
    context.show({**asdict(report), "found": report.found}, _articles(report))
    if report.rows and not report.found:
        raise click.exceptions.Exit(1)


def _choose(name: str, candidates: Sequence[str]) -> str | None:
    """Ask on stderr which article is about the class; return its title, or None to leave the class open."""
    listed = (f"  {number:>2}  {title}" for number, title in enumerate(candidates, 1))
    try:
        text = ask(f"{name!r} may be:", *listed, "A number, a title, or nothing to leave it open")
    except click.Abort:  # classes that were settled before stay settled
        raise KeyboardInterrupt from None
    if text.isdecimal() and 1 <= int(text) <= len(candidates):
        return candidates[int(text) - 1]
    return text or None


def _articles(report: WikipediaReport) -> Iterator[str | Table]:
    """Yield the report for people: a table, what settles the classes without an article, and the counts."""
    rows = [[r.name, r.title or "-", r.why, f"{r.sentences:,}", f"{r.added:,}"] for r in report.rows]
    columns = ["class", "article", "why not", "sentences", "added"]
    yield table(f"Articles from {report.source}", columns, rows, left=3)
    for row in report.rows:
        if row.settle:
            seen = f": {', '.join(row.candidates)}" if row.candidates else ""
            yield f"{row.name}: {row.why}{seen}"
            yield f"  Settle it: {row.settle}"
    left_out = sum(row.near_duplicates for row in report.rows)
    yield (
        f"{report.found:,} of {len(report.rows):,} classes {have(report.found)} an article;"
        f" {plural(report.added, 'sentence')} added"
        + (f", {plural(left_out, 'near duplicate')} left out" if left_out else "")
        + (f", {report.prompts:,} prompts made" if report.prompts else "")
        + "."
    )
    if report.next_step:
        yield f"Next: {report.next_step}"
