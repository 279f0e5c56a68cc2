"""What is said of classes that have images and no text, and of names that may be misspelt or spelt in two ways."""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Set
from difflib import get_close_matches
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from vlltr_index.data.text import folded
from vlltr_index.pipelines.image_plan import Notes
from vlltr_index.wording import have, plural, preview

if TYPE_CHECKING:
    from vlltr_index.store.class_table import ClassTable
    from vlltr_index.store.transaction import Transaction

_PAIRS = 100_000  # of names that are compared, at most
_CLOSE = 0.8  # how alike names of one class may be spelt, by `difflib`
_CLOSER = 0.9  # where both have pictures
_NUMBER = re.compile(r"\d+")


def classes_without_text(tx: Transaction) -> tuple[set[int], set[int]]:
    """Return the ids of classes without any sentence, and of classes with no sentence but prompts."""
    rows = tx.table("sentences", ["class_id", "source"])
    told = rows.filter(pc.not_equal(rows["source"], "prompt"))
    ids = set(tx.class_table().ids)
    mute = ids.difference(pc.unique(rows["class_id"]).to_pylist())
    bare = ids.difference(pc.unique(told["class_id"]).to_pylist())
    return mute, bare


def tell_of_bare_classes(tx: Transaction, bare: Set[int], notes: Notes, prompted: bool) -> None:
    """Note the classes that are `bare` of any sentence but prompts, which they have if `prompted`."""
    table = tx.class_table()
    if bare:
        notes.lines.append(
            f"{len(bare):,} of {len(table):,} classes {have(len(bare))} no text{' but prompts' if prompted else ''}: "
            + preview(table.names[i] for i in sorted(bare))
        )


def tell_of_names(tx: Transaction, before: ClassTable, bare: Set[int], address: str, notes: Notes) -> None:
    """Note names of classes of the workspace at `address` that may mean another class of it.

    Args:
        tx: The open transaction.
        before: The classes before it.
        bare: Ids of the classes with no sentence but prompts.
        address: The workspace's, for commands.
        notes: The report's.
    """
    _tell_of_respelt_classes(tx, before, address, notes)
    _tell_of_misspelt_classes(tx, bare, address, notes)


def _tell_of_misspelt_classes(tx: Transaction, bare: Set[int], address: str, notes: Notes) -> None:
    """Note classes with texts, named much like one with images that is `bare` of text.

    Where both have images the names must be the more alike.
    """
    table = tx.class_table()
    pictured = Counter(tx.table("images", ["class_id"])["class_id"].drop_null().to_pylist())
    told = set(table.ids) - bare
    lacking = [table.names[i] for i in sorted(pictured.keys() & bare)]

    def warn(what: str, mend: str, into: str, other: str) -> None:
        if tx.commit.head:
            mend = _merging(address, into, other)
        notes.add("misspelt", f"Warning: {what}. If they are one: {mend}")

    for name, meant in _alike([table.names[i] for i in sorted(told - pictured.keys())], lacking, _CLOSE):
        what = f"class {name!r} has texts and no picture, {meant!r} pictures and no text"
        called = f"call it {meant!r} in the texts, or {name!r} where the pictures are"
        warn(what, f"{called}, and bring them in again with --sync", meant, name)
    for name, meant in _alike([table.names[i] for i in sorted(told & pictured.keys())], lacking, _CLOSER):
        one, other = (plural(pictured[table.lookup(which)], "picture") for which in (name, meant))
        what = f"class {name!r} has {one}, {meant!r} {other} and no text"
        warn(what, f"put them into one folder, called {name!r}, or {meant!r} in the texts, too", name, meant)


def _tell_of_respelt_classes(tx: Transaction, before: ClassTable, address: str, notes: Notes) -> None:
    """Note classes that are not among those `before`, and have another's name but for case."""
    table = tx.class_table()
    spelt: dict[str, str] = {}
    for i in table.ids:
        name = table.names[i]
        first = spelt.setdefault(folded(name), name)
        if first != name and i not in before.names:
            mend = f"call it {first!r} in the source, too, and bring it in again with --sync"
            if tx.commit.head:
                mend = _merging(address, first, name)
            what = f"{name!r} is a class of its own, though its name is that of {first!r} but for case"
            notes.add("respelt", f"{what}. If they are one: {mend}")


def _merging(address: str, into: str, other: str) -> str:
    """Return the command that makes two classes of the workspace at `address` one."""
    return shlex.join(["vlltr", "-w", address, "classes", "merge", into, other]) + " (the first name stays)"


def _alike(names: list[str], others: list[str], cutoff: float) -> Iterator[tuple[str, str]]:
    """Yield names with that of some others which is spelt most like them; not one with another number in it."""
    if len(names) * len(others) > _PAIRS:
        return
    numbered: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for other in others:
        numbered[tuple(_NUMBER.findall(other))][folded(other)] = other
    for name in names:
        there = numbered[tuple(_NUMBER.findall(name))]
        for close in get_close_matches(folded(name), list(there), n=1, cutoff=cutoff):
            yield name, there[close]
