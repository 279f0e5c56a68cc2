"""`vlltr ingest classes`: what classes lie below, from every format, and what the tree does when classes change."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.commands import run
from vlltr_index.classes import merge_classes, remove_classes, rename_class
from vlltr_index.cli.render import report_lines
from vlltr_index.data.taxonomy import read_taxonomy
from vlltr_index.errors import InputError
from vlltr_index.pipelines.history import rollback
from vlltr_index.pipelines.ingest import ingest_text
from vlltr_index.pipelines.taxonomy import ingest_classes
from vlltr_index.recognition.ranks import classes_below, tree_above
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.records import Taxon
from vlltr_index.store.class_table import ClassTable
from vlltr_index.store.taxonomy import load_taxonomy, misplaced, taxonomy_of
from vlltr_index.store.workspace import Workspace

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
NAMES = (
    st.text(st.characters(categories=["L", "Zs"], exclude_characters=";"), min_size=1, max_size=9)
    .map(partial(normalize, "NFC"))
    .filter(lambda text: bool(text.strip()))
)


def written(folder: Path, text: str, name: str = "tree.csv") -> Path:
    """A file of that text."""
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.fixture
def birds(workspace: Workspace, tmp_path: Path) -> Workspace:
    """Four classes with a sentence each."""
    told = {name: [f"The {name} is a bird."] for name in ("kestrel", "merlin", "wren", "oak")}
    ingest_text(workspace, written(tmp_path, json.dumps(told), "texts.json"), prompts=False)
    return workspace


def parents(workspace: Workspace) -> dict[str, str | None]:
    """Each node's parent."""
    return {name: taxon.parent for name, taxon in load_taxonomy(workspace.snapshot()).items()}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=5))
def test_delimited_files_and_parquet_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    """Names, parents, ranks and aliases come back, blanks around them aside."""
    folder = tmp_path_factory.mktemp("trees")
    header = ("name", "parent", "rank", "aliases")
    full = [(name, parent, "", f"{alias}; {alias}x") for name, parent, alias in rows]
    found = []
    for ending, sign in (("csv", ","), ("tsv", "\t")):
        text = "\n".join(sign.join(f'"{cell}"' for cell in row) for row in [header, *full])
        found.append(read_taxonomy(written(folder, text, f"tree.{ending}")))
    columns = [pa.array(column) for column in zip(*full, strict=True)]
    pq.write_table(pa.table(columns, names=list(header)), folder / "tree.parquet")
    found.append(read_taxonomy(folder / "tree.parquet"))
    for taxa in found:
        assert [t.name for t in taxa] == [Taxon(" ".join(n.split()), None).name for n, _, _ in rows]
        assert all(len(t.aliases) == 2 and t.rank is None for t in taxa)
        assert [t.parent for t in taxa] == [" ".join(parent.split()) or None for _, parent, _ in rows]


def test_categories_of_inaturalist(tmp_path: Path) -> None:
    """Seven ranks; a genus that is one of birds and one of plants is two nodes; the common name is an alias."""
    rows = [
        ("Animalia", "Chordata", "Aves", "Passeriformes", "Prunellidae", "Prunella", "Prunella modularis"),
        (
            "Plantae",
            "Tracheophyta",
            "Magnoliopsida",
            "Lamiales",
            "Lamiaceae",
            "Prunella",
            "Prunella vulgaris",
        ),
    ]
    listed = [
        {"id": n, "common_name": f"common {n}", **dict(zip((*RANKS, "name"), row, strict=True))}
        for n, row in enumerate(rows)
    ]
    for value in (listed, {"categories": listed}):
        found = read_taxonomy(written(tmp_path, json.dumps(value), "categories.json"))
        by_name = {taxon.name: taxon for taxon in found}
        assert len(found) == 14
        assert by_name["Prunella modularis"].parent == "Prunella"
        assert by_name["Prunella vulgaris"].parent == "Prunella (Lamiaceae)"
        assert by_name["Prunella (Lamiaceae)"] == Taxon(
            "Prunella (Lamiaceae)", "Lamiaceae", "genus", (), by_name["Lamiaceae"].where
        )
        assert by_name["Prunella vulgaris"].rank == "species"
        assert by_name["Prunella vulgaris"].aliases == ("common 1",)
        assert by_name["Animalia"].parent is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "name,rank\na,b\n", "t.csv: no column 'parent'; it has 'name', 'rank'"),
        ("t.csv", "name,parent\na\n", "t.csv:2: 1 fields, the header has 2"),
        ("t.csv", "name,parent\n,b\n", "t.csv:2: the class name is empty"),
        ("t.csv", 'name,parent\n"a,b\n', "t.csv:2: not CSV: unexpected end of data"),
        ("t.csv", "name,parent\n", "t.csv names no class"),
        ("t.txt", "", "t.txt: unknown format '.txt' of a tree of classes"),
        ("t.parquet", "", "t.parquet: not a readable Parquet file:"),
        ("t.json", "{}", "t.json: Input should be a valid list"),
        ("t.json", '[{"name": "a"}]', "t.json: category 0: the class name is empty"),
    ],
)
def test_files_that_are_no_tree(tmp_path: Path, name: str, text: str, message: str) -> None:
    """File and line are named."""
    with pytest.raises(InputError) as caught:
        read_taxonomy(written(tmp_path, text, name))
    assert caught.value.message.startswith(f"{tmp_path}/{message}")
    assert caught.value.hint


def test_a_tree_comes_in_and_moves(birds: Workspace, tmp_path: Path) -> None:
    """Case and blanks do not matter, aliases are given, again changes nothing, and a later file moves what it names."""
    rows = ("Kestrel,Falcons,,Falco tinnunculus", "merlin,falcons,,", "falcons,birds,genus,", "wren,Birds,,")
    text = "\n".join(["name,parent,rank,aliases", *rows])
    first = ingest_classes(birds, written(tmp_path, text))
    assert report_lines(first) == [
        f"{tmp_path}/tree.csv: 5 names in the tree of classes, 4 of them new or moved.",
        "Classes: 4, 3 of them with a parent.",
        "  1 class has no parent: 'oak'",
    ]
    assert parents(birds) == {
        "kestrel": "Falcons", "merlin": "Falcons", "Falcons": "birds", "birds": None, "wren": "birds",
    }  # fmt: skip
    assert birds.snapshot().class_table().find("Falco tinnunculus") == 0
    before = birds.history.last()
    assert ingest_classes(birds, written(tmp_path, text)).changed == 0
    assert birds.history.last() == before
    ingest_classes(birds, written(tmp_path, "name,parent\nfalco tinnunculus,wren\n", "more.csv"))
    assert parents(birds)["kestrel"] == "wren"
    rollback(birds, before.id)
    assert parents(birds)["kestrel"] == "Falcons"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "kestrel,falcon\nmerlin,falcon\nKESTREL,hawk\n",
            ":4: 'KESTREL' (which is 'kestrel') has the parent 'hawk', and 'falcon' in {}:2",
            "Keep one of the two lines, or call one of them otherwise.",
        ),
        (
            "wren,bird\nkestrel,falcon\nfalcon,raptor\nraptor,Falcon\n",
            ":4: 'falcon' would lie below itself: falcon < raptor < falcon",
            "Give one of them another parent.",
        ),
        (
            "kestrell,falcon\n",
            " is a class: 'kestrell'",
            "Did you mean 'kestrel'? List all: vlltr classes list",
        ),
        ("eagle,hawk\n", " is a class: 'eagle'", "List all: vlltr classes list"),
    ],
)
def test_trees_that_cannot_be(birds: Workspace, tmp_path: Path, text: str, message: str, hint: str) -> None:
    """Two parents, a circle, no class at all: nothing is committed."""
    path, before = written(tmp_path, f"name,parent\n{text}"), birds.history.last()
    with pytest.raises(InputError) as caught:
        ingest_classes(birds, path)
    assert caught.value.message.endswith(f"{path}{message}".format(path))
    assert caught.value.hint == hint
    assert birds.history.last() == before


def test_circles_are_found_wherever_they_lie() -> None:
    """Names above one that is asked about, and no others."""
    tree = {n: Taxon(n, p) for n, p in {"a": "b", "b": "c", "c": "b", "d": "e"}.items()}
    assert misplaced(tree, ["d"]) is None
    chain = {str(n): Taxon(str(n), str(n + 1)) for n in range(200)}
    assert misplaced(chain, ["150"]) is None
    assert (misplaced(chain, ["1", "0"]) or ())[1] == "'1' lies below more than 99 others"
    assert misplaced(tree, ["d", "a"]) == (["b", "c"], "'b' would lie below itself: b < c < b")


@pytest.mark.slow
def test_classes_change_below_their_parents(
    trained: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A renamed class keeps its place, a merged one goes, a removed one leaves; the list shows parents."""
    names = trained.snapshot().class_table().names
    text = "name,parent\n" + "".join(f'"{names[i]}",top\n' for i in range(3)) + f'"{names[3]}","{names[0]}"\n'
    ingest_classes(trained, written(tmp_path, text))
    rename_class(trained, names[0], "another name")
    assert parents(trained)[names[3]] == "another name"
    assert parents(trained)["another name"] == "top"
    merge_classes(trained, names[4], names[1])
    assert parents(trained)[names[4]] == "top"
    remove_classes(trained, [names[2]])
    tree = Recognizer.open(trained).current().tree()
    assert names[2] not in tree.names
    assert names[1] not in tree.names
    code, out, _ = run(capsys, "-w", trained.path, "classes", "list")
    assert code == 0
    assert f"  {names[3]}  < another name\n" in out
    assert f"  {names[5]}\n" in out


@pytest.mark.slow
def test_what_lies_below_a_merged_class(trained: Workspace, tmp_path: Path) -> None:
    """It goes below the other one; where that lies below the class itself, a step up; a taken name is told."""
    names = trained.snapshot().class_table().names
    text = f"name,parent\n{names[0]},top\n{names[1]},top\n{names[2]},{names[1]}\n{names[3]},{names[2]}\n"
    ingest_classes(trained, written(tmp_path, text))
    merge_classes(trained, names[3], names[2])
    assert parents(trained) == {"top": None, names[0]: "top", names[1]: "top", names[3]: names[1]}
    merge_classes(trained, names[0], names[1])
    assert parents(trained) == {"top": None, names[0]: "top", names[3]: names[0]}
    notes = rename_class(trained, names[3], "top").notes
    assert "The tree of classes has a 'top' already: the class is that now." in notes


def test_an_alias_that_is_a_name_of_the_tree(birds: Workspace, tmp_path: Path) -> None:
    """It is given to no class, so that the file comes in a second time and `--parent` finds the node."""
    path = written(tmp_path, "name,parent,aliases\nkestrel,falcon,Falcon;tower falcon\nmerlin,falcon,\n")
    for _ in range(2):
        ingest_classes(birds, path)
    assert parents(birds)["kestrel"] == parents(birds)["merlin"] == "falcon"
    assert birds.snapshot().class_table().aliases[0] == ("tower falcon",)
    classes = ClassTable({0: "kestrel", 1: "merlin"}, {0: ("falcon",)})
    tree = tree_above(load_taxonomy(birds.snapshot()), ["kestrel", "merlin"])
    assert classes_below(tree, classes, "falcon") == {0, 1}


def test_neither_case_nor_blanks_tell_names_apart() -> None:
    """Of a class that came later, either; a class's own name goes before another one's alias."""
    rows = pa.table({"name": ["Blue  Tit", "oak"], "parent": ["bird", "tree"]})
    found = taxonomy_of(rows, ClassTable({0: "beech", 1: "blue tit", 2: "oak"}, {0: ("Oak",)}))
    assert {name: taxon.parent for name, taxon in found.items()} == {
        "blue tit": "bird", "oak": "tree", "bird": None, "tree": None,
    }  # fmt: skip
