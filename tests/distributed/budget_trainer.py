"""DistanceBudget in a Trainer over FSDP2: budget_trainer.py FOLDER."""

from __future__ import annotations

import sys
import warnings

import torch
import torch.distributed as dist

from hf_relopt import DistanceBudget
from tests.distributed.ranks import run_checks
from tests.distributed.trainer_fsdp2 import FOLDER, STATES, same_bits, trainer, whole
from tests.hf.tiny import gpt2

RHO = 0.02
SAVING = {"save_strategy": "steps", "save_steps": 3}


def far(weights: dict[str, torch.Tensor]) -> float:
    start = {n: p.detach() for n, p in gpt2().named_parameters() if not n.endswith("c_attn.bias")}
    return max(
        float((weights[name] - old).norm() / old.norm())
        for name, old in start.items()
        if old.norm() > 0
    )


def held_and_resumed_with_the_same_bits() -> None:
    for copies in ("exact", "disk"):
        name = f"hold-{copies}"
        unbroken = trainer(name, "fromage", state=STATES[-1], learning_rate=0.02, **SAVING)
        unbroken.add_callback(DistanceBudget(hold=RHO, copy=copies))
        unbroken.train()
        again = trainer(name, "fromage", state=STATES[-1], learning_rate=0.02)
        again.add_callback(DistanceBudget(hold=RHO, copy=copies))
        again.train(resume_from_checkpoint=str(FOLDER / name / "checkpoint-3"))
        ends = whole(unbroken.model), whole(again.model)
        same_bits(*ends)
        assert RHO * (1 - 1e-3) < far(ends[0]) <= RHO * (1 + 1e-4), far(ends[0])
        dist.barrier()


def stopped_alike_on_all_ranks() -> None:
    for options, optim in (({"copy": "exact", "every": 2}, "adamw_torch"), ({}, "fromage")):
        budget = DistanceBudget(layer=0.05, **options)
        made = trainer(f"stop-{optim}", optim, learning_rate=0.015, weight_decay=0.0)
        made.add_callback(budget)
        made.train()
        seen = [None] * dist.get_world_size()
        dist.all_gather_object(seen, (budget.stopped_at, budget.last))
        assert seen[0] == seen[1] and budget.stopped_at is not None, seen
        matrices = {n: w for n, w in whole(made.model).items() if w.dim() > 1}
        start = {n: p.detach() for n, p in gpt2().named_parameters()}
        moved = [float((w - start[n]).norm() / start[n].norm()) for n, w in matrices.items()]
        assert max(moved) <= 0.05, moved


CHECKS = [held_and_resumed_with_the_same_bits, stopped_alike_on_all_ranks]

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    run_checks(CHECKS, sys.argv[2:])
