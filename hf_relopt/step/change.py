"""What a step has changed of some parts of weights, as sums and counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_relopt.backends.foreach import apart, end_to_end
from hf_relopt.backends.part import Part
from hf_relopt.backends.sums import sums

# A weight is at its bound if it is there to within float32 rounding.
NEARLY = 1 - 1e-5
# Entries that a CPU looks at at once, in float64: they stay in its caches.
_PIECE = 2**16


class Before:
    """Copies of the weights before a step, and which of their entries have something to follow."""

    def __init__(self, parts: Sequence[Part]) -> None:
        if parts:
            self.weights = end_to_end([part.weight for part in parts])
            # Of a direction nothing may be left after the step.
            sources = [torch.ravel(part.source) for part in parts]
            if self.weights.device.type == "cpu":
                self.followed = torch.cat([source != 0 for source in sources])
            else:  # in fewer launches
                self.followed = torch.cat(sources) != 0


def changes(
    parts: Sequence[Part], before: Before, move: Tensor, anchors: Tensor, bound: Tensor | None
) -> tuple[Tensor, Tensor]:
    """|dW|^2, |W|^2 before and after of each slice, [S, 3], and and counts of each part.

    The counts are those of telemetry.Seen: [P, 4].

    Args:
        move: [S] of the bundle: may a slice change?
        anchors, bound: |W0| and the largest entry of each part, where entries have a bound.
    """
    lengths = [part.weight.numel() for part in parts]
    own = list(zip(before.weights.split(lengths), before.followed.split(lengths), strict=True))
    squares: list[Tensor] = [before.weights] * len(parts)
    counts = list(squares)
    small: list[int] = []
    for place, part in enumerate(parts):
        limit = None if bound is None else (bound[place], anchors[place])
        if _is_large(part):
            squares[place], counts[place] = _of_large(part, *own[place], limit)
            counts[place][:, 2:] *= move[part.view.first]
        else:
            small.append(place)
            if limit is not None:
                weight = own[place][0].view_as(part.weight)
                own[place][1].logical_and_(_is_free(weight, *limit).reshape(-1))
    if small:
        some = [parts[place] for place in small]
        each = [own[place] for place in small]
        found = _of_small(some, each, move, None if bound is None else bound[small])
        slices = found[0].split([part.view.count for part in some])
        for place, row, count in zip(small, slices, found[1].split(1), strict=True):
            squares[place], counts[place] = row, count
    return torch.cat(squares), torch.cat(counts)


def _is_large(part: Part) -> bool:
    """True for what a CPU had better look at in pieces, which stay in its caches."""
    weight = part.weight
    on_cpu = weight.device.type == "cpu"
    return on_cpu and part.view.count == 1 and weight.numel() > _PIECE and weight.is_contiguous()


def _of_large(
    part: Part, before: Tensor, followed: Tensor, limit: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """One slice, [1, 3] and [1, 4]."""
    rows: list[Tensor] = []
    after = part.weight.view(-1).split(_PIECE)
    for now, was, wanted in zip(after, before.split(_PIECE), followed.split(_PIECE), strict=True):
        old = was.to(torch.float64)
        update = now.to(torch.float64) - old
        dots = torch.stack([torch.dot(update, update), torch.dot(old, old), torch.dot(old, update)])
        changed, held = update != 0, torch.zeros((), dtype=torch.int64)
        if limit is not None:
            held = torch.count_nonzero(now.abs() >= NEARLY * limit[0])
            wanted.logical_and_(_is_free(was, *limit))
        masks = changed, wanted, wanted & ~changed
        counted = [torch.count_nonzero(mask) for mask in masks]
        counts = torch.stack([counted[0], held, *counted[1:]])
        rows.append(torch.cat([dots, counts.to(torch.float64)]))
    update, norm, product, *_ = total = torch.stack(rows).sum(dim=0)
    after_norm = (norm + 2 * product + update).clamp(min=0)
    return torch.stack([update, norm, after_norm]).view(1, 3), total[3:].view(1, 4)


def _of_small(
    parts: Sequence[Part],
    before: Sequence[tuple[Tensor, Tensor]],
    move: Tensor,
    bound: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Parts that are laid end to end."""
    weights = [part.weight for part in parts]
    lengths = list(map(Tensor.numel, weights))
    was, wanted = (torch.cat(each) for each in zip(*before, strict=True))
    # Differences of float32 numbers near each other are exact; those of short ones fit into it.
    after = end_to_end(weights).to(torch.promote_types(was.dtype, torch.float32))
    update = after.sub_(was)
    old, moved = (apart(each, weights) for each in (was, update))
    views = [part.view for part in parts]
    rows = sums(list(map(Part, views, old, moved)), "cosine")
    norms, before_norms, cosines = rows.unbind(1)
    # From three sums: no further pass over the weights is needed.
    product = 2 * cosines * before_norms * norms
    squares = torch.stack([norms.square(), before_norms.square()], dim=1)
    squares = torch.cat([squares, (squares.sum(1) + product).clamp(min=0).unsqueeze(1)], dim=1)
    moves: list[Tensor] = []
    for view, own in zip(views, wanted.split(lengths), strict=True):
        may = move[view.first : view.first + view.count]
        if view.count > 1 and own.numel():
            own.view(view.count, -1).logical_and_(may.unsqueeze(1))
        moves.append(may[:1] if view.count == 1 else torch.ones_like(may[:1]))
    changed = update != 0
    counted = [_count(mask, lengths) for mask in (changed, wanted, wanted & ~changed)]
    changes, follow, stuck = [each.to(squares.dtype) for each in counted]
    held = torch.zeros_like(changes)
    if bound is not None:
        each = zip(weights, bound.unbind(), strict=True)
        at = [torch.count_nonzero(weight.abs() >= NEARLY * limit) for weight, limit in each]
        held = torch.stack(at).to(held.dtype)
    may_move = torch.cat(moves).to(held.dtype)
    return squares, torch.stack([changes, held, follow * may_move, stuck * may_move], dim=1)


def _is_free(before: Tensor, limit: Tensor, anchor: Tensor) -> Tensor:
    """Which entries a multiplication can move: not zeros, and nothing that stays at its bound."""
    return (before.abs() < NEARLY * limit) & ((before != 0) | (anchor == 0))


def _count(flat: Tensor, lengths: Sequence[int]) -> Tensor:
    """How many are true, of each run of these lengths."""
    if flat.device.type == "cuda":  # a few launches for all
        return torch.stack(torch._foreach_norm(flat.float().split(lengths), 1, torch.float64))
    return torch.stack([torch.count_nonzero(own) for own in flat.split(lengths)])
