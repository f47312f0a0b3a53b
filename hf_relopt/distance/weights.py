"""Weights by name that can be read in pieces: of a module, of a state dict, later of files.

Names are those that both sides of a comparison agree on: what wrappers put in front is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_relopt.errors import ConfigError
from hf_relopt.lns.packing import SCALES
from hf_relopt.lns.tensor import lns_of
from hf_relopt.sharding.layout import Layout, is_sharded, layout_of, local

Slices = tuple[slice, ...]

# What torch.compile, activation checkpointing and FSDP1 put into names.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\."
)
# Buffers of torch and Transformers that are floating-point numbers and no weights.
_BUFFERS = re.compile(
    r"(?:^|\.)(?:running_mean|running_var|num_batches_tracked|inv_freq|masked_bias|position_ids)$"
)
# What comes before the first numbered layer.
_FIRST = re.compile(r"embed|wte|wpe|shared|stem|patch|cls_token|conv1|feature_extractor")


class Weights(Protocol):
    """The weights of a network.

    Attributes:
        label: what it is, for messages and tables.
        shapes: of the full tensors, by name, in network order.
        others: what is stored beside the weights, by name: why it is not one.
        aliases: further names of tied weights: the one they have in ``shapes``.
        in_order: is the order of names the network's own, and not guessed from them?
    """

    in_order: bool
    label: str
    shapes: dict[str, torch.Size]
    others: dict[str, str]
    aliases: dict[str, str]

    def read(self, name: str, where: Slices) -> Tensor:
        """A piece of a weight; a view where that is possible."""

    def layout(self, name: str) -> Layout | None:
        """How a sharded weight lies over the ranks; None where this process has all of it."""


class HeldWeights:
    """Tensors in memory.

    Args:
        tensors: by name, in network order; DTensors among them.
        label: what they are.
        others: names that are known to be no weights, and why.
    """

    in_order = True

    def __init__(
        self, tensors: Mapping[str, Tensor], label: str, others: Mapping[str, str] | None = None
    ) -> None:
        self.label = label
        self.others = dict(others or {})
        self.aliases: dict[str, str] = {}
        self._tensors: dict[str, Tensor] = {}
        self._layouts: dict[str, Layout] = {}
        tied: dict[object, str] = {}
        for name, tensor in tensors.items():
            if reason := not_a_weight(name, tensor.dtype):
                self.others[name] = reason
            elif tensor.layout is not torch.strided:
                self.others[name] = f"stored as {str(tensor.layout).removeprefix('torch.')}"
            elif tensor.is_meta:
                raise ConfigError(
                    f"{label}: {name} is on the meta device and has no values. Load the weights "
                    "first."
                )
            elif (place := _place_of(tensor)) in tied:
                self.others[name] = f"tied to {tied[place]}"
                self.aliases[name] = tied[place]
            else:
                tied[place] = name
                self._tensors[name] = tensor.detach()
                if is_sharded(tensor):
                    self._layouts[name] = layout_of(tensor)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str, where: Slices) -> Tensor:
        """A view of a piece; of a DTensor, ``where`` has to lie in this rank's shard."""
        layout, part = self._layouts.get(name), local(self._tensors[name])
        if layout is None:
            return part[where]
        return part[within(where, layout.offset)]

    def layout(self, name: str) -> Layout | None:
        """How a DTensor lies over the ranks; None for a plain tensor."""
        return self._layouts.get(name)


def of_module(module: nn.Module, label: str | None = None) -> HeldWeights:
    """The parameters of ``module``; tied ones count once, buffers do not count."""
    named = dict(module.named_parameters(remove_duplicate=False))
    buffers = {name: "a buffer" for name, _ in module.named_buffers()}
    return HeldWeights(
        dict(zip(common_names(named), named.values(), strict=True)),
        label or type(module).__name__,
        dict(zip(common_names(buffers), buffers.values(), strict=True)),
    )


def of_state_dict(state: Mapping[str, Any], label: str = "state dict") -> HeldWeights:
    """The tensors of a state dict.

    Raises:
        ConfigError: it holds something else under a name, as a whole checkpoint of a loop does.
    """
    # What modules add to their state dicts beside tensors.
    extra = [name for name in state if str(name).endswith("_extra_state")]
    state = {str(name): value for name, value in state.items() if name not in extra}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            inside = " It looks like a checkpoint of a training loop: pass the state dict inside."
            raise ConfigError(
                f"{label}: its entry {name!r} holds {type(value).__name__}, not a tensor."
                f"{inside if isinstance(value, Mapping) else ' Pass names and tensors alone.'}"
            )
    if coded := next((name for name in state if name.endswith(SCALES)), None):
        raise ConfigError(
            f"{label} holds {coded.removesuffix(SCALES)} in codes, as bytes. Pass the folder that "
            "they were saved in, or the model."
        )
    return HeldWeights(dict(zip(common_names(state), state.values(), strict=True)), label)


def common_names(names: Mapping[str, Any] | list[str]) -> list[str]:
    """Names without what wrappers add: compilation, checkpointing, DDP, FSDP1."""
    found = [_WRAPPERS.sub("", name) for name in names]
    if found and all(name.startswith("module.") for name in found):
        found = [name.removeprefix("module.") for name in found]
    return found


def network_order(names: Iterable[str]) -> list[str]:
    """Names of stored weights as the network runs: embeddings, layers by number, head."""

    def place(name: str) -> tuple[Any, ...]:
        words = re.split(r"[._]", name)
        numbered = any(map(str.isdigit, words))
        first = 1 if numbered else 0 if _FIRST.search(name) else 2
        # An encoder comes before its decoder, against the alphabet.
        part = "encoder" not in words if "decoder" in words or "encoder" in words else False
        return first, part, [(0, int(w), "") if w.isdigit() else (1, 0, w) for w in words]

    return sorted(names, key=place)


def not_a_weight(name: str, dtype: torch.dtype) -> str | None:
    """Why a stored tensor is not a weight; None if it is one."""
    if not dtype.is_floating_point:
        return f"stored as {str(dtype).removeprefix('torch.')}"
    return "a buffer" if _BUFFERS.search(name) else None


def within(where: Slices, begins: tuple[int, ...]) -> Slices:
    """A place in a full tensor, seen from a box that begins at ``begins``."""
    return tuple(slice(s.start - at, s.stop - at) for s, at in zip(where, begins, strict=True))


def pieces_of(shape: tuple[int, ...], begins: tuple[int, ...], size: int) -> Iterator[Slices]:
    """Cut a box into pieces of at most ``size`` entries; whole rows where they fit.

    Args:
        shape: of the box.
        begins: where it begins, per dimension.
        size: entries of a piece.
    """
    if 0 in shape:
        return
    if not shape:
        yield ()
        return
    row = 1
    for length in shape[1:]:
        row *= length
    rest = tuple(slice(at, at + n) for at, n in zip(begins[1:], shape[1:], strict=True))
    if row <= size:
        step = max(1, size // row)
        for at in range(0, shape[0], step):
            first = begins[0] + at
            yield (slice(first, first + min(step, shape[0] - at)), *rest)
        return
    for at in range(begins[0], begins[0] + shape[0]):
        for inner in pieces_of(shape[1:], begins[1:], size):
            yield (slice(at, at + 1), *inner)


def _place_of(tensor: Tensor) -> object:
    """Equal for two names of one tensor."""
    part = local(tensor.detach())
    if part.numel() == 0:
        return id(tensor)
    # The address of numbers that codes stand for is 0, for all of them.
    codes = lns_of(part)
    begin = part if codes is None else codes.packed
    return begin.data_ptr(), part.shape, part.stride(), part.device
