"""AdamH and MuonH: a direction in our frame on the sphere, AdamW on embeddings and vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

DIRECTIONS = {"adamh": "adam", "muonh": "spectral"}
EMBEDDING_LR = 3e-3
VECTOR_LR = 1e-3


def sphere_and_adamw(
    name: str, model: nn.Module, options: dict[str, Any], defaults: dict[str, Any]
) -> torch.optim.Optimizer:
    """Hidden matrices keep their norm; all other weights follow AdamW.

    Args:
        name: "adamh" or "muonh".
        model: our plan says which of its weights are what.
        options: Fromage's, and two rates of AdamW: `embedding_lr` (3e-3) for embeddings and heads,
            `vector_lr` (1e-3) for vectors and scalars.
        defaults: betas and weight_decay of AdamW.
    """
    from hf_relopt import create_optimizer, plan

    options = dict(options)
    embedding_lr = options.pop("embedding_lr", EMBEDDING_LR)
    vector_lr = options.pop("vector_lr", VECTOR_LR)
    rates = {
        "embedding": embedding_lr,
        "head": embedding_lr,
        "vector": vector_lr,
        "scalar": vector_lr,
    }
    present = {entry.role for entry in plan(model, "fromage", lr=0.01).entries}
    overrides = {
        role: {"rule": "adamw", "lr": rate, **defaults}
        for role, rate in rates.items()
        if role in present
    }
    frame = {"direction": DIRECTIONS[name], "bound": "sphere"}
    return create_optimizer(model, "fromage", overrides=overrides, **{**frame, **options})
