"""What an experiment of the papers is: settings, optimizers with their rates, and one run of each.

Every optimizer gets the same number of learning rates, and they lie alike around the one that is
recommended for it: what its makers or its package give, or what its users take first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimizer_spec import OURS, OptimizerRefused, OptimizerSpec, optimizer_spec
from training import Task, curve, train

# How much is run: a first look, what fits on a laptop, and the papers' sizes on a GPU.
PASSES = ("quick", "here", "full")
# By which powers of ten around the recommended rate.
POWERS = {
    "quick": (-1.0, 0.0, 1.0),
    "here": (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5),
    "full": (-3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0),
}
# Of those that are not ours: torch's and pytorch_optimizer's own words for a first try.
RECOMMENDED = {"sgd": 0.1, "adamw": 1e-3, "muon": 1e-2, "lion": 1e-4, "lamb": 3e-3, "lars": 1.0}
# torch's Muon steps what is no hidden matrix by AdamW, whose rate moves along.
MUON_ADAMW = 0.3


@dataclass(frozen=True)
class Options:
    """What the command line says of all runs.

    Attributes:
        size: one of PASSES.
        data: pictures or a text: "digits", a path, a hub name; "" for the experiment's own.
        valid_file: a text to measure on, where `data` is one to train on.
        device: "cpu" or "cuda".
    """

    size: str
    data: str = ""
    valid_file: Path | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        setting: what is trained, one of the experiment's.
        optim: the optimizer with its rate.
        steps: length.
        seed: of the model's random parts and the batches.
    """

    setting: str
    optim: str
    steps: int
    seed: int


@dataclass(frozen=True)
class Experiment:
    """One of the papers' experiments.

    Attributes:
        title: heading of its page.
        about: a few sentences on what is run.
        measure: the figure that ranks.
        rising: is more of it better?
        digits: after the point, in tables.
        rivals: optimizers without a rate, by pass.
        settings: by pass.
        steps: by pass.
        data: what is read if the command line says nothing.
        run: one run's figures.
        full_data: the same at full size; "" for no other.
        near: a loss of the measure that a user would not tune for; 0 where there is no such.
        recommended: learning rates by the name of an optimizer, where a user begins with others
            than from scratch.
        powers: by pass, where POWERS have too many or too far ones.
    """

    title: str
    about: str
    measure: str
    rising: bool
    digits: int
    rivals: Mapping[str, Sequence[str]]
    settings: Mapping[str, Sequence[str]]
    steps: Mapping[str, int]
    data: str
    run: Callable[[Cell, Options], dict[str, Any]]
    full_data: str = ""
    near: float = 0.0
    recommended: Mapping[str, float] = field(default_factory=dict)
    powers: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def cells(self, size: str, seeds: Sequence[int], rivals: Sequence[str] = ()) -> list[Cell]:
        """All runs of a pass: the recommended rates of every setting first.

        Args:
            rivals: optimizers without a rate; empty for those of the pass.
        """
        steps = self.steps[size]
        return [
            Cell(setting, str(self.with_rate(rival, power, steps)), steps, seed)
            for seed in seeds
            for power in sorted(self.powers.get(size, POWERS[size]), key=abs)
            for setting in self.settings[size]
            for rival in rivals or self.rivals[size]
        ]

    def recommended_rate(self, rival: str, steps: int | None = None) -> float:
        """The learning rate with which a user begins a run of so many steps here."""
        own = self.recommended.get(optimizer_spec(rival).name)
        return recommended(rival, steps) if own is None else own

    def with_rate(self, rival: str, power: float, steps: int | None = None) -> OptimizerSpec:
        """An optimizer at its recommended rate times 10^power, to two digits."""
        rate = float(f"{self.recommended_rate(rival, steps) * 10**power:.2g}")
        rest = f",adamw_lr={MUON_ADAMW * rate:.2g}" if optimizer_spec(rival).name == "muon" else ""
        return optimizer_spec(f"{rival}{',' if ':' in rival else ':'}lr={rate:g}{rest}")


def recommended(rival: str, steps: int | None = None) -> float:
    """The learning rate with which a user of this optimizer begins, from scratch.

    Args:
        steps: of the run, which some of ours look at, as a Trainer tells them; None for 2,000.
    """
    name = optimizer_spec(rival).name
    if name not in OURS:
        return RECOMMENDED[name]
    from hf_relopt.plans.entries import OPTIMIZERS

    return OPTIMIZERS[name].lr_from_scratch(steps)


def without_rate(optim: str) -> str:
    """The optimizer of a cell without its rate."""
    return str(optimizer_spec(optim).without("lr", "adamw_lr"))


def trained(task: Task, cell: Cell) -> dict[str, Any]:
    """The figures of one run by the loop that all benchmarks share."""
    run = train(optimizer_spec(cell.optim), task, cell.steps, cell.seed)
    return {
        "lr": run.lr,
        **run.figures,
        "diverged_at": run.diverged_at,
        "seconds": run.seconds,
        "state_bytes_per_weight": round(run.state_bytes_per_weight, 4),
        "glances": run.glances,
        "curve": curve(run.losses),
    }


def run_or_refusal(experiment: Experiment, cell: Cell, options: Options) -> dict[str, Any]:
    """One run's figures; what an optimizer refuses is recorded with its words, as `refused`."""
    try:
        return experiment.run(cell, options)
    except OptimizerRefused as error:
        return {"lr": optimizer_spec(cell.optim).lr, "refused": str(error)}


def value_of(record: Mapping[str, Any], experiment: Experiment) -> float:
    """The figure that ranks; the worst there is for a run that diverged or was refused."""
    worst = -math.inf if experiment.rising else math.inf
    if "refused" in record or record.get("diverged_at") is not None:
        return worst
    value = float(record[experiment.measure])
    return value if math.isfinite(value) else worst
