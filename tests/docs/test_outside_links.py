"""On the site, links to files outside docs/ lead to the repository; a missing file is seen."""

from __future__ import annotations

import importlib.util
import logging

import pytest

from tests.docs.pages import ROOT

markdown = pytest.importorskip("markdown", reason="pip install -e .[docs] brings Markdown")
URL = "https://example.org/us/it"


@pytest.fixture(scope="module")
def hook():
    where = ROOT / "docs/site/outside_links.py"
    spec = importlib.util.spec_from_file_location("outside_links", where)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def html_of(hook):
    rewriter = hook.Rewriter(str(ROOT / "docs"), URL + "/")
    rewriter.page = "plan.md"
    return lambda text: markdown.markdown(text, extensions=[rewriter])


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("[a](../README.md#options)", f'href="{URL}/blob/main/README.md#options"'),
        ("[a](../benchmarks/results/)", f'href="{URL}/tree/main/benchmarks/results"'),
        ("[a][b]\n\n[b]: ../LICENSE", f'href="{URL}/blob/main/LICENSE"'),
        ("![a](../LICENSE)", f'src="{URL}/raw/main/LICENSE"'),
        ("[a](madam.md#state)", 'href="madam.md#state"'),
        ("[a](#roles)", 'href="#roles"'),
        ("[a](https://arxiv.org/abs/1)", 'href="https://arxiv.org/abs/1"'),
        ("`[a](../README.md)`", "<code>[a](../README.md)</code>"),
    ],
)
def test_only_what_leaves_docs_is_rewritten(html_of, text, html, caplog):
    assert html in html_of(text)
    assert caplog.records == []


@pytest.mark.parametrize("link", ["../missing.md", "../../outside.md", "../README"])
def test_a_missing_file_is_a_warning_for_strict(html_of, link, caplog):
    with caplog.at_level(logging.WARNING, "mkdocs"):
        assert f'href="{link}"' in html_of(f"[a]({link})")
    assert caplog.messages == [f"plan.md links to {link}, and there is no such file."]


def test_pages_in_folders_count_from_their_folder(hook):
    rewriter = hook.Rewriter(str(ROOT / "docs"), URL)
    rewriter.page = "deeper/page.md"
    assert rewriter.rewritten("../plan.md") == "../plan.md"
    assert rewriter.rewritten("../../README.md") == f"{URL}/blob/main/README.md"
