"""Which optimizers a task compares: the default lists, and the best of what has been run."""

from __future__ import annotations

from typing import Any

from optimizer_spec import OptimizerSpec, optimizer_spec
from quality_table import best_of_each, entries

_FROM_SCRATCH = [
    "muonh",
    "muonh:lr=.01",
    "adamh",
    "adamh:lr=.01",
    "sgd:lr=.03",
    "sgd:lr=.1",
    "sgd:lr=.3",
    "madam:lr=.03,p_scale=5",
    "madam:lr=.05,p_scale=5",
    "fromage_spectral",
    "fromage_momentum",
    "fromage_factored",
    "fromage_sinkhorn",
]


def _rates(name: str, *rates: str, rest: str = "") -> list[str]:
    return [f"{name}:lr={rate}{rest}" for rate in rates]


DEFAULT = {
    "shakespeare": [
        *_rates("adamw", "1e-3", "2e-3", "3e-3", "6e-3", "1e-2"),
        *_rates("muon", "5e-3", "1e-2", "2e-2"),
        *_FROM_SCRATCH,
    ],
    "wordpieces": [
        *_rates("adamw", "5e-4", "1e-3", "1.5e-3", "2e-3", "3e-3"),
        *_rates("muon", "2e-3", "5e-3", "1e-2"),
        *_FROM_SCRATCH,
    ],
    "pythontext": [
        *_rates("adamw", "1e-3", "2e-3", "4e-3"),
        *_rates("muonh", "1e-2", "2e-2"),
        *_rates("fromage_sinkhorn", "2e-2"),
        "fromage_spectral",
        "fromage_factored",
        "fromage_sinkhorn",
    ],
    "sst2": [
        *_rates("adamw", "2e-5", "5e-5", "1e-4", "2e-4", "5e-4"),
        *_rates("muon", "1e-4", "2e-4", "5e-4", rest=",adamw_lr=2e-4"),
        *_rates("adamh", "1e-3", "3e-3"),
        *_rates("muonh", "1e-3", "3e-3"),
        *_rates("sgd", "3e-3", "1e-2", "3e-2"),
        "madam",
        "madam:lr=3e-3",
        "fromage_spectral",
        "fromage_momentum",
    ],
    "gpt2": [
        "fromage_spectral",
        "fromage_factored",
        "fromage_sinkhorn",
        "muonh",
        *_rates("adamw", "1e-4", "3e-4", "6e-4", "1.2e-3"),
        "muon:lr=2e-3,adamw_lr=1e-3",
    ],
    # A factor of two between rates: the aim is a best rate that moves by no more than that.
    "widths": [
        "fromage_spectral",
        *_rates("fromage_spectral", "5e-3", "1e-2", "4e-2", "8e-2"),
        *_rates("adamw", "1e-3", "2e-3", "4e-3", "8e-3", "1.6e-2"),
    ],
}


def expand(words: list[str], task: str, records: list[dict[str, Any]]) -> list[OptimizerSpec]:
    """The optimizers that the words of `--optim` stand for, each once, in their order.

    Args:
        words: optimizers, "default" (the task's list) or "best" (the best of each family).
        task: name of the task.
        records: finished runs of this task and length, for "best".

    Raises:
        SystemExit: "best" where nothing is finished.
    """
    specs: dict[OptimizerSpec, None] = {}
    for word in words:
        if word == "default":
            found = [optimizer_spec(text) for text in DEFAULT[task]]
        elif word == "best":
            if not records:
                raise SystemExit("--optim best: no run of this task and length is finished")
            found = [entry.spec for entry in best_of_each(entries(records))]
        else:
            found = [optimizer_spec(word)]
        specs.update(dict.fromkeys(found))
    return list(specs)
