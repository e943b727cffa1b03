"""The pages of documentation and what stands in their fences: README.md and every Markdown file below docs/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
# "# learner.yaml" on the first line: a reader saves the block under that name.
_FILE_NAME = re.compile(r"(?:#|//) ([\w./-]+\.\w+)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fence: "```tag" and what stands in it."""

    page: str  # relative to the repository, with "/"
    line: int  # of the fence, counted from 1
    tag: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """Where a reader would save it; None: it is no file."""
        found = _FILE_NAME.match(self.text.split("\n", 1)[0].strip())
        return found[1] if found else None


@cache
def page_names() -> tuple[str, ...]:
    """README.md first, then docs/ in order."""
    return ("README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")))


@cache
def page_text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def blocks_of(page: str) -> tuple[Block, ...]:
    """Every block of a page, in order; one by four spaces alone has an empty tag, like a fence without one."""
    return tuple(
        Block(page=page, line=(token.map or [0])[0] + 1, tag=token.info.strip(), text=token.content)
        for token in MarkdownIt("commonmark").parse(page_text(page))
        if token.type in ("fence", "code_block")
    )


def all_blocks() -> Iterator[Block]:
    for page in page_names():
        yield from blocks_of(page)
