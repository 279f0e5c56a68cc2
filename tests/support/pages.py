"""Reading the pages: their code blocks, with what stands before each; and what HTML holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

__all__ = ["Block", "Page", "blocks", "in_pattern"]

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block: `sh`, `python`, `text`; the comment on the line before it; its line in the page."""

    kind: str
    text: str
    note: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    content = page.read_text(encoding="utf-8")
    return [
        Block(m["kind"], m["text"], m["note"] or "", content[: m.start()].count("\n") + 1)
        for m in _BLOCK.finditer(content)
    ]


def in_pattern(text: str) -> str:
    """`text` with each number as `#` and each run of blanks as one, so that outputs of two runs can be compared."""
    return re.sub(r"[ \t]+", " ", re.sub(r"[+-]?\d+(?:[.,]\d+)*", "#", text)).strip()


class Page(HTMLParser):
    """Elements with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All text, spaces made one."""
        return " ".join(" ".join(self.words).replace("\xa0", " ").split())
