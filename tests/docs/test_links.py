"""Links of the pages lead somewhere, and the site has every page and every public name."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import hf_relopt
from tests.docs.pages import PAGES, ROOT, anchors, links, name_of

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings it there
    import tomli as tomllib

DOCS = ROOT / "docs"


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without its Python objects."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOME = SITE["repo_url"]


def dead(page: Path, text: str) -> list[str]:
    """What is wrong with the links of a page; empty if they all lead somewhere."""
    found: list[str] = []
    for line, target in links(text):
        # A link to our own repository is as good as one to the file.
        target = re.sub(rf"^{HOME}/(blob|tree|raw)/main/", "/", target)
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        path = unquote(parts.path)
        to = page if not path else (ROOT / path[1:] if path[0] == "/" else page.parent / path)
        where = f"{name_of(page)}:{line}: {target}"
        if not to.exists() or ROOT not in to.resolve().parents:
            found.append(f"{where}: no such file in the repository")
        elif parts.fragment and to.suffix == ".md":
            there = text if to == page else to.read_text(encoding="utf-8")
            if unquote(parts.fragment) not in anchors(there):
                found.append(f"{where}: no such heading")
    return found


def pages_of(nav: object) -> list[str]:
    """The files that a nav of mkdocs.yml names, in its order."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in pages_of(entry)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert dead(page, page.read_text(encoding="utf-8")) == []


def test_the_site_has_every_page_once():
    there = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    assert sorted(pages_of(SITE["nav"])) == there


def test_home_page_names_every_other_page():
    home = {target for _, target in links((DOCS / "index.md").read_text(encoding="utf-8"))}
    assert home >= set(pages_of(SITE["nav"])) - {"index.md"}


def test_reference_has_every_public_name_and_nothing_that_is_not_there():
    entries = re.findall(r"^::: (\S+)", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(entries) == len(set(entries))
    assert set(entries) >= {f"hf_relopt.{name}" for name in hf_relopt.__all__}
    for module, _, name in (entry.rpartition(".") for entry in entries):
        assert hasattr(importlib.import_module(module), name)


def test_the_project_says_the_same_home_everywhere():
    assert PROJECT["urls"] == {
        "Homepage": HOME,
        "Documentation": SITE["site_url"],
        "Changelog": f"{HOME}/blob/main/CHANGELOG.md",
        "Issues": f"{HOME}/issues",
    }
    assert HOME.endswith("/" + SITE["repo_name"])


# The checks must be able to fail.
@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("[a](missing.md)", "missing.md"),
        ("[a](../missing.md#x)", "../missing.md#x"),
        ("[a](../../outside.md)", "../../outside.md"),
        ("| a |\n| --- |\n| [a](missing.md) |", "missing.md"),
        ("![a](missing.png)", "missing.png"),
        ('<p><img src="missing.png"></p>', "missing.png"),
        ("so <a href='missing.md'>a</a>", "missing.md"),
        ("[a][b]\n\n[b]: missing.md", "missing.md"),
        (f"[a]({HOME}/blob/main/missing.md)", "/missing.md"),
        ("[a](plan.md#nowhere)", "plan.md#nowhere"),
        ("# One\n\n[a](#two)", "#two"),
        ("# One\n\n[a](#one-1)", "#one-1"),
        ("[a](api.md#hf_relopt.nothing)", "api.md#hf_relopt.nothing"),
    ],
)
def test_a_dead_link_is_found(text, target):
    (wrong,) = dead(DOCS / "index.md", text)
    assert wrong.startswith("docs/index.md:") and f": {target}: no such " in wrong


@pytest.mark.parametrize(
    "text",
    [
        "# One\n# One & only `code`\n# One\n[a](#one-1) [b](#one--only-code) [c](#one)",
        "```\n[a](missing.md)\n```\n\n`[a](missing.md)`",
        "[a](https://arxiv.org) [b](plan.md#roles) [c](../README.md) [d](../recipes/)",
        f"[a]({HOME}) [b]({HOME}/issues) [c]({HOME}/tree/main/docs) ![d]({HOME}/raw/main/LICENSE)",
        "[a](api.md#hf_relopt.Fromage)",
    ],
)
def test_a_good_link_is_let_through(text):
    assert dead(DOCS / "index.md", text) == []


def test_nav_is_read_at_every_depth():
    assert pages_of([{"A": "a.md"}, {"B": [{"C": "c.md"}, "d.md"]}]) == ["a.md", "c.md", "d.md"]
