"""`vlltr sentences`: the texts of a class."""

from __future__ import annotations

import click

from vlltr_index.cli.context import Context, device_option, dry_run_option, existing, pass_context


@click.group("sentences")
def sentences_command() -> None:
    """Give a class more sentences, or take some away, without retraining."""


@sentences_command.command("add")
@click.argument("name", metavar="CLASS")
@click.option("--sentence", "sentences", multiple=True, help="A sentence about the class; repeatable.")
@click.option("--text", help="A file of text about the class.")
@dry_run_option
@device_option
@pass_context
def add(context: Context, name: str, sentences: tuple[str, ...], text: str | None, dry_run: bool) -> None:
    """Add sentences to CLASS; its anchors are selected again."""
    from vlltr_index.classes import add_sentences

    file = existing(text) if text else None
    context.show(
        add_sentences(context.open(), name, sentences, file, dry_run=dry_run, progress=context.progress)
    )


@sentences_command.command("remove")
@click.argument("name", metavar="CLASS")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--matching", metavar="TEXT", help="All sentences of the class that hold this text.")
@dry_run_option
@pass_context
def remove(context: Context, name: str, ids: tuple[str, ...], matching: str | None, dry_run: bool) -> None:
    """Take sentences from CLASS, by id (`vlltr classes show CLASS --all`) or by what they say."""
    from vlltr_index.classes import remove_sentences

    context.show(
        remove_sentences(context.open(), name, ids, matching, dry_run=dry_run, progress=context.progress)
    )
