"""Reading the pages: their code blocks, with what stands before each, and the commands in them; and HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import click

__all__ = ["Block", "Page", "blocks", "in_pattern", "parse"]

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


def parse(group: click.Command, args: list[str], name: str) -> None:
    """Parse without running; click raises on unknown commands, options and missing arguments."""
    context = group.make_context(name, list(args), resilient_parsing=False)
    if isinstance(group, click.Group):
        rest = (
            [*context.protected_args, *context.args] if hasattr(context, "protected_args") else context.args
        )
        word, command, others = group.resolve_command(context, rest)
        assert word is not None
        assert command is not None
        parse(command, others, word)
