"""What damaged workspaces and unusable input are answered with: the exact text, and nothing half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlltr_index.cli.main import main
from vlltr_index.errors import ConfigError
from vlltr_index.recipe import load_recipe, override
from vlltr_index.schemas.config import WorkspaceConfig
from vlltr_index.stages.embed import embed
from vlltr_index.workspace import Workspace


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[object, str]:
    """Exit code and stderr of a command that fails."""
    with pytest.raises(SystemExit) as left:
        main(list(args))
    return left.value.code, capsys.readouterr().err


def test_damaged_table_files_are_named(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Data files cut short are reported with the table's name and a way on, not as a traceback."""
    for path in (trained.path / "lance" / "classes.lance" / "data").iterdir():
        path.write_bytes(path.read_bytes()[:10])
    code, err = refused(capsys, "-w", str(trained.path), "classes", "list")
    assert code == 1
    assert f"Error: table 'classes' in {trained.path / 'lance'} cannot be read: " in err
    assert "bring damaged files back from a backup, or make a new workspace: vlltr init DIR\n" in err


@pytest.mark.parametrize("given", ["--images", "--sentence"])
def test_a_class_of_which_nothing_is_known(
    trained: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    """A folder of broken images only, or a blank sentence, makes no class and no commit."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.png").write_bytes(b"no image")
    value = str(tmp_path / "broken") if given == "--images" else " "
    before = trained.history.last()
    code, err = refused(capsys, "-w", str(trained.path), "classes", "add", "okapi", given, value)
    assert code == 1
    assert err.endswith(
        "Error: nothing is known of class 'okapi': no sentence and no readable image\n"
        "Give it a --sentence, a --text file, or --images.\n"
    )
    assert trained.history.last() == before


def test_history_shows_at_least_one_commit(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit below one is refused as a usage error."""
    code, err = refused(capsys, "-w", str(trained.path), "history", "--limit", "-1")
    assert code == 2
    assert "Invalid value for '--limit': -1 is not in the range x>=1." in err


def test_numbers_must_be_finite() -> None:
    """inf and nan fit no setting: a head trained with them would be one of nans."""
    with pytest.raises(ConfigError) as caught:
        load_recipe("ours", ("lgr.lr=inf", "fusion.alpha=nan", "cvlp.weight_decay=inf"))
    assert caught.value.message == (
        "recipe ours does not fit:\n"
        "  cvlp.weight_decay: Input should be a finite number\n"
        "  lgr.lr: Input should be a finite number\n"
        "  fusion.alpha: Input should be a finite number"
    )


def test_seeds_are_those_that_every_generator_takes() -> None:
    """64 bits without a sign: a larger one would fail in torch, after the data has been read."""
    with pytest.raises(ConfigError) as caught:
        load_recipe("ours", (f"cvlp.seed={2**63}", "lgr.seed=-1", "baselines.seed=-1"))
    assert caught.value.message == (
        "recipe ours does not fit:\n"
        f"  cvlp.seed: Input should be less than {2**63}\n"
        "  lgr.seed: Input should be greater than or equal to 0\n"
        "  baselines.seed: Input should be greater than or equal to 0"
    )
    assert load_recipe("ours", (f"cvlp.seed={2**63 - 1}",)).cvlp.seed == 2**63 - 1


def test_one_class_is_not_explained_against_itself(
    trained: Workspace, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice the same class is a usage error; an empty name is of no class."""
    name = trained.snapshot().class_table().names[0]
    args = ("-w", str(trained.path), "explain", str(pictures / "known-0.png"), "--class")
    code, err = refused(capsys, *args, name, "--against", name)
    assert code == 2
    assert err.endswith(f"Error: --class and --against are the same class, {name!r}\n")
    code, err = refused(capsys, *args, "")
    assert (code, err) == (1, "Error: no class ''\nList all: vlltr classes list\n")
    code, err = refused(capsys, *args, name, "--against", "")
    assert (code, err) == (1, "Error: no class ''\nList all: vlltr classes list\n")


@pytest.mark.parametrize("content", [b"xx", None])
def test_a_damaged_visual_classifier_is_named(
    trained: Workspace, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    """`train lgr` starts from stage 1's classifier: its file cut short, or another in its place, is no traceback."""
    commit = trained.history.last()
    assert commit is not None
    assert commit.checkpoint is not None
    folder = trained.object_path("checkpoints", commit.checkpoint)
    path = folder / "visual.safetensors"
    path.write_bytes((folder / "model.safetensors").read_bytes() if content is None else content)
    code, err = refused(capsys, "-w", str(trained.path), "train", "lgr")
    assert code == 1
    assert f"Error: the visual classifier {path} cannot be read: " in err
    assert ("it has no weight, bias, class_ids" in err) == (content is None)
    assert err.endswith("Bring it back from a backup, or make it again: vlltr train cvlp\n")
    assert trained.history.last() == commit


def test_another_encoder_in_the_recipe_is_told(
    trained: Workspace, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Vectors go on being the trained encoder's, and `embed` says so; so does a recipe of which one section is used."""
    args = ["-w", str(trained.path), "train", "lgr", "--recipe", "ours"]
    with caplog.at_level("WARNING", "vlltr_index"), pytest.raises(SystemExit) as left:
        main([*args, "--set", "lgr.views=1", "--set", "lgr.epochs=1"])
    assert left.value.code == 0, capsys.readouterr().err
    # How well the parts do beside simple rules may be told as well.
    assert [r.getMessage() for r in caplog.records if r.name == "vlltr_index.cli.train"] == [
        "of recipe ours only the section [lgr] is used: the encoder stays vlltr-tiny, as in vlltr.toml"
        " (vlltr train all --recipe ours takes it as a whole)"
    ]
    caplog.clear()
    trained.write_config(WorkspaceConfig(recipe=override(trained.recipe, ("encoder.model=RN50",))))
    embed(trained, views=1)
    assert caplog.messages == [
        "the recipe's encoder is RN50, the trained one vlltr-tiny at 32 px: the trained one is used, until it is"
        " trained again: vlltr train cvlp"
    ]


def test_commands_to_run_next_quote_their_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with a space in its name, and a file that is no workspace."""
    folder = tmp_path / "my birds"
    code, err = refused(capsys, "-w", str(folder), "status")
    assert (code, err.splitlines()[-1]) == (1, f"Make one: vlltr init '{folder}'")
    with pytest.raises(SystemExit) as left:
        main(["init", str(folder), "--recipe", "glyphs_lt/fast"])
    assert left.value.code == 0
    assert f"Next: vlltr -w '{folder}' ingest text" in capsys.readouterr().out
    code, err = refused(capsys, "-w", str(folder / "vlltr.toml"), "status")
    assert (code, err) == (
        1,
        f"Error: {folder / 'vlltr.toml'} is a file, not a workspace\nName a folder: vlltr -w DIR ...\n",
    )


def test_more_views_than_are_stored(trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that is named makes them: `vlltr embed` alone would not."""
    commit = trained.history.last()
    assert commit is not None
    stored = commit.info["views"]
    code, err = refused(capsys, "-w", str(trained.path), "train", "lgr", "--set", "lgr.views=9")
    assert (code, err) == (
        1,
        f"Error: the head is to be trained on 9 views of each image (lgr.views), and {stored} are stored\n"
        f"Make them: vlltr embed --views 9, or use --set lgr.views={stored}\n",
    )


@pytest.mark.parametrize("number", ["0", "-1"])
@pytest.mark.parametrize(
    "command", [("predict", "a.png"), ("explain", "a.png", "--class", "a"), ("evaluate",), ("export", "x")]
)
def test_commits_are_counted_from_one(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], number: str
) -> None:
    """A number that no commit can have is a usage error, as it is for `vlltr diff`."""
    code, err = refused(capsys, "-w", str(workspace.path), *command, "--at", number)
    assert code == 2
    assert f"Invalid value for '--at': {number} is not in the range x>=1." in err
