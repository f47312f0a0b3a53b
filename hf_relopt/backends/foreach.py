"""Small tensors laid end to end and stepped together; large ones in pieces, or stacked.

A model has many small tensors (biases, norm gains), and each would cost as many kernel launches as
a large one. Laid end to end, with their scalars repeated per entry, they are one long tensor to the
rule, so the equation is the same code in every backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hf_relopt.backends import loop, stacks
from hf_relopt.backends.batch import (
    Batch,
    Scalars,
    constant,
    first_position,
    needs_noise,
    piece_size,
    rule_results,
    small_size,
)


def apply(batch: Batch) -> None:
    """Run the rule for every tensor of the batch."""
    small: list[int] = []
    large: list[int] = []
    device = batch.params[0].device
    limit = small_size(device)
    for index, param in enumerate(batch.params):
        is_large = param.numel() > limit or not in_one_run(batch, index)
        (large if is_large else small).append(index)
    if stacks.are_worthwhile(device):
        stacks.apply(batch, large)
    else:
        for index in large:
            loop.apply_one(batch, index)
    apply_small(batch, small)


def in_one_run(batch: Batch, index: int) -> bool:
    """True if counting on from a first position gives every entry's position, or none is needed."""
    param = batch.params[index]
    return not needs_noise(param, batch.keys) or (
        first_position(batch.places[index], param.shape) is not None
    )


def apply_small(batch: Batch, indices: list[int]) -> None:
    """Run the rule for the tensors at ``indices``, laid end to end."""
    for run in _runs(batch, indices):
        _apply_together(batch, run)


def _runs(batch: Batch, indices: list[int]) -> Iterator[list[int]]:
    """Split ``indices`` so that each part holds at most one piece's worth of entries."""
    run: list[int] = []
    entries = 0
    limit = piece_size(batch.params[0].device)
    for index in indices:
        numel = batch.params[index].numel()
        if run and entries + numel > limit:
            yield run
            run, entries = [], 0
        run.append(index)
        entries += numel
    if run:
        yield run


def _apply_together(batch: Batch, indices: list[int]) -> None:
    if len(indices) == 1:
        return loop.apply_one(batch, indices[0])
    params = [batch.params[i] for i in indices]
    flat = end_to_end(params)
    grad = end_to_end([batch.grads[i] for i in indices])
    buffers = [[batch.buffers[i][k] for i in indices] for k in range(len(batch.buffers[0]))]
    flat_buffers = tuple(end_to_end(tensors) for tensors in buffers)
    spread = _Spread(params, indices)
    scalars = Scalars(
        {k: v if v.dim() == 0 else spread(v) for k, v in batch.coefficients.items()},
        spread(batch.learn),
        spread(batch.move),
        None if batch.keys is None else spread(batch.keys),
    )
    position = None
    if needs_noise(flat, batch.keys):
        firsts = [first_position(batch.places[i], batch.params[i].shape) or 0 for i in indices]
        position = spread.positions(firsts)
    results = rule_results(
        batch.update, flat, grad, flat_buffers, scalars, position, batch.constants, batch.maximize
    )
    for targets, result in zip([params, *buffers], results, strict=True):
        torch._foreach_copy_(targets, apart(result, targets))
    return None


class _Spread:
    """Repeats one value per tensor into one value per entry of the tensors laid end to end."""

    def __init__(self, params: list[Tensor], indices: list[int]) -> None:
        device = params[0].device
        self._total = sum(param.numel() for param in params)
        self._sizes = constant(tuple(p.numel() for p in params), torch.int64, device)
        self._places = self._repeat(constant(tuple(indices), torch.int64, device))

    def __call__(self, per_tensor: Tensor) -> Tensor:
        return per_tensor.index_select(0, self._places)

    def _repeat(self, values: Tensor) -> Tensor:
        # output_size spares repeat_interleave a look at the sizes from the host.
        return torch.repeat_interleave(values, self._sizes, output_size=self._total)

    def positions(self, firsts: list[int]) -> Tensor:
        """int32: each entry's place in its whole tensor, of which a part begins at ``firsts``."""
        begin = constant(tuple(firsts), torch.int64, self._sizes.device)
        starts = torch.cumsum(self._sizes, 0) - self._sizes
        counted = torch.arange(self._total, device=starts.device)
        return (counted - self._repeat(starts - begin)).to(torch.int32)


def end_to_end(tensors: Sequence[Tensor]) -> Tensor:
    """All entries of ``tensors`` in one dimension, as a copy."""
    # A view is not free: what is flat already needs none.
    return torch.cat([t if t.dim() == 1 else t.reshape(-1) for t in tensors])


def apart(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``flat`` in the shapes of the tensors that were laid end to end in it."""
    parts = flat.split([tensor.numel() for tensor in like])
    return [
        part if tensor.dim() == 1 else part.view(tensor.shape)
        for part, tensor in zip(parts, like, strict=True)
    ]
