"""Looking classes up by name."""

from __future__ import annotations

import pytest

from tests.support.tablerows import class_rows
from vlltr_index.errors import UnknownClassError
from vlltr_index.store.class_table import ClassTable


@pytest.fixture
def table() -> ClassTable:
    """Four classes, one of them retired."""
    names = {0: "Tench", 1: "e", 2: "E", 3: "goldfish", 4: "Café"}
    return ClassTable(names, {0: ("tinca",), 3: ("Carassius", "golden carp")}, frozenset({3}))


def test_from_arrow() -> None:
    """Names, aliases and retirement come from the table's columns."""
    table = ClassTable.from_arrow(class_rows([4, 2], retired=[2]))
    assert (table.ids, table.names[2], table.aliases[4]) == ((4,), "class 2", ("alias 4",))


def test_lookup_by_name_and_alias(table: ClassTable) -> None:
    """Case, spaces and Unicode form do not matter, for names and aliases."""
    for name in ("Tench", "tench", " TENCH ", "Tinca"):
        assert table.lookup(name) == 0
    assert table.lookup("Cafe\u0301") == 4
    assert table.lookup("\u202ete\u200bnch\ufeff") == 0  # a class never has what `clean_name` drops
    assert (table.lookup("e"), table.lookup("E")) == (1, 2)  # an exact name wins
    assert ClassTable({0: "a", 1: "b"}, {1: ("a",)}).lookup("a") == 0  # and a name over an alias
    assert "tench" in table
    assert len(table) == 4


@pytest.mark.slow
def test_many_classes_may_have_one_alias() -> None:
    """An exported model may come from anybody."""
    count = 300_000
    names = {number: f"class {number}" for number in range(count)}
    table = ClassTable(names, dict.fromkeys(range(count), ("x",)))
    assert table.find(f"class {count - 1}") == count - 1
    with pytest.raises(UnknownClassError, match=r"^class name 'x' may mean 'class 0' \(class 0\) or "):
        table.find("x")


def test_two_that_fit_are_both_named() -> None:
    """Nothing is guessed."""
    table = ClassTable({0: "a", 1: "b"}, {0: ("x",), 1: ("x",)})
    with pytest.raises(UnknownClassError) as error:
        table.lookup("X")
    assert error.value.message == "class name 'X' may mean 'a' (class 0) or 'b' (class 1)"
    hint = "Give the name as it is written there. If they are one class: vlltr classes merge a b"
    assert error.value.hint == hint


def test_unknown_names_get_close_ones(table: ClassTable) -> None:
    """The error suggests names, an alias's class too; retired classes are not suggested."""
    with pytest.raises(UnknownClassError) as error:
        table.lookup("tenhc")
    assert str(error.value) == "no class 'tenhc'\nDid you mean 'Tench'? List all: vlltr classes list"
    with pytest.raises(UnknownClassError, match="Did you mean 'Tench'"):
        table.lookup("tincca")
    with pytest.raises(UnknownClassError) as error:
        table.lookup("goldfish")
    assert error.value.hint == "List all: vlltr classes list"
    assert table.find("goldfish") is None
