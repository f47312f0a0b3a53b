"""`hf-relopt run`: a command whose Python processes all know our optimizers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

# Holds sitecustomize.py and nothing else: whatever lies here is importable in every child.
AUTOLOAD = Path(__file__).resolve().parents[1] / "autoload"

# The shell's own exit codes.
CANNOT_RUN = 126
NOT_FOUND = 127


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with our start-up file in front of PYTHONPATH (once, also when nested)."""
    before = environment.get("PYTHONPATH", "")
    others = [path for path in before.split(os.pathsep) if path != str(AUTOLOAD)] if before else []
    return {**environment, "PYTHONPATH": os.pathsep.join([str(AUTOLOAD), *others])}


def run_command(command: Sequence[str]) -> int:
    """Become the command (on Windows: run it) and end as it ends.

    Args:
        command: the program, looked up on PATH as a shell does, and its arguments.

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
    environment = child_environment(os.environ)
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
