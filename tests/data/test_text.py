"""Tests of cleaning, splitting and prompts."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.commands import run
from vlltr_index.data.text import (
    class_prompts,
    clean_name,
    composed,
    folded,
    normalise_text,
    prompt_templates,
    sentence_id,
    split_sentences,
    text_hash,
)
from vlltr_index.errors import ConfigError, InputError
from vlltr_index.schemas.records import SentenceRecord
from vlltr_index.store.workspace import Workspace

# Cleaning


def test_text_is_normalised() -> None:
    """NFC, one space for white space, no control, zero-width or directional characters."""
    assert normalise_text("  e\u0301tang\u00a0\n\tx\u200b\x07\u202ey\ufeff ") == "\u00e9tang xy"
    assert normalise_text("\ud800a\x00") == "a"
    assert (
        normalise_text("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645")
        == "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )


def test_combining_marks_are_composed_in_linear_time() -> None:
    """A million of them in a row would keep the standard library's normalisation for an hour."""
    marks = "\u0301\u0316"
    assert normalise_text(f"e{marks * 50}") == unicodedata.normalize("NFC", f"e{marks * 50}")
    assert len(normalise_text(f"e{marks * 500_000}")) == 1_000_000


@given(
    st.text(
        st.one_of(st.characters(), st.sampled_from("e\u0301\u0316\u1100\u1161\u11a8\u0928\u093c\u304b\u3099"))
    )
)
def test_text_is_composed_as_by_the_standard_library(text: str) -> None:
    """Letters with marks, syllables of Hangul, and scripts of India and Japan."""
    text *= 1000 // max(1, len(text)) + 1
    assert composed(text) == unicodedata.normalize("NFC", text)


@given(st.text(st.characters(exclude_categories=[])))
def test_normalising_is_idempotent_and_clean(text: str) -> None:
    """Normalised text is encodable NFC, without control characters, and stays as it is."""
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert once == once.strip()
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in once)
    assert text_hash(text) == text_hash(once) == hashlib.sha256(once.casefold().encode()).hexdigest()


def test_hashes_ignore_case_and_spacing_only() -> None:
    """Case and white space do not make another sentence; a word does, and so does the class."""
    assert text_hash("A  Fish.\n") == text_hash("a fish.")
    assert text_hash("A fish.") != text_hash("A fish")
    assert sentence_id(1, text_hash("a")) != sentence_id(11, text_hash("a"))
    assert len(sentence_id(1, text_hash("a"))) == 32


def test_bad_class_names_are_refused() -> None:
    """An empty or endless class name is an error that says where it stands."""
    assert clean_name(" great_white \n shark", "x") == "great_white shark"
    with pytest.raises(InputError, match="the class name is empty"):
        clean_name(" \u200b", "a.csv:3")
    with pytest.raises(InputError, match="a class name of 201 characters: 'xxx"):
        clean_name("x" * 201, "a.csv:3")


@given(
    st.text(
        st.characters(exclude_categories=[]) | st.sampled_from("\u200b\u202e\ufeff\u0345\u01f0\u0301 \x1c")
    )
)
def test_a_name_is_found_again_however_it_is_typed(text: str) -> None:
    """Cleaning and folding drop the same characters, and neither changes its own result."""
    assert folded(folded(text)) == folded(text)
    try:
        name = clean_name(text, "x")
    except InputError:
        return
    assert clean_name(name, "x") == name
    assert folded(name) == folded(text)


# Splitting


@pytest.mark.parametrize(
    "sentences",
    [
        ["It eats vitamin C.", "It is big!", "Is it?", "Yes."],
        ["Vitamin C.", "A lack of it harms."],
        ["The plant needs vitamin K.", "It also needs vitamin D."],
        ["It was plan B.", "Then they left."],
        ["It grows to 3 m.", "It is large."],
        ["It weighs 70 kg.", "The record is 6m.", "They swim."],
        ["Mr. Smith went.", "He came."],
        ["He lives in the U.S.", "It is big."],
        ["J. K. Rowling wrote it.", "She did."],
        ["It was found by C. Darwin in 1831."],
        ["Described by A. R. Wallace.", "It swims."],
        ["The name is by J. A. Gray."],
        ["See fig. 3.", "It is A. Smith's idea."],
        ["S. The list of J. R. In is short."],
        ["Tinca tinca subsp. aurea is golden.", "Others, e.g. the carp, are not."],
        ["It has two wings.", "Its body is thin."],
        ["He said no. His dog left."],  # "no." may be a number's
        ["It is a subsp. Its name is old."],
    ],
)
def test_sentences_end_where_a_reader_ends_them(sentences: list[str]) -> None:
    """A single letter ends a sentence before a word that only begins one; initials and abbreviations do not."""
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize("word", ["disc", "sun", "black"])
def test_plain_words_end_sentences(word: str) -> None:
    """Whatever the next sentence begins with; abbreviations do not."""
    assert len(split_sentences(f"It is like a {word}. White poplars grow here.")) == 2
    assert len(split_sentences(f"Prof. Smith drew the {word} in vol. Three of his work.")) == 1


def test_line_breaks_end_sentences_unless_they_only_fit_the_page() -> None:
    """Lists stay lists, wrapped paragraphs are joined, headings and rules go."""
    wrapped = "The tench is a fish that is found in fresh and brackish waters of the Western\nPalaearctic."
    text = f"== Description ==\n{wrapped}\nColour: green\nSize: 70 cm\n\n***\n\nmany are\nsmall"
    assert split_sentences(text) == [
        wrapped.replace("\n", " "),
        "Colour: green",
        "Size: 70 cm",
        "many are small",
    ]


@pytest.mark.parametrize(
    "sentences",
    [
        ["红隼是一种小型猛禽。", "它经常悬停在空中！！", "你见过吗？", "它（Falco tinnunculus）吃老鼠。"],
        [
            "チョウゲンボウは小型の猛禽です。",
            "「キッキッ。」と鳴く。",
            "体長は約 35 cm です｡",
            "空中で止まる？",
        ],
        ['他说"它很小。"然后飞走了。', "ｷｯｷｯ｡｣と鳴く｡"],
    ],
)
def test_chinese_and_japanese_sentences_need_no_space_between(sentences: list[str]) -> None:
    """Their full stops, question and exclamation marks end one, but not before a closing quote."""
    assert split_sentences("".join(sentences)) == sentences
    assert split_sentences("\n".join(sentences) * 200) == sentences * 200


def test_hostile_text_is_split_in_linear_time() -> None:
    """Runs without white space, which would cost quadratic time, are kept in one piece."""
    assert split_sentences("a?!" * 100_000) == ["a?!" * 100_000]
    heading = f"=a{'=' * 500_000}b"
    assert split_sentences(f"{heading}\n{heading}=") == [heading]
    assert split_sentences("") == split_sentences(" \n\n ") == split_sentences("...\n---") == []


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("ab. !?\nA=1\"'"), max_size=200))
def test_splitting_keeps_every_word(text: str) -> None:
    """Each letter and digit outside headings comes out once, in order."""
    kept = "\n".join(line for line in text.splitlines() if "=" not in line)
    joined = "".join(split_sentences(kept))
    assert [c for c in joined if c.isalnum()] == [c for c in kept if c.isalnum()]


# Prompts


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tench", "a tench"),
        ("owl", "an owl"),
        ("European robin", "a European robin"),
        ("uninhabited isle", "an uninhabited isle"),
        ("urial", "a urial"),
        ("one-armed bandit", "a one-armed bandit"),
        ("hourglass", "an hourglass"),
        ("house", "a house"),
        ("8-ball", "an 8-ball"),
        ("the Moon", "the Moon"),
    ],
)
def test_articles(name: str, said: str) -> None:
    """`a` or `an` as the name sounds; none if it brings its own."""
    assert class_prompts(name, ["a photo of a {}."])[0].text == f"a photo of {said}."
    assert (
        class_prompts(name, ["An {} here"])[0].text
        == f"{said[0].upper() + said[1:] if said[0] == 'a' else said} here"
    )


def test_prompts_are_records_of_the_class() -> None:
    """A prompt keeps the class name as it is, braces in it too; `the {}` and `my {}` stand."""
    assert class_prompts("big_{0}", ["the {}.", "my {}."]) == [
        SentenceRecord("big_{0}", "the big {0}.", "prompt"),
        SentenceRecord("big_{0}", "my big {0}.", "prompt"),
    ]
    assert class_prompts("the Moon", ["the {}."])[0].text == "the Moon."
    assert class_prompts("tench", []) == []


@pytest.mark.parametrize("template", ["a photo.", "a {} and a {}", "a {name}"])
def test_a_prompt_needs_one_slot(template: str) -> None:
    """The error shows the template and an example."""
    with pytest.raises(ConfigError) as caught:
        class_prompts("tench", [template])
    assert caught.value.message == f"the prompt {template!r} must have one {{}}, where the class name goes"


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
