"""None of these: what is held against the level of a head, and what a head says that has none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.commands import run
from tests.support.drawings import png
from tests.support.exports import changed
from tests.support.objects import put
from vlltr_index.classes import remove_classes
from vlltr_index.errors import MissingStepError
from vlltr_index.heads.checkpoint import save_head
from vlltr_index.recognition.model import Model
from vlltr_index.recognition.parameters import OTHER_RULE
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace


def plain(model: Model, features: torch.Tensor) -> list[float]:
    """OOD scores: the best log-likelihood, and its weighted ratio to the density of a class that is not known."""
    parts, plda = model.saved.parts, model.known.plda
    assert parts is not None
    assert plda is not None
    found = []
    for x in torch.nn.functional.normalize(features.double(), dim=1):
        z = (x - plda.shared.centre) @ plda.shared.basis
        best = max(
            -0.5 * float(((z - mean).square() / variance + variance.log()).sum())
            for mean, variance in zip(*plda.posterior, strict=True)
        )
        variance = 1.0 + plda.shared.blank
        unknown = -0.5 * float((z.square() / variance + variance.log()).sum())
        found.append(best + parts.ratio_weight * (best - unknown))
    return found


@pytest.mark.slow
def test_how_well_an_image_fits_is_held_against_the_heads_level(
    trained: Workspace, heldout: dict[str, list[str]], pictures: Path
) -> None:
    """Each prediction says both; a class that is gone does not count, and added ones do."""
    images = sorted(pictures.glob("**/*.png"))
    for later in (False, True):
        if later:
            changed(trained, heldout, pictures)
            remove_classes(trained, [trained.snapshot().class_table().names[3]])
        recognizer = Recognizer.open(trained.path)
        parts = recognizer.current().saved.parts
        assert parts is not None
        assert parts.ood_threshold is not None
        expected = plain(recognizer.current(), recognizer.features(images)[0])
        for found, value in zip(
            recognizer.predict(images, PredictOptions(reject=True)), expected, strict=True
        ):
            assert found.known_score == pytest.approx(value, rel=1e-4, abs=0.1)
            assert found.known is (value >= parts.ood_threshold)
        assert all(found.known is None for found in recognizer.predict(images))


def test_what_it_lets_in_is_said_once(
    trained: Workspace, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = Recognizer.open(trained).current().saved
    assert saved.parts is not None
    measured = replace(saved, parts=replace(saved.parts, unknown_accepted=0.25, unknown_range=(0.125, 0.5)))
    with trained.transaction("a head that was tried on classes left out") as tx:
        tx.set(head=put(trained, "heads", lambda path: save_head(measured, path)))
    recognizer = Recognizer.open(trained.path)
    with caplog.at_level("INFO", "vlltr_index"):
        for _ in range(2):
            recognizer.predict([pictures / "known-0.png"], PredictOptions(reject=True))
    assert caplog.text.count("lets in 25 % (95 %: 12 to 50) of images of other classes like these") == 1


FEW_HELD = (
    "fewer than 20 groups of images were held out when it was trained\n"
    "Bring in more images, then run: vlltr train lgr"
)
OF_A_PROTOCOL = f"it was trained for the protocols paper or release\n{OTHER_RULE}"


@pytest.mark.parametrize(("parts", "why"), [(True, FEW_HELD), (False, OF_A_PROTOCOL)])
def test_a_head_without_a_level_says_which_command_gives_one(
    trained: Workspace, pictures: Path, capsys: pytest.CaptureFixture[str], parts: bool, why: str
) -> None:
    """Where too few images were held out there is none, nor in heads of another rule; other answers are given."""
    saved = Recognizer.open(trained).current().saved
    assert saved.parts is not None
    without = replace(saved, parts=replace(saved.parts, ood_threshold=None) if parts else None)
    with trained.transaction("a head without a level") as tx:
        tx.set(head=put(trained, "heads", lambda path: save_head(without, path)))
    image = pictures / "known-0.png"
    code, out, err = run(capsys, "-q", "-w", trained.path, "predict", image, "--reject")
    assert (code, out, err) == (1, "", f"Error: this head cannot say 'none of these': {why}\n")
    with pytest.raises(MissingStepError):
        Recognizer.open(trained.path).predict([image], PredictOptions(reject=True))
    assert Recognizer.open(trained.path).predict([image])[0].known is None


def test_the_command_says_none_of_these(
    trained: Workspace, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture of noise is of none, with the closest classes beside; --json has the verdict and what it rests on."""
    noise = torch.randint(0, 256, (32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (tmp_path / "noise.png").write_bytes(png(noise))
    asked = ("-w", trained.path, "predict", pictures / "known-0.png", tmp_path / "noise.png", "--reject")
    code, out, _ = run(capsys, *asked)
    assert code == 0
    assert out.count("none of these (closest: ") == 1
    assert out.splitlines()[-1].startswith("  none of these (closest: ")
    code, out, _ = run(capsys, "--json", *asked)
    known, strange = json.loads(out)
    assert (code, known["known"], strange["known"]) == (0, True, False)
    assert known["known_score"] > strange["known_score"]
    assert strange["classes"]
