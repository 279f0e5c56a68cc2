"""The quickstart's plan and journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlltr_index.cli.quickstart import Journal, plan_steps
from vlltr_index.errors import UsageError


@pytest.mark.parametrize("size", ["fast", "short", "full"])
def test_every_step_has_a_key_of_its_own(tmp_path: Path, size: str) -> None:
    """A command that comes twice, such as `embed`, is run twice."""
    steps = plan_steps(tmp_path, size, 0)
    assert len({step.key for step in steps}) == len(steps)
    assert sum(step.args[0] == "embed" for step in steps) == (1 if size == "fast" else 2)


def test_a_journal_remembers_and_keeps_to_its_seed(tmp_path: Path) -> None:
    """Done steps are read back; another seed in the same folder is refused."""
    step = next(s for s in plan_steps(tmp_path, "fast", 3) if s.args[:2] == ("train", "cvlp"))
    Journal.open(tmp_path).record(step.key, 1.0)
    journal = Journal.open(tmp_path)
    assert step.key in journal.steps
    journal.check_seed(3)
    with pytest.raises(UsageError) as caught:
        journal.check_seed(0)
    assert caught.value.message == f"{tmp_path} holds a quickstart with seed 3"
    assert caught.value.hint == "Choose another folder: vlltr quickstart --dir DIR"
