"""Both ends of a test with several processes: starting the ranks, and what each of them does."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# By the process that others are forked from; none of it is ours.
_IMPORTED_ONCE = [
    "datasets",
    "evaluate",
    "peft",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.debug",
    "torch.distributed.tensor.parallel",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.trainer",
]


def torchrun(
    ranks: int, script: Path, *words: str, timeout: int = 400
) -> subprocess.CompletedProcess[str]:
    """Run a script in so many processes, with one thread each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launch, f"--nproc_per_node={ranks}", str(script), *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def forked(
    ranks: int, script: Path, *words: str, timeout: int = 400
) -> subprocess.CompletedProcess[str]:
    """The same, of processes forked from one that has imported what all of them need; one is alone.

    To import that takes longer than most checks. ``torchrun`` is for tests of how ranks start and
    end; the first that fails ends the others here, too.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED_ONCE)
    command = (str(script), *words)
    with TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        started = []
        for env in _environments(ranks) if ranks > 1 else [environment()]:
            process = context.Process(target=_be_a_rank, args=(command, env, out, errors))
            process.start()
            started.append(process)
        code = _end_of(started, timeout)
        return subprocess.CompletedProcess(command, code, out.read_text(), errors.read_text())


def _be_a_rank(words: Sequence[str], env: Mapping[str, str], out: Path, errors: Path) -> None:
    for number, path in ((1, out), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    faulthandler.enable()  # a crash in native code says where it was
    sys.argv = list(words)
    sys.path.insert(0, str(Path(words[0]).parent))  # as Python does for a script
    runpy.run_path(words[0], run_name="__main__")


def _end_of(started: Sequence[multiprocessing.process.BaseProcess], timeout: int) -> int:
    """The first exit code that is not 0, with all others killed, or 0.

    Raises:
        TimeoutError: after so many seconds.
    """
    running, until = list(started), time.monotonic() + timeout
    try:
        while running:
            ended = connection.wait([one.sentinel for one in running], until - time.monotonic())
            if not ended:
                raise TimeoutError(f"{len(running)} ranks ran for more than {timeout} seconds")
            for one in [one for one in running if one.sentinel in ended]:
                one.join()
                running.remove(one)
                if one.exitcode:
                    return one.exitcode
        return 0
    finally:
        for one in running:
            one.kill()
            one.join()


def environment() -> dict[str, str]:
    """Our own variables, with the repository importable and one thread per process."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def without_a_launcher(ranks: int, script: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Start so many processes by hand: nobody ends the others when one is lost."""
    return [
        subprocess.Popen(
            [sys.executable, str(script), *words],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for env in _environments(ranks)
    ]


def _environments(ranks: int) -> list[dict[str, str]]:
    """What a launcher tells each rank."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    common = {**environment(), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    size = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return [{**common, **size, **each} for each in own]


def run_checks(checks: Sequence[Callable[[], None]], wanted: Sequence[str]) -> None:
    """Run all checks, or those that are named; each rank says which it has passed."""
    # As tests/conftest.py does, and for the same reason.
    gc.collect()
    gc.freeze()
    for check in checks:
        if not wanted or check.__name__ in wanted:
            check()
            # One write: print makes two, and the other rank's may come between them.
            os.write(1, f"rank {dist.get_rank()}: {check.__name__}\n".encode())
    leave()


def leave() -> None:
    """End all ranks together, and not through the interpreter's end: torch may abort it there."""
    dist.barrier()
    os._exit(0)
