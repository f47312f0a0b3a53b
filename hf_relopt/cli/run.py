"""`hf-relopt run`: run a command whose Python processes all know our optimizers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

# Holds sitecustomize.py and nothing else: whatever lies here is importable in every child.
AUTOLOAD = Path(__file__).resolve().parents[1] / "autoload"

# Switches of Python itself that take PYTHONPATH or sitecustomize away; their long forms have none.
_SWITCHES = {"I": "PYTHONPATH", "E": "PYTHONPATH", "S": "sitecustomize"}
_PYTHON = re.compile(r"(python|pypy)[\d.]*(w?)(\.exe)?")

# The shell's own exit codes.
CANNOT_RUN = 126
NOT_FOUND = 127


# Asks every Trainer in the command to measure its steps; hf/trainers.py reads it.
TELEMETRY = "HF_RELOPT_TELEMETRY"


def child_environment(environment: Mapping[str, str], telemetry: bool = False) -> dict[str, str]:
    """The environment with our start-up file in front of PYTHONPATH (once, also when nested)."""
    before = environment.get("PYTHONPATH", "")
    others = [path for path in before.split(os.pathsep) if path != str(AUTOLOAD)] if before else []
    asked = {TELEMETRY: "1"} if telemetry else {}
    return {**environment, "PYTHONPATH": os.pathsep.join([str(AUTOLOAD), *others]), **asked}


def run_command(command: Sequence[str], telemetry: bool = False) -> int:
    """Become the command (on Windows: run it) and end as it ends.

    Args:
        command: the program, looked up on PATH as a shell does, and its arguments.
        telemetry: have every Trainer in it measure its steps.

    Returns:
        The exit code; on POSIX only if the command could not be started.
    """
    program = command[0]
    found = shutil.which(program)
    if found is None:
        # A path that is there, but that no one may execute, is another mistake than a typo.
        if os.path.dirname(program) and os.path.exists(program):
            return _fail(program, "permission denied (is it executable?)", CANNOT_RUN)
        return _fail(program, "command not found", NOT_FOUND)
    switch = hiding_switch(command) or hiding_switch(shebang(found))
    if switch is not None:
        return _fail(
            program,
            f"Python's -{switch} switches off {_SWITCHES[switch]}, through which the command gets "
            f"our optimizers. Leave -{switch} out, or write `import hf_relopt` into the script "
            "and start it without `hf-relopt run`",
            CANNOT_RUN,
        )
    environment = child_environment(os.environ, telemetry)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if os.name == "nt":
            return run_and_wait([found, *command[1:]], environment)
        # exec: no process of ours stays between the command and its signals. The name goes on as
        # it was typed, since a virtual environment's python finds itself by that name.
        os.execve(found, list(command), environment)
    except FileNotFoundError:
        return _fail(program, f"{found} names an interpreter that does not exist", NOT_FOUND)
    except OSError as error:
        return _fail(program, error.strerror or str(error), CANNOT_RUN)


def hiding_switch(command: Sequence[str]) -> str | None:
    """The first of Python's switches -I, -E and -S in a command: our start-up file is lost then.

    Args:
        command: Python and its arguments, perhaps behind other programs (env, nice, timeout). What
            follows a script, -m or -c is theirs.
    """
    words = iter(command)
    for word in words:
        if word.endswith(".py"):
            return None
        if _PYTHON.fullmatch(os.path.basename(word)):
            break
    for word in words:
        if not word.startswith("-") or word.startswith("--"):
            return None
        for place, letter in enumerate(word[1:], 2):
            if letter in _SWITCHES:
                return letter
            if letter in "cm":
                return None
            if letter in "WX":
                if place == len(word):  # its value is the next word
                    next(words, None)
                break
    return None


def shebang(path: str) -> list[str]:
    """The words of a script's first line, if it names an interpreter."""
    try:
        with open(path, "rb") as file:
            first = file.readline(256)
    except OSError:
        return []
    return first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []


def run_and_wait(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the command as a child and pass signals on: for systems without exec.

    Returns:
        The child's exit code; 128 + the signal's number if a signal ended it.
    """
    child = subprocess.Popen(command, env=dict(environment))

    def pass_on(number: int, _frame: FrameType | None) -> None:
        # Ctrl-C reaches the child by itself, as it sits on the same terminal.
        if number != signal.SIGINT:
            child.send_signal(number)

    names = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _fail(program: str, reason: str, code: int) -> int:
    print(f"hf-relopt: {program}: {reason}", file=sys.stderr)
    return code
