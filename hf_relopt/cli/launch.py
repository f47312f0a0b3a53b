"""`python -m hf_relopt.cli.launch`: as `accelerate launch`, with the script's own exit code.

`hf-relopt recipes run` and `make demo` use it. A recipe looks at its arguments before Accelerate is
loaded, which takes seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from hf_relopt.errors import RelOptError
from hf_relopt.shipped import find_recipes

# A recipe with this variable ends after a first look at its arguments.
LOOK_ONLY = "HF_RELOPT_LOOK_ONLY"


def main(words: Sequence[str] | None = None) -> int:
    """Launch; one line and exit code 2 for a mistake.

    Args:
        words: the flags of `accelerate launch`, a script, its arguments; None: this process's own.
    """
    words = sys.argv[1:] if words is None else words
    _end_at_once_by_signals()
    if code := first_look(words):
        return code
    from hf_relopt.hf.launcher import launch

    try:
        code, line = launch(words)
    except RelOptError as error:
        code, line = 2, str(error)
    if line:
        print(f"hf-relopt: {line}", file=sys.stderr)
    return code


def _end_at_once_by_signals() -> None:
    """Until the script runs nothing can be lost, and an interrupted import shows no stack trace."""

    def end(number: int, _frame: FrameType | None) -> None:
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def first_look(words: Sequence[str]) -> int:
    """Let a recipe check the arguments that need no heavy import.

    Returns:
        Its exit code; 0 if all is well, or if the words hold no recipe of ours.
    """
    recipes = find_recipes()
    places = [place for place, word in enumerate(words) if _is_recipe(word, recipes)]
    if not places or {"-h", "--help", "--help_all"} & set(words):
        return 0
    command = [sys.executable, *words[places[0] :]]
    return subprocess.run(command, env={**os.environ, LOOK_ONLY: "1"}).returncode


def _is_recipe(word: str, recipes: Path | None) -> bool:
    path = Path(word)
    return path.suffix == ".py" and path.is_file() and path.resolve().parent == recipes


if __name__ == "__main__":
    sys.exit(main())
