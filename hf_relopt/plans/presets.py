"""Presets: optimizer names that stand for settings of Fromage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Of a classifier or a question answerer: it has a few rows and often no training yet.
TASK_HEAD = "task head"
_HEAD_START, _UNTRAINED = 10.0, 0.01
# Of prompt tuning and prefix tuning: tables that start at random. Along the gradient prefixes reach
# 67.5 % on SST-2 in 100 steps; along a momentum, spectral or not, they learn nothing in that time.
PROMPTS = "prompts"
# Of a model that is trained by prompts alone, which starts as new as they are. At the learning rate
# of the prompts nothing is learned on SST-2 in 100 steps; at three times it there are 74.7 % and
# 64.0 % (two seeds): benchmarks/results/adapters_sst2_cpu_202611.md.
PROMPTS_HEAD = "task head beside prompts"
_OF_A_MOMENTUM = {"momentum", "nesterov", "momentum_dtype", "beta"}


@dataclass(frozen=True)
class Preset:
    """The rule and options that a preset gives to each role.

    Attributes:
        rule: the rule of the weights whose role names no other.
        others: options of roles that are not in ``roles``.
        roles: options by role, its ``rule`` among them where it is another one; TASK_HEAD: see
            roles.is_for_a_task; PROMPTS: PEFT's prompts; PROMPTS_HEAD: a task head beside these
            alone; "lora": PEFT's adapters of every shape.
        cut: roles whose fused weights are split into their matrices.
        of_task_head: ``lr_factor`` of a task head at a learning rate.
    """

    rule: str
    others: Mapping[str, Any]
    roles: Mapping[str, Mapping[str, Any]]
    cut: tuple[str, ...]
    of_task_head: Callable[[float], float | None]

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules of its weights, its own first."""
        every = (self.rule, *map(self.rule_of, self.roles))
        return tuple(dict.fromkeys(every))

    def rule_of(self, role: str) -> str:
        """The rule of a role."""
        rule: str = self.roles.get(role, self.others).get("rule", self.rule)
        return rule

    def options_of(
        self, role: str, given: Mapping[str, Any], lr: float | Tensor = 0.0
    ) -> dict[str, Any]:
        """The preset's options for a role at ``lr``, without those that ``given`` replaces."""
        asks_for_one = any(given.get(name) is not None for name in _OF_A_MOMENTUM)
        without = role == PROMPTS and asks_for_one
        own = dict(self.roles.get("lora" if without else role, self.others))
        own.pop("rule", None)
        if role == TASK_HEAD:
            own["lr_factor"] = self.of_task_head(float(lr))
        if given.get("bound") is not None:
            own.pop("p_bound", None)
        if given.get("p_bound") is not None:
            own.pop("bound", None)
        if "lr" in given:
            own.pop("lr_factor", None)
        if given.get("direction", own.get("direction")) != own.get("direction"):
            # The rest of what the preset says belongs to its direction.
            own = {name: own[name] for name in ("direction", "scale", "bound") if name in own}
        return own


# A task's head has few rows, and all of them a gradient in each step.
_BY_ROW: Mapping[str, Any] = {"direction": "momentum", "scale": "row"}
# Of a table of tokens a step may touch few rows, and most of what the others see is noise. Were
# each gradient divided by its own norm, every token that occurs would move by a whole step; divided
# by its usual size, it moves as far as this gradient says. That takes one number per row and no
# momentum. A head of tokens is the mirror image of their table. Neither maps one space of features
# to another, where equal singular values make sense. Numbers: docs/decisions.md.
_OF_TOKENS: Mapping[str, Any] = {"direction": "rms", "scale": "row"}
# From scratch their steps are a twentieth of their norms, beside matrices at .02 and at .06.
_FASTER: Mapping[str, Any] = {**_OF_TOKENS, "lr_factor": 2.5}
# Rows of a table keep to their first norms: what grows follows noise, and overfits a text that
# comes again. A head that is not tied has to grow.
_HELD: Mapping[str, Any] = {"p_bound": 1.0}


def task_head_lr_factor(lr: float) -> float | None:
    """``lr_factor`` of a task head: 10, but less where the product with ``lr`` would exceed 0.01.

    Below 0.01 the model is fine-tuned, but its task head is most often new.
    """
    if lr >= _UNTRAINED:
        return None
    return min(_HEAD_START, _UNTRAINED / lr) if lr else _HEAD_START


def _preset(
    direction: str, of_tokens: Mapping[str, Any], of_matrices: Mapping[str, Any] | None = None
) -> Preset:
    return Preset(
        rule="fromage",
        others={"direction": direction, **(of_matrices or {})},
        roles={
            "lora": {"direction": direction},
            "embedding": {**of_tokens, **_HELD},
            "head": of_tokens,
            TASK_HEAD: _BY_ROW,
            PROMPTS: {"direction": "gradient"},
            PROMPTS_HEAD: {**_BY_ROW, "lr_factor": 3.0},
        },
        cut=("matrix",),
        of_task_head=task_head_lr_factor,
    )


# Learning rates from scratch. The first is the best of .01, .02 and .04 at five sizes after 2,000
# steps, and better than .01 after fewer: benchmarks/results/quality_widths_cpu_202611.md and the
# short one beside it.
LR, SINKHORN_LR = 0.02, 0.06
# Of hyperball optimizers. AdamW's learning rate is an absolute length: a factor leads to it from
# the common one, which a schedule or a loop may still set for all groups. At the matrices' 0.02
# embeddings and heads have 0.003 and vectors 0.001, as in the runs from scratch; a task head has
# 2e-4 at 0.001, as in fine-tuning (benchmarks/results/quality_sst2_cpu_202611.md). The betas are
# those of vectors under the other presets, see options/tables.py.
_ADAMW: Mapping[str, Any] = {"rule": "adamw", "betas": (0.9, 0.99)}
_ADAMW_ROWS: Mapping[str, Any] = {**_ADAMW, "lr_factor": 0.15}
_ADAMW_VECTOR: Mapping[str, Any] = {**_ADAMW, "lr_factor": 0.05}
_ADAMW_TASK_HEAD, _ADAMW_MOST = 0.2, 0.003


def adamw_task_head_lr_factor(lr: float) -> float:
    """``lr_factor`` of a task head under AdamW: 0.2, less where the product would exceed 0.003.

    Adapters and prompts, with which it is trained, have relative learning rates of 0.03 and 0.1.
    """
    return min(_ADAMW_TASK_HEAD, _ADAMW_MOST / lr) if lr else _ADAMW_TASK_HEAD


def _hyperball(direction: str) -> Preset:
    adapters = {"direction": direction}  # many start at zero: a sphere there has no radius
    # AdamW at 0.006 leaves a task head beside prompts at chance, where this one learns.
    by_row = {**_BY_ROW, "direction": "adam" if direction == "adam" else _BY_ROW["direction"]}
    return Preset(
        rule="fromage",
        others={"direction": direction, "bound": "sphere"},
        roles={
            "embedding": _ADAMW_ROWS,
            "head": _ADAMW_ROWS,
            TASK_HEAD: _ADAMW_ROWS,
            "vector": _ADAMW_VECTOR,
            "scalar": _ADAMW_VECTOR,
            "lora": adapters,
            PROMPTS: {"direction": "gradient"},
            PROMPTS_HEAD: {**by_row, "lr_factor": 3.0},
        },
        cut=("matrix",),
        of_task_head=adamw_task_head_lr_factor,
    )


ADAMH = _hyperball("adam")
MUONH = _hyperball("spectral")
SPECTRAL = _preset("spectral", _FASTER, {"beta": 0.95})
MOMENTUM = _preset("momentum", _FASTER)
SINKHORN = _preset("sinkhorn", _OF_TOKENS)
FACTORED = _preset("factored", _OF_TOKENS)
