"""torch's Muon on the hidden matrices and AdamW on everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from optimizer_spec import OptimizerRefused
from torch import nn

ADAMW_LR = 3e-3


class MuonAndAdamW(torch.optim.Optimizer):
    """Two of torch's optimizers behind one `step`, so that one schedule moves both rates.

    Args:
        muon: steps some weights.
        adamw: steps others.
    """

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        # The groups are the two optimizers' own dicts: a new rate reaches them.
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        muon.state = adamw.state = self.state
        self.both = (muon, adamw)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Step both."""
        if closure is not None:
            raise NotImplementedError("no benchmark uses a closure")
        for optimizer in self.both:
            optimizer.step()


def muon_and_adamw(
    model: nn.Module, options: dict[str, Any], defaults: dict[str, Any]
) -> MuonAndAdamW:
    """Muon on the matrices that are neither embedding nor head, AdamW on the rest.

    Args:
        model: our plan says which of its weights are hidden matrices.
        options: torch.optim.Muon's, and `adamw_lr`, the rate of the rest (3e-3). Muon's rate
            counts as AdamW's does (`adjust_lr_fn="match_rms_adamw"`): torch's other adjustment
            looks at which side of a matrix is longer, and GPT-2 keeps its matrices transposed.
        defaults: betas of AdamW, and weight_decay of both; options override them.

    Raises:
        OptimizerRefused: there is none, as where hidden layers are convolutions.
    """
    from hf_relopt import plan

    options = {"adjust_lr_fn": "match_rms_adamw", **options}
    adamw_lr = options.pop("adamw_lr", ADAMW_LR)
    decay = {name: value for name, value in defaults.items() if name == "weight_decay"}
    matrices, rest = [], []
    for entry in plan(model, "fromage", lr=0.01).entries:
        (matrices if entry.role == "matrix" else rest).append(entry.param)
    if not matrices:
        raise OptimizerRefused("torch's Muon steps hidden matrices, and this model has none")
    muon = torch.optim.Muon(matrices, **{**decay, **options})
    return MuonAndAdamW(muon, torch.optim.AdamW(rest, lr=adamw_lr, fused=True, **defaults))
