"""Tensors and groups that meet every direction, scale and bound of Fromage."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles.frame import parts
from tests.tensors import gradient, to_numpy

DIRECTIONS = ("gradient", "momentum", "spectral", "adam", "rms", "sinkhorn", "factored")
SCALES = ("tensor", "row", "block")
# What has a norm that is bounded: no vectors.
WHOLE = ("matrices", "experts")
# (direction, scale) that the constructor accepts
REFUSED = [("spectral", "row"), ("sinkhorn", "row"), ("factored", "row")]
PAIRS = [p for p in itertools.product(DIRECTIONS, SCALES) if p not in REFUSED]
UNBOUNDED = {"p_bound": 10.0}  # the most that is taken where steps may add up
BOUNDS = {"free": UNBOUNDED, "p_bound": {"p_bound": 1.05}, "sphere": {"bound": "sphere"}}
# Shapes of weights, and how they are cut into matrices.
MATRICES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((6, 4), {}),
    ((6, 4), {"split_sizes": 3}),
    ((6, 4), {"split_sizes": (1, 5)}),
    ((6, 4), {"split_sizes": 6}),
    ((6, 4), {"split_sizes": 2, "split_dim": 1}),
    ((6, 4), {"split_sizes": (1, 3), "split_dim": 1}),
    ((6, 2, 2), {"split_sizes": 2}),
    ((6, 2, 2), {"split_sizes": (1, 5)}),
    ((3, 4, 2), {"scale": "block"}),
    ((3, 4, 2, 2), {"scale": "block"}),
    ((3, 4, 2), {}),
    ((3, 4, 2, 2), {}),
]
# The keys of param groups that checkpoints of before the frame lack.
NEW_KEYS = (
    "direction",
    "scale",
    "bound",
    "momentum",
    "nesterov",
    "beta",
    "split_dim",
    "split_sizes",
    "momentum_dtype",
    "iterations",
    "lr_factor",
)

each_backend = pytest.mark.parametrize("backend", ["loop", "foreach"])
each_pair = pytest.mark.parametrize(("direction", "scale"), PAIRS)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_own_direction = pytest.mark.parametrize("direction", DIRECTIONS[1:])


def slack_of(direction: str) -> float:
    return 3e-5 if direction == "spectral" else 0.0


def kinds_of_tensors(dtype: torch.dtype) -> dict[str, list[nn.Parameter]]:
    """Matrices of (6, 4), one with rows that start at zero, one all zero; experts; vectors."""
    dense, holed, zero = (gradient(torch.empty(6, 4, dtype=dtype), n, 0.1) for n in (1, 2, 3))
    holed[:2], holed[4], holed[3, 1] = 0.0, -0.0, -0.0
    experts = gradient(torch.empty(3, 4, 2, dtype=dtype), 4, 0.1)
    experts[1] = 0.0
    vectors = [gradient(torch.empty(s, dtype=dtype), 5, 0.3) for s in ((5,), (), (1, 4), (3, 1))]
    vectors.append(torch.zeros(3, dtype=dtype))
    made = {
        "matrices": [dense, holed, zero.zero_()],
        "experts": [experts],
        "vectors": vectors,
    }
    return {kind: [nn.Parameter(t) for t in tensors] for kind, tensors in made.items()}


def options_of(kind: str, direction: str, scale: str, **options: Any) -> dict[str, Any]:
    if scale == "block" and kind == "matrices":
        options["split_sizes"] = (4, 2)
    if kind == "vectors" and direction == "gradient":
        # Whatever the group's scale, this is the paper's rule.
        options.pop("bound", None)
        options.setdefault("p_bound", 1.05)
    return {"direction": direction, "scale": scale, **options}


def frame_of(
    dtype: torch.dtype,
    direction: str,
    scale: str,
    kinds: tuple[str, ...] = ("matrices", "experts", "vectors"),
    **options: Any,
) -> tuple[list[nn.Parameter], list[dict[str, Any]]]:
    """The tensors of above, and groups of them with these options."""
    tensors = kinds_of_tensors(dtype)
    if options.get("bound") == "sphere":
        del tensors["matrices"][-1]  # a sphere of radius 0 is refused
    groups = [
        {"params": tensors[kind], **options_of(kind, direction, scale, **options)} for kind in kinds
    ]
    return [param for kind in kinds for param in tensors[kind]], groups


def norms_of(param: torch.Tensor, group: dict[str, Any]) -> np.ndarray:
    split = (group["split_dim"], group["split_sizes"])
    each = parts(to_numpy(param), group["scale"], *split)
    return np.array([np.linalg.norm(part) for part in each])
