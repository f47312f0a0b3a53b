"""How the processes of a benchmark with several ranks end."""

from __future__ import annotations

import os
import sys

import torch.distributed as dist


def leave() -> None:
    """End all ranks together, and not through the interpreter's end.

    gloo's worker thread frees the last collective's tensors a moment after that is over. If the
    interpreter is being finalised by then, the thread is ended in a destructor, and that aborts
    the process (Python below 3.14). Device meshes keep the group alive, so destroying it is no
    cure.
    """
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
