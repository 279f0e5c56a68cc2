"""Tests of the reader of how common classes are."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlltr_index.data.frequencies import Frequencies, Situation, place_of, read_frequencies, read_situations
from vlltr_index.errors import InputError

names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8).map(partial(normalize, "NFC"))
weights = st.floats(min_value=1e-6, max_value=1e9)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=st.dictionaries(names, weights, min_size=1, max_size=5))
def test_each_format_says_the_same(told: dict[str, float], tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps(told), encoding="utf-8")
    lines = "\n".join(f'"{name}",{weight!r}' for name, weight in told.items())
    (tmp_path / "f.csv").write_text(f"class,weight\n{lines}\n", encoding="utf-8")
    pq.write_table(pa.table({"class": list(told), "weight": list(told.values())}), tmp_path / "f.parquet")
    for kind in ("json", "csv", "parquet"):
        assert read_frequencies(tmp_path / f"f.{kind}") == Frequencies(told)


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("f.csv", "class,weight\nwren,0\n", "f.csv:2"),
        ("f.csv", "class,weight\nwren,many\n", "f.csv:2"),
        ("f.csv", "class,weight\nwren,1_0\n", "f.csv:2"),
        ("f.csv", "class,weight\nwren,inf\n", "f.csv:2"),
        ("f.csv", "class,weight\nwren,1e308\n", "f.csv:2: the weight '1e308' is above 1e+100"),
        ("f.csv", "class,weight\nwren,1\nwren,2\n", "f.csv:3"),
        ("f.csv", "class,number\nwren,1\n", "f.csv"),
        ("f.csv", "class,weight\n", "f.csv"),
        ("f.json", '{"wren": -1}', "'wren'"),
        ("f.json", '{"wren": 1, "wren": 2}', "f.json"),
        ("f.json", '["wren"]', "f.json"),
        ("f.txt", "wren 1", "f.txt"),
        ("missing.csv", None, "missing.csv"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, text: str | None, where: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_frequencies(tmp_path / name)
    assert where in caught.value.message


def test_weights_by_place_and_month(tmp_path: Path) -> None:
    """Sums hold over all; what a place and month lacks is rarer than what it names; one of zeros tells nothing."""
    file = tmp_path / "f.csv"
    rows = "wren,5,hill,5\nwren,3,hill,2024-05-09\nowl,2,hill,5\nowl,4,lake,2024-11-03\n"
    rows += "wren,0,lake,11\nkite,6,moor,12\nowl,0,moor,1\n"
    file.write_text(f"class,weight,place,month\n{rows}", encoding="utf-8")
    found = read_frequencies(file)
    assert found.weights == {"wren": 8.0, "owl": 6.0, "kite": 6.0}
    assert found.situated == {
        Situation("hill", 5): {"wren": 8.0, "owl": 2.0, "kite": 1.0},
        Situation("lake", 11): {"wren": 2.0, "owl": 4.0, "kite": 2.0},
        Situation("moor", 12): {"wren": 3.0, "owl": 3.0, "kite": 6.0},
    }
    assert found.by_place
    assert found.by_month
    file.write_text("class,weight,month\nwren,8,5\nwren,1,6\n", encoding="utf-8")
    assert not read_frequencies(file).by_place
    assert read_frequencies(file).by_month


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("class,weight,month\nwren,1,13\n", "f.csv:2: '13' is no month"),
        ("class,weight,month\nwren,1,May\n", "f.csv:2: 'May' is no month"),
        (f"class,weight,month\nwren,1,{'1' * 5000}\n", "f.csv:2: '11111"),
        ("class,weight,place\nwren,0,hill\nowl,1,hill\n", "class 'wren' has no weight above 0 anywhere"),
        ("class,weight,place\nwren,0,hill\n", "no weight above 0 anywhere"),
        ("class,weight,place\nwren,1,hill\nwren,1,\n", "f.csv:3: no place"),
        ("class,weight,place,month\nwren,1,hill,\n", "f.csv:2: no month"),
        ("class,weight,place\n", "names no class"),
        ("class,weight,place\nwren,-1,hill\n", "f.csv:2"),
    ],
)
def test_what_is_wrong_with_places_and_months_is_named(tmp_path: Path, text: str, where: str) -> None:
    (tmp_path / "f.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_frequencies(tmp_path / "f.csv")
    assert where in caught.value.message


def test_where_and_when_pictures_were_taken(tmp_path: Path) -> None:
    """Paths are relative to the file, addresses are as they are; a date is its month."""
    file = tmp_path / "taken.csv"
    rows = "a.jpg,hill,5\nb/../c.jpg,,2024:07:01 10:00:00\ns3://bucket/d.jpg,lake,\n"
    file.write_text(f"image,place,month\n{rows}", encoding="utf-8")
    assert read_situations(file) == {
        str(tmp_path / "a.jpg"): Situation("hill", 5),
        str(tmp_path / "c.jpg"): Situation(None, 7),
        "s3://bucket/d.jpg": Situation("lake"),
    }
    assert place_of("a.jpg", tmp_path) == place_of(str(tmp_path / "x" / ".." / "a.jpg"))
    for text, where in (
        ("image\na.jpg\n", "no column 'place' or 'month'"),
        ("image,place\n,hill\n", "taken.csv:2: no image"),
        ("image,place\n", "names no image"),
        ("image,month\na.jpg,0\n", "taken.csv:2: '0' is no month"),
        ("image,month\na.jpg,1\n./a.jpg,2\n", "taken.csv:3: ./a.jpg was taken elsewhere"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=where):
            read_situations(file)
    (tmp_path / "taken.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="unknown format"):
        read_situations(tmp_path / "taken.json")
