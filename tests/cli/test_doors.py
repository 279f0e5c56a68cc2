"""Names and texts from outside: nothing of them acts on the terminal, nothing of them computes in a spreadsheet."""

from __future__ import annotations

import ast
import csv
import json
import shutil
import sys
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.commands import run
from tests.support.tablerows import vector_rows
from vlltr_index.data.text import sentence_id, text_hash
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.tables import sentence_vectors_name
from vlltr_index.store.transaction import Transaction
from vlltr_index.store.workspace import Workspace
from vlltr_index.wording import cell, shown, uncell

ROOT = Path(__file__).parents[2]
EVIL = "=1+1 \x1b]0;title\x07\x1b[2J\x9b31m\r\u202ekcatta\u2066 \x7f\nFORGED\u200b\t\U000e0041"
WITH_INK = {
    0x06DD,
    0x070F,
    0x0890,
    0x0891,
    0x08E2,
    0x110BD,
    0x110CD,
    *range(0x600, 0x606),
    *range(0x13430, 0x13440),
}
"""Format characters that are seen."""


def acts(text: str) -> str:
    """What of a line a terminal would act on, or does not show: it moves, colours, turns or breaks lines, or is no
    character.
    """
    return "".join(c for c in text if acts_alone(c) and c not in "\u200c\u200d")


def acts_alone(c: str) -> bool:
    """Whether a terminal would act on a character, or not show it, wherever it stands."""
    kind = unicodedata.category(c)
    return kind in ("Cc", "Cs", "Zl", "Zp") or (kind == "Cf" and ord(c) not in WITH_INK)


@given(
    st.text(
        st.characters() | st.sampled_from("\u200b\u200c\u200d\u202e\x1b\n\t\ufe0f\u3164\u0641\U0001f469"),
        max_size=40,
    )
)
def test_what_a_terminal_is_shown(text: str) -> None:
    """Nothing in it acts, it can be written as UTF-8, and the value of JSON stays."""
    found = shown(text)
    assert acts(found) == ""
    assert found.encode("utf-8").decode("utf-8") == shown(found)
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # two halves are one
    assert json.loads(shown(json.dumps(text, ensure_ascii=False))) == whole


def test_what_is_escaped() -> None:
    """Characters that act or have no ink, alone or where they hide; and no other character."""
    hiding = {
        *map(ord, "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"),
        *range(0x180B, 0x1810),
        *range(0xFE00, 0xFE10),
    }
    hiding |= {0x2065, *range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE1000)}
    for number in range(sys.maxunicode + 1):
        c = chr(number)
        assert (shown(c) != c) == (acts_alone(c) or number in hiding), hex(number)
    persian, emoji = (
        "\u0645\u06cc\u200c\u062e\u0648",
        "\U0001f469\u200d\U0001f680 \u2764\ufe0f\u200d\U0001f525",
    )
    assert shown(persian) == persian
    assert shown(emoji) == emoji
    assert shown("ka\u200dty\ufe0f") == "ka\\u200dty\\ufe0f"
    assert shown("\U0001f600\ufe0f\ufe0e\U000e0101") == "\U0001f600\ufe0f\\ufe0e\\udb40\\udd01"
    assert shown("a\nb\tc") == "a\\u000ab\\u0009c"


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.sampled_from(["", *"=+-@\t\r\n", "'=", "''@"]))
def test_what_a_spreadsheet_is_given(text: str, begin: str) -> None:
    """No field begins as a formula does; other texts, and numbers, stay; each text can be read back."""
    found = cell(begin + text)
    assert not found.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert found in (begin + text, "'" + begin + text)
    assert uncell(found) == begin + text
    assert cell(-1.5) == -1.5
    assert cell(None) is None


def test_there_is_one_door_to_the_terminal() -> None:
    """Whatever a command writes passes `echo`, `confirm`, `ask`, `table` or a console of `terminal.py`."""
    past = []
    for path in (ROOT / "cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in (
                "print",
                "click.echo",
                "click.secho",
                "click.confirm",
                "click.prompt",
                "sys.stdout.write",
            ):
                past.append(f"{path.name}: {name}")
    assert sorted(past) == [
        "terminal.py: click.confirm",
        "terminal.py: click.echo",
        "terminal.py: click.prompt",
    ]


def spoil(workspace: Workspace) -> None:
    """Give classes, sentences and images of a workspace names that no command of this program would let in."""
    with workspace.transaction(f"evil {EVIL}") as tx:
        classes = tx.table("classes").to_pylist()
        for row in classes:
            row |= {"name": f"{EVIL}{row['class_id']}", "aliases": [f"{EVIL}alias {row['class_id']}"]}
        retell(tx)
        images = tx.table("images").to_pylist()
        for row in images:
            row["uri"] = f"{EVIL}{row['uri']}"
        for name, rows in (("classes", classes), ("images", images)):
            tx.upsert(name, pa.Table.from_pylist(rows, tx.schema(name)))


def retell(tx: Transaction) -> None:
    """Give all sentences other texts, with all that hangs on their hashes: ids, vectors, scores and anchors."""
    sentences, known = tx.table("sentences").to_pylist(), dict[str, str]()
    vectors = sentence_vectors_name(tx.commit.text_fp or "")
    old = [row["text_hash"] for row in sentences]
    for row in sentences:
        text = EVIL + row["text"]
        before, hashed = row["sentence_id"], text_hash(text)
        row |= {"text": text, "source": EVIL, "source_ref": EVIL, "licence": EVIL, "text_hash": hashed}
        row["sentence_id"] = known[before] = sentence_id(row["class_id"], hashed)
    rows = tx.store.vectors(vectors, "text_hash", old).tolist()
    pairs = {row["text_hash"]: vector for row, vector in zip(sentences, rows, strict=True)}
    tx.store.upsert(vectors, vector_rows(list(pairs), list(pairs.values()), len(rows[0])), "text_hash")
    scores, anchors = tx.table("sentence_scores").to_pylist(), tx.table("anchors").to_pylist()
    for row in (*scores, *anchors):
        row["sentence_id"] = known[row["sentence_id"]]
    for row in anchors:
        row["anchor_key"] += 10_000
    for name, new in (("sentences", sentences), ("sentence_scores", scores), ("anchors", anchors)):
        tx.delete(name, "true")
        tx.upsert(name, pa.Table.from_pylist(new, tx.schema(name)))


@pytest.fixture
def spoilt(small: Workspace) -> Workspace:
    """A trained workspace that came from somebody who means harm."""
    spoil(small)
    return small


@pytest.mark.slow
def test_no_command_lets_names_act(
    spoilt: Workspace, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers, lists, errors and questions show them; JSON has them as they are."""
    name = f"{EVIL}0"
    picture = tmp_path / f"{EVIL}.png".replace("/", "")
    shutil.copy(pictures / "known-0.png", picture)
    broken = tmp_path / f"{EVIL}broken.png"
    broken.write_bytes(b"none")
    commands: list[tuple[str | Path, ...]] = [
        ("status",),
        ("history",),
        ("classes", "list"),
        ("classes", "show", name, "--all"),
        ("classes", "show", f"{EVIL}1 or so"),
        ("classes", "remove", name),
        ("classes", "rename", name, "another", "--dry-run"),
        ("sentences", "remove", name, "nothing"),
        ("predict", picture, broken, "--neighbours", "2"),
        ("predict", picture, "--only", f"{EVIL}1 or so"),
        ("explain", picture, "--class", name, "--against", f"{EVIL}1"),
        ("search", "sentences", "a sign"),
        ("search", "images", "a sign"),
        ("evaluate", "--split", "val"),
        ("diff", "1", str(spoilt.history.ids()[-1])),
        ("rollback", "1"),
        ("ingest", "text", tmp_path / f"{EVIL}.json"),
        ("ingest", "images", tmp_path, "--split", "train"),
        ("doctor",),
        ("export", tmp_path / EVIL / "x"),
        (f"--{EVIL}",),
        ("classes", EVIL),
        ("classes", "add", "--from", tmp_path / f"{EVIL}.json"),
    ]
    for json_too in ((), ("--json",)):
        for command in commands:
            code, out, err = run(capsys, "-w", spoilt.path, *json_too, *command)
            for line in (*out.split("\n"), *err.split("\n")):
                assert acts(line) == "", command
                assert not line.startswith("FORGED"), command
            assert code in (0, 1, 2), command
    _, out, _ = run(capsys, "-w", spoilt.path, "--json", "classes", "list")
    assert name in [row["name"] for row in json.loads(out)]
    _, out, _ = run(capsys, "-w", spoilt.path, "predict", picture)
    assert "=1+1 \\u001b]0;title\\u0007\\u001b[2J\\u009b31m\\u000d\\u202ekcatta\\u2066 \\u007f" in out
    assert "\\u000aFORGED\\u200b\\u0009\\udb40\\udc41" in out


def test_answers_in_a_spreadsheet(
    spoilt: Workspace,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Paths, names, sentences and problems begin as texts; a fresh reader finds them behind the apostrophe."""
    monkeypatch.chdir(tmp_path)
    for name in ("=1+1.png", "@x.png", "+x.png"):
        shutil.copy(pictures / "known-0.png", name)
    Path("-broken.png").write_bytes(b"none")
    run(
        capsys,
        "-w",
        spoilt.path,
        "predict",
        "--out",
        "a.csv",
        "--",
        "=1+1.png",
        "@x.png",
        "+x.png",
        "-broken.png",
    )
    with open("a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == ["'=1+1.png", "'@x.png", "'+x.png", "'-broken.png"]
    names = Recognizer.open(spoilt).current().names.values()
    assert rows[1][1] in [f"'{name}" for name in names]
    for row in rows:
        for field in row:
            assert not field.startswith(("=", "+", "@", "\t", "\r")), field
            assert not field.startswith("-") or float(field) < 0
