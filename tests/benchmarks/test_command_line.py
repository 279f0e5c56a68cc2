"""The command line of all studies, and how their modules hang together."""

from __future__ import annotations

import ast
import re
import shlex
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from benchmarks.__main__ import STUDIES, load, main, parser_of
from benchmarks.study import commands

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", *(ROOT / "recipes").rglob("*.md")]


def written() -> list[str]:
    """Every command of a study that the pages show."""
    found = set[str]()
    for page in PAGES:
        for line in re.findall(r"^(python -m benchmarks \w+ .*)$", page.read_text(encoding="utf-8"), re.M):
            found.add(line.partition(" #")[0].strip())
    return sorted(found)


@pytest.mark.parametrize("line", written())
def test_commands_in_the_docs_are_real(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words and options are those of the study."""
    monkeypatch.chdir(tmp_path)
    _, _, _, name, *rest = shlex.split(line)
    assert "work" in parser_of(name).parse_args(rest)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_measured_and_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It has `run` and `table`, and its help says how it is called."""
    assert "run" in commands(name, load(name))
    with pytest.raises(SystemExit) as leave:
        main([name, "--help"])
    assert leave.value.code == 0
    told = capsys.readouterr().out
    assert f"python -m benchmarks {name} run" in told
    assert "table" in told


def test_no_two_files_import_each_other() -> None:
    """In however many steps, not inside functions either."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "benchmarks").rglob("*.py")
    }
    graph = {}
    for name, path in paths.items():
        used = set[str]()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                used |= full & paths.keys() or {node.module or ""}
        graph[name] = used & paths.keys() - {name}
    TopologicalSorter(graph).prepare()  # a CycleError names the circle
