"""What a user reads: every command in README and docs is one that the program takes, every recipe loads."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.pages import parse
from vlltr_index.cli.main import vlltr
from vlltr_index.schemas.recipes import list_recipes, load_recipe

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
]


def written_commands() -> list[tuple[str, str]]:
    """Every line of a shell block that runs `vlltr`."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.splitlines():
                for part in line.split(" #")[0].split("&&"):
                    if part.strip().startswith("vlltr "):
                        found.append((page.name, part.strip()))
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("page", "line"), written_commands())
def test_commands_in_the_docs_are_real(page: str, line: str) -> None:
    """Words, options and arguments are those of the program."""
    parse(vlltr, shlex.split(line)[1:], "vlltr")


def test_there_are_commands_in_the_docs() -> None:
    """Else the test above would have none to look at, and be skipped."""
    assert len(written_commands()) > 50


def test_the_readme_has_the_two_commands() -> None:
    """The two lines that do all the set-up stand there as they are."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 'pip install -e ".[cpu]" && vlltr quickstart\n' in text
    assert 'pip install -e ".[cpu,test]" && pytest\n' in text
    assert 'pip install -e ".[cpu,test]" && pytest\n' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_links_between_pages_lead_somewhere() -> None:
    """Relative links name files that are there; `shapes.md` is made with the site."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert target == "shapes.md" or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_recipe_loads_and_states_its_terms() -> None:
    """Each recipe fits the schema, its name is where it lies, and its header says command, hardware, time and score."""
    names = list_recipes()
    glyphs = ("fast", "ours", "paper", "pretrain", "quick", "release")
    expected = {f"glyphs_lt/{name}" for name in glyphs} | {"ours"}
    expected |= {f"icons_lt/{name}" for name in ("ours", "paper", "release")}
    for folder in ("imagenet_lt", "inat2018", "places_lt"):
        expected |= {
            f"{folder}/{p}-{net}" for p in ("ours", "paper", "release") for net in ("rn50", "vit_b16")
        }
    assert names == sorted(expected)
    for name in names:
        assert load_recipe(name).name == name
        header = (ROOT / "recipes" / f"{name}.toml").read_text(encoding="utf-8").split("name =")[0]
        for word in ("Command:", "Hardware:", "Time:", "Score:"):
            assert f"# {word}" in header, name
