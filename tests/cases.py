"""The table of optimizers and settings the contract is crossed with. A new optimizer: one line.

`build(params, lr, **options)` makes the optimizer; `oracle` is its float64 trajectory for one
tensor; `state` is the frozen list of what it keeps per tensor: changing it breaks checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_relopt import Fromage, Madam
from tests.oracles import Path
from tests.oracles.adamw import adamw as adamw_oracle
from tests.oracles.fromage import fromage as fromage_oracle
from tests.oracles.madam import madam as madam_oracle

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BACKENDS = ("loop", "foreach", "compiled")
FROMAGE_STATE = frozenset({"step", "anchor_norm", "skipped"})
MADAM_STATE = frozenset({"step", "anchor_norm", "skipped", "second_moment"})
ADAMW_STATE = frozenset({"step", "skipped", "exp_avg", "exp_avg_sq"})
# The classes' default, as real runs with LoRA and new heads chose it.
MIN_SCALE = 0.1
MOMENTS = ("second_moment", "exp_avg", "exp_avg_sq")


def adamw_groups(
    params: Any, lr: Any = 1e-3, *, weight_decay: float = 0.0, **options: Any
) -> torch.optim.Optimizer:
    """A Fromage whose only group follows the plan's other rule, AdamW."""
    group = {"params": list(params), "rule": "adamw", "lr": lr, "weight_decay": weight_decay}
    return Fromage([group], **options)


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[..., torch.optim.Optimizer]
    oracle: Callable[..., Path]
    state: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self, params: Any, lr: Any = 2.0**-7, **options: Any) -> torch.optim.Optimizer:
        """The optimizer; lr is exact in every dtype, so float and tensor rates agree."""
        return self.build(params, lr, **{**self.options, **options})

    def path(self, weight: Any, grads: Any, lr: Any = 2.0**-7, **options: Any) -> Path:
        """The oracle's trajectory of one tensor under the same settings."""
        default = {"min_scale": MIN_SCALE} if self.anchored else {}
        return self.oracle(weight, grads, lr, **{**default, **self.options, **options})

    @property
    def plain(self) -> bool:
        """Whether the class itself builds it, so that it takes groups, names and generators."""
        return isinstance(self.build, type)

    @property
    def anchored(self) -> bool:
        return "anchor_norm" in self.state

    @property
    def moments(self) -> tuple[str, ...]:
        return tuple(name for name in MOMENTS if name in self.state)


def _fromage(name: str, **options: Any) -> Case:
    return Case(name, Fromage, fromage_oracle, FROMAGE_STATE, options)


def _madam(name: str, **options: Any) -> Case:
    return Case(name, Madam, madam_oracle, MADAM_STATE, options)


CASES = (
    _fromage("fromage"),
    _fromage("fromage-p_bound-1", p_bound=1.0),
    _fromage("fromage-min_scale-0", min_scale=0.0),
    _fromage("fromage-maximize", maximize=True, p_bound=1.01),
    _madam("madam"),
    _madam("madam-p_scale-1", p_scale=1.0),
    _madam("madam-p_scale-5", p_scale=5.0, beta=0.9, g_bound=2.0, min_scale=0.01),
    _madam("madam-maximize", maximize=True),
    Case("adamw-groups", adamw_groups, adamw_oracle, ADAMW_STATE, {"weight_decay": 0.1}),
)
BY_NAME = {case.name: case for case in CASES}
DEFAULTS = (BY_NAME["fromage"], BY_NAME["madam"])
