"""What there is to know of each optimizer name, once: code elsewhere asks here, by name or by rule.

Imports the standard library alone: mistyped names are refused before torch is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_relopt.plans.presets import (
    ADAMH,
    FACTORED,
    LR,
    MOMENTUM,
    MUONH,
    SINKHORN,
    SINKHORN_LR,
    SPECTRAL,
    Preset,
)

if TYPE_CHECKING:
    from torch.optim import Optimizer


class Range(NamedTuple):
    """Learning rates that did well, and how far beyond them nothing can be expected."""

    low: float
    high: float

    @property
    def least(self) -> float:
        """Below it next to nothing moves in a run of usual length."""
        return self.low / 5

    @property
    def most(self) -> float:
        """Above it weights are thrown about: fine-tuning at 0.01 ended at chance."""
        return self.high * 3


# Of optimizers on the sphere of each matrix's first norm, for a model card.
SPHERE_WORDS = "a hyperball optimizer: [Wen et al., 2026](https://arxiv.org/abs/2606.16899)"

# The default from scratch is that of a run of this many steps; the best one falls with their number
# to this power, as ArchScale found it to under a hyperball. On characters it ends at 1.786 in place
# of 1.859 after 600 steps, and at 1.527 in place of 1.532 after 4,000:
# benchmarks/results/quality_shakespeare_cpu_202611.md.
USUAL_STEPS = 2000
_POWER = -0.32

# The ranges are measured: docs/coming-from-adamw.md says where.
_FROM_SCRATCH, _FINE_TUNING = Range(0.01, 0.03), Range(0.001, 0.003)


@dataclass(frozen=True)
class OptimizerEntry:
    """One name for ``--optim`` and ``create_optimizer``.

    Attributes:
        home: the class, or "module:class" where importing it loads torch.
        rule: the rule of all weights without an override; a key of optim.rules.RULES.
        words: one sentence for a model card, with the paper.
        directions: the card's words for each value of ``direction`` but the gradient.
        spheres: what matrices on the sphere of their first norm are called, by ``direction``.
        preset: what the name gives to each role; None if it gives all weights the same.
        from_scratch_lr: the default learning rate of training from scratch.
        lr_falls: is the default there lower in long runs?
        from_scratch: learning rates that did well there.
        fine_tuning: learning rates that did well in full fine-tuning.
        bound: for ``--optim_args``, what bounds the weights in place of a weight decay; or "".
        decay: for ``--optim_args``, its own decay, beside AdamW's betas; or "".
        divides_by_norm: each gradient is divided by its own norm, so that clipping changes nothing.
    """

    home: str | type[Optimizer]
    rule: str
    words: str
    directions: Mapping[str, str] = field(default_factory=dict)
    spheres: Mapping[str, str] = field(default_factory=dict)
    preset: Preset | None = None
    from_scratch_lr: float = 0.01
    lr_falls: bool = False
    from_scratch: Range = _FROM_SCRATCH
    fine_tuning: Range = _FINE_TUNING
    bound: str = ""
    decay: str = ""
    divides_by_norm: bool = False

    def lr_from_scratch(self, steps: int | None = None) -> float:
        """The default learning rate of training from scratch in a run of ``steps``.

        Of two digits, and within the range that did well: from 230 steps to 17,000 it falls.
        """
        if steps is None or not self.lr_falls:
            return self.from_scratch_lr
        lr = self.from_scratch_lr * float(max(1, steps) / USUAL_STEPS) ** _POWER
        return float(f"{min(max(lr, self.from_scratch.low), self.from_scratch.high):.1e}")

    @property
    def lr_words(self) -> str:
        """The default learning rate of training from scratch in words."""
        return f"{self.from_scratch_lr:g}" + (f" for {USUAL_STEPS:,} steps" * self.lr_falls)

    def load(self) -> Any:
        """The class."""
        if not isinstance(self.home, str):
            return self.home
        module, _, name = self.home.partition(":")
        return getattr(importlib.import_module(module), name)


_FROMAGE = OptimizerEntry(
    home="hf_relopt.optim.fromage:Fromage",
    rule="fromage",
    words="Fromage: each weight tensor moves by a fixed fraction of its own norm "
    "([Bernstein et al., 2020](https://arxiv.org/abs/2002.03432))",
    directions={
        "momentum": "the momentum",
        "spectral": "the orthogonalized momentum "
        "([Amsel et al., 2025](https://arxiv.org/abs/2505.16932))",
        "adam": "the momentum over the root of the second moment",
        "rms": "the gradient over its running root mean square",
        "sinkhorn": "the gradient with rows and columns of one size "
        "([Scetbon et al., 2025](https://arxiv.org/abs/2502.06742))",
        "factored": "the gradient over the usual sizes of its rows and columns "
        "([Shazeer and Stern, 2018](https://arxiv.org/abs/1804.04235))",
    },
    spheres={"adam": "AdamH", "spectral": "MuonH"},
    bound="p_bound=1.0",
    divides_by_norm=True,
)
_MADAM = OptimizerEntry(
    home="hf_relopt.optim.madam:Madam",
    rule="madam",
    words="Madam: each weight is multiplied by a factor near one "
    "([Bernstein et al., 2020](https://arxiv.org/abs/2006.14560))",
    from_scratch=Range(0.01, 0.05),
    bound="p_scale=3.0",
    decay="beta=0.999",
)
_INTEGER_MADAM = replace(
    _MADAM,
    home="hf_relopt.optim.integer_madam:IntegerMadam",
    rule="integer_madam",
    words="Integer Madam: weights stored as logarithms of few bits move by whole numbers of levels "
    "([Bernstein et al., 2020](https://arxiv.org/abs/2006.14560))",
    bound="",
)
_PRESET = replace(
    _FROMAGE,
    from_scratch_lr=LR,
    from_scratch=Range(0.01, 0.04),
    fine_tuning=Range(0.001, 0.002),
    # Embeddings are bounded closely as they stand.
    bound="matrix.p_bound=2.0",
    decay="momentum=0.9",
)
_WITHOUT_MOMENTUM = replace(
    _PRESET, from_scratch_lr=SINKHORN_LR, from_scratch=Range(0.03, 0.1), decay=""
)
# What decays is with AdamW: matrices keep their norm.
_HYPERBALL = replace(_PRESET, fine_tuning=Range(0.001, 0.003), bound="embedding.weight_decay=0.1")

OPTIMIZERS: dict[str, OptimizerEntry] = {
    "fromage": _FROMAGE,
    "madam": _MADAM,
    "integer_madam": _INTEGER_MADAM,
    "fromage_spectral": replace(_PRESET, preset=SPECTRAL, lr_falls=True),
    "fromage_momentum": replace(_PRESET, preset=MOMENTUM),
    "fromage_sinkhorn": replace(_WITHOUT_MOMENTUM, preset=SINKHORN),
    "fromage_factored": replace(_WITHOUT_MOMENTUM, preset=FACTORED),
    "muonh": replace(_HYPERBALL, preset=MUONH),
    "adamh": replace(_HYPERBALL, preset=ADAMH),
}


def rule_of_name(optim: str) -> str:
    """The rule of an optimizer's weights without an override; other names as they are."""
    return OPTIMIZERS[optim].rule if optim in OPTIMIZERS else optim


def preset_of(optim: str) -> Preset | None:
    """The preset of this name; None for others."""
    return OPTIMIZERS[optim].preset if optim in OPTIMIZERS else None


def rules_of_name(optim: str) -> tuple[str, ...]:
    """The rules of an optimizer's weights without an override, its own first."""
    preset = preset_of(optim)
    return preset.rules if preset else (rule_of_name(optim),)


def entry_of_rule(rule: str) -> OptimizerEntry | None:
    """The optimizer that gives all weights this rule; None for AdamW, which has no name of ours."""
    own = (entry for entry in OPTIMIZERS.values() if entry.rule == rule and entry.preset is None)
    return next(own, None)


def follows_spectral(optim: str, options: Mapping[str, Any]) -> bool:
    """True if matrices have direction "spectral" without an override."""
    preset = preset_of(optim)
    return {**(preset.others if preset else {}), **options}.get("direction") == "spectral"


def in_place_of_decay(optim: str) -> str:
    """The end of a sentence that refuses a weight decay."""
    bound = OPTIMIZERS[optim].bound
    return f", and use --optim_args {bound} to bound the weights" if bound else ""
