"""`vlltr init` and `status`."""

from __future__ import annotations

from dataclasses import asdict

import click

from vlltr_index.cli.context import Context, pass_context


@click.command("init")
@click.argument("directory")
@click.option("--encoder", metavar="MODEL[:PRETRAINED|:FILE]", help="An open_clip model and its weights.")
@click.option("--recipe", metavar="NAME", help="A recipe, such as glyphs_lt/ours; default: ours.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value; repeatable.")
@pass_context
def init_command(
    context: Context, directory: str, encoder: str | None, recipe: str | None, overrides: tuple[str, ...]
) -> None:
    """Make a workspace in DIRECTORY.

    Without weights (`--encoder ViT-B-16`) the encoder starts from scratch; with a tag (`ViT-B-16:openai`) or a file
    (`ViT-B-16-quickgelu:weights.pt`) from those weights.
    """
    from vlltr_index.recipe import load_recipe
    from vlltr_index.workspace import Workspace

    workspace = Workspace.create(directory, load_recipe(recipe, overrides, encoder))
    if context.as_json:
        context.emit({"workspace": str(workspace.path), "recipe": workspace.recipe.name})
    context.say(f"Made the workspace {workspace.path} (recipe {workspace.recipe.name}).")
    context.say(f"Next: vlltr -w {directory} ingest images PATH --split train")


@click.command("status")
@pass_context
def status_command(context: Context) -> None:
    """Show what the workspace holds, what is stale, and the next command."""
    from vlltr_index.stages.status import status

    report = status(context.open())
    if context.as_json:
        context.emit(asdict(report))
        return
    for name, value in report.lines():
        click.echo(f"{name:<22} {value}")
