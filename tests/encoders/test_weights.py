"""Tests of `vlltr_index.encoders.weights`: whatever a file holds, nothing of it runs."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlltr_index.encoders.weights import load_checkpoint, read_weights, revision
from vlltr_index.errors import EncoderError
from vlltr_index.tensors import weights_digest

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}


class _Hostile:
    """Unpickling this makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
def test_weights_come_back(tmp_path: Path, ending: str) -> None:
    """Every ending that weights have is read."""
    path = tmp_path / f"w{ending}"
    if ending == ".safetensors":
        save_file(STATE, str(path))
    else:
        torch.save(STATE, path)
    found = read_weights(path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_training_checkpoints_are_unwrapped(tmp_path: Path) -> None:
    """`state_dict` is taken out and the prefix of data-parallel training dropped."""
    state = {f"module.{name}": value for name, value in STATE.items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").keys() == STATE.keys()


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickles_do_not_run(tmp_path: Path, zipped: bool) -> None:
    """A file whose unpickling would run a command is refused, and the command has not run."""
    path, target = tmp_path / "evil.pt", tmp_path / "made-by-the-file"
    if zipped:
        torch.save({"state_dict": _Hostile(target)}, path)
    else:
        path.write_bytes(pickle.dumps(_Hostile(target), protocol=2))
    with pytest.raises(EncoderError) as caught:
        read_weights(path)
    assert not target.exists()
    assert str(caught.value) == (
        f"{path} is refused: it is damaged, or holds more than tensors, and loading it could run code "
        "(UnpicklingError)\n"
        "Fetch or copy it again, unpack it if it is an archive, or save its weights as .safetensors. "
        f"If it is a checkpoint of the VL-LTR release: vlltr import release {path}"
    )


def test_torchscript_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    """OpenAI's own .pt files are programs; the hint is a command that runs as it stands."""
    path = tmp_path / "ViT.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(EncoderError) as caught:
        read_weights(path)
    assert caught.value.hint is not None
    code = caught.value.hint.partition('python -c "')[2].removesuffix('"')
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        exec(compile(code, "hint", "exec"), {})
    finally:
        os.chdir(before)
    assert read_weights(tmp_path / "ViT.safetensors").keys() == {"weight", "bias"}


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 50])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """One error that names the file, whatever the bytes are."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(EncoderError, match="damaged") as caught:
        read_weights(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("value", [[1, 2], {}, {"a": "text"}])
def test_other_content_is_refused(tmp_path: Path, value: object) -> None:
    """Something that torch saved is not yet a model's weights."""
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(EncoderError) as caught:
        read_weights(tmp_path / "w.pt")
    assert caught.value.message == f"{tmp_path / 'w.pt'} does not hold weights by name"


@pytest.mark.parametrize(
    "value", [torch.zeros(1, dtype=torch.half).expand(10**6, 10**6), torch.eye(3).to_sparse_csr()]
)
def test_tensors_with_fewer_numbers_than_their_shape_are_refused(tmp_path: Path, value: torch.Tensor) -> None:
    """A small file must not take all memory."""
    torch.save({"model": {"layer.weight": value}}, tmp_path / "w.pt")
    with pytest.raises(EncoderError, match=r"'layer\.weight' has fewer numbers than its shape") as caught:
        read_weights(tmp_path / "w.pt")
    assert str(tmp_path / "w.pt") in caught.value.message


def test_missing_files(tmp_path: Path) -> None:
    """They are told from damaged ones."""
    with pytest.raises(EncoderError) as caught:
        read_weights(tmp_path / "w.pt")
    assert str(caught.value) == f"no such file: {tmp_path / 'w.pt'}\nCheck the path."


def test_options_beside_weights(tmp_path: Path) -> None:
    """A training program's options are read only where they are allowed."""
    path = tmp_path / "checkpoint.pth"
    options = argparse.Namespace(lr=0.1, names=["a"], inner=argparse.Namespace(x=None))
    torch.save({"model": STATE, "args": options}, path)
    found = load_checkpoint(path, [argparse.Namespace])
    assert found["args"] == options
    assert found["model"].keys() == STATE.keys()
    with pytest.raises(EncoderError):  # what was allowed once is not allowed from then on
        load_checkpoint(path)


class _Poisoned(argparse.Namespace):
    """A namespace whose unpickling would do more than hold values."""

    def __reduce__(self) -> tuple[Any, tuple[str], dict[str, str]]:
        return argparse.Namespace, (), {"__class__": "x", "__reduce__": "y", "target": "z"}  # type: ignore[return-value]  # no arguments


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_options_do_not_run(tmp_path: Path, zipped: bool) -> None:
    """Allowing options allows nothing inside them: neither calls, nor other classes, nor other functions' names."""
    target = tmp_path / "made-by-the-file"
    path = tmp_path / "evil.pth"
    for args in (argparse.Namespace(lr=_Hostile(target)), argparse.FileType("w"), argparse.ArgumentParser):
        torch.save({"model": STATE, "args": args}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(EncoderError, match="is refused"):
            load_checkpoint(path, [argparse.Namespace])
        assert not target.exists()
    torch.save({"args": _Poisoned()}, path, _use_new_zipfile_serialization=zipped)
    found = load_checkpoint(path, [argparse.Namespace])["args"]
    assert type(found) is argparse.Namespace
    assert vars(found) == {"__class__": "x", "__reduce__": "y", "target": "z"}


def test_digest_does_not_depend_on_order_or_layout() -> None:
    """The order of the entries and the memory layout are not part of the weights; shapes are."""
    a, b = torch.randn(3, 4, 2, 2), torch.randn(5)
    one = weights_digest({"a": a, "b": b})
    assert one == weights_digest({"b": b, "a": a.to(memory_format=torch.channels_last)})
    assert one != weights_digest({"a": a.view(-1), "b": b})


def test_digest_is_a_known_value() -> None:
    """It must stay the same between processes and versions: it names stored vectors."""
    found = weights_digest({"w": torch.tensor([1.0, -2.0])})
    assert found == "b1cb542b528f166a313e65a98b996bd463e3486fac571d928a63fc54857fece7"


def test_revision_changes_with_a_step_and_a_load() -> None:
    """Every way in which training changes weights is noticed."""
    layer = torch.nn.Linear(2, 2)
    before = revision(layer.parameters())
    assert revision(layer.parameters()) == before
    layer(torch.ones(1, 2)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()
    after = revision(layer.parameters())
    assert after != before
    layer.load_state_dict(torch.nn.Linear(2, 2).state_dict())
    assert revision(layer.parameters()) != after
