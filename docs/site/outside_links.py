"""Links of pages to files outside docs/ lead to the repository: the site has only docs/.

A hook of MkDocs. In a clone and on GitHub such links (``../README.md``) work as they stand.
"""

from __future__ import annotations

import logging
import posixpath
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

# MkDocs counts the warnings of this logger: `--strict` makes an error of them.
log = logging.getLogger("mkdocs.hooks.outside_links")
BRANCH = "main"


class _OutsideLinks(Treeprocessor):
    """Rewrites what leaves docs/, before MkDocs looks for the target among its pages."""

    def __init__(self, md: Markdown, rewriter: Rewriter) -> None:
        super().__init__(md)
        self.rewriter = rewriter

    def run(self, root: Element) -> None:
        """Called by Markdown with a whole page."""
        for element in root.iter():
            for attribute in ("href", "src"):
                if link := element.get(attribute):
                    element.set(attribute, self.rewriter.rewritten(link, attribute == "src"))


class Rewriter(Extension):
    """Knows the page that is being made, and where the repository lies on disk and on the net."""

    def __init__(self, docs_dir: str, repo_url: str) -> None:
        super().__init__()
        self.docs, self.repo_url = Path(docs_dir).resolve(), repo_url.rstrip("/")
        self.page = ""

    def extendMarkdown(self, md: Markdown) -> None:
        """Called by Markdown, which asks for this name."""
        # MkDocs' own treeprocessor for links has priority 0.
        md.treeprocessors.register(_OutsideLinks(md, self), "outside_links", 5)

    def rewritten(self, link: str, image: bool = False) -> str:
        """``link`` of the present page, or the repository's URL if it leads out of docs/."""
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
            return link
        path = posixpath.normpath(posixpath.join(posixpath.dirname(self.page), parts.path))
        if not path.startswith("../"):
            return link
        root = self.docs.parent
        target = (self.docs / path).resolve()
        if not target.is_relative_to(root) or not target.exists():
            log.warning("%s links to %s, and there is no such file.", self.page, link)
            return link
        kind = "raw" if image else "tree" if target.is_dir() else "blob"
        anchor = f"#{parts.fragment}" if parts.fragment else ""
        return f"{self.repo_url}/{kind}/{BRANCH}/{target.relative_to(root).as_posix()}{anchor}"


def on_config(config: Any) -> Any:
    """Add the rewriter to MkDocs' Markdown."""
    config.markdown_extensions.append(Rewriter(config.docs_dir, config.repo_url))
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Tell the rewriter which page comes next."""
    for extension in config.markdown_extensions:
        if isinstance(extension, Rewriter):
            extension.page = page.file.src_uri
    return markdown
