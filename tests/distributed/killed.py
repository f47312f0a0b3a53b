"""A Trainer run over FSDP2 that is killed: killed.py FOLDER step | save | end.

step: one rank dies as the optimizer's third step begins. save: all die when the folder of the
second checkpoint appears. end: nobody dies, and rank 0 writes FOLDER/end.pt. Each resumes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from typing import Any

import torch
import torch.distributed as dist

from tests.distributed.ranks import leave
from tests.distributed.trainer_fsdp2 import FOLDER, STATES, trainer, whole


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_when_there_is(folder: str) -> None:
    while not os.path.isdir(folder):
        time.sleep(1e-4)
    die()


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    how = sys.argv[2]
    saving = {"save_strategy": "steps", "save_steps": 2}
    made = trainer("run", "madam", state=STATES[-1], **saving)
    if how == "step" and dist.get_rank() == 1:
        seen: list[int] = []

        def third(*_: Any) -> None:
            seen.append(1)
            if len(seen) == 3:
                die()

        made.create_optimizer()
        made.optimizer.register_step_pre_hook(third)
    if how == "save":
        folder = str(FOLDER / "run" / "checkpoint-4")
        threading.Thread(target=die_when_there_is, args=(folder,), daemon=True).start()
    made.train(resume_from_checkpoint=True)
    end = whole(made.model)
    if dist.get_rank() == 0:
        torch.save(end, FOLDER / "end.pt")
    leave()


if __name__ == "__main__":
    main()
