"""The command line: help, docs, results as JSON, and what each wrong use says and exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from benchmarks.reference import commands
from tests.support.commands import run
from vlltr_index.cli.context import Context
from vlltr_index.cli.terminal import table
from vlltr_index.store.workspace import Workspace

ROOT = Path(__file__).parents[2]
ALONE = (
    ": this command reads of the recipe [{}] alone\n"
    "Change it in vlltr.toml, below [recipe]; or in a run of everything: vlltr train all --set ...\n"
)
PLAN = "Error: a plan wants --plan, --classes and --anchors; --width may stand beside them\n"


def test_every_command_has_help_and_a_docs_entry() -> None:
    """`docs/commands.md` is what the program says of itself, and no command or option goes without help."""
    page = subprocess.run(  # in a fresh process: click remembers how a command was asked for help first
        [sys.executable, "-m", "benchmarks.reference"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == page
    for path, command in commands():
        assert command.help, path
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help or option.default is not None or option.required, (path, option.name)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("predikt",), 2, "Error: No such command 'predikt'. (Did you mean one of: 'predict', 'refit'?)"),
        (("predict",), 2, "Error: Missing argument 'IMG...'."),
        (("init", "{tmp}/new", "--recipe", "glyphs_lt/our"), 2, "Error: no recipe 'glyphs_lt/our'"),
        (
            ("init", "{tmp}/new", "--set", "cvlp.epochs=0", "--set", "lgr.speed=3"),
            2,
            "Error: recipe ours does not fit: cvlp.epochs: Input should be greater than or equal to 1; "
            "lgr.speed: Extra inputs are not permitted\nCorrect these keys.",
        ),
        (
            ("init", "{tmp}/new", "--set", "epochs"),
            2,
            "Error: --set takes key=value, got 'epochs'\nFor example:",
        ),
        (("-w", "{ws}", "train", "cvlp"), 1, "Error: there are no training images\nRun: vlltr ingest images"),
        (("-w", "{ws}", "select"), 1, "Error: nothing has been embedded yet\nRun: vlltr embed"),
        (("-w", "{ws}", "index"), 1, "Error: no anchor sentences have been selected yet\nRun: vlltr select"),
        (
            ("-w", "{ws}", "ingest", "text", "~nobody-of-that-name/x"),
            1,
            "Error: no such file or folder: ~nobody-",
        ),
        (("-w", "{ws}", "classes", "show", "x"), 1, "Error: no class 'x'\nThere are no classes yet"),
        (("-w", "{ws}", "classes", "add"), 2, "Error: give either NAME or --from PATH"),
        (
            ("-w", "{ws}", "classes", "add", "--from", "m.json", "--alias", "x"),
            2,
            "Error: --from PATH says all about its classes: --sentence, --text, --images and",
        ),
        (("-w", "{ws}", "predict", "x.png"), 1, "   (before that: vlltr ingest images PATH --split train)\n"),
        (
            ("predict", "x.png", "--engine", "ray"),
            2,
            "Error: --engine ray writes a file: name it with --out FILE\n",
        ),
        (
            ("-w", "{ws}", "train", "lgr", "--set", "encoder.model=RN50"),
            2,
            f"encoder.model=RN50{ALONE.format('lgr')}",
        ),
        (
            ("-w", "{ws}", "train", "cvlp", "--set", 'prompts=["a"]'),
            2,
            f'prompts=["a"]{ALONE.format("cvlp")}',
        ),
        (
            ("-w", "{ws}", "select", "--set", "fusion.alpha=0.1"),
            2,
            f"fusion.alpha=0.1{ALONE.format('select')}",
        ),
        (("index", "--classes", "3", "--anchors", "2"), 2, PLAN),
        (("index", "--plan", "--classes", "3"), 2, PLAN),
        (("index", "--plan", "--width", "3"), 2, PLAN),
    ],
)
def test_wrong_use_says_what_mends_it(
    capsys: pytest.CaptureFixture[str],
    workspace: Workspace,
    tmp_path: Path,
    args: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    """Each wrong use exits with its code and text, without a traceback and without a result on stdout."""
    names = {"tmp": str(tmp_path), "ws": str(workspace.path)}
    found, out, err = run(capsys, *(a.format(**names) for a in args))
    assert message.format(**names) in err
    assert found == code
    assert out == ""
    assert "Traceback" not in err


def test_names_in_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """In a table, where rich could take them for markup."""
    rows = [("Quercus [red oak]", "1"), ("owl [/x] :dog:", "2")]
    Context().show(None, [table("of [i]two[/i]", ("class", "images"), rows)])
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("of [i]two[/i]", *(name for name, _ in rows)))


def test_init_status_history_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Results go to stdout as one JSON document, everything else to stderr."""
    code, out, err = run(capsys, "--json", "init", tmp_path / "w", "--recipe", "glyphs_lt/fast")
    assert (code, json.loads(out)["recipe"]) == (0, "glyphs_lt/fast")
    assert "Next: vlltr" in err
    code, out, _ = run(capsys, "-w", tmp_path / "w", "--json", "status")
    assert (code, json.loads(out)["classes"]) == (0, 0)
    code, out, _ = run(capsys, "-w", tmp_path / "w", "--json", "history")
    assert (code, json.loads(out)) == (0, [])


def test_init_says_that_a_workspace_is_there_already(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One that has commits is not said to have been made; it stays as it is."""
    args = ("init", tmp_path / "w", "--recipe", "glyphs_lt/fast")
    run(capsys, *args)
    (tmp_path / "texts.json").write_text('{"a": ["A line."]}')
    run(capsys, "-w", tmp_path / "w", "ingest", "text", tmp_path / "texts.json")
    code, out, _ = run(capsys, *args)
    assert code == 0
    assert f"The workspace {tmp_path / 'w'} is there already, and stays as it is." in out


def test_predict_and_explain(capsys: pytest.CaptureFixture[str], trained_once: Path, pictures: Path) -> None:
    """Both print what people read, and with --json what programs read; a bad image alone gives exit code 1."""
    image = pictures / "known-0.png"
    args = ("predict", image, "--top", "2", "--explain", "1", "--neighbours", "2")
    code, out, _ = run(capsys, "-w", trained_once, *args)
    assert code == 0
    assert "near: a training picture of the class, and its cosine" in out
    assert out.count("           near ") == 2
    code, out, _ = run(
        capsys, "-w", trained_once, "--json", "predict", image, pictures / "none.png", "--top", "1"
    )
    assert code == 1
    first, second = json.loads(out)
    assert first["classes"][0]["sentences"][0]["text"]
    assert second["problem"] is not None
    name = first["classes"][0]["name"]
    other = Workspace.open(trained_once).snapshot().class_table().names[3]
    code, out, _ = run(capsys, "-w", trained_once, "explain", image, "--class", name, "--against", other)
    assert code == 0
    assert out.splitlines()[1].startswith(f"  {name} rather than {other} because ")
    assert "log-odds" in out
    code, _, err = run(capsys, "-w", trained_once, "explain", image, "--class", name[:-1])
    assert code == 1
    assert f"Did you mean {name!r}" in err


def test_evaluate_and_classes(
    capsys: pytest.CaptureFixture[str], trained: Workspace, heldout: dict[str, list[str]]
) -> None:
    """The table has a row a branch; adding by sentences shows the effect; the list and the history have it."""
    code, out, _ = run(capsys, "-w", trained.path, "evaluate", "--split", "test")
    assert code == 0
    assert {"vl-ltr", "image branch", "text branch"} <= {
        line.strip()[:12].strip() for line in out.splitlines()
    }
    name = min(heldout)
    sentences = [part for s in heldout[name][:3] for part in ("--sentence", s)]
    code, out, _ = run(capsys, "-w", trained.path, "classes", "add", name, *sentences)
    assert code == 0
    assert out.startswith(
        f"Added {name!r} (class 60): 3 sentences, 3 anchors, 0 images, known by text alone."
    )
    assert "\nExisting classes on " in out
    assert "A text-only class may attract unknown images, too." in out
    code, out, _ = run(capsys, "-w", trained.path, "classes", "list")
    assert (code, len(out.splitlines())) == (0, 61)
    code, out, _ = run(capsys, "-w", trained.path, "history")
    assert "classes add" in out.splitlines()[0]
