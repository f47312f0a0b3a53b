"""`accelerate launch` in this process: signals reach the script, its exit code comes back.

Accelerate's own command turns every failure of the script, Ctrl-C included, into a stack trace and
exit code 1, and leaves a single script running when it is terminated.
"""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from hf_relopt.errors import ConfigError, one_line

# How a script ends that was told to end: by these numbers, or by the shell's codes for them.
_TOLD_TO_END = {128 + signal.SIGINT, 128 + signal.SIGTERM}


def launch(words: Sequence[str]) -> tuple[int, str]:
    """Run ``accelerate launch WORDS``.

    Args:
        words: its flags, the script, and the script's arguments.

    Returns:
        The script's exit code (128 + the signal's number if a signal ended it; of several
        processes, that of the one that failed by itself), and a line about a process that could not
        report why it ended, or "".

    Raises:
        ConfigError: Accelerate cannot use the flags or the configuration.
    """
    from accelerate.commands import launch as accelerate_launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parser = accelerate_launch.launch_command_parser()
    parser.error = _refuse
    _silence_elastic()
    try:
        with _signals_go_on():
            accelerate_launch.launch_command(parser.parse_args(list(words)))
    except subprocess.CalledProcessError as error:
        return _of_one(error.returncode)
    except ChildFailedError as error:
        return _of_several(error.failures)
    except SignalException as error:
        return 128 + error.sigval, ""
    except KeyboardInterrupt:
        return 128 + signal.SIGINT, ""
    except ConfigError:
        raise
    except Exception as error:  # of Accelerate and torchrun: a wrong configuration, a port in use
        raise ConfigError(f"accelerate launch: {one_line(error)}.") from error
    return 0, ""


def _refuse(message: str) -> None:
    raise ConfigError(f"accelerate launch: {message}. Its flags: `accelerate launch --help`.")


def _silence_elastic() -> None:
    """Silence what torchrun's agent logs of a failure or a signal: the script reported it."""
    # A subset of `torch.distributed.elastic`, each with a level of its own.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _signals_go_on() -> Iterator[None]:
    """Pass signals on to our children, and wait for them; torchrun's agent does so by itself."""
    import psutil

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    heard = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]  # nohup stays nohup
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _of_one(code: int) -> tuple[int, str]:
    return (code, "") if code >= 0 else (128 - code, _ended_by(-code))


def _of_several(failures: Mapping[int, Any]) -> tuple[int, str]:
    """The exit code of the rank that failed first by itself; the agent ends the others."""
    codes = {rank: failure.exitcode for rank, failure in sorted(failures.items())}
    shell = {rank: code if code >= 0 else 128 - code for rank, code in codes.items()}
    own = [rank for rank, code in shell.items() if code not in _TOLD_TO_END]
    rank = next(iter(own or shell))
    words = _ended_by(-codes[rank]) if codes[rank] < 0 else ""
    return shell[rank], f"rank {rank}: {words}" if words else ""


def _ended_by(number: int) -> str:
    """A line for a signal that ends a process without a message of its own."""
    if 128 + number in _TOLD_TO_END:
        return ""
    known = number in set(signal.Signals)
    name = signal.Signals(number).name if known else str(number)
    memory = " (was it out of memory? `dmesg` tells)" if name == "SIGKILL" else ""
    return f"the script was ended by {name}{memory}."
