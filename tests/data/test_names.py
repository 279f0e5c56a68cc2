"""Tests of `data.names`: every layout gives the names in the order of the labels, or says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlltr_index.data.names import ClassNames, read_class_names
from vlltr_index.errors import InputError


def read(path: Path, text: str) -> ClassNames:
    """The names in a file that holds `text`."""
    path.write_text(text, encoding="utf-8")
    return read_class_names(path)


def refused(path: Path, text: str) -> str:
    """The error that a file of `text` gives."""
    with pytest.raises(InputError) as caught:
        read(path, text)
    return str(caught.value)


def test_plain_lines(tmp_path: Path) -> None:
    """One name a line, numbers in names too; blank lines at the end do not count, others do."""
    path = tmp_path / "names.txt"
    assert read(path, "boeing model 1\nairbus model 2\n").names == ("boeing model 1", "airbus model 2")
    found = read(path, "\ufeffzero\ngreat  tit\nboeing 737\n\n")
    assert found.names == ("zero", "great tit", "boeing 737")
    assert refused(path, "zero\n\none\n").startswith(f"{path}:2: the class name is empty")
    assert refused(path, "\n").startswith(f"{path} is empty\nGive one class name a line")


def test_wordnet_lines(tmp_path: Path) -> None:
    """With and without a number between, synonyms, any order; ids are aliases, two of one name are told apart."""
    path = tmp_path / "names.txt"
    found = read(
        path, "n03126707 crane\nn01440764 tench, Tinca tinca\nn02012849 crane\nn01443537 gold_fish\n"
    )
    assert found.names == ("tench", "gold fish", "crane (n02012849)", "crane (n03126707)")
    assert found.aliases == (("n01440764", "Tinca tinca"), ("n01443537",), ("n02012849",), ("n03126707",))
    assert read(path, "n02012849 3 whooping_crane\nn01440764 9 tench\n").names == ("tench", "whooping crane")
    assert refused(path, "n01440764 tench\nn01440764 carp\n").startswith(
        f"{path}: a WordNet id occurs twice\n"
    )


def test_numbered_lines(tmp_path: Path) -> None:
    """Names of places, with and without the leading letter."""
    path = tmp_path / "labels.txt"
    found = read(path, "/a/airport_terminal 1\n/a/airfield 0\n/a/apartment_building/outdoor 2\n")
    assert found.names == ("airfield", "airport terminal", "apartment building outdoor")
    assert read(path, "alley x 1\nairfield y z 0\n").names == ("airfield", "alley")
    assert found.aliases[1:] == (
        ("airport_terminal",),
        ("apartment_building-outdoor", "apartment_building/outdoor"),
    )
    found = read(path, "airfield airfield\nairport_terminal airport_terminal\n")
    assert (found.names, found.aliases) == (("airfield", "airport terminal"), ((), ("airport_terminal",)))
    assert read(path, "airfield airfield\nalley x\n").names == ("airfield airfield", "alley x")
    for text in ("airfield 0\nalley 0\n", "airfield 1\nalley 2\n"):
        assert refused(path, text).startswith(f"{path}: 2 classes are not numbered 0 to 1, each once\n")


def test_doubled_names(tmp_path: Path) -> None:
    """Two labels of one name, whatever its case, would become one class."""
    path = tmp_path / "names.txt"
    assert refused(path, "crane\ntit\nCrane\n").startswith(f"{path}: two labels have one name, 'crane'\n")


def test_aliases_of_two_labels_are_dropped() -> None:
    """So are those that are another label's name."""
    found = ClassNames.of(["a", "b"], [["x", "b", "y"], ["X", "z"]])
    assert found.aliases == (("y",), ("z",))


def test_categories(tmp_path: Path) -> None:
    """A list in any order, or an object that has it; ids without a gap."""
    path = tmp_path / "categories.json"
    rows = [{"id": 1, "name": "Bubo bubo", "class": "Aves"}, {"id": 0, "name": "Acer rubrum"}]
    assert read(path, json.dumps(rows)).names == ("Acer rubrum", "Bubo bubo")
    assert read(path, json.dumps({"categories": rows})).names == ("Acer rubrum", "Bubo bubo")
    assert refused(path, "{}") == (
        f"{path}: Input should be a valid list\n"
        'Expected iNaturalist\'s categories.json: [{"id": 0, "name": "Acer rubrum"}, ...]'
    )
    assert refused(path, '[{"id": true, "name": "a"}]').startswith(
        f"{path}: 0: 'id': Input should be a valid integer"
    )
    assert refused(path, '[{"id": 0,}]').startswith(f"{path}: not JSON: ")


@given(st.text(max_size=60), st.sampled_from(["names.txt", "names.json"]))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str, name: str) -> None:
    """Whatever a file holds: names all different and not empty, or an error that names the file."""
    path = tmp_path_factory.mktemp("n") / name
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    found, message = None, ""
    try:
        found = read_class_names(path)
    except InputError as error:
        message = error.message
    if found is None:
        assert str(path) in message
        return
    assert len({n.casefold() for n in found.names}) == len(found) == len(found.aliases)
    assert all(found.names)
