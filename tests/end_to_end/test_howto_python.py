"""Sections of docs/howto.md, "Share a model" and others: every block runs, in the order written."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from tests.support.hubserver import TOKEN, HubServer, hub_server, point_at
from vlltr_index import Workspace
from vlltr_index.cli.main import vlltr

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "howto.md"


def blocks(title: str) -> list[tuple[str, str]]:
    """Language and text of each block of one section."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def place(
    trained_once: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """A folder with `workspace` and `photo.jpg`, where somebody is logged in at a hub."""
    shutil.copytree(trained_once, tmp_path / "workspace")
    shutil.copy(pictures / "known-0.png", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    with hub_server() as server:
        point_at(server.url, tmp_path / "hf", monkeypatch)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def run(title: str, instead: tuple[str, str] = ("", "")) -> list[str]:
    """Run each block, one text in the place of another; gives the languages."""
    names: dict[str, object] = {}
    for language, text in blocks(title):
        text = text.replace(*instead) if instead[0] else text
        if language == "python":
            exec(compile(text, f"{PAGE.name}: {title}", "exec"), names)
            continue
        for line in text.splitlines():
            command = shlex.split(line)
            assert command[0] == "vlltr"
            done = CliRunner().invoke(vlltr, ["-w", "workspace", *command[1:]], catch_exceptions=False)
            assert done.exit_code == 0, (line, done.output)
    return [language for language, _ in blocks(title)]


def test_share_a_model(place: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder, the private repository and the tables come to be."""
    assert run("Share a model") == ["sh", "python", "sh", "python"]
    repo = place.repos["user/name"]
    assert repo.private
    assert repo.messages[-1] == "First version"
    assert (tmp_path / "my-model" / "README.md").is_file()
    assert "Image(" in capsys.readouterr().out


def test_use_it_from_python(place: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Probabilities and tables come as arrays and frames."""
    assert run("Use it from Python") == ["python", "python"]
    assert capsys.readouterr().out.startswith("(2, ")


def test_use_it_with_scikit_learn(place: HubServer, pictures: Path, tmp_path: Path) -> None:
    """Pictures of three classes in two groups each, fitted, cross-validated, and as data sets."""
    sources = sorted(pictures.glob("**/*.png"))
    for number, source in enumerate(sources[:9]):
        file = tmp_path / "pictures" / f"bird {number % 3}" / f"nest{number // 5}-{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, file)
    (tmp_path / "descriptions.json").write_text('{"bird 0": ["It is small."]}', encoding="utf-8")
    small = ("ViT-B-32-quickgelu:openai", "vlltr-tiny:glyphs")
    assert run("Use it with scikit-learn", small) == [*["python"] * 5, "sh"]
    assert Workspace.open(tmp_path / "workspace").snapshot().class_table().find("bird 2") is not None


def test_answer_at_a_higher_rank(place: HubServer, tmp_path: Path) -> None:
    """With the page's tree over classes of the workspace."""
    text = PAGE.read_text(encoding="utf-8").split("    name,parent,rank\n")[1].split("\n\n")[0]
    names = Workspace.open(tmp_path / "workspace").snapshot().class_table().names
    for bird, name in zip(("kestrel", "merlin"), names.values(), strict=False):
        text = text.replace(f"    {bird},", f'"{name}",')
    (tmp_path / "tree.csv").write_text("name,parent,rank\n" + text.replace("    ", ""), encoding="utf-8")
    assert run("Answer at a higher rank") == ["sh"]


def test_answer_pictures_of_one_thing_together(place: HubServer, pictures: Path, tmp_path: Path) -> None:
    """Pictures with names of a burst, which tell when they were taken."""
    (tmp_path / "shots").mkdir()
    for number in range(3):
        exif = Image.Exif()
        exif[0x0132] = f"2024:05:01 10:00:{number:02}"
        Image.open(pictures / f"known-{number}.png").save(
            tmp_path / "shots" / f"burst-{number}.png", exif=exif
        )
    assert run("Answer pictures of one thing together") == ["sh"]
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["group"] for row in rows}) == len({row["class_1"] for row in rows}) == 1


def test_say_how_common_the_classes_are(place: HubServer, pictures: Path, tmp_path: Path) -> None:
    """Everywhere, and by place and month."""
    names = Workspace.open(tmp_path / "workspace").snapshot().class_table().names.values()
    (tmp_path / "shots").mkdir()
    shutil.copy(pictures / "known-0.png", tmp_path / "shots" / "a.png")
    shutil.copy(pictures / "known-1.png", tmp_path / "shots" / "b.png")
    plain = "".join(f'"{name}",2\n' for name in names)
    situated = "".join(f'"{name}",{number},hill,{1 + number % 2}\n' for number, name in enumerate(names, 1))
    (tmp_path / "frequencies.csv").write_text(f"class,weight\n{plain}", encoding="utf-8")
    (tmp_path / "counts.csv").write_text(f"class,weight,place,month\n{situated}", encoding="utf-8")
    rows = "shots/a.png,hill,1\nshots/b.png,hill,2024-02-29\n"
    (tmp_path / "deployments.csv").write_text(f"image,place,month\n{rows}", encoding="utf-8")
    assert run("Say how common the classes are") == ["sh", "sh"]


def test_change_the_encoder(place: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The new workspace holds what the old one did; both answer, and the difference has its interval."""
    small = ("PE-Core-B-16:meta", "vlltr-tiny:glyphs --recipe glyphs_lt/fast")
    assert run("Change the encoder", small) == ["sh", "python"]
    assert "low" in capsys.readouterr().out
    old, new = (Workspace.open(tmp_path / name) for name in ("workspace", "new"))
    for name, key in (("images", "content_hash"), ("sentences", "text")):
        rows = [w.table(name).to_pylist() for w in (old, new)]
        first, second = ({r[key] for r in table if r.get("split") != "val"} for table in rows)
        assert first == second
