"""Pictures and labels of data sets that other libraries hold: Hugging Face's `Dataset`, torchvision's `ImageFolder`."""

from __future__ import annotations

from typing import Any

from vlltr_index.data.decoding import ImageSource
from vlltr_index.errors import InputError


def is_ready_made(value: object) -> bool:
    """Say whether a value is a data set of one of these libraries, none of which is imported for it."""
    return _is_hugging_face(value) or (hasattr(value, "samples") and hasattr(value, "classes"))


def ready_made_pictures(dataset: Any) -> list[ImageSource]:
    """Return the pictures of a data set as paths or encoded bytes.

    A `Dataset` has them in its first column of the type `Image`, or else in the column `image`. Transforms that belong
    to a data set are not run.

    Args:
        dataset: One of which `is_ready_made` is true.

    Raises:
        InputError: It has splits instead of pictures, or no such column.
    """
    if not _is_hugging_face(dataset):
        return [path for path, _ in dataset.samples]
    name, feature = _column(dataset, "Image", "image")
    plain = dataset.with_format(None).select_columns([name])
    if type(feature).__name__ == "Image":
        plain = plain.cast_column(name, type(feature)(decode=False))
    return [_source(row[name]) for row in plain]


def ready_made_labels(dataset: Any) -> list[str]:
    """Return the name of the class of each picture of a data set.

    A `Dataset` has the classes in its first column of the type `ClassLabel`, or else in the column `label`.

    Args:
        dataset: One of which `is_ready_made` is true.

    Raises:
        InputError: It has splits instead of pictures, no such column, or a picture without a class.
    """
    if not _is_hugging_face(dataset):
        return [dataset.classes[label] for _, label in dataset.samples]
    name, feature = _column(dataset, "ClassLabel", "label")
    names = getattr(feature, "names", None)
    found = [_name(value, names) for value in dataset.with_format(None)[name]]
    if None in found:
        raise InputError(
            f"row {found.index(None)} of the data set has no class in its column {name!r}",
            "Leave such rows out: dataset.filter(...)",
        )
    return found  # type: ignore[return-value]  # none is None


def _is_hugging_face(value: object) -> bool:
    """Say whether a value is a `Dataset` or a `DatasetDict`."""
    return hasattr(value, "column_names") and hasattr(value, "cast_column") and hasattr(value, "__len__")


def _column(dataset: Any, kind: str, name: str) -> tuple[str, Any]:
    """Return the first column of a type and that type, or else the column with the usual name."""
    if isinstance(dataset, dict):
        splits = ", ".join(map(repr, dataset))
        raise InputError(f"the data set has splits, {splits}, and no pictures", "Give one: dataset['train']")
    columns = dataset.features
    found = [column for column, feature in columns.items() if type(feature).__name__ == kind]
    found += [name] if name in columns else []
    if not found:
        raise InputError(
            f"the data set has no column of the type {kind}, and none called {name!r}; "
            f"it has {', '.join(map(repr, columns))}",
            f"Rename one: dataset.rename_column(NAME, {name!r})",
        )
    return found[0], columns[found[0]]


def _source(value: Any) -> ImageSource:
    """Return the bytes of a value of a column of pictures, or its path."""
    if not isinstance(value, dict):
        return value  # type: ignore[no-any-return]  # reading it tells whether it is a picture
    data: bytes | None = value.get("bytes")
    return str(value.get("path")) if data is None else data


def _name(value: Any, names: list[str] | None) -> str | None:
    """Return the name of a label; null and negative numbers have none."""
    if value is None or (isinstance(value, int) and value < 0):
        return None
    return str(value) if names is None else names[value]
