"""How far the weights are from where they began: copies of them in memory, or the file on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hf_relopt.distance.compare import network_distance
from hf_relopt.distance.measure import sums_between
from hf_relopt.errors import ConfigError
from hf_relopt.rules.distance import deep_relative_trust, log_deep_relative_trust
from hf_relopt.sharding.layout import is_sharded, layout_of, local
from hf_relopt.sharding.reduce import all_reduced
from hf_relopt.telemetry.network import Layer

SNAPSHOTS = (None, "memory")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Initial = str | os.PathLike[str]


@dataclass(frozen=True)
class Since:
    """What has changed since a snapshot.

    Attributes:
        drt: deep relative trust since the start, over weight matrices.
        steps: since the last snapshot; None without one.
        unchanged: by a layer's number: its entries that are as they were then.
    """

    drt: float
    steps: int | None = None
    unchanged: dict[int, float] | None = None


class Copies:
    """Two copies of every weight: as it was at the start, and as it was when it was last seen.

    Of ``dtype``: 4 bytes per weight together in bfloat16, 8 in float32, on the weights' devices;
    of sharded weights, the shards. A bfloat16 copy is exact for bfloat16 weights. For others, its
    rounding is taken out of the distance from the start, and an entry counts as changed if it is
    another number in bfloat16.
    """

    @torch.no_grad()
    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype, step: int) -> None:
        self._layers, self._dtype, self._step = layers, dtype, step
        self._start = [self._copy(layer) for layer in layers]
        # Until the first look both are one.
        self._last = list(self._start)
        each = zip(layers, self._start, strict=True)
        self._rounded = [sums_between(start, _shard(layer))[2] for layer, start in each]

    def _copy(self, layer: Layer) -> Tensor:
        return _shard(layer).to(self._dtype, copy=True)

    @torch.no_grad()
    def look(self, step: int) -> Since:
        """What has changed; the weights as they are now are the last snapshot from now on."""
        rows = []
        for place, layer in enumerate(self._layers):
            start, last, now = self._start[place], self._last[place], _shard(layer)
            sums = sums_between(start, now)
            before, moved = sums[0], (sums[2] - self._rounded[place]).clamp(min=0)
            new = self._copy(layer)
            changed = torch.count_nonzero(new != last).to(sums.dtype)
            rows.append(torch.stack([before, moved, changed]).view(1, 3))
            self._last[place] = new
        whole = all_reduced(rows, [layout_of(layer.param) for layer in self._layers])
        values = torch.cat([row.double().cpu() for row in whole]).tolist()
        updates: list[float] = []
        unchanged: dict[int, float] = {}
        for layer, (before, moved, changed) in zip(self._layers, values, strict=True):
            unchanged[layer.number] = layer.param.numel() - changed
            if layer.is_matrix and before > 0:
                updates.append((moved / before) ** 0.5)
        steps, self._step = step - self._step, step
        drt = deep_relative_trust(log_deep_relative_trust(updates))
        return Since(drt, steps, unchanged)


class OnDisk:
    """The network that training began with, read from its files at every look; no memory."""

    def __init__(self, initial: Initial, model: nn.Module) -> None:
        self._initial, self._model = initial, model
        self.look(0)  # what is wrong with the files is said before the first step

    @torch.no_grad()
    def look(self, step: int) -> Since:
        """How far the model is from the files."""
        return Since(network_distance(self._initial, self._model).drt)


def check(snapshots: str | None, dtype: str, initial: Initial | None) -> None:
    """Refuse what is no way to take snapshots.

    Raises:
        ConfigError: names the option and what is allowed.
    """
    if snapshots not in SNAPSHOTS:
        raise ConfigError(
            f"snapshots is {snapshots!r}; it is None or 'memory' (two copies of the weights). For "
            "the distance from a checkpoint on disk, pass initial='its folder'."
        )
    if dtype not in DTYPES:
        raise ConfigError(
            f"snapshot_dtype is {dtype!r}; it is 'bfloat16' (4 bytes per weight for both copies) "
            "or 'float32' (8 bytes)."
        )
    if snapshots is not None and initial is not None:
        raise ConfigError(
            "snapshots and initial are both given: the distance from the start is measured from "
            "one of them. Leave one out."
        )


def taken(
    snapshots: Literal["memory"] | None,
    dtype: str,
    initial: Initial | None,
    layers: Sequence[Layer],
    model: nn.Module | None,
    step: int,
) -> Copies | OnDisk | None:
    """The snapshots that are asked for.

    Raises:
        ConfigError: a file to compare with, and no model.
    """
    if initial is not None:
        if model is None:
            raise ConfigError(
                f"initial is {os.fspath(initial)!r}, and the names of its weights mean nothing "
                "without the model. Pass model=, too."
            )
        return OnDisk(initial, model)
    return Copies(layers, DTYPES[dtype], step) if snapshots else None


def needs_every_rank(layers: Sequence[Layer]) -> bool:
    """True if a look adds up over ranks."""
    return any(is_sharded(layer.param) for layer in layers)


def _shard(layer: Layer) -> Tensor:
    return local(layer.param.detach())
