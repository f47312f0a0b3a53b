"""Formulas on packed numbers: a few of each weight, in one tensor for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

# Named tensors of [n], or 0-dim where there is one number for all -> named tensors of [n] or 0-dim.
# It is hashable, equal ones do alike, and it works number by number and looks at none.
Formula = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def work_out(
    formula: Formula, given: Mapping[str, Tensor], into: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The results of a formula.

    Args:
        into: tensors that results of these names are written to; they may be among the given ones.
    """
    found = formula(given)
    for name, target in into.items():
        found[name] = target.copy_(found[name])
    return found
