"""Manifests: what is written is read again, and what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlltr_index.schemas.manifests import EncoderSummary, IndexManifest, TrainingLog
from vlltr_index.version import VERSION


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """To an equal manifest, from JSON with its keys sorted."""
    manifest = IndexManifest(kind="ivf")
    manifest.save(tmp_path / "index.json")
    assert IndexManifest.load(tmp_path / "index.json") == manifest
    assert (tmp_path / "index.json").read_text(encoding="utf-8") == '{\n  "format": 1,\n  "kind": "ivf"\n}\n'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"format": 1}, "kind in index.json: Field required"),
        ([], " in index.json: Input should be an object"),
    ],
)
def test_what_does_not_fit_is_named(data: object, message: str, tmp_path: Path) -> None:
    """The first value that is missing or wrong, and the file."""
    (tmp_path / "index.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError) as caught:  # its message is asserted below
        IndexManifest.load(tmp_path / "index.json")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("facts", "has", "writer"),
    [
        ({"format": 2, "kind": "ivf", "program_version": "0.2.0"}, "format 2", "vlltr-index 0.2.0"),
        ({"kind": "ivf", "format": "1"}, "format '1'", "version"),
        ({"kind": "other", "format": 2}, "format 2", "version"),
        ({"kind": "ivf"}, "no format", "version"),
    ],
)
def test_another_format_is_refused(facts: dict[str, object], has: str, writer: str, tmp_path: Path) -> None:
    """In one sentence, which names the version that can read it where the file does."""
    (tmp_path / "index.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ValueError) as caught:  # its message is asserted below
        IndexManifest.load(tmp_path / "index.json")
    assert str(caught.value) == (
        f"index.json has {has}, but this vlltr-index {VERSION} reads format 1: the {writer} that wrote it can read it"
    )


@pytest.mark.parametrize("data", [b"", b"[" * 100_000, b"\xff", b'{"log": []}', b'{"log": [{"loss": 1}]}'])
def test_damaged_json_is_no_log(data: bytes) -> None:
    """Empty, nested too deeply, no UTF-8, without an epoch, without an epoch's number."""
    with pytest.raises(ValueError, match=r" in train\.json: "):
        TrainingLog.parse(data, "train.json")


def test_an_epoch_has_its_figures_by_name() -> None:
    """Numbers that are not finite among them, as a training that diverged writes them."""
    log = TrainingLog.parse(
        b'{"kind": "lgr", "log": [{"epoch": 1, "loss": NaN, "text": 2}]}', "train.json"
    ).log
    assert log[0].epoch == 1
    assert str(log[0].figures) == "{'loss': nan, 'text': 2.0}"


def test_an_encoder_says_what_a_recipe_asks_for() -> None:
    """From within its configuration; without a resize of its own there is none."""
    config = {"model_cfg": {"vision_cfg": {"image_size": 32}}, "preprocess_cfg": {"size": 32}}
    found = EncoderSummary.parse(
        json.dumps({"name": "vlltr-tiny", "config": config}).encode(), "encoder.json"
    )
    assert (found.name, found.image_size, found.resize) == ("vlltr-tiny", 32, None)
    config["preprocess_cfg"]["resize"] = 36
    found = EncoderSummary.parse(
        json.dumps({"name": "vlltr-tiny", "config": config}).encode(), "encoder.json"
    )
    assert found.resize == 36
