"""Finding, reading and overriding recipes."""

from __future__ import annotations

import os
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from vlltr_index.errors import ConfigError, UsageError
from vlltr_index.schemas.config import Recipe, apply_overrides, parse_toml, validate, with_value


def _root() -> Path:
    return Path(str(files("vlltr_index.recipes")))


def list_recipes() -> list[str]:
    """Names of the recipes that ship with the package, such as `glyphs_lt/ours`."""
    root = _root()
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.toml"))


def load_recipe(
    name: str | None = None, overrides: tuple[str, ...] = (), encoder: str | None = None
) -> Recipe:
    """Read the recipe `name` (one that ships, or a path to a TOML file), with values overridden.

    Args:
        name: Default `ours`.
        overrides: `section.key=value` strings.
        encoder: `MODEL`, `MODEL:TAG` or `MODEL:FILE`; replaces the recipe's model and weights.

    Raises:
        UsageError: If there is no such recipe; the message lists those there are.
        ConfigError: If the file or an override does not fit the schema.
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
        if pretrained and os.path.exists(file := os.path.expanduser(pretrained)):
            pretrained = str(Path(file).absolute())
        values = with_value(values, ["encoder", "model"], model)
        values = with_value(values, ["encoder", "pretrained"], pretrained or None)
    return validate(Recipe, apply_overrides(values, overrides), f"recipe {name}")


def override(recipe: Recipe, overrides: tuple[str, ...], sections: tuple[str, ...] = ()) -> Recipe:
    """`recipe` with `section.key=value` strings applied.

    Args:
        recipe: Stays as it is.
        overrides: As they follow `--set`.
        sections: Those that the command reads, if it does not read all.

    Raises:
        ConfigError: If one of them does not fit the schema, or is of a section where it would count for nothing.
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
