"""One training run: what a task gives, the loop that all quality benchmarks share, what comes out.

Every optimizer of a task meets the same weights, batches and dropout, which follow the seed, and
the same clipping of gradients to norm 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from clock import Clock
from optimizer_spec import (
    OptimizerSpec,
    build_optimizer,
    options_in_use,
    rate_in_use,
    schedule,
    state_bytes_per_weight,
)
from torch import Tensor, nn
from transformers import set_seed

CLIP = 1.0
CURVE_POINTS = 200
# A short look at the validation part after each twentieth of the steps.
GLANCES = 20


@dataclass(frozen=True)
class Task:
    """What is trained, on what, and how it is measured.

    Attributes:
        make_model: a new model; random parts follow the global seed.
        batches: (steps, seed) -> one batch for each step.
        loss: (model, batch) -> mean loss.
        evaluate: (model) -> figures on the whole validation part.
        glance: (model) -> loss on a small part of it, the same in each run.
        baseline_schedule: of the learning rate of AdamW, Muon, SGD and other optimizers that are
            not ours.
        defaults: options of AdamW and Muon (betas, weight_decay).
        device: where the model lies.
        relative_schedule: that of ours.
    """

    make_model: Callable[[], nn.Module]
    batches: Callable[[int, int], Iterable[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    evaluate: Callable[[nn.Module], dict[str, float]]
    glance: Callable[[nn.Module], float]
    baseline_schedule: str
    defaults: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    relative_schedule: str = "linear"


@dataclass(frozen=True)
class Run:
    """What one run left.

    Attributes:
        lr: the rate of the first step, before the schedule.
        losses: training loss of every step that was made.
        glances: pairs of a step (from 1) and the loss at a glance after it; empty without glances.
        seconds: of the training, measuring left out: processor time on a CPU, the clock's on a GPU.
        options: numbers and words of each param group.
        state_bytes_per_weight: of the optimizer at the end.
        figures: what `Task.evaluate` gave at the end.
        peak_bytes: of a GPU's memory during the training, measuring left out; None on a CPU.
        diverged_at: the step (from 1) whose loss was no finite number, with which the run ended;
            None if there was none. On a GPU it is looked for a hundred times in a run.
    """

    lr: float
    losses: Tensor
    glances: list[tuple[int, float]]
    seconds: float
    options: list[dict[str, Any]]
    state_bytes_per_weight: float
    figures: dict[str, float]
    peak_bytes: int | None
    diverged_at: int | None


def train(spec: OptimizerSpec, task: Task, steps: int, seed: int, glances: int = 0) -> Run:
    """Train once and measure.

    Args:
        spec: the optimizer; its option `schedule` (see `optimizer_spec.schedule`) overrides the
            task's.
        task: see there.
        steps: length of the run.
        seed: of the model's random parts, the batches and the dropout.
        glances: how many times to look at the validation loss on the way, evenly spread.
    """
    set_seed(seed)
    model = task.make_model().to(task.device)
    model.train()
    optimizer = build_optimizer(spec.without("schedule"), model, **task.defaults)
    lr, options = rate_in_use(spec, optimizer), options_in_use(optimizer)
    word = task.relative_schedule if spec.relative else task.baseline_schedule
    factor = schedule(dict(spec.options).get("schedule", word), steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    looks = {math.ceil(steps * look / glances) for look in range(1, glances + 1)}
    losses, seen = torch.zeros(steps, device=task.device), []
    diverged_at, is_checked = None, checks(task.device, steps)
    _warm_up(model, task, steps, seed)
    set_seed(seed)
    clock = Clock(task.device)
    for done, batch in enumerate(task.batches(steps, seed), start=1):
        loss = task.loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        losses[done - 1] = loss.detach()
        if is_checked(done):
            diverged_at = first_not_finite(losses[:done])
            if diverged_at is not None:
                break
        if done in looks:
            with clock.stopped():
                model.eval()
                seen.append((done, round(task.glance(model), 4)))
                model.train()
        if done % max(1, steps // 10) == 0:
            _progress(spec, seed, losses[:done], seen, clock.seconds())
    seconds = clock.seconds()
    model.eval()
    figures = task.evaluate(model)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    print(f"{spec} (lr {lr:g}) seed {seed}: {shown}", flush=True)
    state = state_bytes_per_weight(optimizer)
    return Run(
        lr,
        losses[:diverged_at].cpu(),
        seen,
        round(seconds, 1),
        options,
        state,
        figures,
        clock.peak_bytes(),
        diverged_at,
    )


def checks(device: str, steps: int) -> Callable[[int], bool]:
    """After which steps to see whether a run has diverged: a look makes a GPU wait."""
    every = 1 if device == "cpu" else max(1, steps // 100)
    return lambda done: done % every == 0 or done == steps


def first_not_finite(losses: Tensor) -> int | None:
    """The step (from 1) of the first loss that is no finite number; None if there is none.

    Args:
        losses: [steps], or [steps, losses of a step].
    """
    lost = (~losses.isfinite().view(len(losses), -1).all(1)).nonzero()
    return int(lost[0]) + 1 if len(lost) else None


def _warm_up(model: nn.Module, task: Task, steps: int, seed: int) -> None:
    """One pass before the clock runs on a GPU, where libraries load and kernels are compiled."""
    if task.device == "cpu":
        return
    task.loss(model, next(iter(task.batches(steps, seed)))).backward()
    model.zero_grad(set_to_none=True)


def curve(losses: Tensor) -> list[float]:
    """At most 200 means over equally many steps each."""
    width = max(1, math.ceil(len(losses) / CURVE_POINTS))
    return [round(part.mean().item(), 4) for part in losses.split(width)]


def _progress(
    spec: OptimizerSpec,
    seed: int,
    losses: Tensor,
    glances: list[tuple[int, float]],
    seconds: float,
) -> None:
    text = f"{spec} seed {seed} step {len(losses)}: {losses[-100:].mean().item():.3f}"
    if glances:
        text += f", validation {glances[-1][1]:.3f}"
    print(f"{text} ({seconds:.0f} s)", flush=True)
