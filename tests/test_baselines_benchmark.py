"""The baselines' generated page: rows, what the method gains over each, what was chosen, and where it is put."""

from __future__ import annotations

from typing import Any

from benchmarks.baselines import MARKS, generated, placed
from benchmarks.random_words import waffle_noise, waffle_text


def result(seed: int) -> dict[str, Any]:
    """Four images of three classes; the method has one image more right than each baseline."""
    return {
        "seed": seed,
        "dataset": "ab" * 32,
        "recipe": {"name": "glyphs_lt/ours"},
        "protocol": "ours",
        "versions": {"torch": "2", "open_clip_torch": "3"},
        "machine": {"cores": 2, "threads": 1},
        "counts": [200, 50, 10, 3],
        "labels": [0, 1, 2, 3],
        "order": ["vl-ltr", "image-only", "tau-norm"],
        "right": {"vl-ltr": "1111", "image-only": "1110", "tau-norm": "1101" if seed else "0111"},
        "top5": {"vl-ltr": "1111", "image-only": "1111", "tau-norm": "1111"},
        "calibration_error": {"vl-ltr": 0.03, "tau-norm": 0.1},
        "settings": {"tau-norm": {"tau": 0.1 * (seed + 1), "chosen_on": "val"}},
        "notes": {"image-only": "a remark"},
        "seconds": {"ncm": 12.4},
    }


def test_the_page_has_rows_gains_choices_and_seconds() -> None:
    """Means over the seeds with their spread, differences with intervals, dashes where there is no probability."""
    text = generated([result(0), result(1)])
    assert "seeds 0, 1; 4 test images" in text
    assert "| vl-ltr | 100.0 ± 0.0 |" in text
    assert (
        "| tau-norm | 75.0 ± 0.0 | 50.0 ± 70.7 | 100.0 ± 0.0 | 75.0 ± 35.4 | 100.0 ± 0.0 | 100.0 ± 0.0 | 10.0 |"
        in text
    )
    assert (
        "| image-only | 75.0 ± 0.0 | 100.0 ± 0.0 | 100.0 ± 0.0 | 50.0 ± 0.0 | 0.0 ± 0.0 | 100.0 ± 0.0 | - |"
        in text
    )
    assert "| image-only | +25.0 [+0.0, +75.0] | +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] |" in text
    assert "- tau-norm: chosen on val: tau 0.1, 0.2." in text
    assert "- image-only: a remark." in text
    assert "| 1 | 12 | 0 |" in text


def test_it_is_put_between_its_marks() -> None:
    """At the end of a page without marks, in place in one with; what stands around stays."""
    page = placed("# Results\n\ntext\n", "one")
    assert page.startswith("# Results\n\ntext\n\n## Baselines on Glyphs-LT\n\n")
    assert placed(page + "after\n", "two") == page.replace("one", "two") + "after\n"
    assert page.count(MARKS[0]) == page.count(MARKS[1]) == 1


def test_random_words_follow_the_name() -> None:
    """Two words of the list, then two of random letters; the seed decides; the prompt's own full stop goes."""
    words = ["oval", "stroke", "serif"]
    noise = waffle_noise(words, 4, seed=3)
    assert all(word in words for n in (0, 2) for word in noise[n].split())
    assert not any(word in words for n in (1, 3) for word in noise[n].split())
    assert noise == waffle_noise(words, 4, seed=3) != waffle_noise(words, 4, seed=4)
    assert waffle_text("a photo of a tench.", "ab cd") == "a photo of a tench, which has ab cd."
