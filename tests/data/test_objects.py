"""Images in object storage: they come in by class folder, are recognised by address, and errors name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import drawings
from tests.support.buckets import Bucket
from tests.support.commands import run
from vlltr_index.data.decoding import image_bytes, open_image
from vlltr_index.data.image_readers import read_images
from vlltr_index.data.unlabelled import unlabelled_images
from vlltr_index.embedding.vectors import LocalEngine
from vlltr_index.errors import InputError, UsageError, WorkspaceError
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.schemas.fingerprint import digest_bytes
from vlltr_index.schemas.records import ImageRecord
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture
def shots(bucket: Bucket, tmp_path: Path) -> str:
    """The address of two class folders, with a file that is no image and one outside of all folders."""
    address, png = bucket.address(), drawings.png(drawings.pixels()[0][0])
    names = ("ring/1.png", "ring/deeper/2.png", "arch/3.PNG", "arch/notes.txt", "4.png")
    bucket.put(address, dict.fromkeys(names, png))
    return address


def test_class_folders_come_in(shots: str, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The command takes an address; images are known by their keys, and coming again adds nothing."""
    code, out, err = run(capsys, "-w", workspace.path, "ingest", "images", shots, "--split", "train")
    assert code == 0, err
    assert "images 3 added (train 3)" in out
    assert "an image outside every class folder" in out
    uris = sorted(workspace.table("images", columns=["uri"])["uri"].to_pylist())
    assert uris == [f"{shots}/{name}" for name in ("arch/3.PNG", "ring/1.png", "ring/deeper/2.png")]
    again = ingest_images(workspace, f"{shots}/", "train")
    assert (again.added, again.unchanged) == (0, 3)
    assert open_image(uris[0]).size == (32, 32)


def test_splits_and_hidden_folders(bucket: Bucket) -> None:
    """As in a folder: the first are no classes, the others are passed over."""
    address = bucket.address()
    bucket.put(address, dict.fromkeys(("train/ring/1.png", "test/ring/1.png", ".thumbs/ring/1.png"), b""))
    with pytest.raises(InputError, match=r"holds splits \(test, train\), not classes"):
        list(read_images(address, "train"))
    assert [r.source for r in read_images(f"{address}/train", "train") if isinstance(r, ImageRecord)] == [
        "ring/1.png"
    ]


def test_pictures_by_address(shots: str, tmp_path: Path) -> None:
    """A prefix gives what lies below it, an image itself; a list may name both kinds of paths."""
    names = [f"{shots}/{name}" for name in ("4.png", "arch/3.PNG", "ring/1.png", "ring/deeper/2.png")]
    assert [name for name, _ in unlabelled_images([shots])] == names
    assert list(unlabelled_images([names[0]])) == [(names[0], names[0])]
    (tmp_path / "list.txt").write_text(f"{names[1]}\nhere.png\n", encoding="utf-8")
    found = [name for name, _ in unlabelled_images([str(tmp_path / "list.txt")])]
    assert found == [names[1], str(tmp_path / "here.png")]


def test_processes_that_read_objects(shots: str) -> None:
    """They read in processes of their own though this one has read some."""
    encoder, name = drawings.encoder(), f"{shots}/4.png"
    open_image(name)
    content = digest_bytes(image_bytes(name))[:32]
    (found,) = LocalEngine(encoder, workers=1).images([[(content, name), ("b", f"{shots}/none.png")]], [0])
    assert (found.ids, list(found.problems)) == ([content], ["b"])


def test_what_cannot_be_had(shots: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing object is a picture's problem; a server that refuses ends the run."""
    with pytest.raises(InputError) as missing:
        open_image(f"{shots}/none.png")
    assert missing.value.message == f"cannot read the image {shots}/none.png: no such file"
    with pytest.raises(InputError) as empty:
        list(read_images(f"{shots}/nothing", "train"))
    assert empty.value.message.startswith(f"no image in a class folder of {shots}/nothing: looked for .jpg")
    with pytest.raises(UsageError) as splitless:
        list(read_images(shots))
    assert splitless.value.message == f"which split do the images of {shots} belong to?"
    monkeypatch.setattr(bucket, "refuse", True)
    with pytest.raises(WorkspaceError) as refused:
        open_image(f"{shots}/4.png")
    assert refused.value.message.startswith(f"{shots}/4.png cannot be used: ")
