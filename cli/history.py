"""`vlltr history`, `rollback`, `diff`, `prune`."""

from __future__ import annotations

import click

from vlltr_index.cli.context import Context, pass_context, yes_option


def _sure(question: str, yes: bool) -> None:
    """Ask, unless `--yes` was given; anything but yes ends the command."""
    if not yes and not click.confirm(question, err=True):
        raise click.exceptions.Exit(1)


@click.command("history")
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1), help="How many of the newest commits."
)
@pass_context
def history_command(context: Context, limit: int) -> None:
    """List the workspace's commits, newest first."""
    history = context.open().history
    commits = [history.read(i) for i in reversed(history.ids()[-limit:])]
    lines = (f"{commit.id:>5}  {commit.created_at}  {commit.command}" for commit in commits)
    context.show(commits, lines, always=True)


@click.command("rollback")
@click.argument("commit", type=click.IntRange(1), metavar="ID")
@yes_option
@pass_context
def rollback_command(context: Context, commit: int, yes: bool) -> None:
    """Go back to the state of commit ID, in a new commit: nothing is lost."""
    from vlltr_index.pipelines.history import rollback, undone

    workspace = context.open()
    commands = undone(workspace, commit)
    if commands and not yes:
        for command in commands:
            click.echo(f"  vlltr {command}", err=True)
        _sure(f"Go back to commit {commit}, before these?", yes)
    context.show(rollback(workspace, commit))


@click.command("diff")
@click.argument("before", type=click.IntRange(1), metavar="ID")
@click.argument("after", type=click.IntRange(1), metavar="ID")
@pass_context
def diff_command(context: Context, before: int, after: int) -> None:
    """Show what differs between two commits: names of classes, and numbers of sentences, images and anchors."""
    from vlltr_index.pipelines.history import diff

    context.show(diff(context.open(), before, after), always=True)


@click.command("prune")
@click.option("--keep", required=True, type=click.IntRange(1), help="How many of the newest commits stay.")
@yes_option
@pass_context
def prune_command(context: Context, keep: int, yes: bool) -> None:
    """Give up old commits, and remove the files that only they needed.

    The commits that stay answer as before. This cannot be taken back.
    """
    from vlltr_index.pipelines.history import prune

    workspace = context.open()
    old = len(workspace.history.ids()[:-keep])
    _sure(f"Give up the oldest {old} commits? This cannot be taken back.", yes)
    context.show(prune(workspace, keep, context.progress))
