"""Descriptions of stored objects: the JSON file that each of them has beside its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasPath, BaseModel, ConfigDict, Field, ValidationError

from vlltr_index.schemas.records import IndexKind
from vlltr_index.version import VERSION


class Manifest(BaseModel):
    """Base of the models of such files; keys that they do not name are ignored."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file; errors as for `parse`, and OSError."""
        return cls.parse(path.read_bytes(), path.name)

    @classmethod
    def parse(cls, data: bytes, name: str) -> Self:
        """Parse the content of the file `name`.

        Raises:
            ValueError: It is no JSON, of another format, or a value is missing or of another kind; the message names
                the first one.
        """
        try:
            found = cls.model_validate_json(data)
        except ValidationError as error:
            wrong = [one["input"] for one in error.errors() if one["loc"] == ("format",)]
            if wrong:
                raise ValueError(_other_format(cls, data, name, wrong[0])) from None
            raise _described(error, name) from None
        if "format" in cls.model_fields and "format" not in found.model_fields_set:
            raise ValueError(_other_format(cls, data, name, None))
        return found

    @classmethod
    def of(cls, values: Any, name: str) -> Self:
        """Check values that were read from the file `name`; errors as for `parse`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _described(error, name) from None

    def save(self, path: Path) -> None:
        """Write the file."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")


def other_format(place: str, written: object, reads: int, version: object = None) -> str:
    """Say that something is in another format than this program reads, and which version can read it.

    Args:
        place: What it is.
        written: Its format; None: it names none.
        reads: The format that this program reads.
        version: The version of this program that wrote it; None: it is not known.
    """
    format_of = "no format" if written is None else f"format {written!r}"
    writer = f"vlltr-index {version}" if isinstance(version, str) else "version"
    return (
        f"{place} has {format_of}, but this vlltr-index {VERSION} reads format {reads}: "
        f"the {writer} that wrote it can read it"
    )


def _other_format(kind: type[Manifest], data: bytes, name: str, written: object) -> str:
    """Say it of the file `name`, whose content is valid JSON and may name the version that wrote it."""
    return other_format(
        name, written, kind.model_fields["format"].default, json.loads(data).get("program_version")
    )


def _described(error: ValidationError, name: str) -> ValueError:
    first = error.errors()[0]
    return ValueError(f"{'.'.join(map(str, first['loc']))} in {name}: {first['msg']}")


class IndexManifest(Manifest):
    """Content of `index.json`."""

    format: Literal[1] = 1
    kind: IndexKind


class HeadSummary(Manifest):
    """The part of `head.json` that says what a head was trained on, and what was decided.

    Attributes:
        text_fp: Fingerprint of the text tower whose vectors it was trained on.
        image_fp: Fingerprint of the visual tower.
        texts: What texts are used for, in a sentence; empty for the protocols `paper` and `release`.
    """

    text_fp: str
    image_fp: str
    texts: str = Field("", validation_alias=AliasPath("parts", "texts"))


class SavedEncoder(BaseModel):
    """The model, preprocessing and tokenizer of an encoder, as open_clip describes them."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tokenizer: Literal["open_clip", "words", "none"]


class EncoderManifest(Manifest):
    """Content of `encoder.json`."""

    format: Literal[1] = 1
    name: str
    precision: Literal["fp32", "tf32", "bf16"]
    config: SavedEncoder


class EncoderSummary(Manifest):
    """The part of `encoder.json` that a recipe can be compared with.

    Attributes:
        name: The open_clip model.
        image_size: Side of its images in pixels.
        resize: Length of the shorter side before the crop; None: that of the crop.
    """

    name: str
    image_size: int = Field(validation_alias=AliasPath("config", "model_cfg", "vision_cfg", "image_size"))
    resize: int | None = Field(None, validation_alias=AliasPath("config", "preprocess_cfg", "resize"))


class Epoch(Manifest):
    """What an epoch of a training gave: its number, and by name the loss and other figures."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, float] = Field(init=False)

    epoch: float

    @property
    def figures(self) -> dict[str, float]:
        """The figures by name."""
        return self.__pydantic_extra__


class TrainingLog(Manifest):
    """The part of `train.json` that says how a training went, epoch by epoch."""

    log: list[Epoch] = Field(min_length=1)
