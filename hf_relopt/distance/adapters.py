"""LoRA adapters against their base: dW = s B A from the factors, without making dW.

    |BA|^2 = tr( (B^T B)(A A^T) )
    sigma(BA) = sigma( R_B R_A^T )       B = Q_B R_B,  A^T = Q_A R_A

A PEFT model in memory is read from its modules, an adapter's folder from its file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_relopt.distance.files import ADAPTER, ADAPTER_WEIGHTS, weights_in
from hf_relopt.distance.weights import HeldWeights, Slices, Weights
from hf_relopt.errors import ConfigError, FormatError, one_line
from hf_relopt.sharding.layout import Layout

# What PEFT's layers say, by adapter, of what is more than scaled factors.
_VARIANTS = ("lora_variant", "use_dora", "lora_bias")
_SETTINGS = ("use_dora", "use_qalora", "lora_bias", "alora_invocation_tokens", "target_parameters")
MERGE = "Merge it (`PeftModel.merge_and_unload()`), save the result and compare that."


@dataclass(frozen=True)
class LowRank:
    """The change of one weight: factors that are multiplied.

    Attributes:
        b: [m, r], scaled.
        a: [r, n].
        shape: of the weight; [m, n], or what has as many rows and entries.
        transposed: the weight is [n, m], as that of GPT-2's Conv1D and of embeddings.
    """

    b: Tensor
    a: Tensor
    shape: torch.Size
    transposed: bool = False

    def square(self) -> Tensor:
        """|BA|^2, float64."""
        a, b = self.a.double(), self.b.double()
        return ((b.T @ b) * (a @ a.T)).sum()

    def spectral_norm(self) -> Tensor:
        """The largest singular value of BA, float64."""
        a, b = self.a.double(), self.b.double()
        return torch.linalg.matrix_norm(
            torch.linalg.qr(b, "r")[1] @ torch.linalg.qr(a.T, "r")[1].T, ord=2
        )

    def read(self, where: Slices) -> Tensor:
        """A piece of BA in the weight's shape; whole in all dimensions after the second."""
        left, right = (self.a.T, self.b.T) if self.transposed else (self.b, self.a)
        rows = left[where[0]].float()
        if len(self.shape) == 2:
            return rows @ right[:, where[1]].float()
        whole = (rows @ right.float()).view(len(rows), *self.shape[1:])
        inner: Slices = (slice(None), *where[1:])
        return whole[inner]


class AdaptedWeights:
    """A base whose weights are changed by an adapter.

    Args:
        base: the weights below.
        changes: by name: of those that the adapter changes.
        replaced: weights that the adapter holds in full, as a new head.
        label: what it is.

    Raises:
        ConfigError: the adapter belongs to another base.
    """

    def __init__(
        self, base: Weights, changes: Mapping[str, LowRank], replaced: Weights, label: str
    ) -> None:
        self.label, self.base, self._replaced = label, base, replaced
        self.in_order = base.in_order
        self.changes = dict(changes)
        lost = [name for name in changes if name not in base.shapes]
        if lost:
            raise ConfigError(
                f"{label} changes {lost[0]}, which {base.label} does not have "
                f"({len(lost)} of {len(changes)} weights). Pass the base it was trained on."
            )
        for name, change in changes.items():
            if change.shape != base.shapes[name]:
                raise ConfigError(
                    f"{label} changes {name} in the shape {list(change.shape)}, but in "
                    f"{base.label} it has {list(base.shapes[name])}. Pass the base it was trained "
                    "on."
                )
        self.shapes = {**base.shapes, **replaced.shapes}
        self.others = {**base.others, **replaced.others}
        self.aliases = {**base.aliases, **replaced.aliases}

    def read(self, name: str, where: Slices) -> Tensor:
        """A piece of W + BA, in the precision of the change."""
        if name in self._replaced.shapes:
            return self._replaced.read(name, where)
        piece = self.base.read(name, where)
        change = self.changes.get(name)
        return piece if change is None else piece.float() + change.read(where).to(piece.device)

    def layout(self, name: str) -> Layout | None:
        """As the base lies."""
        return self._replaced.layout(name) or self.base.layout(name)


def is_peft_model(module: nn.Module) -> bool:
    """True for a model of PEFT, or one that PEFT has put adapters into."""
    return hasattr(module, "peft_config")


def of_peft_model(module: nn.Module) -> AdaptedWeights:
    """The weights of a PEFT model with its active adapters.

    Raises:
        ConfigError: adapters whose change is no product of two factors.
    """
    label = type(module).__name__
    changes: dict[str, LowRank] = {}
    held: dict[str, Tensor] = {}
    inside: set[str] = set()
    for path, layer in module.named_modules():
        if hasattr(layer, "base_layer"):
            inside.add(path)
            if change := _of_layer(path, layer, label):
                changes[_own_name(f"{path}.weight")] = change
        elif hasattr(layer, "modules_to_save") and hasattr(layer, "original_module"):
            inside.add(path)
            for adapter in layer.active_adapters:
                if adapter in layer.modules_to_save:
                    named = layer.modules_to_save[adapter].named_parameters()
                    held.update({_own_name(f"{path}.{name}"): weight for name, weight in named})
    base: dict[str, Tensor] = {}
    for name, weight in module.named_parameters():
        around = next((path for path in inside if name.startswith(f"{path}.")), None)
        rest = "" if around is None else name[len(around) + 1 :]
        if around is None or rest.startswith(("base_layer.", "original_module.")):
            base[_own_name(name)] = weight
    below = HeldWeights(base, f"the base of {label}")
    return AdaptedWeights(below, changes, HeldWeights(held, label), label)


def base_of(module: nn.Module) -> Weights:
    """The weights of a PEFT model without its adapters."""
    return of_peft_model(module).base


def _own_name(name: str) -> str:
    name = name.removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _of_layer(path: str, layer: Any, label: str) -> LowRank | None:
    """The change of one layer by its active adapters; None where there is none."""
    if getattr(layer, "merged", False) or getattr(layer, "disable_adapters", False):
        return None  # merged, the base's weight has it already
    b, a = [], []
    weight = getattr(layer.get_base_layer(), "weight", None)
    is_embedding = False
    for adapter in layer.active_adapters:
        names = ("lora_embedding_A", "lora_embedding_B")
        is_embedding = adapter in getattr(layer, names[0], {})
        first, second = (getattr(layer, name, {}) for name in names)
        if not is_embedding:
            first, second = getattr(layer, "lora_A", {}), getattr(layer, "lora_B", {})
        if adapter not in first:
            others = [name for name in layer.adapter_layer_names if adapter in getattr(layer, name)]
            if others:
                raise _no_product(label, path, type(layer).__name__)
            continue
        left, right = [
            each if isinstance(each, Tensor) else each.weight
            for each in (first[adapter], second[adapter])
        ]
        left, right = left.detach().flatten(1), right.detach().flatten(1)
        of_layer = [getattr(layer, name, {}).get(adapter) for name in _VARIANTS]
        if any(of_layer) or hasattr(layer, "lora_E") or len(left) != right.size(1):
            raise _no_product(label, path, "a variant of LoRA")
        if weight is None or hasattr(layer, "parameter_name"):
            raise _no_product(label, path, f"{type(layer).__name__}, no layer with one weight")
        a.append(left)
        b.append(right * layer.scaling[adapter])
    if not a or weight is None:
        return None
    turned = is_embedding or bool(getattr(layer, "fan_in_fan_out", False))
    return LowRank(torch.cat(b, dim=1), torch.cat(a), weight.shape, turned)


def _in_base(name: str, base: Weights) -> str:
    """A weight as the base calls it: the file of a body lacks what a head puts in front."""
    if name in base.shapes:
        return name
    shorter = name.partition(".")[2]
    if shorter in base.shapes:
        return shorter
    longer = [other for other in base.shapes if other.partition(".")[2] == name]
    return longer[0] if len(longer) == 1 else name


def in_folder(path: Path, base: Weights) -> AdaptedWeights:
    """The adapter that a folder holds, over ``base``.

    Raises:
        FormatError: the folder cannot be read.
        ConfigError: an adapter whose change is no product of two factors, or of another base.
    """
    config = config_in(path)
    kind = config.get("peft_type")
    variants = [name for name in _SETTINGS if config.get(name)]
    if kind != "LORA" or variants:
        raise _no_product(str(path), "its configuration", variants[0] if variants else str(kind))
    file = next((path / name for name in ADAPTER_WEIGHTS if (path / name).is_file()), None)
    if file is None:
        raise FormatError(f"{path} has {ADAPTER}, but none of {', '.join(ADAPTER_WEIGHTS)}.")
    stored = weights_in(file)
    tensors = {name: stored.read(name, _all_of(shape)) for name, shape in stored.shapes.items()}
    changes: dict[str, LowRank] = {}
    held: dict[str, Tensor] = {}
    for stored_name, tensor in tensors.items():
        name = _own_name(stored_name)
        left = ".lora_embedding_A" if ".lora_embedding_A" in name else ".lora_A."
        if left in name:
            second = stored_name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")
            module = name.partition(left)[0]
            weight = _in_base(f"{module}.weight", base)
            if second not in tensors or weight not in base.shapes:
                raise ConfigError(
                    f"{path} changes {weight}, which {base.label} does not have. Pass the base it "
                    "was trained on."
                )
            factors = tensor.flatten(1), tensors[second].flatten(1)
            shape, scaling = base.shapes[weight], _scaling(config, module, len(tensor))
            size = (len(factors[1]), factors[0].size(1))
            if not _fits(shape, size):
                raise ConfigError(
                    f"{path} changes {weight} by a [{size[0]}, {size[1]}] matrix, but in "
                    f"{base.label} it has the shape {list(shape)}. Pass the base it was trained on."
                )
            turned = "embedding" in left or bool(config.get("fan_in_fan_out"))
            turned = tuple(shape) == size[::-1] and (turned or size[0] != size[1])
            changes[weight] = LowRank(factors[1] * scaling, factors[0], shape, turned)
        elif ".lora_B." in name or ".lora_embedding_B" in name:
            continue
        elif ".lora_" in name or "trainable_tokens" in name:
            raise _no_product(str(path), name, "a variant of LoRA")
        else:
            held[name] = tensor
    return AdaptedWeights(base, changes, HeldWeights(held, str(path)), str(path))


def _fits(shape: torch.Size, size: tuple[int, int]) -> bool:
    """Whether a change of that size is one of a weight of that shape."""
    flat = (shape[0], shape[1:].numel()) if len(shape) >= 2 else ()
    return flat in (size, size[::-1])


def config_in(path: Path) -> dict[str, Any]:
    """What an adapter's folder says of itself."""
    try:
        found = json.loads((path / ADAPTER).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(
            f"{path / ADAPTER} cannot be read: {one_line(error)}. Save the adapter again."
        ) from error
    if not isinstance(found, dict):
        raise FormatError(f"{path / ADAPTER} holds no settings. Save the adapter again.")
    return found


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies BA with: alpha/r, or alpha/sqrt(r)."""
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        # As PEFT matches it: a regular expression for the end of the name.
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _all_of(shape: torch.Size) -> Slices:
    return tuple([slice(0, length) for length in shape])


def _no_product(label: str, where: str, what: str) -> ConfigError:
    return ConfigError(
        f"{label}: {where} is {what}, whose change of a weight is no scaled product of two "
        f"factors, as LoRA's is. {MERGE}"
    )
