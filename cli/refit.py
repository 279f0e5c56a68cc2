"""`vlltr refit`."""

from __future__ import annotations

import click

from vlltr_index.cli.context import Context, device_option, pass_context, set_option

__all__ = ["refit_command"]


@click.command("refit")
@set_option
@device_option
@pass_context
def refit_command(context: Context, overrides: tuple[str, ...]) -> None:
    """Train the head again, on stored vectors, over all classes that have images by now.

    Worth it when many classes came by images, or trained ones got more: they take part in the training
    then. Takes seconds to minutes; the encoder, the anchors and the index stay.
    """
    from vlltr_index.pipelines.train_lgr import refit
    from vlltr_index.schemas.recipes import override

    workspace = context.open()
    config = override(workspace.recipe, overrides, ("lgr",)).lgr
    context.show(refit(workspace, config, context.progress))
