"""`vlltr init` and `status`."""

from __future__ import annotations

import shlex

import click

from vlltr_index.cli.context import Context, pass_context, set_option


@click.command("init")
@click.argument("directory")
@click.option("--encoder", metavar="MODEL[:PRETRAINED|:FILE]", help="An open_clip model and its weights.")
@click.option("--recipe", metavar="NAME", help="A recipe, such as glyphs_lt/ours; default: ours.")
@click.option(
    "--prompts",
    metavar="clip|FILE",
    help="What every class's prompts are made from: the 80 templates that CLIP was evaluated with, or a file with"
    " one a line, {} for the class; default: the recipe's.",
)
@set_option
@pass_context
def init_command(
    context: Context,
    directory: str,
    encoder: str | None,
    recipe: str | None,
    prompts: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Make a workspace in DIRECTORY: a folder, or an address in object storage, such as s3://bucket/birds.

    Without weights (`--encoder ViT-B-16`) the encoder starts from scratch; with a tag (`ViT-B-16:openai`) or a file
    (`ViT-B-16-quickgelu:weights.pt`) from those weights.
    """
    from vlltr_index.schemas.recipes import load_recipe
    from vlltr_index.store.workspace import Workspace

    chosen = load_recipe(recipe, overrides, encoder)
    if prompts is not None:
        from vlltr_index.data.text import prompt_templates

        chosen = chosen.model_copy(update={"prompts": prompt_templates(prompts)})
    if encoder or any(item.lstrip().startswith("encoder.") for item in overrides):
        from vlltr_index.encoders.weights import check_source

        check_source(chosen.encoder.model, chosen.encoder.pretrained, chosen.encoder.image_size)
    workspace = Workspace.create(directory, chosen)
    context.show({"workspace": workspace.address, "recipe": workspace.recipe.name}, ())
    if workspace.history.last().id:
        context.say(f"The workspace {workspace.address} is there already, and stays as it is.")
        context.say(f"Next: vlltr -w {shlex.quote(directory)} status")
        return
    context.say(f"Made the workspace {workspace.address} (recipe {workspace.recipe.name}).")
    context.say(
        f"Next: vlltr -w {shlex.quote(directory)} ingest text PATH, then ingest images PATH --split train"
    )


@click.command("status")
@pass_context
def status_command(context: Context) -> None:
    """Show what the workspace holds, what is stale, and the next command."""
    from vlltr_index.cli.render import broken
    from vlltr_index.pipelines.status import status

    report = status(context.open())
    rows, width = report.lines(), context.width()
    lines = (line for name, value in rows for line in broken(f"{name:<22} ", value, width))
    context.show(report, lines, always=True)
