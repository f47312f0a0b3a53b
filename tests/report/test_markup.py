"""Nothing from a file can become markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_relopt.report.markup import data, escaped, table, tag, with_code


class Seen(HTMLParser):
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_any_text_is_text(text):
    seen = Seen(tag("p", text, title=text))
    assert seen.tags == [("p", {"title": text})] and seen.text == text


@pytest.mark.parametrize("sign", ["\0", "\x1b", "\x7f", "\x85", "\udcff"])
def test_what_html_does_not_allow_is_a_mark(sign):
    assert escaped(f"a{sign}b") == "a\N{REPLACEMENT CHARACTER}b"


@given(st.text() | st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False)))
def test_data_can_be_read_back_and_ends_nothing(content):
    text = data(content)
    inside = text.removeprefix('<script type="application/json">').removesuffix("</script>")
    assert "<" not in inside and json.loads(inside) == content


def test_attributes_that_are_not_there_are_left_out():
    assert (
        tag("a", class_="x", aria_label=None, hidden=False, open=True) == '<a class="x" open></a>'
    )


def test_code_in_a_sentence():
    assert with_code("run `a <b>` now") == "run <code>a &lt;b&gt;</code> now"
    assert with_code("one ` alone") == "one ` alone"


def test_a_table_names_its_rows_and_scrolls_in_its_own_box():
    seen = Seen(table(("a", "b"), [("<x>", 1)], label="All", numbers=(1,)))
    kinds = [kind for kind, _ in seen.tags]
    assert kinds == ["div", "table", "thead", "tr", "th", "th", "tbody", "tr", "th", "td"]
    assert seen.tags[0][1] == {
        "class": "table",
        "tabindex": "0",
        "role": "region",
        "aria-label": "All",
    }
    assert seen.tags[-1][1] == {"class": "number"}
