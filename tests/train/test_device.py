"""Where things are computed and how precisely: the choice, what is said of it, and memory that does not suffice."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import vlltr_index.anchors.selection
from tests.support import drawings
from tests.support.commands import run
from vlltr_index.cli.context import Context
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import UsageError, VlltrError
from vlltr_index.pipelines.doctor import diagnose
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.schemas.config import BaselineConfig, WorkspaceConfig
from vlltr_index.schemas.recipes import override
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import choose_device, computing_on, cuda_problem, float32_by, full_precision
from vlltr_index.train.cvlp import train_image_only

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free. Including non-PyTorch memory, ..."
full = Mock(side_effect=torch.OutOfMemoryError(FULL))
no_card = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLTR_DEVICE is empty before a test and as it was after it."""
    monkeypatch.setenv("VLLTR_DEVICE", "")


def small(precision: str = "fp32") -> Encoder:
    """Random weights."""
    return Encoder.scratch("vlltr-tiny", ["a ring"], precision=precision)  # type: ignore[arg-type]  # a literal by its caller


@no_card
@pytest.mark.parametrize("wanted", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trained_once: Path, wanted: str
) -> None:
    """It is refused with torch's reason, by argument, option or environment; `auto` takes the CPU."""
    said = f"the device {wanted} cannot be used: {cuda_problem(torch.device('cuda'))}"
    mend = "Use --device cpu, or install a torch with CUDA that fits the driver; vlltr doctor shows what there is."
    with pytest.raises(UsageError) as caught:
        choose_device(wanted)
    assert (caught.value.message, caught.value.hint) == (said, mend)
    assert run(capsys, "-w", trained_once, "select", "--device", wanted) == (
        2,
        "",
        f"Error: {said}\n{mend}\n",
    )
    assert choose_device().type == choose_device("auto").type == "cpu"
    monkeypatch.setenv("VLLTR_DEVICE", wanted)
    with pytest.raises(UsageError, match="cannot be used"):
        small()
    assert [c.value for c in diagnose() if c.name == "device"] == [said]


def test_a_device_that_nobody_knows() -> None:
    """The message names those there are."""
    with pytest.raises(UsageError) as caught:
        choose_device("tpu")
    assert str(caught.value) == "the device is auto, cpu, cuda or cuda:N, got 'tpu'\nUse --device auto"


def test_a_device_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one given counts, then the environment's, then the recipe's; afterwards all is as it was."""
    for before in ("cpu", None):
        if before is None:
            monkeypatch.delenv("VLLTR_DEVICE")
        else:
            monkeypatch.setenv("VLLTR_DEVICE", before)
        with computing_on("auto", "cuda:7"):
            assert os.environ["VLLTR_DEVICE"] == "auto"
        assert os.environ.get("VLLTR_DEVICE") == before
    with computing_on(None, "cpu"):
        assert os.environ["VLLTR_DEVICE"] == "cpu"
    monkeypatch.setenv("VLLTR_DEVICE", "auto")
    with computing_on(None, "cpu"):
        assert os.environ["VLLTR_DEVICE"] == "auto"
    with pytest.raises(UsageError), computing_on("tpu"):
        raise AssertionError
    assert os.environ["VLLTR_DEVICE"] == "auto"


def test_the_recipe_names_a_device(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts for commands, unless the environment or the option says something else."""
    trained.write_config(WorkspaceConfig(recipe=override(trained.recipe, ("device=cuda:1",))))
    monkeypatch.delenv("VLLTR_DEVICE")
    context = Context(workspace=str(trained.path))
    context.open()
    assert os.environ["VLLTR_DEVICE"] == "cuda:1"
    monkeypatch.setenv("VLLTR_DEVICE", "cpu")
    context.open()
    assert os.environ["VLLTR_DEVICE"] == "cpu"


def test_float32_means_float32() -> None:
    """Towers, and whatever computes in full precision, switch TensorFloat-32 off for themselves; `tf32` has it on."""
    seen = list[tuple[bool, bool]]()
    both = torch.backends.cuda.matmul, torch.backends.cudnn
    before = both[0].allow_tf32, both[1].allow_tf32

    def look(*args: object) -> None:
        seen.append((both[0].allow_tf32, both[1].allow_tf32))

    for precision in ("fp32", "tf32"):
        encoder = small(precision)
        encoder.model.visual.register_forward_pre_hook(look)  # type: ignore[operator]  # a module
        with torch.no_grad():
            encoder.encode_pixels(torch.zeros(1, 3, *encoder.image_size))
    with float32_by(tf32=True), full_precision(torch.device("cpu")):
        look()
    assert seen == [(False, False), (True, True), (False, False)]
    assert (both[0].allow_tf32, both[1].allow_tf32) == before


def test_tf32_is_noted_and_warned_of(trained: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    """Its vectors have fp32's fingerprint; the commit says what made them. What is computed is said with the device."""
    assert small("tf32").image_fp == small().image_fp != small("bf16").image_fp
    with trained.transaction("test") as tx:
        before = tx.commit
    trained.write_config(WorkspaceConfig(recipe=override(trained.recipe, ("encoder.precision=tf32",))))
    checkpoint = trained.objects.path("checkpoints", before.checkpoint or "")
    facts = (checkpoint / "encoder.json").read_text(encoding="utf-8")
    (checkpoint / "encoder.json").write_text(facts.replace('"fp32"', '"tf32"'), encoding="utf-8")
    with caplog.at_level(logging.INFO, "vlltr_index"):
        embed(trained)
    assert "encoder.precision is tf32: vectors differ by up to 1e-3 from fp32's" in caplog.text
    assert f"embed on the processor, {torch.get_num_threads()} thread" in caplog.text
    after = trained.history.last()
    assert (after.image_fp, after.info.precision) == (before.image_fp, "tf32")


@pytest.mark.slow
def test_a_full_gpu_names_what_mends_it(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training of a tower, training on stored vectors, and selection each name settings of theirs."""
    encoder = small()
    images, config = drawings.images(encoder), BaselineConfig(batch_size=2, epochs=1)
    monkeypatch.setattr(Encoder, "encode_pixels", full)
    with pytest.raises(VlltrError) as caught:
        train_image_only(encoder, images, config)
    short = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free"
    assert caught.value.message == f"train baseline fc: {short}"
    assert "baseline.precision=auto" in (caught.value.hint or "")
    monkeypatch.setattr("vlltr_index.pipelines.train_lgr.fit_stage_two", full)
    with pytest.raises(VlltrError) as caught:
        train_lgr_stage(trained, trained.recipe.lgr)
    assert caught.value.message == f"train lgr: {short}"
    assert "lgr.batch_size" in (caught.value.hint or "")
    capsys.readouterr()
    monkeypatch.setattr(vlltr_index.anchors.selection, "score_sentences", full)
    code, _, said = run(capsys, "-w", trained.path, "-q", "select")
    assert (code, said) == (1, f"Error: select: {short}\nFree memory of the GPU, or use --device cpu.\n")
    monkeypatch.setattr(Workspace, "open", full)
    code, _, said = run(capsys, "-w", trained.path, "status")
    assert said.startswith(f"Error: {short}\nFree memory of the GPU")
