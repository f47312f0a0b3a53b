"""Which learning rates make sense: by optimizer (its entry says which), and by what is trained."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from torch import nn

from hf_relopt.plans.entries import OPTIMIZERS, Range, rule_of_name
from hf_relopt.plans.lazy_weights import require_shapes
from hf_relopt.plans.plan import FINE_TUNING_LR, Overrides, Plan, adapters_of, looks_pretrained

_logger = logging.getLogger("hf_relopt")

ADAPTER_LR = 0.03
# Prompts start far longer than the words of a model, VeRA's vectors act through fixed matrices; OSF
# trains parts of the model's own weights. benchmarks/results/adapters_sst2_cpu_202611.md
_OF_KIND = {"prompt_tuning": 0.1, "multitask_prompt_tuning": 0.1, "vera": 0.1, "pvera": 0.1}
_OF_KIND["osf"] = FINE_TUNING_LR
# What PEFT's kinds of adapters are called; others are called as PEFT spells them.
_NAMES = {"lora": "LoRA", "adalora": "AdaLoRA", "ia3": "IA3", "loha": "LoHa", "lokr": "LoKr"}
_NAMES |= {"oft": "OFT", "boft": "BOFT", "vera": "VeRA", "fourierft": "FourierFT"}

Situation = Literal["untrained", "pretrained", "adapters"]


class Look(NamedTuple):
    """What a look at a model says of it.

    Attributes:
        situation: what is trained.
        evidence: what it is judged by, in words.
        adapters: the kinds of adapters in PEFT's words, those of most parameters first.
    """

    situation: Situation
    evidence: str
    adapters: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Why the default learning rate is what it is, in a few words."""
        if self.situation == "adapters":
            return f"the model has {self.kinds} adapters to train"
        return f"the model looks {self.situation}"

    @property
    def kinds(self) -> str:
        """What the adapters are called."""
        return " and ".join(_NAMES.get(kind, kind) for kind in self.adapters)


# Of a part of the weights: a new head has 0.01 in fine-tuning.
_ANYWHERE = Range(0.001, 0.05)


def look_at(model: nn.Module) -> Look:
    """Say whether the model is untrained or pretrained, or adapters are trained on it.

    Raises:
        ConfigError: a lazy module has not made its weights yet.
    """
    require_shapes(model)
    adapters = adapters_of(model)
    if adapters:
        return Look("adapters", "the weights that they adapt are frozen", tuple(adapters))
    pretrained, evidence = looks_pretrained(model)
    return Look("pretrained" if pretrained else "untrained", evidence)


def default_for(look: Look, optim: str, steps: int | None = None) -> float:
    """The learning rate if nobody gives one.

    Args:
        steps: those of the run; None if nobody knows.
    """
    if look.situation == "adapters":
        return _OF_KIND.get(look.adapters[0], ADAPTER_LR)
    if look.situation == "pretrained":
        return FINE_TUNING_LR
    return OPTIMIZERS[optim].lr_from_scratch(steps)


def why_default(look: Look, optim: str, steps: int | None = None) -> str:
    """Why ``default_for`` is what it is, as the end of a sentence."""
    if default_for(look, optim, steps) == default_for(look, optim):
        return f" and {look.words}"
    return f", {look.words} and the run has {steps:,} steps"


def default_lrs(optim: str) -> str:
    """The default learning rates in words, for those who must choose without a look at a model."""
    return (
        f"{OPTIMIZERS[optim].lr_words} from scratch, {FINE_TUNING_LR:g} for a pretrained model, "
        f"{ADAPTER_LR:g} for LoRA"
    )


def range_for(look: Look, optim: str) -> Range:
    """The learning rates that did well."""
    if look.situation == "adapters" and default_for(look, optim) != FINE_TUNING_LR:
        return Range(default_for(look, optim) / 3, default_for(look, optim))
    if look.situation != "untrained":
        return OPTIMIZERS[optim].fine_tuning
    return OPTIMIZERS[optim].from_scratch


def remark_on(lr: float, look: Look | None, optim: str) -> str | None:
    """One sentence on a learning rate with which nothing would be learned; None for others.

    Args:
        lr: the peak of a schedule. 0 is no slip: it is said on purpose.
        look: None if nobody knows the model.
    """
    name = f"learning rate {lr:g}"
    if look is None:
        return _remark(name, lr, _ANYWHERE, optim, "in most cases")
    kind = {"untrained": "from scratch", "pretrained": "in fine-tuning"}
    here = kind.get(look.situation, f"for {look.kinds}")
    where = f"{here}. Leave it out for {default_for(look, optim):g}"
    return _remark(name, lr, range_for(look, optim), optim, where)


def remark_on_part(lr: float, optim: str, name: str) -> str | None:
    """The same for a part of the weights, which may be new where others are pretrained."""
    where = "in most cases. Leave it out for that of the other weights"
    return _remark(f"{name} is {lr:g}, which", lr, _ANYWHERE, optim, where)


def _remark(name: str, lr: float, fit: Range, optim: str, where: str) -> str | None:
    if lr == 0 or fit.least <= lr <= fit.most:
        return None
    does = (
        "hardly moves anything: it looks like AdamW's"
        if lr < fit.least
        else f"is too large: each step changes the weights by {lr:.0%} of their size"
    )
    return (
        f"{name} {does}. Under {optim} a learning rate is the size of a step relative to the "
        f"weights; {fit.low:g} to {fit.high:g} make sense {where}."
    )


def remarks(
    chosen: Plan,
    overrides: Overrides | None,
    *,
    lr_is_given: bool,
    look: Callable[[], Look] | None,
) -> Iterator[str]:
    """Sentences on learning rates that a user is unlikely to mean.

    Args:
        chosen: the plan with ``overrides``.
        lr_is_given: the plan's own learning rate is the user's, not a default.
        look: at the model. It reads norm weights, and gathers sharded ones, so it is called only
            where there is something to say. None: nobody knows the model.
    """
    lr, optim = float(chosen.lr), chosen.optim
    if lr_is_given and not _fits_everywhere(lr, optim):
        inner = {"matrix", "embedding", "conv", "lora"} & {entry.role for entry in chosen.entries}
        # A head alone on a frozen model is new, whatever the model looks like.
        here = look() if look is not None and inner else None
        yield from filter(None, [remark_on(lr, here, optim)])
    for target, changes in (overrides or {}).items():
        rule = changes.get("rule", rule_of_name(optim))
        named = {each.options["rule"] for each in chosen.entries if target in each.overrides}
        if "lr" in changes and (named or {rule}) != {"adamw"}:
            yield from filter(None, [remark_on_part(float(changes["lr"]), optim, f"{target}.lr")])
        if "lr" not in changes and rule == "adamw" and _lacks_lr(chosen, target, overrides or {}):
            yield (
                f"{target}.rule is adamw and {target}.lr is not given: AdamW runs there at "
                f"{lr:g}, the relative learning rate of {optim}. Give it one of its own, such as "
                f"{target}.lr=0.001 (AdamW's are most often 1e-5 to 3e-3)."
            )


@functools.cache
def warn_once(remark: str) -> None:
    """Log a remark, once in a process and on the main rank; it is advice, and breaks no run."""
    if os.environ.get("RANK", "0") == "0":
        _logger.warning("%s", remark)


def _fits_everywhere(lr: float, optim: str) -> bool:
    every = [OPTIMIZERS[optim].from_scratch, OPTIMIZERS[optim].fine_tuning]
    return lr == 0 or max(one.least for one in every) <= lr <= min(one.most for one in every)


def _lacks_lr(chosen: Plan, target: str, overrides: Overrides) -> bool:
    """Say whether a weight that ``target`` gives to AdamW follows the others' learning rate."""
    return any(
        entry.options["rule"] == "adamw"
        and entry.options.get("lr_factor") is None
        and target in entry.overrides
        and not any("lr" in overrides[own] for own in entry.overrides)
        for entry in chosen.entries
    )
