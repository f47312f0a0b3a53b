"""The errors that this package raises on purpose.

Each says what was wrong, the value, what is allowed and what to do about it.
"""

from __future__ import annotations


class RelOptError(Exception):
    """Base of every error raised on purpose by hf_relopt."""


class ConfigError(RelOptError, ValueError):
    """An option, a parameter list or a checkpoint that cannot be used as given."""


class UnsupportedSetup(RelOptError, RuntimeError):
    """A launch mode or a tensor layout under which the rules would not be exact."""


class FormatError(RelOptError, ValueError):
    """A file that is missing, damaged or not of the expected kind."""


def one_line(error: BaseException) -> str:
    """Another library's exception as one line for our own messages, without a final full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > 200:
        cut = text[:200]
        text = cut.rpartition(". ")[0] or (cut.rpartition(" ")[0] or cut) + " ..."
    return text.removesuffix(".")
