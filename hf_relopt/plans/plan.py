"""The plan: the rule and options of each trainable weight, printable as a table."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from hf_relopt.errors import ConfigError
from hf_relopt.lns.tensor import lns_of
from hf_relopt.plans.directions import read_by
from hf_relopt.plans.entries import rule_of_name
from hf_relopt.plans.fused_qkv import split_of
from hf_relopt.plans.presets import PROMPTS, PROMPTS_HEAD, TASK_HEAD, Preset
from hf_relopt.plans.roles import (
    adapted_part,
    adapter_of,
    home_of,
    is_for_a_task,
    is_vector,
    role_of,
    steps_as_vector,
    token_table,
)

# The learning rate of pretrained weights.
FINE_TUNING_LR = 0.001
# PEFT's kinds of adapters that are prompts alone.
_PROMPT_TUNING = {"prompt_tuning", "multitask_prompt_tuning"}
# PEFT's trainable tokens follow a multiple of the learning rate: they are new, and may be rare. At
# 0.09, three times the default of adapters, the paper's rule learns them too; at 0.03 it does not.
TOKENS_LR_FACTOR = 3.0
# Options that say how a weight is cut.
CUTTING = ("scale", "split_dim", "split_sizes")

Overrides = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One trainable tensor.

    Attributes:
        name: the weight's first name in the model; ``tied`` holds its other names.
        role: one of roles.ROLES.
        zero_start: True if all of its entries are zero now.
        options: ``rule`` and ``lr``, and whatever the overrides say.
        overrides: the roles and patterns of the overrides that apply to it, in order.
    """

    name: str
    param: Tensor
    role: str
    zero_start: bool
    tied: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The rule and options of every trainable weight of a model; ``print(plan)`` shows a table.

    Attributes:
        optim: name of the optimizer.
        entries: one for each weight to train, in the model's order.
        skipped: one for each weight that an override leaves out of training.
        options: the optimizer's own options.
        lr: the learning rate of all weights without an override of ``lr``.
    """

    optim: str
    entries: tuple[Entry, ...]
    skipped: tuple[Entry, ...]
    options: dict[str, Any]
    lr: float | Tensor

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Param groups: one for each role, set of options and device, with ``param_names``."""
        groups: dict[Any, dict[str, Any]] = {}
        for entry in self.entries:
            key = (entry.role, entry.param.device, _key(entry.options))
            group = groups.setdefault(key, {"params": [], "role": entry.role, **entry.options})
            group["params"].append((entry.name, entry.param))
        return list(groups.values())

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("role", "follows", "lr", "tensors", "parameters", "first")]
        lines: dict[Any, list[Entry]] = {}
        for entry in self.entries:
            lr = f"{followed_lr(self.options_of(entry)):g}"
            lines.setdefault((entry.role, self._follows(entry), lr), []).append(entry)
        for (role, follows, lr), entries in lines.items():
            numel = sum(entry.param.numel() for entry in entries)
            rows.append((role, follows, lr, str(len(entries)), f"{numel:,}", _first(entries)))
        for entry in self.skipped:
            numel = entry.param.numel()
            rows.append((entry.role, "not trained", "-", "1", f"{numel:,}", entry.name))
        total = sum(entry.param.numel() for entry in self.entries)
        title = f"{self.optim}: {len(self.entries)} tensors, {total:,} parameters"
        return "\n".join([title, *_table(rows)])

    def options_of(self, entry: Entry) -> dict[str, Any]:
        """All options of an entry: its own, over the optimizer's if the rule is the same."""
        common = self.options if entry.options["rule"] == rule_of_name(self.optim) else {}
        return {**common, **entry.options, "role": entry.role}

    def _follows(self, entry: Entry) -> str:
        words = follows(entry.param, self.options_of(entry))
        from_zero = entry.zero_start and entry.options["rule"] != "adamw"
        return f"{words}, from zero by min_scale" if from_zero else words


def build(
    model: nn.Module,
    optim: str,
    lr: float | Tensor,
    *,
    overrides: Overrides | None = None,
    options: Mapping[str, Any] | None = None,
    preset: Preset | None = None,
) -> Plan:
    """Give each trainable weight of ``model`` its role, rule and options.

    Args:
        options: of every weight; they win over ``preset``.
        preset: the rule and options of each role.
        overrides: role or name pattern (``fnmatch``) -> options for the weights it names: ``lr``,
            ``rule``, the rule's own options, or ``skip: True`` for no training. Later ones win.

    Raises:
        ConfigError: an override matches no trainable weight.
    """
    overrides = dict(overrides or {})
    used: set[str] = set()
    entries: list[Entry] = []
    skipped: list[Entry] = []
    adapting = adapters_of(model)
    task_head = PROMPTS_HEAD if adapting and adapting[0] in _PROMPT_TUNING else TASK_HEAD
    for name, param, tied in _trainable(model):
        home = home_of(model, name)
        module = model.get_submodule(home.rpartition(".")[0])
        role = role_of(model, name, tied, param, module)
        kind = _kind(model, name, role, param, module)
        kind = task_head if kind == TASK_HEAD else kind
        if task_head == PROMPTS_HEAD and kind in ("vector", "scalar"):
            kind = "lora"  # biases beside prompts: what is trained there is one adapter
        names = {name, *tied, home, *(home_of(model, each) for each in tied)}
        own_lr = _beside_adapters(model, name, lr) if adapting else lr
        chosen: dict[str, Any] = {"rule": rule_of_name(optim), "lr": own_lr}
        own = tuple(
            target
            for target in overrides
            if target == role or any(fnmatchcase(each, target) for each in names)
        )
        used.update(own)
        said: dict[str, Any] = {}
        for target in own:
            said.update(overrides[target])
        own_rule = preset.rule_of(kind) if preset else chosen["rule"]
        rule = said.get("rule", own_rule)
        if preset is not None and rule == own_rule:
            # An optimizer's own options are those of its rule.
            common = (options or {}) if rule == preset.rule else {}
            asked = {**common, **said}
            chosen.update(preset.options_of(kind, asked, own_lr), rule=rule)
            given = {*common, *({"scale"} & said.keys())}
            if rule == preset.rule and role in preset.cut and given.isdisjoint(CUTTING):
                chosen.update(split_of(model, home, module, param))
            # What is given for all weights is for those that read it.
            direction = asked.get("direction", chosen.get("direction", "gradient"))
            chosen.update(read_by(direction, common))
        asked = {**(options or {}), **said} if rule == rule_of_name(optim) else said
        chosen.update(_of_tokens(model, name, rule, asked, own_lr))
        chosen.update(said)
        skip = chosen.pop("skip", False)
        entry = Entry(name, param, role, _is_zero(param), tied, chosen, own)
        (skipped if skip else entries).append(entry)
    for target in overrides:
        if target not in used:
            present = sorted({entry.role for entry in (*entries, *skipped)})
            near = difflib.get_close_matches(target, present, n=1)
            raise ConfigError(
                f"The override {target!r} matches no trainable weight. Use a role that the model "
                f"has ({', '.join(present)}) or a pattern over its names, such as "
                f"{(entries or skipped)[0].name!r}.{f' Did you mean {near[0]}?' if near else ''}"
                if entries or skipped
                else f"The override {target!r} matches nothing: the model has no trainable weight."
            )
    return Plan(optim, tuple(entries), tuple(skipped), dict(options or {}), lr)


def _kind(model: nn.Module, name: str, role: str, param: Tensor, module: nn.Module) -> str:
    """What a preset distinguishes a weight by: its role, or one of the kinds within it."""
    if adapter_of(model, name) is not None:
        return PROMPTS if role == "lora" and isinstance(module, nn.Embedding) else "lora"
    if is_vector(param):
        # A head of one output is stepped entry by entry, at the learning rate of vectors.
        return role if role == "scalar" else "vector"
    return TASK_HEAD if role == "head" and is_for_a_task(model) else role


def adapters_of(model: nn.Module) -> list[str]:
    """The kinds of adapters to train, named as in PEFT, those with most parameters first.

    Empty if most of the adapted weights are trained as well: then it is the model that is trained.
    """
    sizes: dict[str, int] = {}
    frozen = trained = 0
    for name, param in model.named_parameters():
        kind = adapter_of(model, name)
        if not param.requires_grad:
            frozen += param.numel() if kind is None else 0
        elif kind is None:
            trained += param.numel()
        else:
            sizes[kind] = sizes.get(kind, 0) + param.numel()
    return sorted(sizes, key=lambda kind: -sizes[kind]) if frozen >= trained else []


def looks_pretrained(model: nn.Module) -> tuple[bool, str]:
    """Whether the model looks pretrained, and the evidence in words.

    Transformers initialises all norm weights to one value, and training moves them apart. A model
    without norms looks pretrained if its configuration names what it was loaded from.
    """
    gains = [
        (name, param)
        for module_name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, param in ((f"{module_name}.weight", getattr(module, "weight", None)),)
        if isinstance(param, Tensor) and param.dim() == 1 and not param.is_meta
    ]
    for name, gain in gains:
        gain = _whole(gain)
        if gain.numel() > 1 and bool((gain != gain[0]).any()):
            return True, f"the entries of {name} differ, as they do after training"
    if gains:
        return False, "all its norm weights are constant, as they are before training"
    source = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    return (
        (True, f"it was loaded from {source}")
        if source
        else (False, "its configuration names no source")
    )


def follows(param: Tensor, options: Mapping[str, Any]) -> str:
    """The update of a weight in words, from its options (``rule`` and ``role`` among them)."""
    rule = options["rule"]
    direction, scale = options.get("direction", "gradient"), options.get("scale", "tensor")
    if rule == "integer_madam":
        codes = lns_of(param)
        return "madam" if codes is None else f"{rule}, {codes.form.name}"
    if rule != "fromage" or (direction, scale) == ("gradient", "tensor"):
        return rule
    if steps_as_vector(options, param):
        return rule if direction == "gradient" else f"{rule}, entry by entry"
    sizes = options.get("split_sizes")
    if isinstance(sizes, int):
        sizes = f"{sizes} blocks"
    elif sizes is not None:
        sizes = f"blocks of {', '.join(map(str, sizes))}"
    how = {"row": "by row", "block": sizes or f"{param.shape[0]} blocks"}
    return ", ".join([rule, direction, *([how[scale]] if scale in how else [])])


def _beside_adapters(model: nn.Module, name: str, lr: float | Tensor) -> float | Tensor:
    """The learning rate of a weight in a model whose adapters are trained at ``lr``.

    A weight of the adapted model is pretrained and has 0.001 at most. A task head is as new as the
    adapters and has ``lr``: PEFT trains and saves it with its adapter.
    """
    part = adapted_part(model, name)
    is_new = part is not None and is_for_a_task(part) and ".modules_to_save." in name
    if part is None or is_new or adapter_of(model, name) is not None:
        return lr
    return lr.clamp(max=FINE_TUNING_LR) if isinstance(lr, Tensor) else min(lr, FINE_TUNING_LR)


def _of_tokens(
    model: nn.Module, name: str, rule: str, asked: Mapping[str, Any], lr: float | Tensor
) -> dict[str, Any]:
    """Options of PEFT's trainable tokens, rows of a table, beside those that are ``asked`` for.

    A new token's row is the mean of the others, much shorter than they are. The table says how long
    it has to become: its root mean square stands in for the row's own.
    """
    table = token_table(model, name)
    if table is None or rule == "adamw":
        return {}
    own: dict[str, Any] = {}
    size = _root_mean_square(table)
    if size:
        own["min_scale"] = size
    if rule == "fromage" and "lr" not in asked and float(lr) * TOKENS_LR_FACTOR < 1:
        own["lr_factor"] = TOKENS_LR_FACTOR
    return {option: value for option, value in own.items() if option not in asked}


def _root_mean_square(table: Tensor) -> float | None:
    """Of all entries, to three digits, so that it is the same on every device; None if unknown."""
    if table.is_meta or table.numel() == 0 or not table.is_floating_point() or table.itemsize < 2:
        return None
    dtype = torch.promote_types(table.dtype, torch.float32)
    norm = float(_whole(torch.linalg.vector_norm(table.detach(), dtype=dtype)))
    return float(f"{norm / table.numel() ** 0.5:.3g}") if math.isfinite(norm) else None


def _trainable(model: nn.Module) -> Iterator[tuple[str, Tensor, tuple[str, ...]]]:
    """(first name, tensor, its other names) of each trainable tensor once."""
    names: dict[Tensor, list[str]] = {}
    for name, named in model.named_parameters(remove_duplicate=False):
        if named.requires_grad:
            names.setdefault(named, []).append(name)
    for param, (first, *tied) in names.items():
        yield first, param, tuple(tied)


def _is_zero(param: Tensor) -> bool:
    if param.is_meta or param.numel() == 0:
        return False
    return not float(_whole(torch.linalg.vector_norm(param.detach(), ord=1)))


def _whole(tensor: Tensor) -> Tensor:
    """The full tensor of a DTensor, on every rank; other tensors as they are."""
    gather = getattr(tensor.detach(), "full_tensor", None)
    return tensor if gather is None else gather()


def _key(options: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(
        sorted((name, id(v) if isinstance(v, Tensor) else str(v)) for name, v in options.items())
    )


def peak_lr(group: Mapping[str, Any]) -> float:
    """The learning rate of a group, or the one that its schedule starts from."""
    return float(group.get("initial_lr", group["lr"]))


def followed_lr(group: Mapping[str, Any]) -> float:
    """The same for the group's weights: times ``lr_factor``."""
    scale = group.get("lr_factor")
    return peak_lr(group) * (1.0 if scale is None else scale)


def _first(entries: list[Entry]) -> str:
    first = entries[0]
    tied = f" (tied: {', '.join(first.tied)})" if first.tied else ""
    return first.name + tied


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows as lines with aligned columns, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numeric = (2, 3, 4)
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if i in numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
