"""Finding and reading recipes, and overriding their values."""

from __future__ import annotations

import os
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from vlltr_index.errors import ConfigError, UsageError
from vlltr_index.schemas.config import Recipe, apply_overrides, parse_toml, validate, with_value
from vlltr_index.schemas.encoders import family_of


def _root() -> Path:
    """Return the folder of the recipes that ship with the package."""
    return Path(str(files("vlltr_index.recipes")))


def list_recipes() -> list[str]:
    """List the names of the recipes that ship with the package, such as `glyphs_lt/ours`."""
    root = _root()
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.toml"))


_CONFIGS = ("encoder.json", "open_clip_config.json")  # a folder with one of these is an encoder


def load_recipe(
    name: str | None = None, overrides: tuple[str, ...] = (), encoder: str | None = None
) -> Recipe:
    """Read a recipe, with values overridden.

    Args:
        name: Name of a recipe that ships with the package, or path of a TOML file; None: `ours`.
        overrides: `section.key=value` strings.
        encoder: `MODEL`, `MODEL:TAG` or `MODEL:FILE`; replaces the recipe's model and weights.

    Raises:
        UsageError: There is no such recipe; the message lists all recipes.
        ConfigError: The file or an override does not fit the schema.
    """
    name = name or "ours"
    path = Path(name) if name.endswith(".toml") else _root() / f"{name}.toml"
    if not path.is_file():
        close = get_close_matches(name, list_recipes(), n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise UsageError(f"no recipe {name!r}", f"{hint}There are: {', '.join(list_recipes())}.")
    values = parse_toml(path.read_bytes(), str(path))
    if encoder is not None:
        model, _, pretrained = encoder.partition(":")
        if _is_path(model, pretrained):
            pretrained = str(Path(pretrained).expanduser().absolute())
        values = with_value(values, ["encoder", "model"], model)
        values = with_value(values, ["encoder", "pretrained"], pretrained or None)
    return validate(Recipe, apply_overrides(values, overrides), f"recipe {name}")


def _is_path(model: str, weights: str) -> bool:
    """Say whether weights are a file or folder that is there, and not a tag whose name some other folder has."""
    path = Path(weights).expanduser()
    named = family_of(model).weights == "folder" or os.sep in weights or bool(path.suffix)
    return bool(weights) and path.exists() and (named or any((path / name).is_file() for name in _CONFIGS))


def override(recipe: Recipe, overrides: tuple[str, ...], sections: tuple[str, ...] = ()) -> Recipe:
    """Return a recipe with `section.key=value` strings applied.

    Args:
        recipe: The recipe, which is not changed.
        overrides: The strings, as they follow `--set`.
        sections: The sections that the command reads; empty: all.

    Raises:
        ConfigError: An override does not fit the schema, or is of a section that the command does not read.
    """
    if not overrides:
        return recipe
    for item in overrides:
        section = item.partition("=")[0].partition(".")[0].strip()
        if sections and section in Recipe.model_fields and section not in sections:
            raise ConfigError(
                f"--set {item[:80]}: this command reads of the recipe {' and '.join(f'[{s}]' for s in sections)} alone",
                "Change it in vlltr.toml, below [recipe]; or in a run of everything: vlltr train all --set ...",
            )
    return validate(Recipe, apply_overrides(recipe.model_dump(), overrides), "--set")
