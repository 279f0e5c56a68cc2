"""Tests of the choice of prompts when a workspace is made."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest

from tests.commands import run
from vlltr_index.data.text import class_prompts, prompt_templates
from vlltr_index.errors import ConfigError, InputError
from vlltr_index.store.workspace import Workspace


def test_clips_eighty_prompts_read_well() -> None:
    """CLIP's own words, with single spaces, and the article that the name needs."""
    assert prompt_templates("clip") == "clip"
    plain = [record.text for record in class_prompts("tench", "clip")]
    assert plain == [template("tench") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    for name in ("owl", "tench", "great_grey_owl"):
        texts = [record.text for record in class_prompts(name, "clip")]
        assert len(set(texts)) == 80
        assert all("  " not in t and " ." not in t and "_" not in t and t == t.strip() for t in texts)
    assert "a bad photo of an owl." in [r.text for r in class_prompts("owl", "clip")]


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
    """CLIP's by their name, one's own one by one; they are CLIP's where nothing is said."""
    file = tmp_path / "prompts.txt"
    file.write_text("my {}\n", encoding="utf-8")
    for asked, kept in (((), "clip"), (("--prompts", "clip"), "clip"), (("--prompts", file), ("my {}",))):
        folder = tmp_path / f"ws{len(list(tmp_path.iterdir()))}"
        code, _, _ = run(capsys, "init", folder, *asked, "--encoder", "vlltr-tiny")
        assert (code, Workspace.open(folder).recipe.prompts) == (0, kept)
    code, _, err = run(capsys, "init", tmp_path / "other", "--prompts", "films")
    assert (code, "no such file or folder: films" in err) == (1, True)
