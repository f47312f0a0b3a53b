"""Framed tensors stepped by a norm for each row: embeddings, of which few rows may be touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from hf_relopt.backends import sums
from hf_relopt.backends.batch import Piece, Scalars, compute_dtype, piece_size, rule_step
from hf_relopt.lns.rounding import noise_keys, rounds_stochastically
from hf_relopt.optim.decision import with_anchors
from hf_relopt.optim.measure import Measurement
from hf_relopt.optim.memory import Framed
from hf_relopt.optim.places import Places
from hf_relopt.optim.state import widest
from hf_relopt.rules import fromage
from hf_relopt.sharding import Place, local, local_grad


def step_rows(
    batch: Framed,
    directions: list[Tensor],
    places: Places,
    measurement: Measurement | None,
) -> None:
    """Step every tensor of ``batch`` along its direction. No rank needs another's rows."""
    for t, (param, index) in enumerate(zip(batch.params, batch.indices, strict=True)):
        noisy = rounds_stochastically(param.dtype, batch.group["rounding"])
        place = places.of(index, param) if noisy else None
        around = (
            nullcontext()
            if measurement is None
            else measurement.around(param, index, batch.group, batch.states[t])
        )
        with around:
            _step(batch, t, directions[t], place, noisy)


def _step(batch: Framed, t: int, direction: Tensor, place: Place | None, noisy: bool) -> None:
    param, state, group = local(batch.params[t].detach()), batch.states[t], batch.group
    if param.numel() == 0:
        return
    wide, columns = widest(param.device), param[0].numel()
    kept = local(state["anchor_norm"])
    found = torch.cat([_norms(*each) for each in _pieces(param, direction)]).to(wide)
    direction_norm, param_norm, inner = found.unbind(dim=1)
    cosine = sums.cosine(direction_norm, param_norm, inner)
    # A momentum is normalised: moved by it alone, a row would go on by whole steps.
    touched = local_grad(batch.params[t]).flatten(1).count_nonzero(dim=1) > 0
    anchors = kept.to(wide)
    if not batch.anchored:
        assert batch.param_norm is not None
        # Of the whole tensor, of whose rows this rank may have some.
        share = batch.param_norm[t] / len(batch.params[t]) ** 0.5
        least = fromage.PLACEHOLDER_ROW
        anchors = with_anchors(anchors, param_norm, batch.finite[t], share, least)
        kept.copy_(anchors)
    coefficients = fromage.coefficients(
        lr=batch.lr,
        param_norm=param_norm,
        grad_norm=direction_norm,
        cosine=cosine,
        anchor_norm=anchors,
        floor=torch.full_like(param_norm, group["min_scale"] * columns**0.5),
        p_bound=batch.frame.p_bound,
        sphere=batch.frame.sphere,
        framed=True,
    )
    usable = (direction_norm > 0) & (direction_norm < torch.inf)
    move = batch.learn[t] & (batch.lr != 0) & usable & touched
    key = None
    if noisy:
        number = torch.tensor(batch.indices[t]).to(param.device, non_blocking=True)
        key = noise_keys(group["seed"], number, state["step"])
    corner = (0,) * param.dim() if place is None else place.first
    first = 0
    for piece, towards in _pieces(param, direction):
        rows = slice(first, first + len(piece))

        def per_row(values: Tensor, rows: slice = rows) -> Tensor:
            return values[rows].view(-1, *[1] * (param.dim() - 1))

        position = None
        if noisy:
            at = (corner[0] + first, *corner[1:])
            position = Piece((piece,), batch.params[t].shape, at).positions()
        own = {name: per_row(v.to(compute_dtype(param.dtype))) for name, v in coefficients.items()}
        scalars = Scalars(own, per_row(move), per_row(move), key)
        rule_step(fromage.update, piece, towards, (), scalars, position, {}, maximize=False)
        first += len(piece)


def _pieces(param: Tensor, direction: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The same rows of both, as many as are to be worked on at once."""
    rows = max(1, piece_size(param.device) // param[0].numel())
    yield from zip(param.split(rows), direction.split(rows), strict=True)


def _norms(param: Tensor, direction: Tensor) -> Tensor:
    """[rows, 3]: |U|, |W| and <W, U>."""
    wide = widest(param.device)
    w, u = param.flatten(1).to(wide), direction.flatten(1).to(wide)
    direction_norm = torch.linalg.vector_norm(u, dim=1)
    param_norm = torch.linalg.vector_norm(w, dim=1)
    return torch.stack([direction_norm, param_norm, (w * u).sum(dim=1)], dim=1)
