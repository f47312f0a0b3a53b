"""The table of optimizers and settings the contract is crossed with. A new optimizer: one line.

`build(params, lr, **options)` makes the optimizer; `oracle` is its float64 trajectory for one
tensor; `state` is the frozen list of what it keeps per tensor: changing it breaks checkpoints.
A vector (at most one dimension longer than 1) may keep something else: `vector_state`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hf_relopt import Fromage, Madam
from tests.oracles import Path
from tests.oracles.adamw import adamw as adamw_oracle
from tests.oracles.frame import anchors_of, is_vector
from tests.oracles.frame import frame as frame_oracle
from tests.oracles.fromage import fromage as fromage_oracle
from tests.oracles.madam import madam as madam_oracle

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Triton has no release for every system: without it these laws are not crossed with its kernels.
HAS_TRITON = importlib.util.find_spec("triton") is not None
BACKENDS = ("loop", "foreach", "compiled", *(["triton"] if HAS_TRITON else []))
FROMAGE_STATE = frozenset({"step", "anchor_norm", "skipped"})
MOMENTUM_STATE = FROMAGE_STATE | {"momentum"}
ADAM_STATE = FROMAGE_STATE | {"momentum", "second_moment"}
RUNNING_STATE = FROMAGE_STATE | {"grad_rms", "grad_count"}
# Of matrices, by direction.
DIRECTION_STATES = {
    "gradient": FROMAGE_STATE,
    "momentum": MOMENTUM_STATE,
    "spectral": MOMENTUM_STATE,
    "neurons": MOMENTUM_STATE | {"neuron_rms"},
    "adam": ADAM_STATE,
    "rms": RUNNING_STATE,
    "sinkhorn": FROMAGE_STATE,
    "factored": FROMAGE_STATE | {"row_rms", "column_rms"},
}
MADAM_STATE = frozenset({"step", "anchor_norm", "skipped", "second_moment"})
ADAMW_STATE = frozenset({"step", "skipped", "exp_avg", "exp_avg_sq"})
# The classes' default, as real runs with LoRA and new heads chose it.
MIN_SCALE = 0.1
MOMENTS = ("momentum", "second_moment", "exp_avg", "exp_avg_sq")


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
    vector_state: frozenset[str] | None = None
    # What the direction may be off a float64 one by, beyond the rounding of weights.
    slack: float = 0.0
    dtypes: tuple[torch.dtype, ...] = DTYPES

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

    @property
    def takes_any_shape(self) -> bool:
        return "split_sizes" not in self.options

    def state_of_shape(self, shape: tuple[int, ...]) -> frozenset[str]:
        vector = is_vector(np.empty(shape))
        return self.vector_state if vector and self.vector_state is not None else self.state

    def state_dtype(self, name: str) -> torch.dtype:
        low = name == "momentum" and self.options.get("momentum_dtype") == "bfloat16"
        return torch.bfloat16 if low else torch.float32

    def anchors(self, weight: torch.Tensor) -> list[float]:
        """What a weight's anchors keep: norms of the tensor, of its rows or of its blocks."""
        names = ("split_dim", "split_sizes")
        split = {name: self.options[name] for name in names if name in self.options}
        array = weight.detach().double().numpy()
        return anchors_of(array, self.options.get("scale", "tensor"), **split).tolist()


def _fromage(name: str, **options: Any) -> Case:
    return Case(name, Fromage, fromage_oracle, FROMAGE_STATE, options)


def _madam(name: str, **options: Any) -> Case:
    return Case(name, Madam, madam_oracle, MADAM_STATE, options)


# An optimizer that steps in float32 or bfloat16 steps in the others by the same code.
FRAME_DTYPES = (torch.float32, torch.bfloat16)
# float32 iterations, in which a small singular value keeps fewer digits
SPECTRAL_SLACK = 3e-5


def _frame(name: str, *, slack: float = 0.0, **options: Any) -> Case:
    direction = options.get("direction", "gradient")
    neurons = direction == "spectral" and "beta" in options
    return Case(
        name,
        Fromage,
        frame_oracle,
        DIRECTION_STATES["neurons" if neurons else direction],
        options,
        vector_state=FROMAGE_STATE if direction == "gradient" else ADAM_STATE,
        slack=SPECTRAL_SLACK if direction == "spectral" else slack,
        dtypes=FRAME_DTYPES,
    )


CASES = (
    _fromage("fromage"),
    _fromage("fromage-p_bound-1", p_bound=1.0),
    _fromage("fromage-min_scale-0", min_scale=0.0),
    _fromage("fromage-maximize", maximize=True, p_bound=1.01),
    _madam("madam"),
    _madam("madam-p_scale-1", p_scale=1.0),
    _madam("madam-p_scale-5", p_scale=5.0, beta=0.9, g_bound=2.0, min_scale=0.01),
    _madam("madam-maximize", maximize=True),
    _frame("fromage-momentum", direction="momentum"),
    _frame(
        "fromage-momentum-bf16",
        direction="momentum",
        nesterov=False,
        momentum_dtype="bfloat16",
        slack=2.0**-7,
    ),
    _frame("fromage-spectral", direction="spectral"),
    _frame("fromage-neurons", direction="spectral", beta=0.9),
    _frame("fromage-adam", direction="adam", momentum=0.8, beta=0.9, p_bound=1.01),
    _frame("fromage-rms-row", direction="rms", scale="row", beta=0.9, p_bound=1.01, lr_factor=1.5),
    _frame("fromage-factored-block", direction="factored", scale="block", split_sizes=2, beta=0.9),
    _frame("fromage-sinkhorn-block", direction="sinkhorn", scale="block", split_sizes=2),
    _frame("fromage-row", scale="row"),
    _frame("fromage-momentum-row", direction="momentum", scale="row", maximize=True, lr_factor=0.5),
    _frame("fromage-block", direction="spectral", scale="block", split_sizes=2),
    Case("adamw-groups", adamw_groups, adamw_oracle, ADAMW_STATE, {"weight_decay": 0.1}),
)
BY_NAME = {case.name: case for case in CASES}
# Each case in each of its dtypes.
CASES_AND_DTYPES = tuple((case, dtype) for case in CASES for dtype in case.dtypes)
DEFAULTS = (BY_NAME["fromage"], BY_NAME["madam"])
