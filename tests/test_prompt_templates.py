"""Tests of the choice of prompts when a workspace is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_cli import run

from vlltr_index.corpus.prompts import class_prompts
from vlltr_index.errors import ConfigError, InputError
from vlltr_index.stages.prompts import prompt_templates
from vlltr_index.workspace import Workspace


def test_clips_eighty_prompts_read_well() -> None:
    """All 80, each different, with single spaces, no space before the full stop, and the article the name needs."""
    templates = prompt_templates("clip")
    assert templates is not None
    assert len(set(templates)) == 80
    assert templates[0] == "a bad photo of a {}."
    for name in ("owl", "tench", "great_grey_owl"):
        texts = [record.text for record in class_prompts(name, templates)]
        assert len(set(texts)) == 80
        assert all("  " not in t and " ." not in t and "_" not in t and t == t.strip() for t in texts)
    assert "a bad photo of an owl." in [r.text for r in class_prompts("owl", templates)]
    assert prompt_templates("photos") is None


def test_templates_of_your_own(tmp_path: Path) -> None:
    """One a line; comments and blank lines do not count; each has one place for the class."""
    file = tmp_path / "prompts.txt"
    file.write_text("# drawings\n a   drawing of a {}.\n\nmy {}\n", encoding="utf-8")
    assert prompt_templates(str(file)) == ("a drawing of a {}.", "my {}")
    file.write_text("a drawing.\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"the prompt 'a drawing\.' must have one \{\}"):
        prompt_templates(str(file))
    file.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(InputError, match="has no template"):
        prompt_templates(str(file))
    with pytest.raises(InputError, match="no such file"):
        prompt_templates(str(tmp_path / "none.txt"))


def test_init_keeps_the_templates(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """They are in the workspace's recipe, one by one."""
    code, _, _ = run(capsys, "init", tmp_path / "ws", "--prompts", "clip", "--encoder", "vlltr-tiny")
    prompts = Workspace.open(tmp_path / "ws").recipe.prompts
    assert (code, prompts) == (0, prompt_templates("clip"))
    code, _, err = run(capsys, "init", tmp_path / "other", "--prompts", "films")
    assert (code, "no such file or folder: films" in err) == (1, True)
