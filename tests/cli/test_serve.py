"""Tests of `vlltr serve`: answers, batches, changes, and the newest commit."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from zlib import crc32

import pytest

from tests.support.commands import run
from tests.support.exports import Shared
from tests.support.served import Served, served
from vlltr_index.classes import add_class
from vlltr_index.classes.effect import Effect
from vlltr_index.errors import WorkspaceError
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.history import rollback
from vlltr_index.pipelines.ingest import ingest_text
from vlltr_index.recognition.model import Model
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow  # FastAPI is of [test-all]

TEXT = "It has a long tail."
TOLERANCE = {"rel": 1e-4, "abs": 1e-3}  # float32 products of a batch of another size round otherwise


@pytest.fixture(scope="module")
def site(trained_once: Path) -> Iterator[Served]:
    """A server of a workspace that nobody may change."""
    with served(Workspace.open(trained_once)) as made:
        yield made


def same(found: Any, expected: Any) -> None:
    """JSON with the same words, and numbers that agree within the tolerance."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, **TOLERANCE)
    else:
        assert found == expected


def told(predictions: Any) -> Any:
    """Predictions as they come as JSON."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(predictions)


def wait_for(server: Served, commit: int) -> None:
    """Until the server answers as of a commit."""
    end = time.monotonic() + 60
    while server.client.get("/health").json()["commit"] != commit:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_answers_are_those_of_the_command(
    site: Served, trained_once: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`vlltr predict --json` and the server say the same, but for the name: a client's file has no path."""
    files = sorted(pictures.glob("known-*.png"))[:3]
    code, out, _ = run(capsys, "--json", "-w", trained_once, "predict", *files, "--top", "3")
    assert code == 0
    answer = site.predict(*files, options='{"top": 3, "explain": 3}')
    assert answer.status_code == 200
    expected = [{**one, "image": Path(one["image"]).name} for one in json.loads(out)]
    same(answer.json(), expected)


def test_requests_together_are_answered_as_each_by_itself(
    trained_once: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several clients, with one and several pictures and different options, in whatever batches they come; a model
    that would take another way to score one picture than several takes each request's own.
    """
    from vlltr_index.cli.serve import batcher

    batches = []
    answer_read = batcher.answer_read

    def used(model: Model, retrieval: str, images: int) -> str:
        return ("faiss" if images == 1 else "exhaustive") if retrieval == "auto" else retrieval

    def counted(model: Any, read: Any, options: PredictOptions) -> Any:
        batches.append((len(read[0].names), options.retrieval))
        return answer_read(model, read, options)

    monkeypatch.setattr(batcher, "answer_read", counted)
    monkeypatch.setattr(Model, "used", used)
    files = [*sorted(pictures.glob("known-*.png")), *sorted((pictures / "unseen").glob("*.png"))]
    recognizer = Recognizer.open(trained_once)
    name = recognizer.classes_[0]
    ways: list[dict[str, Any]] = [
        {},
        {"explain": 2, "top": 2},
        {"only": [name, recognizer.classes_[1]]},
        {"crops": 5},
    ]
    asked = [
        (ways[n % len(ways)], [files[(n + k) % len(files)] for k in range(1 + n % 3)]) for n in range(48)
    ]
    with served(Workspace.open(trained_once)) as server, ThreadPoolExecutor(24) as clients:
        answers = list(clients.map(lambda one: server.predict(*one[1], options=json.dumps(one[0])), asked))
    for (how, some), answer in zip(asked, answers, strict=True):
        assert answer.status_code == 200
        alone = recognizer.predict([path.read_bytes() for path in some], PredictOptions(**how))
        named = [replace(one, image=path.name) for one, path in zip(alone, some, strict=True)]
        same(answer.json(), told(named))
    assert max(size for size, _ in batches) > 3, "no batch had two requests"
    assert {way for _, way in batches} == {"faiss", "exhaustive"}


def test_an_unreadable_picture_is_a_problem_of_its_own(site: Served, pictures: Path, tmp_path: Path) -> None:
    """Also one that says it is far too large, and an empty one; the others are answered."""
    whole = (pictures / "known-0.png").read_bytes()
    header = b"IHDR" + (10**5).to_bytes(4, "big") * 2 + whole[24:29]
    bomb = whole[:12] + header + crc32(header).to_bytes(4, "big") + whole[33:]
    for name, data in (("bomb.png", bomb), ("empty.png", b""), ("page.html", b"<html>")):
        (tmp_path / name).write_bytes(data)
    files = [tmp_path / "bomb.png", pictures / "known-0.png", tmp_path / "empty.png", tmp_path / "page.html"]
    answers = site.predict(*files).json()
    assert [one["image"] for one in answers] == [path.name for path in files]
    assert [one["problem"] is None for one in answers] == [False, True, False, False]
    assert "pixels" in answers[0]["problem"]
    assert answers[1]["classes"]


def test_large_pictures_are_read_too(site: Served, tmp_path: Path) -> None:
    """One after the other, apart from the others."""
    from PIL import Image

    Image.new("L", (4000, 3000)).save(tmp_path / "large.png")
    answers = site.predict(*[tmp_path / "large.png"] * 3).json()
    assert [one["problem"] for one in answers] == [None] * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{", "options: Invalid JSON"),
        ("[1]", "options: Input should be"),
        ('{"path": "/etc/passwd"}', "options.path: Unexpected keyword argument"),
        ('{"top": 0}', "top is 1 at least, got 0"),
        ('{"top": "many"}', "options.top: Input should be a valid integer"),
        ('{"explain": -1}', "explain is 0 at least, got -1"),
        ('{"explain": 100000000000}', "the answers would have up to"),
        ('{"neighbours": 30000}', "the answers would have up to"),
        ('{"crops": 3}', "crops is 1 or 5 (the centre and the corners), got 3"),
        ('{"retrieval": "quick"}', "retrieval is 'auto', 'faiss' or 'exhaustive', got 'quick'"),
        ('{"min_accuracy": 2}', "the least accuracy lies between 0 and 1, got 2"),
        ('{"only": ["nobody"]}', "no class 'nobody'"),
        ('{"only": []}', "an answer among some classes (only, parent) that names no class"),
        ('{"only": "kestrel"}', "options.only: "),
        ('{"parent": "bird"}', "no class has a parent"),
        ('{"prior": "estimated"}', "the prior 'estimated' needs many pictures at once"),
        ('{"prior": {"nobody": 1}}', "the prior: no class 'nobody'"),
        ('{"prior": "/etc/passwd"}', "options.prior"),
        ('{"top": 1, "top": 3}', "options: 'top' occurs twice"),
        ('{"prior": {"one": 1, "one": 3}}', "options: 'one' occurs twice"),
    ],
)
def test_options_that_are_refused(site: Served, pictures: Path, options: str, said: str) -> None:
    """Each with its reason; nothing fails."""
    answer = site.predict(pictures / "known-0.png", options=options)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"].startswith(said)


def test_one_error_is_one_request_s(
    trained_once: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a batch fails, its requests are answered by themselves; what is wrong is logged, and not told."""
    from vlltr_index.cli.serve import batcher

    answer_read = batcher.answer_read

    def failing(model: Any, read: Any, options: PredictOptions) -> Any:
        if "bad.png" in read[0].names:
            raise RuntimeError("a secret of /home/me")
        return answer_read(model, read, options)

    monkeypatch.setattr(batcher, "answer_read", failing)
    monkeypatch.setattr(batcher, "_WINDOW", 0.5)
    data = (pictures / "known-0.png").read_bytes()
    with served(Workspace.open(trained_once)) as server, ThreadPoolExecutor(4) as clients:

        def ask(name: str) -> Any:
            return server.client.post("/predict", files={"images": (name, data)})

        answers = list(clients.map(ask, ["good.png", "bad.png", "good.png", "good.png"]))
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
    assert answers[1].json() == {"detail": "The server failed; its log says why."}
    assert "a secret of /home/me" in caplog.text


def test_classes_are_listed(site: Served, trained_once: Path) -> None:
    """Those that can be the answer, by the commit that answers."""
    listed = site.client.get("/classes").json()
    assert [one["name"] for one in listed["classes"]] == Recognizer.open(trained_once).classes_.tolist()
    assert listed["commit"] == Workspace.open(trained_once).history.ids()[-1]
    assert site.client.get("/classes").json() == listed


def test_changes_are_those_of_the_commands(trained: Workspace, pictures: Path) -> None:
    """A class is added, answered with at once, loses a sentence, gets one, and goes; each is one commit."""
    first = trained.history.ids()[-1]
    seen = [pictures / "unseen" / f"{n}.png" for n in (0, 1)]
    with served(trained, write=True) as server:
        form = {"name": ["a/b c"], "sentences": [TEXT, "It is striped."], "aliases": ["okapi"]}
        report = server.change("POST", "/classes", form, seen).json()
        assert report["command"] == "classes add 'a/b c'"
        assert (report["commit"], report["added"], report["changed"]) == (first + 1, True, True)
        assert report["classes"][0]["images"] == 2
        (answer,) = server.predict(seen[0], options='{"top": 8}').json()
        assert answer["commit"] == first + 1
        assert "a/b c" in [one["name"] for one in answer["classes"]]
        uris = trained.snapshot().table("images", ["uri"], "uri LIKE 'given#%'")["uri"].to_pylist()
        assert sorted(uris) == ["given#0.png", "given#1.png"]
        more = {"name": ["a/b c"], "sentences": ["It has ears."]}
        report = server.change("POST", "/sentences", more).json()
        assert report["notes"][0] == "1 sentence added."
        report = server.change("DELETE", "/sentences?name=okapi&matching=EARS").json()
        assert report["notes"][:2] == ["1 sentence removed:", "  It has ears."]
        again = server.change("POST", "/classes", {"name": ["okapi"]})
        assert again.status_code == 422
        assert again.json() == {
            "detail": "there is a class 'okapi' already: 'a/b c'"
        }  # the hint is a command
        same_as_before = server.change("POST", "/sentences", {"name": ["okapi"], "sentences": [TEXT]}).json()
        assert (same_as_before["changed"], same_as_before["commit"]) == (False, None)
        assert server.change("DELETE", "/classes?name=a%2Fb%20c").json()["commit"] == first + 4
        gone = server.change("DELETE", "/classes?name=okapi")
        assert gone.status_code == 404
        assert gone.json() == {"detail": "no class 'okapi'", "hint": "GET /classes lists all."}
        assert server.change("DELETE", "/sentences?name=okapi").json() == {
            "detail": "query.matching: Field required"
        }
        assert server.client.get("/health").json() == {"status": "ok", "commit": first + 4}
    assert trained.history.ids()[-1] == first + 4


def test_a_client_is_told_no_command(trained: Workspace, tmp_path: Path) -> None:
    """Of a hint the sentences without one are told."""
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"Okapi": [TEXT], "oKapi": [TEXT]}), encoding="utf-8")
    ingest_text(trained, texts)
    with served(trained, write=True) as server:
        answer = server.change("POST", "/sentences", {"name": ["okapi"], "sentences": [TEXT]})
    assert answer.json()["hint"] == "Give the name as it is written there. GET /classes lists all."


def test_a_client_is_warned_of_a_loss(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command warns, among the notes."""
    monkeypatch.setattr("vlltr_index.classes.change.measure", lambda *_: (Effect(0.9, 0.8, 50, 50), {}))
    with served(trained, write=True) as server:
        report = server.change("POST", "/classes", {"name": ["okapi"], "sentences": [TEXT]}).json()
    said = "Warning: accuracy on existing classes drops by 10.0 points. Sentences that tell a class apart"
    assert any(note.startswith(said) for note in report["notes"])


def test_a_class_of_any_name_can_be_changed_and_removed(trained: Workspace) -> None:
    """Also one that would be shortened in a path, or that has characters that are dropped from it."""
    with served(trained, write=True) as server:
        for name in ("..", "a/%2e%2e/b?c#d", " \u202eOKA\u0301PI\u200b\u00ad\ufeff\t(adult)"):
            form = {"name": [name], "sentences": [TEXT]}
            assert server.change("POST", "/classes", form).status_code == 200, name
            assert server.change("POST", "/classes", form).status_code == 422, "it is there already"
            more = {"name": [name], "sentences": ["It has ears."]}
            assert server.change("POST", "/sentences", more).status_code == 200, name
            query = urlencode({"name": name})
            assert server.change("DELETE", f"/sentences?{query}&matching=ears").status_code == 200, name
            assert server.change("DELETE", f"/classes?{query}").status_code == 200, name


def test_a_file_that_is_gone_is_not_named(
    trained: Workspace, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a prune beneath a running server: a client is not told where the workspace lies."""
    with served(trained) as server:
        shutil.rmtree(trained.path / "index")
        failed = server.predict(pictures / "known-0.png", options='{"retrieval": "faiss"}')
    assert (failed.status_code, failed.json()) == (500, {"detail": "The server failed; its log says why."})
    assert "is gone: the workspace's newest commits need it" in caplog.text


def test_another_process_that_writes_is_not_waited_for(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is refused for now, and predictions go on."""
    monkeypatch.setattr("vlltr_index.cli.serve.writer._PATIENCE", 0.1)
    with served(trained, write=True) as server:
        with trained.transaction("embed"):
            busy = server.change("POST", "/classes", {"name": ["okapi"], "sentences": [TEXT]})
            assert (busy.status_code, busy.headers["retry-after"]) == (503, "5")
            assert busy.json()["detail"] == "Another process is writing to the workspace."
        assert server.change("POST", "/classes", {"name": ["okapi"], "sentences": [TEXT]}).status_code == 200


def test_the_newest_commit_is_followed(trained: Workspace, pictures: Path) -> None:
    """While classes come, the index is built and all is rolled back no request fails, and each answer is one of the
    commit that it names.
    """
    picture = pictures / "known-0.png"
    first = trained.history.ids()[-1]
    answers: list[Any] = []
    ended = threading.Event()
    with served(trained) as server:

        def ask() -> None:
            while not ended.is_set():
                answers.append(server.predict(picture, options='{"top": 99}'))

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            for change in (
                lambda: add_class(trained, "okapi", [TEXT]),
                lambda: index_anchors(trained),
                lambda: rollback(trained, first),
            ):
                change()
                wait_for(server, trained.history.last().state)
            (one,) = server.predict(picture).json()
            named = {server.client.get(path).json()["commit"] for path in ("/health", "/classes")}
            assert named == {one["commit"]} == {first}, "the commit whose state the rollback restored"
        finally:
            ended.set()
            for client in clients:
                client.join()
    expected = {
        commit: Recognizer.open(trained, at=commit).predict([picture.read_bytes()], PredictOptions(top=99))
        for commit in trained.history.ids()
        if commit >= first
    }
    seen = set()
    for answer in answers:
        assert answer.status_code == 200
        (one,) = answer.json()
        seen.add(one["commit"])
        same(one, told(replace(expected[one["commit"]][0], image=picture.name)))
    assert {first, first + 1} <= seen <= {first, first + 1, first + 2}


def test_a_commit_that_cannot_answer_is_passed_over(
    trained: Workspace, pictures: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The model before it answers, until there is another commit; it is tried once."""
    from vlltr_index.cli.serve import follower

    first = trained.history.ids()[-1]
    tried = []
    ready = follower._ready

    def failing(model: Model) -> Model:
        tried.append(model.commit)
        if model.commit == first + 1:
            raise WorkspaceError("the index is damaged")
        return ready(model)

    monkeypatch.setattr(follower, "_ready", failing)
    monkeypatch.setattr(follower, "_EVERY", 0.05)
    with served(trained) as server:
        add_class(trained, "okapi", [TEXT])
        time.sleep(1)
        assert server.predict(pictures / "known-0.png").json()[0]["commit"] == first
        assert f"answering as of commit {first}: the index is damaged" in caplog.text
        add_class(trained, "dodo", [TEXT])
        wait_for(server, first + 2)
    assert tried == [first, first + 1, first + 2]


def test_an_export_is_served_without_its_workspace(shared: Shared, pictures: Path) -> None:
    """It answers as the workspace did, and nothing can be changed."""
    with served(shared.folder) as server:
        known = pictures / "known-0.png"
        (answer,) = server.predict(known, options='{"explain": 1}').json()
        assert answer["commit"] == shared.commit
        assert [one["name"] for one in server.client.get("/classes").json()["classes"]] == shared.names
        refused = server.predict(known, options='{"neighbours": 1}')
        assert refused.status_code == 422
        assert "exported folder" in refused.json()["detail"]
        for method, path in (("POST", "/classes"), ("DELETE", "/classes"), ("POST", "/sentences")):
            assert server.client.request(method, path).status_code in (404, 405)


def test_the_description(trained: Workspace) -> None:
    """OpenAPI has every route, its form, its refusals, and examples that are accepted."""
    from vlltr_index.cli.serve.app import _OPTIONS

    with served(trained, write=True) as server:
        described = server.client.get("/openapi.json").json()
        assert server.client.get("/docs").status_code == 404
    routes = {(method, path) for path, ways in described["paths"].items() for method in ways}
    assert routes == {
        ("get", "/health"),
        ("get", "/classes"),
        ("post", "/predict"),
        ("post", "/classes"),
        ("delete", "/classes"),
        ("post", "/sentences"),
        ("delete", "/sentences"),
    }
    predict = described["paths"]["/predict"]["post"]
    form = predict["requestBody"]["content"]["multipart/form-data"]
    _OPTIONS.validate_json(form["example"]["options"])
    assert form["schema"]["properties"]["options"]["contentSchema"]["properties"].keys() >= {"top", "prior"}
    assert predict["responses"].keys() >= {"200", "401", "413", "422", "429", "503"}
    assert predict["responses"]["200"]["content"]["application/json"]["example"][0]["classes"]
