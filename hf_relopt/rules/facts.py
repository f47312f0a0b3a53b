"""Facts: what a rule is told of the slices at the moment of a step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Facts:
    """S slices at the moment of a step (float64, shape [S], on their device).

    Attributes:
        grad_norm: |U|, of the gradient or of what a step follows in its place.
        param_norm: |W|, if the rule or a missing anchor needs it.
        cosine: <W,U>/(|W||U|), if the rule needs it.
        anchor_norm: |W0|; see rules/fromage.py for placeholders.
        step: t, this step included.
        numel: entries of the full slice, at least 1.
        lr: learning rate, one for all or one for each.
        moves: is it known on the host that no learning rate is zero?
        from_zero: may a tensor have started at zero, as far as the host knows?
        p_bound: the bound in force, if the rule has one.
        grad_rms: the running root mean square of the slice's gradients, if the rule needs it.
    """

    grad_norm: Tensor
    param_norm: Tensor | None
    cosine: Tensor | None
    anchor_norm: Tensor
    step: Tensor
    numel: Tensor
    lr: Tensor
    p_bound: float | Tensor | None = None
    moves: bool = False
    from_zero: bool = True
    grad_rms: Tensor | None = None
