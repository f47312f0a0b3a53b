"""Madam with a first moment, which the paper's does not have: does it help?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from hf_relopt.rules import madam


class MadamWithMomentum(torch.optim.Optimizer):
    """W ← W exp(−η sign(W) ĝ) with ĝ = m̂/√v̂, m the mean of gradients; as Madam in all else.

    Args:
        params: weights, float32.
        lr: η.
        momentum: decay of m; 0 is Madam.
        beta: decay of v.
        p_scale: largest entry, in units of the first RMS of the tensor.
        g_bound: largest |ĝ|.
        min_scale: a tensor that starts at zero goes W ← W − η min_scale ĝ.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.01,
        momentum: float = 0.9,
        beta: float = 0.999,
        p_scale: float = 3.0,
        g_bound: float = 10.0,
        min_scale: float = 0.1,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "beta": beta, "p_scale": p_scale}
        super().__init__(params, {**options, "g_bound": g_bound, "min_scale": min_scale})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Step every weight that has a gradient."""
        if closure is not None:
            raise NotImplementedError("no benchmark uses a closure")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group)

    def _step(self, weight: Tensor, group: dict[str, float]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float64)
            state["momentum"] = torch.zeros_like(weight)
            state["second_moment"] = torch.zeros_like(weight)
            state["first_norm"] = weight.norm().double()
        state["step"] += 1
        decay = group["momentum"]
        m = state["momentum"].lerp_(weight.grad, 1 - decay)
        v = state["second_moment"].lerp_(weight.grad.square(), 1 - group["beta"])
        coefficients = madam.coefficients(
            lr=torch.tensor(group["lr"]),
            step=state["step"],
            anchor_norm=state["first_norm"],
            numel=torch.tensor(float(weight.numel())),
            beta=group["beta"],
            p_scale=group["p_scale"],
        )
        # v has taken the gradient in: Madam's rule is to divide by it, and to leave it.
        new, _ = madam.update(
            weight,
            m / (1 - decay ** int(state["step"])),
            v,
            **coefficients,
            beta=1.0,
            g_bound=group["g_bound"],
            min_scale=group["min_scale"],
        )
        weight.copy_(new)
