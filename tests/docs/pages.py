"""The Markdown pages of the repository: their links, their headings, their code blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "recipes", "benchmarks", "model_cards", ".github")
PAGES = sorted([*ROOT.glob("*.md"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*.md"))])

_MARKDOWN = MarkdownIt("commonmark").enable("table")
# What mkdocstrings makes an entry of, and so an anchor.
_ENTRY = re.compile(r"^::: (\S+)", re.MULTILINE)
_NOT_RUN = re.compile(r"<!--\s*not run:\s*(.+?)\s*-->", re.DOTALL)


class Link(NamedTuple):
    """Where a link stands and where it leads."""

    line: int
    target: str


class Example(NamedTuple):
    """A Python block; what it prints, if the page says so; why it is not run, if it is not."""

    line: int
    code: str
    output: str | None
    not_run: str | None


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def links(text: str) -> Iterator[Link]:
    """Links and images of a page, in Markdown or HTML."""
    for token in _MARKDOWN.parse(text):
        line = token.map[0] + 1 if token.map else 0
        for part in (token, *(token.children or ())):
            for attribute in ("href", "src"):
                if target := part.attrGet(attribute):
                    yield Link(line, str(target))
            if part.type in ("html_block", "html_inline"):
                for target in re.findall(r"\b(?:href|src|srcset)=[\"']([^\"']+)", part.content):
                    yield Link(line, target)


def anchors(text: str) -> set[str]:
    """What can stand behind the ``#`` of a link to this page, as GitHub names it."""
    tokens, found = _MARKDOWN.parse(text), set(_ENTRY.findall(text))
    for opening, heading in pairwise(tokens):
        if opening.type == "heading_open":
            slug = name = _slug(heading)
            again = 1
            while name in found:
                name, again = f"{slug}-{again}", again + 1
            found.add(name)
    found.update(re.findall(r"<[^>]*\b(?:id|name)=[\"']([^\"']+)", text))
    return found


def _slug(heading: Token) -> str:
    kinds = ("text", "code_inline")
    words = "".join(part.content for part in heading.children or () if part.type in kinds)
    return re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")


def examples(text: str) -> Iterator[Example]:
    """The ```python blocks; a ```text block directly below one is what it prints."""
    tokens: list[Token | None] = [None, *_MARKDOWN.parse(text), None]
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if not _is_block(token, "python"):
            continue
        output = after.content if _is_block(after, "text") else None
        said = _NOT_RUN.match(before.content) if before is not None else None
        yield Example(token.map[0] + 2, token.content, output, said and said[1])


def _is_block(token: Token | None, language: str) -> bool:
    return token is not None and token.type == "fence" and token.info.split()[:1] == [language]
