"""A run that discards the optimizer's state has the learning rates of one that never stopped."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as torch_schedules
from transformers import Trainer, get_scheduler
from transformers.trainer_utils import SchedulerType

from hf_relopt import Fromage, RelOptTrainer, create_optimizer
from hf_relopt.errors import FormatError
from hf_relopt.hf.checkpoints import last_complete_checkpoint
from hf_relopt.hf.schedule import take_place
from tests.hf.tiny import arguments, gpt2, rows, same, weights

STEPS, STOPPED = 8, 3
# Nothing is ever better by that much, so that each evaluation after the first lowers the rate.
ALWAYS_WORSE = {"factor": 0.5, "patience": 0, "threshold": 1e9, "threshold_mode": "abs"}
KWARGS: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr": 1e-3},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-3},
    "warmup_stable_decay": {"num_decay_steps": 3},
    "reduce_lr_on_plateau": ALWAYS_WORSE,
    "greedy": {**ALWAYS_WORSE, "min_lr": 1e-5},
}


def sequential(optimizer: Any) -> Any:
    parts = [
        torch_schedules.LinearLR(optimizer, start_factor=0.25, total_iters=2),
        torch_schedules.ExponentialLR(optimizer, gamma=0.7),
        torch_schedules.CosineAnnealingLR(optimizer, T_max=3),
    ]
    return torch_schedules.SequentialLR(optimizer, parts, milestones=[2, 5])


def chained(optimizer: Any) -> Any:
    return torch_schedules.ChainedScheduler(
        [
            torch_schedules.ConstantLR(optimizer, factor=0.3, total_iters=4),
            torch_schedules.ExponentialLR(optimizer, gamma=0.8),
        ]
    )


OF_TORCH: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": partial(torch_schedules.LambdaLR, lr_lambda=lambda step: 0.9**step),
    "MultiplicativeLR": partial(
        torch_schedules.MultiplicativeLR, lr_lambda=lambda step: 1 - step / 20
    ),
    "StepLR": partial(torch_schedules.StepLR, step_size=2, gamma=0.5),
    "MultiStepLR": partial(torch_schedules.MultiStepLR, milestones=[2, 4, 5], gamma=0.5),
    "ConstantLR": partial(torch_schedules.ConstantLR, factor=0.5, total_iters=4),
    "LinearLR": partial(torch_schedules.LinearLR, start_factor=0.2, total_iters=5),
    "ExponentialLR": partial(torch_schedules.ExponentialLR, gamma=0.8),
    "PolynomialLR": partial(torch_schedules.PolynomialLR, total_iters=7, power=2.0),
    "CosineAnnealingLR": partial(torch_schedules.CosineAnnealingLR, T_max=4, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": partial(
        torch_schedules.CosineAnnealingWarmRestarts, T_0=2, T_mult=2
    ),
    "CyclicLR": partial(
        torch_schedules.CyclicLR, base_lr=1e-3, max_lr=1e-2, step_size_up=2, cycle_momentum=False
    ),
    "OneCycleLR": partial(
        torch_schedules.OneCycleLR, max_lr=1e-2, total_steps=STEPS + 1, cycle_momentum=False
    ),
    "ReduceLROnPlateau": partial(torch_schedules.ReduceLROnPlateau, **ALWAYS_WORSE),
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
}


def of_the_trainer(name: str, optimizer: Any) -> Any:
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=2,
        num_training_steps=STEPS,
        scheduler_specific_kwargs=KWARGS.get(name),
    )


ALL: dict[str, Callable[[Any], Any]] = {
    **OF_TORCH,
    **{kind.value: partial(of_the_trainer, kind.value) for kind in SchedulerType},
}


def stepped(schedule: Any, steps: range) -> list[list[float]]:
    """The learning rates of all groups after each step; the metric gets worse with each."""
    found = []
    for step in steps:
        schedule.optimizer.step()
        follows = "metrics" in inspect.signature(schedule.step).parameters
        schedule.step(*([1.0 + step] if follows else []))
        found.append([float(group["lr"]) for group in schedule.optimizer.param_groups])
    return found


def optimizer(kind: Any, lr: float, groups: int) -> torch.optim.Optimizer:
    params = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(groups)]
    for param in params:
        param.grad = torch.ones_like(param)
    return kind([{"params": [p], "lr": lr / n} for n, p in enumerate(params, 1)], lr=lr)


@pytest.mark.parametrize("name", ALL)
def test_every_schedule_takes_its_place(name: str, tmp_path: Path) -> None:
    """AdamW wrote the checkpoint, at other rates and with other groups."""
    before = ALL[name](optimizer(torch.optim.AdamW, 1e-3, 2))
    stepped(before, range(STOPPED))
    torch.save(before.state_dict(), tmp_path / "scheduler.pt")
    log = [{"step": step + 1, "eval_loss": 1.0 + step} for step in range(STOPPED)]
    # Evaluated before the first step and twice after one: the Trainer steps no schedule for these.
    log = [{"step": 0, "eval_loss": 9.0}, *log, {"step": STOPPED, "eval_loss": 9.0}]
    state = {"global_step": STOPPED, "log_history": log}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    unbroken, after = (ALL[name](optimizer(Fromage, 0.01, 3)) for _ in range(2))
    stepped(unbroken, range(STOPPED))
    take_place(after, tmp_path, "loss")
    # To the last bit: the same operations, one after the other.
    steps = range(STOPPED, STEPS)
    assert stepped(after, steps) == stepped(unbroken, steps)


def test_no_schedule_of_torch_is_forgotten() -> None:
    every = {
        name
        for name, value in vars(torch_schedules).items()
        if isinstance(value, type) and issubclass(value, torch_schedules.LRScheduler)
    }
    assert every - {"LRScheduler", "_LRScheduler"} == set(OF_TORCH)


# --- in the Trainer -----------------------------------------------------------------------

EVERY_STEP = {
    "max_steps": STEPS,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "metric_for_best_model": "loss",
}


def trained(kind: type, folder: Path, optim: str, build: Any, *resume: str, **given: Any) -> Any:
    """A finished Trainer; ``build`` makes the schedule if the arguments do not name one."""
    args = arguments(folder, optim=optim, **{**EVERY_STEP, **given})
    model = gpt2()
    optimizers: tuple[Any, Any] = (None, None)
    if build is not None:
        ours = optim == "fromage_spectral"
        made = create_optimizer(model, optim, 0.01) if ours else None
        made = made or torch.optim.AdamW(model.parameters(), lr=1e-3)
        optimizers = (made, build(made))
    data = {"train_dataset": rows(), "eval_dataset": rows(4)}
    job = kind(model, args, optimizers=optimizers, **data)
    job.train(*resume, **({"discard_optimizer_state": True} if resume else {}))
    return job


def rates(job: Any) -> list[float]:
    """The learning rates of the steps after the one at which the checkpoint was written."""
    log = [entry for entry in job.state.log_history if entry["step"] > STOPPED]
    return [float(entry["learning_rate"]) for entry in log if "learning_rate" in entry]


@pytest.mark.parametrize("name", ["StepLR", "greedy"])
def test_a_run_that_discards_the_state_has_the_rates_of_an_unbroken_one(
    name: str, tmp_path: Path
) -> None:
    of_torch = OF_TORCH.get(name)
    given = {"lr_scheduler_type": name, "lr_scheduler_kwargs": KWARGS.get(name)}
    given = {} if of_torch else given
    saving = {"save_strategy": "steps", "save_steps": STOPPED, "learning_rate": 1e-3}
    trained(Trainer, tmp_path / "adamw", "adamw_torch", of_torch, **{**given, **saving})
    folder = str(tmp_path / "adamw" / f"checkpoint-{STOPPED}")
    given = {**given, "learning_rate": 0.01}
    ours = (RelOptTrainer, tmp_path / "ours", "fromage_spectral", of_torch)
    unbroken, after = trained(*ours, **given), trained(*ours, folder, **given)
    assert after.state.global_step == STEPS
    assert len(rates(after)) == STEPS - STOPPED
    assert rates(after) == rates(unbroken)


def test_a_step_schedule_may_follow_one_that_counted_evaluations(tmp_path: Path) -> None:
    before = OF_TORCH["ReduceLROnPlateau"](optimizer(torch.optim.AdamW, 1e-3, 1))
    stepped(before, range(1))
    torch.save(before.state_dict(), tmp_path / "scheduler.pt")
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3, "log_history": []}')
    unbroken, after = (ALL["linear"](optimizer(Fromage, 0.01, 1)) for _ in range(2))
    stepped(unbroken, range(3))
    take_place(after, tmp_path, None)
    assert stepped(after, range(3, 6)) == stepped(unbroken, range(3, 6))


def test_a_log_without_the_evaluations_is_refused(tmp_path: Path) -> None:
    before = OF_TORCH["ReduceLROnPlateau"](optimizer(torch.optim.AdamW, 1e-3, 1))
    stepped(before, range(3))
    torch.save(before.state_dict(), tmp_path / "scheduler.pt")
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3, "log_history": []}')
    fresh = OF_TORCH["ReduceLROnPlateau"](optimizer(Fromage, 0.01, 1))
    with pytest.raises(FormatError, match=r"3 evaluations .* 0 of eval_f1"):
        take_place(fresh, tmp_path, "f1")


def test_a_schedule_in_numpy_s_numbers_is_saved_as_plain_ones(tmp_path: Path) -> None:
    """np.cos in a LambdaLR makes learning rates of numpy: ``weights_only`` refuses to read them."""

    class Cosine(RelOptTrainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            def share(step: int) -> Any:
                return 0.5 * (1 + np.cos(np.pi * step / num_training_steps))

            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch_schedules.LambdaLR(optimizer, share)
            return self.lr_scheduler

    def trained(**given: Any) -> Any:
        saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        args = arguments(tmp_path, optim="fromage", **saving)
        job = Cosine(gpt2(), args, train_dataset=rows())
        job.train(**given)
        return job

    whole = trained()
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    resumed = trained(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(resumed.model))
