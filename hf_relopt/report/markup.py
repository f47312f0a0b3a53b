"""Pieces of HTML; whatever comes from a run's files is escaped here."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """Any value as HTML; Markup as it is."""
    if isinstance(value, Markup):
        return value
    # What HTML does not allow, from a damaged file or a folder's name, is shown as a mark.
    text = "".join(_shown(sign) for sign in str(value))
    return Markup(html.escape(text, quote=True))


def _shown(sign: str) -> str:
    plain = sign >= " " and not "\x7f" <= sign <= "\x9f" and not "\ud800" <= sign <= "\udfff"
    return sign if plain or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}"


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element; ``class_`` is the attribute class, ``aria_label`` is aria-label.

    An attribute that is None or False is left out; one that is True has no value.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{escaped(value)}"')
    return Markup(f"<{' '.join(words)}>{joined(content)}</{name}>")


def joined(parts: Iterable[object], between: str = "") -> Markup:
    """Parts one after the other."""
    return Markup(between.join(escaped(part) for part in parts))


def with_code(text: str) -> Markup:
    """A sentence in which what stands between backticks is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick too many: a file's own text
        return escaped(text)
    return joined(tag("code", part) if at % 2 else part for at, part in enumerate(parts))


def data(content: Any) -> Markup:
    """JSON inside the page, for its script; nothing in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(
        f'<script type="application/json">{text.replace("<", chr(92) + "u003c")}</script>'
    )


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    label: str,
    numbers: Iterable[int] = (),
) -> Markup:
    """A table with row headers in a box of its own, which scrolls where the screen is narrow.

    Args:
        head: of the columns.
        label: what the table is, for screen readers.
        numbers: columns that are set to the right.
    """
    right = {place: "number" for place in numbers}

    def cell(place: int, value: object) -> Markup:
        if place == 0:
            return tag("th", value, scope="row")
        return tag("td", value, class_=right.get(place))

    headings = [
        tag("th", each, scope="col", class_=right.get(place)) for place, each in enumerate(head)
    ]
    body = [tag("tr", *(cell(place, each) for place, each in enumerate(row))) for row in rows]
    whole = tag("table", tag("thead", tag("tr", *headings)), tag("tbody", *body))
    return tag("div", whole, class_="table", tabindex="0", role="region", aria_label=label)
