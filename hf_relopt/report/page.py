"""The page around the figures: one file that asks for nothing from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from hf_relopt.errors import ConfigError, one_line
from hf_relopt.report.markup import Markup, escaped, joined, tag, with_code
from hf_relopt.report.svg_heat_map import ramp_css
from hf_relopt.version import __version__
from hf_relopt.whole_file import whole_file

# By this a page is known as ours, which may be replaced.
GENERATOR = '<meta name="generator" content="hf-relopt'
# Nothing may be asked for, whatever a run's files hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def whole_page(title: str, parts: Iterable[object]) -> str:
    """The page's text.

    Args:
        title: in the browser's tab.
        parts: of the page's body.
    """
    meta = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'{GENERATOR} {escaped(__version__)}">',
        '<link rel="icon" href="data:,">',
        f"<title>{escaped(title)}</title>",
        f"<style>{_style()}</style>",
    ]
    foot = tag("footer", tag("p", f"Made by hf_relopt {__version__} from the files of the run."))
    body = tag("main", *parts, foot)
    script = f"<script>{_file('page.js')}</script>"
    head = "\n".join(meta)
    begin = f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>'
    return f"{begin}\n<body>\n{body}\n{script}\n</body>\n</html>\n"


@cache
def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


@cache
def _style() -> str:
    light, dark = (ramp_css(name) for name in ("light", "dark"))
    return f"{_file('page.css')}\n{light}\n@media screen and (prefers-color-scheme: dark){{{dark}}}"


def header(kind: str, name: str, lead: str) -> Markup:
    """The top of the page."""
    return tag(
        "header",
        tag("p", kind, class_="kind"),
        tag("h1", name),
        tag("p", lead, class_="lead") if lead else "",
    )


def tiles(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """The few numbers that matter most: (name, value, remark)."""
    boxes = [
        tag("div", tag("dt", name), tag("dd", value, tag("small", remark) if remark else ""))
        for name, value, remark in entries
    ]
    return tag("dl", *boxes, class_="tiles")


def notice(title: str, lines: Sequence[str], *, warn: bool = False) -> Markup:
    """A box with sentences; nothing if there are none."""
    if not lines:
        return Markup("")
    text = tag("ul", *(tag("li", with_code(line)) for line in lines))
    return tag("section", tag("h2", title), text, class_="notice warn" if warn else "notice")


def section(title: str, parts: Sequence[Markup], intro: str = "") -> Markup:
    """A part of the page with a title; nothing if it has no parts."""
    if not parts:
        return Markup("")
    return tag("section", tag("h2", title), tag("p", intro) if intro else "", *parts)


def charts(figures: Sequence[Markup]) -> list[Markup]:
    """Figures side by side where the screen is wide enough."""
    return [tag("div", *figures, class_="charts")] if figures else []


def facts_list(entries: Iterable[tuple[str, object]]) -> Markup:
    """Names and values."""
    return tag(
        "dl",
        joined(joined([tag("dt", name), tag("dd", value)]) for name, value in entries),
        class_="facts",
    )


def write_page(text: str, path: Path) -> None:
    """Write a page: it appears complete or not at all.

    Raises:
        ConfigError: the file cannot be written, or is there and no page of ours.
    """
    check_place(path)
    try:
        with whole_file(path) as unfinished:
            unfinished.write_text(text, "utf-8", errors="replace", newline="\n")
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error


def check_place(path: Path) -> None:
    """Refuse, before anything is read, a file that must not or cannot be written.

    Raises:
        ConfigError: says why, and what to pass.
    """
    try:
        if path.is_dir():
            raise ConfigError(f"--out is {path}, a folder. Pass a file: {path / 'report.html'}")
        if not path.parent.is_dir():
            raise ConfigError(f"--out is {path}; there is no folder {path.parent}. Make it first.")
        if path.exists() and GENERATOR not in _beginning(path):
            raise ConfigError(
                f"--out is {path}, which is there and is no page of hf-relopt. Pass another file, "
                "or remove that one."
            )
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(
                f"{path.parent} cannot be written to. Pass another file: --out FILE.html"
            )
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> ConfigError:
    """The error for a file that the system does not let us write."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
    return ConfigError(f"{path} cannot be written: {why}. Pass another file: --out FILE.html")


def _beginning(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(2000)
