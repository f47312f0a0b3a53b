"""From a command line to a finished run, the cheap part first."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from argument_words import expanded
from first_look import first_look
from one_clear_message import one_clear_message
from recipe import Recipe

from hf_relopt.cli.launch import LOOK_ONLY


def start_recipe(recipe: Recipe, argv: Sequence[str] | None) -> None:
    """Read the arguments, train unless the run is finished, print the summary.

    Args:
        recipe: what the script is.
        argv: the command line without the program's name; None: this process's own.

    Raises:
        SystemExit: with one line, for whatever a user can mend; see one_clear_message.
    """
    with one_clear_message() as outcome:
        words = expanded(sys.argv[1:] if argv is None else argv)
        first_look(recipe, words)
        if os.environ.get(LOOK_ONLY):
            return
        from recipe_work import work  # torch, transformers, datasets: seconds

        work(recipe, words, outcome)
