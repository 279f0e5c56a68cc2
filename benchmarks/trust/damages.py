"""Damages: what commands make of a workspace and an exported folder in which one file is not what was written.

    python -m benchmarks.trust.damages run [--cases 5000]     # writes results/trust-damages.json; goes on if stopped
    python -m benchmarks.trust.damages case 4711              # one case again, with all that it said

A case is a number. It draws a file, a damage (a flipped bit, bytes turned to zeroes, a file cut short, swapped with
another, deleted) and what is run then, in a process of its own. Answers must be those of the undamaged copy, or the
command must end with an error in words. Everything else fails: other answers with exit code 0, a traceback, an end by a
signal, and more than two minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import vlltr_index
from vlltr_index.data.writing import digest_folder
from vlltr_index.schemas.options import PredictOptions

RESULT = Path(__file__).parents[1] / "results" / "trust-damages.json"
KINDS = ("flip", "zeroes", "cut", "swap", "delete")
COMPARED = ("predict", "explain", "add", "load")
TOLD = ("doctor", "status", "history")
_LONGEST = 120.0  # seconds
_UNSTABLE = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]+)*|[01]{24,}")  # names that LanceDB draws
_SENTENCE = "two circles, one beside the other, joined by a line."
_NEW = "joined circles"


def build(folder: Path) -> None:
    """Make `workspace`, `export` and `picture.png` in a folder: ten classes of glyphs below a tree, and one added."""
    import pyarrow.parquet as pq

    from vlltr_index.anchors.selection import select
    from vlltr_index.classes import add_class
    from vlltr_index.data.glyphs import glyph_files
    from vlltr_index.encoders.encoder import Encoder
    from vlltr_index.pipelines.build_index import index_anchors
    from vlltr_index.pipelines.embed import embed
    from vlltr_index.pipelines.ingest import ingest_images, ingest_text
    from vlltr_index.pipelines.taxonomy import ingest_classes
    from vlltr_index.pipelines.train_lgr import train_lgr_stage
    from vlltr_index.recognizer import Recognizer
    from vlltr_index.schemas.recipes import load_recipe, override
    from vlltr_index.store.workspace import Workspace

    data = glyph_files(fast=True)
    texts: dict[str, list[str]] = json.loads(data.texts.read_text(encoding="utf-8"))
    names = sorted(texts)[:10]
    texts_file = folder / "texts.json"
    texts_file.write_text(json.dumps({name: texts[name][:5] for name in names}), encoding="utf-8")
    seen = Counter[str]()
    for row in pq.read_table(data.images, columns=["image", "label", "split"]).to_pylist():
        if row["label"] not in names or row["split"] not in ("train", "test"):
            continue
        seen[row["split"], row["label"]] += 1  # type: ignore[index]  # a pair is a key like any other
        number = seen[row["split"], row["label"]]  # type: ignore[index]
        if row["split"] == "test":
            (folder / "picture.png").write_bytes(row["image"])
        elif number <= 4:
            path = folder / "pictures" / row["label"] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"])
    changes = ("lgr.views=1", "lgr.epochs=1", "select.max_anchors=4")
    recipe = override(load_recipe("glyphs_lt/ours"), changes)
    recipe = recipe.model_copy(update={"prompts": ("a sign like the {}.", "the {}, printed.")})
    workspace = Workspace.create(folder / "workspace", recipe)
    ingest_text(workspace, texts_file)
    ingest_images(workspace, folder / "pictures", "train")
    with (folder / "tree.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "parent", "rank"])
        rows.writerows([name, "first" if n < 5 else "second", ""] for n, name in enumerate(names))
    ingest_classes(workspace, folder / "tree.csv")
    encoder = Encoder.load("vlltr-tiny", "glyphs")
    with workspace.transaction("an encoder") as tx:
        with workspace.objects.put("checkpoints") as made:
            encoder.save(made.folder)
        tx.set(checkpoint=made.digest)
    embed(workspace)
    select(workspace, recipe.select)
    train_lgr_stage(workspace, recipe.lgr)
    index_anchors(workspace, "flat")
    add_class(workspace, "a later sign", texts[sorted(texts)[11]][:4])
    Recognizer.open(workspace).export(folder / "export", with_index=True)


class Base:
    """The undamaged folders, and what is answered with them.

    Args:
        folder: Where `build` has been.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {target: list(self._files(target)) for target in ("workspace", "export")}
        self.answers: dict[str, str] = {}
        for what in COMPARED:
            outcome, said = self.run(what, lambda place: None)
            assert outcome == 0, said
            self.answers[what] = said

    def _files(self, target: str) -> Iterator[str]:
        """The names of all files, in an order that two builds have alike."""
        top = self.folder / target
        paths = [path for path in top.rglob("*") if path.is_file() and not path.name.startswith("lock")]

        def order(path: Path) -> tuple[str, int]:
            return _UNSTABLE.sub("*", path.relative_to(top).as_posix()), path.stat().st_mtime_ns

        yield from (path.relative_to(top).as_posix() for path in sorted(paths, key=order))

    def run(self, what: str, damage: Callable[[Path], object]) -> tuple[int | None, str]:
        """Run something in a process of its own on a damaged copy.

        Returns:
            The exit code (below 0: a signal; None: it took too long), and what it said: on stdout if that is 0.
        """
        target = "export" if what == "load" else "workspace"
        with tempfile.TemporaryDirectory(prefix="vlltr-damage-") as place:
            copy = Path(place) / target
            # Linked files are one file: a lock would be held for all copies at once.
            locks = shutil.ignore_patterns("lock", "lock.holder")
            shutil.copytree(self.folder / target, copy, copy_function=os.link, ignore=locks)
            damage(copy)
            child = os.fork()
            if not child:
                _child(what, copy, self.folder / "picture.png", Path(place))
            status, until = None, time.monotonic() + _LONGEST
            while status is None and time.monotonic() < until:
                done, found = os.waitpid(child, os.WNOHANG)
                status = os.waitstatus_to_exitcode(found) if done else None
                time.sleep(0.01)
            if status is None:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            out, err = (
                (Path(place) / name).read_text(encoding="utf-8", errors="replace").replace(str(copy), "COPY")
                for name in ("out", "err")
            )
            return status, out if status == 0 else out + err

    def case(self, number: int) -> dict[str, Any]:
        """One case: what was damaged how, what was run, and the `outcome`."""
        draw = random.Random(number)
        what = draw.choices([*COMPARED, *TOLD], [6, 2, 3, 4, 2, 1, 1])[0]
        target, kind = "export" if what == "load" else "workspace", draw.choice(KINDS)
        folders: dict[str, list[str]] = {}
        for name in self.files[target]:  # each folder is as likely as any other, however many files it has
            folders.setdefault(_UNSTABLE.sub("*", name).rpartition("/")[0], []).append(name)
        # Settings are people's to change: an addition with others is another one.
        choices = [group for folder, group in sorted(folders.items()) if what != "add" or folder]
        name = draw.choice(draw.choice(choices))
        ending = name.rpartition(".")[2]
        near = [other for other in self.files[target] if other.rpartition(".")[2] == ending]
        near = [other for other in near if what != "add" or "/" in other]
        other = draw.choice(near)
        outcome, said = self.run(what, lambda copy: _damage(draw, copy, kind, name, other))
        if outcome is None:
            result = "hang"
        elif "Traceback (most recent call last)" in said or outcome < 0:
            result = "traceback"
        elif outcome == 0:
            same = what in TOLD or said == self.answers[what]
            result = "same" if same else "different"
        else:
            result = "error" if "Error: " in said or what == "doctor" else "traceback"
        return {
            "case": number,
            "what": what,
            "kind": kind,
            "file": name,
            "outcome": result,
            "said": said[-3000:],
        }


def _damage(draw: random.Random, copy: Path, kind: str, name: str, other: str) -> None:
    """Damage one file; links to it elsewhere stay whole."""
    path = copy / name
    data = bytearray(path.read_bytes())
    if kind == "swap":
        mine, theirs = bytes(data), (copy / other).read_bytes()
        _replace(path, theirs)
        _replace(copy / other, mine)
        return
    if kind == "delete":
        path.unlink()
        return
    at = draw.randrange(len(data) or 1)
    if kind == "cut":
        del data[at:]
    elif kind == "zeroes":
        end = min(len(data), at + draw.choice([1, 8, 64, 512, 4096]))
        data[at:end] = bytes(end - at)
    elif data:
        data[at] ^= 1 << draw.randrange(8)
    _replace(path, bytes(data))


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def _child(what: str, copy: Path, picture: Path, place: Path) -> None:
    """Do what is asked, with stdout and stderr in files; never returns."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), number)
    code = 70
    try:
        commands = {
            "predict": [["--json", "predict", str(picture), "--top", "5", "--explain", "2"]],
            "explain": [["--json", "explain", str(picture), "--class", "a later sign"]],
            "add": [
                ["-q", "classes", "add", _NEW, "--sentence", _SENTENCE],
                ["--json", "predict", str(picture), "--top", "5", "--explain", "2"],
            ],
            "doctor": [["--json", "doctor"]],
            "status": [["--json", "status"]],
            "history": [["--json", "history"]],
        }
        if what == "load":
            code = _load(copy, picture)
        else:
            from vlltr_index.cli.main import main

            code = 0
            for command in commands[what]:
                with contextlib.suppress(SystemExit):
                    code = 70
                    try:
                        main(["-w", str(copy), *command])
                    except SystemExit as end:
                        code = int(end.code or 0)
                if code:
                    break
    except BaseException:  # what nobody caught is what is looked for
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _load(copy: Path, picture: Path) -> int:
    """Answer with an exported folder, as `vlltr predict --json` prints it."""
    from pydantic_core import to_jsonable_python

    from vlltr_index.errors import VlltrError
    from vlltr_index.recognizer import Recognizer

    try:
        found = Recognizer.from_pretrained(copy).predict([str(picture)], PredictOptions(explain=2))
    except VlltrError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(to_jsonable_python(found), sort_keys=True))
    return 0


def _opened(folder: Path | None) -> Base:
    """The undamaged folders, built if they are not there; what commands need is imported once, before the forks."""
    program = digest_folder(Path(vlltr_index.__file__).parent)[:12]  # another one begins anew
    place = folder or Path(tempfile.gettempdir()) / f"vlltr-damages-{program}"
    if not (place / "export").is_dir():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", __spec__.name, "build", str(place)], check=True)
    for name in (
        "lancedb",
        "vlltr_index.encoders.encoder",
        "vlltr_index.pipelines.doctor",
        "vlltr_index.recognizer",
    ):
        import_module(name)
    return Base(place)


def _run(base: Base, wanted: range, workers: int) -> dict[str, Any]:
    """All cases, shared by as many processes; those that an earlier run kept beside the folders are not done again."""
    started = time.monotonic()
    kept = base.folder / "cases"
    kept.mkdir(exist_ok=True)
    done = {int(one["case"]) for one in _kept(kept)}
    todo = [number for number in wanted if number not in done]
    children = []
    for worker in range(workers):
        child = os.fork()
        if not child:
            with (kept / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
                for number in todo[worker::workers]:
                    file.write(json.dumps(base.case(number)) + "\n")
                    file.flush()
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    found = {int(one["case"]): one for one in _kept(kept)}
    assert found.keys() >= set(wanted), "a worker died"
    shutil.rmtree(kept)
    return summary([found[number] for number in wanted], round(time.monotonic() - started))


def _kept(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the cases that were done; a line that was cut short is passed over."""
    for path in sorted(folder.iterdir()):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)


def summary(cases: list[dict[str, Any]], seconds: int) -> dict[str, Any]:
    """What came of the cases, with all that failed."""
    found = sorted(cases, key=lambda one: int(one["case"]))
    wrong = [one for one in found if one["outcome"] not in ("same", "error")]
    for one in wrong:
        sys.stderr.write(json.dumps(one) + "\n")

    def table(key: str) -> dict[str, dict[str, int]]:
        return {
            value: dict(Counter(one["outcome"] for one in found if one[key] == value))
            for value in sorted({one[key] for one in found})
        }

    outcomes = Counter(one["outcome"] for one in found)
    return {
        "cases": len(found),
        "different_answers": outcomes["different"],
        "tracebacks": outcomes["traceback"],
        "hangs": outcomes["hang"],
        "same_answers": outcomes["same"],
        "errors": outcomes["error"],
        "by_command": table("what"),
        "by_damage": table("kind"),
        "failed": [{key: one[key] for key in ("case", "what", "kind", "file", "outcome")} for one in wrong],
        "seconds": seconds,
    }


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--cases", type=int, default=5000)
    run.add_argument("--first", type=int, default=0)
    run.add_argument("--workers", type=int, default=os.cpu_count())
    run.add_argument("--out", type=Path, default=RESULT)
    one = commands.add_parser("case")
    one.add_argument("number", type=int)
    for parts in (run, one):
        parts.add_argument("--folder", type=Path, help="where the undamaged folders are, or are to be built")
    commands.add_parser("build").add_argument("folder", type=Path)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.filterwarnings("ignore", "lancedb fork support", RuntimeWarning)  # no child has a table open
    if args.command == "build":
        build(args.folder)
    elif args.command == "case":
        sys.stdout.write(json.dumps(_opened(args.folder).case(args.number), indent=1) + "\n")
    else:
        wanted = range(args.first, args.first + args.cases)
        result = _run(_opened(args.folder), wanted, args.workers)
        args.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        sys.exit(bool(result["failed"]))


if __name__ == "__main__":
    main()
