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

from vlltr_index.data.frequencies import read_frequencies
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
        assert read_frequencies(tmp_path / f"f.{kind}") == told


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("f.csv", "class,weight\nwren,0\n", "f.csv:2"),
        ("f.csv", "class,weight\nwren,many\n", "f.csv:2"),
        ("f.csv", "class,weight\nwren,inf\n", "f.csv:2"),
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
