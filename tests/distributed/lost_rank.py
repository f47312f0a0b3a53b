"""One of two ranks that never comes to the second step: it dies, or it hangs.

No launcher is there to stop the other one, which must end by itself, with an error.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from hf_relopt import Fromage

TIMEOUT = timedelta(seconds=5)
HANGS_FOR = timedelta(minutes=4)


def main() -> None:
    """Step twice; rank 1 is lost in between, as the first word says."""
    dist.init_process_group("gloo", timeout=TIMEOUT)
    mesh = init_device_mesh("cpu", (2,))
    weight = torch.nn.Parameter(distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)]))
    weight.grad = torch.ones_like(weight)
    optimizer = Fromage([weight])
    optimizer.step()
    print("one step", flush=True)
    if dist.get_rank() == 1:
        if sys.argv[1] == "hangs":
            time.sleep(HANGS_FOR.total_seconds())
        os._exit(9)
    optimizer.step()
    print("both steps", flush=True)


if __name__ == "__main__":
    main()
