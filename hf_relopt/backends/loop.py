"""The reference: one tensor after the other, in pieces that fit the cache."""

from __future__ import annotations

from hf_relopt.backends.batch import (
    Batch,
    needs_noise,
    piece_size,
    pieces,
    positions,
    rule_step,
)


def apply(batch: Batch) -> None:
    """Run the rule for every tensor of the batch."""
    for index in range(len(batch.params)):
        apply_one(batch, index)


def apply_one(batch: Batch, index: int) -> None:
    """Run the rule for one tensor of the batch."""
    whole, scalars = batch.params[index], batch.scalars(index)
    size = piece_size(whole.device)
    for param, grad, buffers, first in pieces(
        whole, batch.grads[index], batch.buffers[index], size
    ):
        position = positions(param, first) if needs_noise(whole, batch.keys) else None
        rule_step(
            batch.update, param, grad, buffers, scalars, position, batch.constants, batch.maximize
        )
