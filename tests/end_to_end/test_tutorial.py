"""The tutorial, pasted block by block: every command succeeds and its outputs are those that the page shows."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.support.pages import Block, blocks, in_pattern
from vlltr_index.cli.main import vlltr

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"


def paste(block: Block, patch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Run a block, and return what it wrote to stdout and to stderr.

    `vlltr` and Python run in this process, which has loaded the libraries; other commands run in a shell.
    """
    out = StringIO()
    if block.kind == "python":
        with redirect_stdout(out):
            exec(compile(block.text, PAGE.name, "exec"), {})
        return out.getvalue(), ""
    lines = block.text.splitlines()
    if not all(line.startswith(("cd ", "vlltr ")) for line in lines):
        command = ["bash", "-ec", f"{block.text}\npwd >&2"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        patch.chdir(done.stderr.splitlines()[-1])
        return done.stdout, ""
    err = ""
    for line in lines:
        name, *words = shlex.split(line)
        if name == "cd":
            patch.chdir(*words)
            continue
        result = CliRunner().invoke(vlltr, words)
        assert result.exit_code == 0, f"line {block.line}: {line}: {result.output}"
        out.write(result.stdout)
        err += result.stderr
    return out.getvalue(), err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Block, str]]:
    """Each block that the page tells to paste, with what it wrote; text blocks with the output so far."""
    done: list[tuple[Block, str]] = []
    shown = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("COLUMNS", "100")
        for block in blocks(PAGE):
            if block.note.startswith("not run by the test"):
                continue
            if block.kind == "text":
                done.append((block, shown))
                continue
            out, err = paste(block, patch)
            shown += out + err
            done.append((block, out))
    return done


def outputs(run: list[tuple[Block, str]], words: str) -> str:
    """The output of the block that holds `words`."""
    (found,) = [out for block, out in run if block.kind != "text" and words in block.text]
    return found


def test_what_the_page_shows_is_what_comes(run: list[tuple[Block, str]]) -> None:
    """Every line of a text block was written by then, whatever its numbers; after a prediction, its first lines."""
    shown = [(block, out) for block, out in run if block.kind == "text"]
    assert len(shown) == 4
    for block, out in shown:
        lines = {in_pattern(line) for line in out.splitlines()}
        for line in block.text.splitlines():
            wanted = in_pattern(line)
            if block.note:  # which sentence comes first may differ, and how long the bar is
                wanted = "# %" if "[texts]" in wanted else wanted.split(" image ")[0]
            assert any(found.startswith(wanted) for found in lines), f"line {block.line}: {line}"


def test_it_learns_and_explains(run: list[tuple[Block, str]]) -> None:
    """The tail is recognised, the reasons are named, and a class known by its text comes among the first two."""
    predicted = outputs(run, 'predict "../test/tall pole/0.png"').splitlines()
    assert predicted[1].split("%")[1].split("   ")[0].strip() == "tall pole"
    assert predicted[2].endswith("[texts]")
    assert "tall pole rather than square pole because " in outputs(run, "vlltr explain")
    added = outputs(run, 'classes add "square dot"')
    assert "%  square dot" in added
    assert "%  triangle pole" in added
    assert "known by text alone" in added
    assert "Added 'triangle pole' (class 23): 6 sentences, 2 anchors, 6 images" in added
    table = outputs(run, "vlltr evaluate --split test")
    fused = next(line for line in table.splitlines() if "vl-ltr" in line)
    assert float(fused.split()[1]) > 80, table


def test_going_back_and_searching(run: list[tuple[Block, str]]) -> None:
    """The commits have the numbers that the page names; both searches find."""
    back = outputs(run, "vlltr rollback 8 --yes")
    assert "   10  " in back
    assert "classes add 'triangle pole'" in back
    listed = [line for line in back.splitlines() if "sentences  " in line]
    assert len(listed) == 22
    assert not any("square dot" in line for line in listed)
    found = outputs(run, "vlltr search images")
    assert found.count("[test]") == 5
    assert "tall dot: " in found
    assert next(out for block, out in run if block.kind == "python").startswith("tall dot ")
