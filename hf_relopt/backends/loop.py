"""The reference: one tensor after the other, in pieces that fit the cache."""

from __future__ import annotations

from hf_relopt.backends.batch import Batch, needs_noise, piece_size, pieces, rule_step


def apply(batch: Batch) -> None:
    """Run the rule for every tensor of the batch."""
    for index in range(len(batch.params)):
        apply_one(batch, index)


def apply_one(batch: Batch, index: int) -> None:
    """Run the rule for one tensor of the batch."""
    scalars = batch.scalars(index)
    tensors = (batch.params[index], batch.grads[index], *batch.buffers[index])
    noisy = needs_noise(tensors[0], batch.keys)
    for piece in pieces(tensors, piece_size(tensors[0].device), batch.places[index]):
        param, grad, *buffers = piece.tensors
        position = piece.positions() if noisy else None
        rule_step(
            batch.update,
            param,
            grad,
            tuple(buffers),
            scalars,
            position,
            batch.constants,
            batch.maximize,
        )
