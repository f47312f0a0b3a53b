"""Local norms and inner products, for a hundred million entries and squares beyond float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hf_relopt.backends import stacks
from hf_relopt.backends.part import Part, View, piece_size, pieces
from hf_relopt.rules.rule import Sums

# Entries of a slice on a CPU up to which slices of one length are summed as the rows of a matrix,
# and of such a matrix.
_SHORT, _MATRIX = 2**14, 2**18
# Entries up to which torch's own float64 norm of a float32 tensor is the fastest on a CPU.
_CACHED = 2**17


def sums(parts: Sequence[Part], what: Sums) -> Tensor:
    """|U|, |W| and <W,U>/(|W||U|) of every slice, as far as ``what`` asks: float64 [S, 1 to 3].

    U is the parts' source. Where the device has no float64 the tensors are scaled by their largest
    entry first.
    """
    views, weights, sources, _ = zip(*parts, strict=True)
    device = weights[0].device
    if device.type == "mps":
        return _scaled_sums(parts, what)
    plan = _plan(views, device.type == "cpu")
    if what != "cosine" and plan.large is not None:
        columns = [_norms(sources, plan.large)]
        if what == "norms":
            columns.append(_norms(weights, plan.large))
        return torch.stack(columns, dim=1)
    rows = list(weights)
    for group in plan.groups:
        if group.together:
            u = _as_rows(sources, group)
            found = _row_sums(u if what == "grad" else _as_rows(weights, group), u, what)
        else:
            found = _sums_alone(parts[group.places[0]], what)
        for place, own in zip(group.places, found.split(group.counts), strict=True):
            rows[place] = own
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def cosine(grad_norm: Tensor, param_norm: Tensor, inner: Tensor) -> Tensor:
    """<W,U> / (|W||U|), which is 0 where one of them is 0."""
    product = grad_norm * param_norm
    return torch.where(product > 0, inner / product, 0.0)


@dataclass(frozen=True)
class Group:
    """Parts that are summed at once.

    Attributes:
        places: of the parts among all.
        counts: their slices.
        shapes: (slices, length) of each.
        together: are their slices the rows of one matrix? Else it is one large part.
    """

    places: list[int]
    counts: list[int]
    shapes: list[tuple[int, int]]
    together: bool


@dataclass(frozen=True)
class Plan:
    """How views are summed.

    Attributes:
        groups: slices of one length make a matrix, whose sums are a few launches for all layers of
            a model.
        large: where each view is one slice, the places of those that are large; None elsewhere.
    """

    groups: list[Group]
    large: list[int] | None


@lru_cache(maxsize=256)  # the same in each step
def _plan(views: tuple[View, ...], on_cpu: bool) -> Plan:
    lengths = [view.numel // view.count for view in views]
    longest, most = (_SHORT, _MATRIX) if on_cpu else (stacks.LARGEST, stacks.LARGEST)
    fits = [
        length <= longest and view.numel <= most
        for length, view in zip(lengths, views, strict=True)
    ]
    # Of one kind are those of one length that fit; others are a kind each.
    alike = [
        (length, None if fit else place)
        for place, (length, fit) in enumerate(zip(lengths, fits, strict=True))
    ]
    groups = []
    for places in stacks.stacks(alike, [view.numel for view in views], most):
        counts = [views[place].count for place in places]
        shapes = [(count, lengths[places[0]]) for count in counts]
        groups.append(Group(places, counts, shapes, fits[places[0]]))
    # Beyond a CPU's caches torch's own norm takes three times as long as products of pieces.
    large = [place for place, view in enumerate(views) if on_cpu and view.numel > _CACHED]
    return Plan(groups, large if all([view.count == 1 for view in views]) else None)


def _as_rows(tensors: Sequence[Tensor], group: Group) -> Tensor:
    """The slices of a group's tensors as rows: [all slices, length]."""
    each = list(map(Tensor.reshape, map(tensors.__getitem__, group.places), group.shapes))
    return torch.cat(each) if len(each) > 1 else each[0]


def _row_sums(weight: Tensor, source: Tensor, what: Sums) -> Tensor:
    """Of each row of two matrices: [rows, 1 to 3]."""
    u = source.to(torch.float64)
    columns = [torch.linalg.vector_norm(u, dim=1)]
    if what != "grad":
        w = weight.to(torch.float64)
        columns.append(torch.linalg.vector_norm(w, dim=1))
        if what == "cosine":
            columns.append(cosine(columns[0], columns[1], (w * u).sum(dim=1)))
    return torch.stack(columns, dim=1)


def _sums_alone(part: Part, what: Sums) -> Tensor:
    """Of one large part: [count, 1 to 3]."""
    count, weight, source = part.view.count, part.weight, part.source
    if count == 1:
        return _sums_of_one(weight, source, what)
    length = part.view.numel // count
    rows = max(1, piece_size(weight.device) // max(1, length))
    if length > piece_size(weight.device):
        each = zip(weight.unbind(), source.unbind(), strict=True)
        return torch.cat([_sums_of_one(w, u, what) for w, u in each])
    each = zip(weight.split(rows), source.split(rows), strict=True)
    return torch.cat([_row_sums(w.flatten(1), u.flatten(1), what) for w, u in each])


def _sums_of_one(weight: Tensor, source: Tensor, what: Sums) -> Tensor:
    """Of one large slice: [1, 1 to 3]."""
    large = [0] if weight.device.type == "cpu" and weight.numel() > _CACHED else []
    columns = [_norms((source,), large)]
    if what != "grad":
        columns.append(_norms((weight,), large))
        if what == "cosine":
            columns.append(cosine(columns[0], columns[1], _dot(weight, source)))
    return torch.stack(columns, dim=1)


def _norms(tensors: tuple[Tensor, ...], large: Sequence[int]) -> Tensor:
    """float64 [T]; those at the places ``large`` by products of pieces."""
    if not large:
        return torch.stack(torch._foreach_norm(tensors, 2, torch.float64))
    norms = list(tensors)
    for place in large:
        norms[place] = _dot(tensors[place], tensors[place]).sqrt()
    small = [place for place in range(len(norms)) if place not in large]
    if small:
        found = torch._foreach_norm([tensors[place] for place in small], 2, torch.float64)
        for place, norm in zip(small, found, strict=True):
            norms[place] = norm
    return torch.stack(norms)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """<left, right> summed in float64, a piece at a time."""
    total = torch.zeros((), dtype=torch.float64, device=left.device)
    view = View(0, 1, tuple(left.shape), 0, (0,) * left.dim())
    # Half as many entries as elsewhere: they are twice as wide here.
    for piece in pieces((left, right), view, piece_size(left.device) // 2):
        a, b = piece.tensors
        wide = a.to(torch.float64).reshape(-1)
        other = wide if left is right else b.to(torch.float64).reshape(-1)
        total = total + torch.dot(wide, other)
    return total


def _scaled_sums(parts: Sequence[Part], what: Sums) -> Tensor:
    """The same in float32: each slice is divided by its largest entry before it is squared."""
    return torch.cat([_scaled_rows(part, what) for part in parts])


def _scaled_rows(part: Part, what: Sums) -> Tensor:
    count = part.view.count
    unit_grad, grad_scale = _scale(part.source.reshape(count, -1))
    columns = [torch.linalg.vector_norm(unit_grad, dim=1) * grad_scale]
    if what != "grad":
        unit_param, param_scale = _scale(part.weight.reshape(count, -1))
        columns.append(torch.linalg.vector_norm(unit_param, dim=1) * param_scale)
        if what == "cosine":
            norms = [torch.linalg.vector_norm(unit, dim=1) for unit in (unit_grad, unit_param)]
            columns.append(cosine(norms[0], norms[1], (unit_param * unit_grad).sum(dim=1)))
    return torch.stack(columns, dim=1)


def _scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that are divided by their largest entries, and these."""
    wide = rows.to(torch.float32)
    largest = wide.abs().amax(dim=1) if wide.numel() else wide.new_zeros(len(wide))
    scale = torch.where(largest > 0, largest, 1.0)
    return wide / scale.unsqueeze(1), scale
