"""Our errors are those of Python's kinds, and another library's words fit into one line of ours."""

from __future__ import annotations

import pytest

from hf_relopt.errors import ConfigError, FormatError, RelOptError, UnsupportedSetup, one_line


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ConfigError, ValueError), (FormatError, ValueError), (UnsupportedSetup, RuntimeError)],
)
def test_our_errors_can_be_caught_as_ours_or_as_python_s(error, kind):
    assert issubclass(error, RelOptError) and issubclass(error, kind)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one.\n\n  two\tthree.", "one. two three"),
        ("", "OSError"),
        ("short", "short"),
        ("First. " + "word " * 60, "First"),
        # The third dot is the full stop of the sentence that it stands in.
        ("word " * 60, "word " * 39 + "word .."),
        ("/" + "x" * 300, "/" + "x" * 199 + " .."),
    ],
)
def test_the_words_of_others_fit_into_one_line(text, line):
    assert one_line(OSError(text)) == line
