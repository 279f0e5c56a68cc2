"""A number beside each row of a table, by which a change of the row is noticed that no command made.

The store alone sees the column: it makes the numbers as rows are written, and compares them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlltr_index.schemas.tables import CHECKED

CHECKSUM = "checksum"
"""The last column of a table whose rows have one."""

_FIELD = pa.field(CHECKSUM, pa.int64(), nullable=False)
_NULL = np.uint64(2**64 - 1)  # a word that no number is: as a float it is a NaN that no arithmetic makes
_NO_TEXT = b"\xff"  # bytes that no text has
_LARGEST = 2**53  # every reader of JSON keeps smaller integers exactly


def covered(name: str, schema: pa.Schema) -> Sequence[str]:
    """Return the columns that the checksums of a table are over; none where rows are not to have one.

    In a vector cache these are the key, from which the others follow, and the vector.
    """
    return (schema.names[0], "vector") if "vector" in schema.names else CHECKED.get(name, ())


def with_checksum(name: str, schema: pa.Schema) -> pa.Schema:
    """Return the columns of a table as it is made."""
    return schema.append(_FIELD) if covered(name, schema) else schema


def checksums(rows: pa.RecordBatch) -> Any:
    """Compute a number for each row, int64 [n], that another value anywhere in the row changes, be it by one bit.

    The sum of the row's numbers, as words of 32 or 64 bits each times an odd number that tells its place, and of the
    CRC-32 of its texts.

    Args:
        rows: Of texts, one at least, numbers, and vectors float32 [D]; but for vectors any may be null.
    """
    texts = [column.cast(pa.binary()) for column in rows.columns if pa.types.is_string(column.type)]
    joined = pc.binary_join_element_wise(*texts, b"\0", null_handling="replace", null_replacement=_NO_TEXT)
    sums = np.fromiter(map(zlib.crc32, joined.to_pylist()), np.uint64, rows.num_rows)
    place = 1
    for words in (_words(column) for column in rows.columns if not pa.types.is_string(column.type)):
        places = np.arange(place, place + 2 * words.shape[1], 2, dtype=np.uint64)
        sums += np.einsum("ij,j->i", words, places)
        place += 2 * words.shape[1]
    return sums.view(np.int64)


def _words(column: pa.Array) -> Any:
    """Numbers as the bits that they are stored as, unsigned [n, W]."""
    is_vector = pa.types.is_fixed_size_list(column.type)
    numbers = (column.flatten() if is_vector else column.fill_null(0)).to_numpy()
    words = numbers.view(f"u{numbers.itemsize}").reshape(len(column), -1)
    if column.null_count:
        words = words.astype(np.uint64)
        words[column.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return words


def wrong_row(rows: pa.RecordBatch, columns: Sequence[str]) -> int | None:
    """Return the place of a row that has not the checksum that it states; None: there is none."""
    wrong = (checksums(rows.select(columns)) != rows[CHECKSUM].to_numpy()).nonzero()[0]
    return int(wrong[0]) if len(wrong) else None


def total(stated: Iterable[pa.Array]) -> int:
    """Compute the sum of a table's checksums, below 2**53: the same in whatever order its rows are."""
    return sum(int(part.to_numpy().view(np.uint64).sum()) for part in stated) % _LARGEST
