"""`vlltr serve` under load: pictures a second beside the bare model, and what clients see while the workspace changes.

    python -m benchmarks serve run --workspace DIR [--clients 64] [--together 1] [--seconds 60]

Server, clients and the bare model are programs of their own on the same machine. `bare` answers the same pictures by
the same options in full batches, read ahead, before and after. Each client sends `together` pictures, waits for the
answer, and sends the next. First nothing changes; then classes are added and removed through the server, and other
programs build the index and roll back; last, eight times as many clients send 8 pictures each. Every answer is compared
with that of the commit it names, opened afterwards. What the clients cost is their own processor time; how much
they could send is tried on a server that sends one answer over and over.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.kept import keep, surroundings
from benchmarks.study import Command, Results, Study
from vlltr_index.data.glyphs import glyph_files

_WRITE_TOKEN = "w" * 32
_PICTURES = 64
_WARM = 64  # pictures
_ABOVE = 8  # times as many clients, and pictures a request, as the server lets in
_CLOSE = 2e-4  # how far a probability may differ: a batch of another size rounds otherwise
_PHASES = {"nothing changes": "quiet", "the workspace changes": "changing", "above the limit": "above"}
_BOUNDARY = b"vlltr-load"


def write_pictures(folder: Path, large: bool) -> None:
    """Write drawings of Glyphs-LT, as they are or as large as photographs."""
    rows = pq.read_table(glyph_files(fast=True).images, columns=["image"])["image"].to_pylist()
    for number, data in enumerate(rows[:: len(rows) // _PICTURES][:_PICTURES]):
        if large:
            drawing = Image.open(BytesIO(data)).convert("RGB").resize((640, 480))
            drawing.save(folder / f"{number:02}.jpg", quality=90)
        else:
            (folder / f"{number:02}.png").write_bytes(data)


def _pictures(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def bare(workspace: Path, pictures: Path, seconds: float) -> None:
    """Say how many pictures a second the model answers in full batches, and the processor's milliseconds of each."""
    from vlltr_index.recognition.answering import stream
    from vlltr_index.recognizer import Recognizer

    model = Recognizer.open(workspace).current()
    source = cycle(_pictures(pictures))
    done = 0
    start = before = 0.0
    for _ in stream(model, source):
        done += 1
        if done == _WARM:
            start = time.monotonic()
            before = time.process_time()
        if done > _WARM and done % 64 == 0 and time.monotonic() - start > seconds:
            break
    done -= _WARM
    cpu = time.process_time() - before
    sys.stdout.write(json.dumps([done / (time.monotonic() - start), 1000 * cpu / done]))


def _request(pictures: list[tuple[str, bytes]], host: str) -> bytes:
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="images"; filename="%s"\r\n\r\n%s\r\n'
        % (_BOUNDARY, name.encode(), data)
        for name, data in pictures
    ]
    body = b"".join([*parts, b"--%s--\r\n" % _BOUNDARY])
    kind = b"multipart/form-data; boundary=" + _BOUNDARY
    head = b"POST /predict HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (host.encode(), kind, len(body)) + body


class _Client(asyncio.Protocol):
    """A client that sends one request after the other, and notes status, seconds and body of each answer."""

    def __init__(self, requests: list[bytes], first: int, until: float, seen: list[Any]) -> None:
        self._requests = requests
        self._next = first
        self._until = until
        self._seen = seen
        self._came = b""
        self._start = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._start = time.monotonic()
        self._transport.write(self._requests[self._next % len(self._requests)])

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, end, body = self._came.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), -1)
        if not end or len(body) < length:
            return
        now = time.monotonic()
        self._seen.append((int(head[9:12]), now - self._start, self._next % len(self._requests), body))
        self._came = b""
        self._next += 7
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(self._start if time.monotonic() < self._until else None)


async def _load(port: int, requests: list[bytes], clients: int, seconds: float) -> tuple[list[Any], int]:
    """Let clients ask; return what they saw, and how many lost their connection on the way."""
    seen: list[Any] = []
    loop = asyncio.get_running_loop()
    until = time.monotonic() + seconds
    made = []
    for number in range(clients):
        how = (requests, number, until, seen)
        _, client = await loop.create_connection(lambda how=how: _Client(*how), "127.0.0.1", port)
        made.append(client)
    ends = await asyncio.gather(*(client.done for client in made))
    return seen, sum(end is not None for end in ends)


def clients(port: int, pictures: Path, number: int, together: int, seconds: float, out: Path) -> None:
    """Ask as many clients, and write what they saw."""
    given = _pictures(pictures)
    host = f"127.0.0.1:{port}"
    twice = given * 2
    requests = [_request(twice[n : n + together], host) for n in range(len(given))]
    start = time.monotonic()
    before = time.process_time()
    seen, lost = asyncio.run(_load(port, requests, number, seconds))
    elapsed = time.monotonic() - start
    cpu = time.process_time() - before
    bodies: dict[bytes, int] = {}
    rows = [(status, took, first, bodies.setdefault(body, len(bodies))) for status, took, first, body in seen]
    answers = [body.decode() for body in bodies]
    found = {"elapsed": elapsed, "cpu": cpu, "lost": lost, "rows": rows, "answers": answers}
    out.write_text(json.dumps(found), encoding="utf-8")


class _Echo(asyncio.Protocol):
    """Reads a request, and answers with as many bytes as the server does."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._left = -1
        self._came = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, end, body = self._came.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r", 1)[0]):
            self._came = b""
            self._transport.write(self._answer)


def echo(length: int) -> None:
    """Serve one answer over and over, at a port that is printed."""

    async def serve() -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (length, bytes(length))
        server = await asyncio.get_running_loop().create_server(lambda: _Echo(answer), "127.0.0.1", 0)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await server.serve_forever()

    asyncio.run(serve())


def _program(*args: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks", "serve", *map(str, args)]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "VLLTR_WRITE_TOKEN": _WRITE_TOKEN}


def _bare(workspace: Path, pictures: Path, seconds: float) -> list[float]:
    command = _program("bare", "--workspace", workspace, "--pictures", pictures, "--seconds", seconds)
    told = subprocess.run(command, env=_environment(), check=True, capture_output=True).stdout
    figures: list[float] = json.loads(told)
    return figures


def _asked(
    port: int,
    pictures: Path,
    number: int,
    together: int,
    seconds: float,
    server: psutil.Process | None = None,
) -> dict[str, Any]:
    """Let clients ask; return what they saw, with the processor seconds of clients and server."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "seen.json"
        command = _program(
            "clients", "--port", port, "--pictures", pictures, "--number", number, "--together", together,
            "--seconds", seconds, "--out", out,
        )  # fmt: skip
        before = server.cpu_times() if server else None
        subprocess.run(command, env=_environment(), check=True)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        if server and before:
            after = server.cpu_times()
            found["server_cpu"] = after.user + after.system - before.user - before.system
        return found


def _summary(found: dict[str, Any], together: int) -> dict[str, Any]:
    """Return the figures of what clients saw."""
    took = sorted(row[1] for row in found["rows"] if row[0] == 200)
    statuses = Counter(str(row[0]) for row in found["rows"])
    figures = {
        "pictures_per_second": len(took) * together / found["elapsed"],
        "p50_ms": 1000 * took[len(took) // 2],
        "p99_ms": 1000 * took[int(0.99 * len(took))],
        "statuses": dict(statuses),
        "lost": found["lost"],
        "clients_cores": found["cpu"] / found["elapsed"],
    }
    if "server_cpu" in found:
        figures["server_ms"] = 1000 * found["server_cpu"] / (len(took) * together)
    return figures


def _wrong(found: dict[str, Any], expected: _Expected, names: list[str], together: int) -> int:
    """Count the answers that are not those of the commit that they name."""
    judged: dict[tuple[int, int], bool] = {}
    twice = names * 2
    for status, _, first, body in found["rows"]:
        if status == 200 and (first, body) not in judged:
            answers = json.loads(found["answers"][body])
            named = [one["image"] for one in answers] == twice[first : first + together]
            judged[first, body] = named and all(map(expected.right, answers))
    return sum(not judged[first, body] for status, _, first, body in found["rows"] if status == 200)


class _Expected:
    """The answers of each commit, opened when they are first asked for.

    Attributes:
        known: Probabilities by class, picture and commit.
    """

    def __init__(self, workspace: Path, pictures: Path) -> None:
        self._workspace = workspace
        self._pictures = _pictures(pictures)
        self.known: dict[int, dict[str, dict[str, float]]] = {}

    def right(self, answer: dict[str, Any]) -> bool:
        """Say whether an answer has the classes and probabilities of its commit, the best of them."""
        chances = self._of(answer["commit"])[answer["image"]]
        told = {one["name"]: one["probability"] for one in answer["classes"]}
        if answer["problem"] is not None or not told.keys() <= chances.keys():
            return False
        best = sorted(chances.values(), reverse=True)[: len(told)]
        near = all(abs(chances[name] - chance) < _CLOSE for name, chance in told.items())
        return near and all(abs(a - b) < _CLOSE for a, b in zip(told.values(), best, strict=True))

    def _of(self, commit: int) -> dict[str, dict[str, float]]:
        from vlltr_index.recognition.answering import stream
        from vlltr_index.recognizer import Recognizer
        from vlltr_index.schemas.options import PredictOptions

        if commit not in self.known:
            model = Recognizer.open(self._workspace, at=commit).current()
            found = stream(model, iter(self._pictures), PredictOptions(top=10**6))
            self.known[commit] = {one.image: {c.name: c.probability for c in one.classes} for one in found}
        return self.known[commit]


def _change(address: str, workspace: Path, ended: threading.Event, done: Counter[str]) -> None:
    """Add classes, build the index, roll back and remove a class, until the time is over."""
    vlltr = [sys.executable, "-m", "vlltr_index.cli", "-q", "-w", str(workspace)]

    def ask(method: str, path: str, form: dict[str, str] | None = None) -> dict[str, Any]:
        lines = [
            f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
            for name, text in (form or {}).items()
        ]
        headers = {"Authorization": f"Bearer {_WRITE_TOKEN}"}
        headers |= {"Content-Type": "multipart/form-data; boundary=b"} if form else {}
        body = f"{''.join(lines)}--b--\r\n".encode() if form else None
        request = urllib.request.Request(f"{address}{path}", body, headers, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            report: dict[str, Any] = json.load(answer)
        return report

    for number in cycle(range(10**6)):
        steps = [
            ("added", lambda n=number: ask("POST", "classes", {"name": f"new {n}", "sentences": f"It is new, {n}."})),
            ("added", lambda n=number: ask("POST", "classes", {"name": f"more {n}", "sentences": f"It is more, {n}."})),
            ("index built", lambda: subprocess.run([*vlltr, "index"], check=True, env=_environment())),
            ("removed", lambda n=number: ask("DELETE", f"classes?name=more%20{n}")),
            ("rolled back", lambda: subprocess.run(
                [*vlltr, "rollback", str(_newest(workspace) - 1), "--yes"], check=True, env=_environment()
            )),
        ]  # fmt: skip
        for name, step in steps:
            if ended.wait(1):
                return
            step()
            done[name] += 1


def _newest(workspace: Path) -> int:
    return int((workspace / "history" / "newest").read_text(encoding="utf-8"))


def _watched(server: psutil.Process, ended: threading.Event, seen: list[float]) -> None:
    while not ended.wait(1):
        seen.append(server.memory_info().rss / 2**20)


def run(workspace: Path, clients: int, together: int, seconds: float) -> None:
    """Measure, and write the result."""
    from vlltr_index.store.workspace import Workspace

    recipe = Workspace.open(workspace).recipe
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copy = Path(shutil.copytree(workspace, folder / "workspace"))
        pictures = folder / "pictures"
        pictures.mkdir()
        write_pictures(pictures, large=recipe.encoder.model != "vlltr-tiny")
        names = [name for name, _ in _pictures(pictures)]
        load = os.getloadavg()[0]
        rates = [_bare(copy, pictures, seconds / 3)]
        with _server(copy) as (server, address):
            port = int(address.rstrip("/").rpartition(":")[2])
            _asked(port, pictures, clients, together, 5)  # warm
            quiet = _asked(port, pictures, clients, together, seconds, server)
            rates.append(_bare(copy, pictures, seconds / 3))
            memory: list[float] = []
            done: Counter[str] = Counter()
            ended = threading.Event()
            beside = [
                threading.Thread(target=_change, args=(address, copy, ended, done)),
                threading.Thread(target=_watched, args=(server, ended, memory)),
            ]
            for thread in beside:
                thread.start()
            changing = _asked(port, pictures, clients, together, seconds, server)
            ended.set()
            for thread in beside:
                thread.join()
            above = _asked(port, pictures, _ABOVE * clients, _ABOVE, seconds / 3, server)
        expected = _Expected(copy, pictures)
        found = {
            "encoder": recipe.encoder.model,
            "clients": clients,
            "together": together,
            "seconds": seconds,
            "load": load,
            "bare": rates,
            "quiet": {**_summary(quiet, together), "wrong": _wrong(quiet, expected, names, together)},
            "changing": {
                **_summary(changing, together),
                "wrong": _wrong(changing, expected, names, together),
                "done": dict(done),
                "commits": len(expected.known),
                "mib": [memory[len(memory) // 6], max(memory), memory[-1]],
            },
            "above": {**_summary(above, _ABOVE), "wrong": _wrong(above, expected, names, _ABOVE)},
            "echo": _echoed(pictures, clients, together, len(quiet["answers"][0])),
            **surroundings(),
        }
    keep("serve", f"{recipe.encoder.model}, {together}", found)


@contextmanager
def _server(workspace: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Yield the server's process and address; it ends afterwards."""
    command = [
        sys.executable,
        "-m",
        "vlltr_index.cli",
        "--json",
        "serve",
        str(workspace),
        "--port",
        "0",
        "--write",
    ]
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = "".join(iter(process.stdout.readline, "}\n")) + "}"
        try:
            yield psutil.Process(process.pid), json.loads(said)["address"]
        finally:
            process.terminate()


def _echoed(pictures: Path, clients: int, together: int, length: int) -> dict[str, Any]:
    """Let the clients ask a server that does nothing."""
    with subprocess.Popen(_program("echo", "--length", length), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = _asked(int(process.stdout.readline()), pictures, clients, together, 10)
        process.kill()
    return {key: value for key, value in _summary(found, together).items() if key != "statuses"}


def generated(results: Results) -> str:
    """Return the figures of all encoders as Markdown."""
    return "\n".join(_of_encoder(found) for found in results.values())


def _of_encoder(found: dict[str, Any]) -> str:
    """Return the figures of one encoder as Markdown."""
    cores = found["machine"]["cores"]
    rate, cost = (sum(figures) / len(figures) for figures in zip(*found["bare"], strict=True))
    together = found["together"]
    lines = [
        f"**{found['encoder']}**, {found['clients']} clients, {together} picture{'s' * (together > 1)} a request,"
        f" {found['seconds']:.0f} s each, {cores} cores for server and clients (load before: {found['load']:.1f}):",
        "",
        "| | pictures/s | of the bare model | of it, clients apart | processor, ms a picture | p50, ms | p99, ms |"
        " answers | wrong | lost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| the bare model, before and after | {', '.join(f'{one:.1f}' for one, _ in found['bare'])} | 1 | 1 |"
        f" {cost:.2f} | | | | | |",
    ]
    for name, key in (
        ("nothing changes", "quiet"),
        ("the workspace changes", "changing"),
        ("above the limit", "above"),
    ):
        row = found[key]
        ratio = row["pictures_per_second"] / rate
        apart = ratio / (1 - row["clients_cores"] / cores)
        told = ", ".join(f"{status}: {count:,}" for status, count in sorted(row["statuses"].items()))
        used = "" if key == "above" else f"{row['server_ms']:.2f}"  # most of what is above is not answered
        lines.append(
            f"| {name} | {row['pictures_per_second']:.1f} | {ratio:.2f} | {apart:.2f} |"
            f" {used} | {row['p50_ms']:.0f} | {row['p99_ms']:.0f} | {told} | {row['wrong']} | {row['lost']} |"
        )
    changing = found["changing"]
    done = ", ".join(f"{count} {name}" for name, count in changing["done"].items())
    early, most, last = changing["mib"]
    echo = found["echo"]
    lines += [
        "",
        f"Meanwhile: {done}; answers came from {changing['commits']} commits. Memory of the server, MiB: {early:.0f} a"
        f" sixth in, {most:.0f} at most, {last:.0f} at the end. The clients take {found['quiet']['clients_cores']:.2f}"
        f" cores; against a server that does nothing they send {echo['pictures_per_second']:.0f} pictures a second.",
        "",
    ]
    return "\n".join(lines)


def _run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, required=True, help="it is copied")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--together", type=int, default=1, help="pictures a request")
    parser.add_argument("--seconds", type=float, default=60)


def _bare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)


def _clients_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--together", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)


STUDY = Study(
    {"results/serve.md": generated},
    commands={
        "run": Command(run, _run_arguments),
        "bare": Command(bare, _bare_arguments),
        "clients": Command(clients, _clients_arguments),
        "echo": Command(echo, lambda parser: parser.add_argument("--length", type=int, required=True)),
    },
)
