"""The hub, through huggingface_hub against a local server: push, fetch, revisions, and what it may refuse."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from click.testing import CliRunner

from tests.support.exports import ASKED, Shared, check_same
from tests.support.hubserver import TOKEN, HubServer, Repo, hub_server, point_at
from vlltr_index.cli.main import vlltr
from vlltr_index.errors import PretrainedError, UsageError
from vlltr_index.recognition.exported.reading import MODEL_FILES, SUMS, locate
from vlltr_index.recognition.exported.writing import push_model
from vlltr_index.recognizer import Recognizer
from vlltr_index.store.workspace import Workspace


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub of this test alone, where nobody is logged in and nothing is cached."""
    with hub_server() as server:
        point_at(server.url, tmp_path / "hf", monkeypatch)
        yield server


def put(server: HubServer, name: str, folder: Path, **options: bool) -> Repo:
    """Place a folder in a repository, past the API."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    repo = server.repos[name] = Repo(**options)
    repo.commits.append(files)
    repo.messages.append("put")
    return repo


def test_what_is_pushed_comes_back(
    hub: HubServer, shared: Shared, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private repository is made, filled in one commit, and read back to the same answers."""
    recognizer = Recognizer.from_pretrained(shared.folder)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    url = recognizer.push_to_hub("user/birds", private=True, commit_message="First")
    repo = hub.repos["user/birds"]
    assert repo.private
    assert repo.messages == ["initial commit", "First"]
    assert url == f"{hub.url}/user/birds/commit/{repo.sha()}"
    here = {
        p.relative_to(shared.folder).as_posix(): p.read_bytes()
        for p in shared.folder.rglob("*")
        if p.is_file()
    }
    assert repo.commits[-1] == here
    again = Recognizer.from_pretrained("user/birds")
    images = sorted(pictures.glob("known-*.png"))
    check_same(again.predict(images, ASKED[0]), shared.answers[0])


def test_only_known_files_are_fetched_and_old_ones_are_kept_out(
    hub: HubServer, shared: Shared, tmp_path: Path
) -> None:
    """Strange files stay on the hub; a second push takes the index of the first away, and revisions lead back."""
    repo = put(hub, "user/birds", shared.folder)
    repo.commits[-1] |= {"pickle.bin": b"x", "index/index.json": b"{}", ".gitattributes": b""}
    folder = locate("user/birds", cache_dir=tmp_path / "cache")
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()} <= {
        SUMS,
        *MODEL_FILES,
    }
    assert str(folder).startswith(str(tmp_path / "cache"))
    first = repo.sha()
    push_model(shared.folder, "user/birds", token=TOKEN)
    assert "index/index.json" not in repo.commits[-1]
    assert {"pickle.bin", ".gitattributes"} <= set(repo.commits[-1])
    assert repo.messages[-1] == f"Upload commit {shared.commit} of recipe glyphs_lt/fast"
    old = locate("user/birds", revision=first, cache_dir=tmp_path / "cache")
    assert (old / "index" / "index.json").exists()


def test_the_command_pushes(
    hub: HubServer, trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vlltr export DIR --push` leaves the folder and says where it went; refused, the folder is there all the same."""
    command = ["-w", str(trained.path), "export", str(tmp_path / "model"), "--push", "user/birds"]
    refused = CliRunner().invoke(vlltr, command)
    assert isinstance(refused.exception, PretrainedError), refused.output
    assert (tmp_path / "model" / SUMS).is_file()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = CliRunner().invoke(vlltr, [*command, "--force"])
    assert done.exit_code == 0, done.exception
    assert f"Pushed: {hub.url}/user/birds/commit/{hub.repos['user/birds'].sha()}" in done.stdout


def test_what_the_hub_does_not_give(hub: HubServer, shared: Shared) -> None:
    """Missing, private and gated repositories, a bad token, an unknown revision: in the hub's words."""
    put(hub, "user/birds", shared.folder)
    put(hub, "user/mine", shared.folder, private=True)
    put(hub, "user/gate", shared.folder, gated=True)
    wrong = "hf_" + "b" * 34
    for name, token, revision, words in (
        ("user/nothing", TOKEN, None, "Repository Not Found"),
        ("user/mine", False, None, "Repository Not Found"),  # nobody is told which it is
        ("user/gate", None, None, "restricted"),
        ("user/birds", wrong, None, "Invalid credentials"),
        ("user/birds", None, "v9", "Revision Not Found"),
    ):
        with pytest.raises(PretrainedError, match=f"{name} on the hub: .*{words}") as caught:
            locate(name, revision, token)
        assert "log in (hf auth login)" in str(caught.value.hint)
    assert (locate("user/mine", token=TOKEN) / SUMS).is_file()
    with pytest.raises(PretrainedError, match=r"user/birds on the hub: .*Invalid credentials"):
        push_model(shared.folder, "user/birds", token=wrong)


def test_without_a_network(hub: HubServer, shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cached is used; what is not cannot be had, and the error says so."""
    put(hub, "user/birds", shared.folder)
    folder = locate("user/birds")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert locate("user/birds") == folder
    with pytest.raises(PretrainedError, match="user/other on the hub: ") as caught:
        locate("user/other")
    assert str(caught.value.hint).startswith("Check the name and the network.")


def test_a_damaged_folder_is_not_pushed(hub: HubServer, shared: Shared, tmp_path: Path) -> None:
    """Digests are checked before anything is asked of the hub."""
    folder = Path(shutil.copytree(shared.folder, tmp_path / "model"))
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(PretrainedError, match=r"config\.json is not the file that was exported"):
        push_model(folder, "user/birds", token=TOKEN)
    with pytest.raises(UsageError, match="'birds' is neither a folder here nor a name for a repository"):
        push_model(folder, "birds", token=TOKEN)
    assert hub.log == []
