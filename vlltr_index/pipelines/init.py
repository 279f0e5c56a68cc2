"""Make a workspace (`vlltr init`)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vlltr_index.data.text import prompt_templates
from vlltr_index.errors import MissingStepError
from vlltr_index.schemas.recipes import load_recipe
from vlltr_index.store.workspace import Workspace

if TYPE_CHECKING:
    from vlltr_index.schemas.config import EncoderConfig


def init(
    directory: str | os.PathLike[str],
    encoder: str | None = None,
    recipe: str | None = None,
    *,
    prompts: str | None = None,
    overrides: tuple[str, ...] = (),
) -> Workspace:
    """Make a workspace, or open the one that is there if its recipe is the same, or nothing was committed in it.

    Args:
        directory: A new or empty folder, or an address in object storage.
        encoder: `MODEL`, `MODEL:TAG` or `MODEL:FILE`; default: the recipe's.
        recipe: Name of a recipe that ships with the package, or path of a TOML file; default: `ours`.
        prompts: `clip`, or a file with a template a line; default: the recipe's.
        overrides: `section.key=value` strings that change values of the recipe.

    Raises:
        UsageError: If there is no such recipe, model or tag, or `directory` cannot hold a workspace.
        ConfigError: If a value does not fit the schema.
        WorkspaceError: If the folder holds other things, or is a workspace with another recipe.
    """
    chosen = load_recipe(recipe, overrides, encoder)
    if prompts is not None:
        chosen = chosen.model_copy(update={"prompts": prompt_templates(prompts)})
    if encoder or any(item.lstrip().startswith("encoder.") for item in overrides):
        check_encoder(chosen.encoder)
    return Workspace.create(directory, chosen)


def check_encoder(config: EncoderConfig) -> None:
    """Check that there is an encoder of that name, before any download; errors are those of `check_source`."""
    from vlltr_index.encoders.weights import check_source

    check_source(config.model, config.pretrained, config.image_size)


def encoder_note(workspace: Workspace) -> str | None:
    """Say that the weights of a new workspace's encoder are not on this machine yet; None if they are."""
    config = workspace.recipe.encoder
    if config.pretrained is None or workspace.history.last().id:
        return None
    from vlltr_index.encoders.weights import missing_weights

    return missing_weights(config.model, config.pretrained)


def require_encoder(config: EncoderConfig) -> None:
    """Check that the weights a recipe names can be loaded; they are downloaded, if need be.

    Raises:
        EncoderError: There is no such encoder, or its weights cannot be fetched or read.
        MissingStepError: It starts from scratch.
    """
    from vlltr_index.encoders.weights import read_source

    check_encoder(config)
    if config.pretrained is None and ":" not in config.model and not os.path.isdir(config.model):
        raise MissingStepError(
            f"the encoder {config.model} has no weights: the recipe starts it from scratch",
            "Name weights (--encoder MODEL:TAG or MODEL:FILE), or train it: vlltr train all",
        )
    read_source(config.model, config.pretrained)
