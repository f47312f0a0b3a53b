"""Gradients of a real problem and of many sizes, and how near two ways are."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.tensors import to_numpy

STEPS = 1000


# uniform entries reach sqrt(3) RMS: no outlier, so nothing of ours intervenes in Madam
SHAPES = ((12, 7), (7, 5), (5,))


Build = type[torch.optim.Optimizer]


def uniform_weights(scale: float = 0.3) -> list[nn.Parameter]:
    gen = torch.Generator().manual_seed(1)
    return [nn.Parameter(scale * (2 * torch.rand(s, generator=gen) - 1)) for s in SHAPES]


def real_problem(build: Build, backend: str, rates: list[float], **options):  # type: ignore[no-untyped-def]
    """Train a two-layer network; return first weights, all gradients, and all weights."""
    gen = torch.Generator().manual_seed(2)
    inputs, targets = torch.randn(16, 12, generator=gen), torch.randn(16, 5, generator=gen)
    params = uniform_weights()
    optimizer = build(params, lr=rates[0], backend=backend, **options)
    first = [to_numpy(p).copy() for p in params]
    grads: list[list[np.ndarray]] = [[] for _ in params]
    ends: list[list[np.ndarray]] = [[] for _ in params]
    for lr in rates:
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        rows = torch.randperm(16, generator=gen)[:4]
        hidden = torch.tanh(inputs[rows] @ params[0])
        ((hidden @ params[1] + params[2] - targets[rows]) ** 2).mean().backward()
        optimizer.step()
        for index, param in enumerate(params):
            grads[index].append(to_numpy(param.grad).copy())
            ends[index].append(to_numpy(param).copy())
    return first, grads, ends


def assert_same_path(ours: list[np.ndarray], theirs: list[np.ndarray], rel: float = 1e-5) -> None:
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        gap = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert gap <= rel, f"step {step + 1}: relative distance {gap:.2e}"


DECAY = [0.02 * (1 - step / STEPS) for step in range(STEPS)]
