"""Every Python block of the pages runs as it is printed, and prints what the page says."""

from __future__ import annotations

import traceback

import pytest

from hf_relopt.options.tables import OPTIONS
from hf_relopt.rules.rule import RULES
from tests.docs.pages import PAGES, ROOT, Example, examples, name_of
from tests.docs.printed import difference

EXAMPLES = [
    pytest.param(page, example, id=f"{name_of(page)}:{example.line}")
    for page in PAGES
    for example in examples(page.read_text(encoding="utf-8"))
]


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch, tmp_path):
    """A folder of its own; and a page may add an optimizer of its own to the tables."""
    monkeypatch.chdir(tmp_path)
    tables = [(table, dict(table)) for table in (RULES, OPTIONS)]
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


def test_blocks_their_output_and_their_marks_are_found():
    page = (
        "```python\none\n```\n\n```text\n1\n```\n\n"
        "```python\ntwo\n```\n\nIt prints\n\n```text\n2\n```\n\n"
        "<!-- not run: needs a GPU -->\n```python\nthree\n```\n\n"
        "```bash\nfour\n```\n"
    )
    assert list(examples(page)) == [
        Example(2, "one\n", "1\n", None),
        Example(10, "two\n", None, None),
        Example(21, "three\n", None, "needs a GPU"),
    ]


def test_each_script_of_the_gallery_runs_and_says_what_it_prints():
    scripts = list(examples((ROOT / "docs/gallery.md").read_text(encoding="utf-8")))
    assert len(scripts) >= 5
    assert all(script.output and not script.not_run for script in scripts)


# PEFT itself still asks for the old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
@pytest.mark.parametrize(("page", "example"), EXAMPLES)
def test_example_runs_and_prints_what_its_page_says(page, example, capsys):
    if example.not_run:
        pytest.skip(example.not_run)
    # Blank lines above: a traceback names the line of the page.
    code = compile("\n" * (example.line - 1) + example.code, str(page), "exec")
    try:
        exec(code, {"__name__": "__main__"})
    except Exception:
        pytest.fail(traceback.format_exc(), pytrace=False)
    if example.output is not None:
        wrong = difference(example.output, capsys.readouterr().out)
        assert wrong is None, wrong
