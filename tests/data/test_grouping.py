"""How `--group` is read, and what it makes of a source's images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlltr_index.data.grouping import AUTO, Grouping, likely_groups
from vlltr_index.errors import UsageError
from vlltr_index.schemas.records import ImageRecord


def records(*sources: str, group: str | None = None) -> list[ImageRecord]:
    """Images by their path below the source."""
    return [ImageRecord(source, f"/x/{source}", "owl", "train", group=group) for source in sources]


def groups(
    how: str, *sources: str, taken: list[float | None] | None = None, class_folders: bool = True
) -> list[str | None]:
    """The groups of some images."""
    return Grouping.parse(how).groups(records(*sources), taken or [None] * len(sources), class_folders)


def test_a_folder_below_the_class_folder_is_a_group() -> None:
    """The class folder itself is none; of a list every folder is one."""
    assert groups("folder", "owl/1.png", "owl/a/1.png", "owl/a/2.png", "owl/a/b/1.png") == [
        None,
        "owl/a",
        "owl/a",
        "owl/a/b",
    ]
    assert groups("folder", "a/1.png", "2.png", class_folders=False) == ["a", None]


def test_a_regular_expression_finds_the_group_in_the_files_name() -> None:
    """Its first group, or all that it finds; nothing found is no group."""
    assert groups(r"name:^([a-z]+)_\d+", "owl/ab_1.png", "tit/ab_2.png", "owl/9.png") == ["ab", "ab", None]
    assert groups("name:[0-9]+", "7/owl/x12.png", "7/owl/x.png") == ["12", None]
    assert groups("name:(a)?b", "owl/b.png") == [None]


@pytest.mark.parametrize(
    ("way", "names"),
    [
        ("folder", ["nest/1.png", "nest/2.png", "field/a.png", "field/b.png", "c.png"]),
        ("path:^([^/]+/[^_.]+)", ["1.png", "1_aug0.png", "2.png", "2_aug0.png", "3.png"]),
        (r"path:^(.+)[-_ ]\(?\d+", ["nest-7 (1).png", "nest-7 (2).png", "nest-8 (1).png", "nest-8 (2).png"]),
        (None, ["IMG_1.png", "IMG_2.png", "IMG_3.png", "IMG_4.png", "IMG_5.png"]),
        (None, ["1.png", "2.png", "3.png", "4.png"]),
    ],
)
def test_groups_that_names_suggest(way: str | None, names: list[str]) -> None:
    """Most pictures are in groups of several, and a class has more than one."""
    sources = [f"{name}/{file}" for name in ("owl", "tit") for file in names]
    found = likely_groups([replace(one, class_name=one.source[:3]) for one in records(*sources)])
    assert (found and str(found.grouping)) == way
    if found:
        assert (found.groups, found.pictures) == (4, 8)


def test_a_path_has_the_folders_too() -> None:
    """So that files of two classes that are named alike are no group."""
    assert groups("path:^([^/]+/[^_.]+)", "owl/1.png", "owl/1_aug2.png", "tit/1.png", "2.png") == [
        "owl/1",
        "owl/1",
        "tit/1",
        None,
    ]


def test_seconds_join_pictures_of_one_folder_each_to_the_one_before() -> None:
    """One that was taken alone is a group by itself; one without a time has none."""
    sources = ["owl/1.png", "owl/2.png", "owl/3.png", "owl/4.png", "tit/5.png", "tit/6.png"]
    first, second, third, alone, other, unknown = groups(
        "seconds:10", *sources, taken=[0.0, 20.0, 10.0, 30.1, 5.0, None]
    )
    assert first == second == third
    assert len({first, alone, other}) == 3
    assert alone is not None
    assert unknown is None


def test_without_a_way_a_table_says_it() -> None:
    """`auto` and a column leave what the reader found."""
    assert Grouping.parse("auto") == AUTO
    for how in (AUTO, Grouping.parse("column:camera")):
        assert how.groups(records("1", group="a"), [None], False) == ["a"]
    assert Grouping.parse("column:camera").column == "camera"
    assert str(Grouping.parse("name:a:b")) == "name:a:b"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("camera", "--group camera: not a way to group pictures"),
        ("column:", "--group column:: not a way to group pictures"),
        (
            "name:(",
            "--group name:(: '(' is no regular expression: missing ), unterminated subpattern at position 0",
        ),
        ("seconds:soon", "--group seconds:soon: 'soon' is no number of seconds"),
        ("seconds:-1", "--group seconds:-1: '-1' is no number of seconds"),
        ("seconds:nan", "--group seconds:nan: 'nan' is no number of seconds"),
        ("folder:x", "--group folder:x: not a way to group pictures"),
    ],
)
def test_what_is_no_way_is_refused(text: str, told: str) -> None:
    """With what was wrong."""
    with pytest.raises(UsageError) as caught:
        Grouping.parse(text)
    assert caught.value.message == told
