"""Both ends of a test with several processes: starting the ranks, and what each of them does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


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


def environment() -> dict[str, str]:
    """Our own variables, with the repository importable and one thread per process."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def without_a_launcher(ranks: int, script: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Start so many processes by hand: nobody ends the others when one is lost."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    common = {**environment(), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, str(script), *words],
            env={**common, "RANK": str(rank), "WORLD_SIZE": str(ranks)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def run_checks(checks: Sequence[Callable[[], None]], wanted: Sequence[str]) -> None:
    """Run all checks, or those that are named; each rank says which it has passed."""
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
