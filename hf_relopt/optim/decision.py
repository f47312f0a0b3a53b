"""From norms and state to what a step does with each tensor: pure, for T tensors at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends.batch import Decision, compute_dtype
from hf_relopt.lns.rounding import noise_keys
from hf_relopt.optim.options import OPTIONS
from hf_relopt.optim.rules import MEMORIES, RULES, Facts, Rule
from hf_relopt.rules import fromage
from hf_relopt.sharding import WholeNorms

# A float64 weight outside of it must neither look like one that started at zero nor be unbounded.
_FLOAT32_RANGE = (torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max)


@dataclass(frozen=True)
class GroupRule:
    """Decides for tensors of one group and dtype. Equal ones decide alike: a compiler keys on it.

    Args:
        rule: a name in RULES, or in MEMORIES for what a framed tensor remembers.
        options: the group's options without ``lr``, sorted by name.
        dtype: of the weights.
    """

    rule: str
    options: tuple[tuple[str, Any], ...]
    dtype: torch.dtype
    framed: bool = False

    @classmethod
    def of(
        cls, group: Mapping[str, Any], dtype: torch.dtype, memory: str | None = None
    ) -> GroupRule:
        """The one for a param group, or for what its framed tensors remember."""
        names = sorted(set(OPTIONS[group["rule"]]) - {"lr"})
        options = tuple((name, group[name]) for name in names)
        return cls(memory or group["rule"], options, dtype, memory is not None)

    def __call__(
        self,
        state: Mapping[str, Tensor],
        norms: WholeNorms,
        numel: Tensor,
        index: Tensor | None,
        lr: Tensor,
    ) -> Decision:
        """Decide for T tensors; float64 [T] where the device has it, ``lr`` 0-dim.

        Args:
            state: the rule's scalars before this step.
            norms: of weights and gradients.
            numel: entries of each tensor.
            index: int64, each parameter's place in the optimizer; None to round to nearest.
        """
        rule = MEMORIES[self.rule] if self.framed else RULES[self.rule]
        options = dict(self.options)
        if norms.cosine is not None and options["maximize"]:
            norms = replace(norms, cosine=-norms.cosine)
        wide = compute_dtype(self.dtype)
        # Neither inf nor NaN is below a number.
        finite = norms.grad < min(rule.largest_grad, torch.finfo(wide).max)
        learn = finite & (norms.grad > 0)
        state = _advanced(rule, state, norms, finite, learn)
        facts = Facts(
            norms=norms,
            anchor_norm=state.get("anchor_norm", state["step"]),
            step=state["step"],
            numel=numel.clamp(min=1),
            lr=lr,
        )
        coefficients = {
            name: value if value.dtype is torch.bool else value.to(wide)
            for name, value in rule.coefficients(facts, options).items()
        }
        keys = None if index is None else noise_keys(options["seed"], index, facts.step)
        return Decision(state, coefficients, learn, learn & (lr != 0), keys)


def _advanced(
    rule: Rule, state: Mapping[str, Tensor], norms: WholeNorms, finite: Tensor, learn: Tensor
) -> dict[str, Tensor]:
    """Step counts, counters and anchors after this step.

    Args:
        finite: bool [T], is this tensor's gradient usable?
        learn: bool [T], is it not all zero either?
    """
    new = {"step": state["step"] + learn, "skipped": state["skipped"] + ~finite}
    if "anchor_norm" in rule.scalars:
        new["anchor_norm"] = state["anchor_norm"]
        if norms.param is not None:
            new["anchor_norm"] = with_anchors(state["anchor_norm"], norms.param, finite)
    return new


def with_anchors(
    anchor_norm: Tensor,
    param_norm: Tensor,
    finite: Tensor,
    share: Tensor | None = None,
    least: float = 0.0,
) -> Tensor:
    """Make the anchors that are missing where the gradient is usable.

    Args:
        share: of parts of tensors, what each would have of its tensor's norm; with ``least``, see
            rules/fromage.py.
    """
    norm = _in_float32(param_norm)
    if share is not None:
        norm = fromage.part_anchor(norm, _in_float32(share), least)
    fresh = torch.isnan(anchor_norm) & finite
    # Through float32, so that the first step sees what is kept.
    return torch.where(fresh, norm.to(torch.float32).to(norm.dtype), anchor_norm)


def _in_float32(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, norm.clamp(*_FLOAT32_RANGE), 0.0)
