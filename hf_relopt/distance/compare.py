"""network_distance: two networks, wherever they are, weight by weight."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hf_relopt.distance import adapters, files
from hf_relopt.distance.calibration import measured_on
from hf_relopt.distance.measure import Pair, spectral_norms, sums_of
from hf_relopt.distance.pairing import Apart, paired
from hf_relopt.distance.result import Distance, LayerDistance
from hf_relopt.distance.weights import Weights, of_module, of_state_dict
from hf_relopt.errors import ConfigError, one_line
from hf_relopt.rules.distance import SUMS
from hf_relopt.sharding.layout import layout_of
from hf_relopt.sharding.reduce import all_reduced

Network = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
# A file may hold a tied weight once for each of its names: embeddings, and the heads tied to them.
_MAY_BE_TIED = re.compile(r"embed|wte|shared|lm_head|decoder\.weight|output")
NORMS = ("frobenius", "spectral", "both")
Progress = Callable[[int, int, str], None]


def network_distance(
    before: Network | None,
    after: Network,
    *,
    norm: str = "frobenius",
    batch: Any = None,
    gradients: bool = False,
    progress: Progress | None = None,
) -> Distance:
    """How far apart two states of a network are, layer by layer.

    Files are read in pieces, so that two checkpoints of any size need about 100 MB. Weights that
    are sharded over ranks (FSDP2) are summed with one all-reduce: call it on every rank.

    Args:
        before: the network to measure from: a module, a state dict, a safetensors or torch file, a
            folder of a model, a model of the hub ("name" or "name@revision"). None if ``after`` is
            a LoRA adapter: then it is the adapter's own base.
        after: the network to measure to, in any of these forms, or an adapter of PEFT (a model in
            memory or a folder) over ``before``.
        norm: "frobenius"; "spectral" or "both" to add operator norms and stable ranks, which takes
            up to a hundred passes over each matrix.
        batch: inputs of the networks, to measure what really changed: a dict of tensors, or a
            tensor. Both networks have to be modules.
        gradients: with a batch that has labels: compare the gradients of each layer, too.
        progress: called as (done, total, name of the next weight).

    Returns:
        The distance. Tensors that are zero, differ in shape or stand on one side only are listed in
        ``apart``. If a file turns out to be damaged, ``partial`` says what is missing.

    Raises:
        ConfigError: the networks have no weight in common, or an adapter that is no product.
        FormatError: a file that is missing or damaged.
        UnsupportedSetup: operator norms of sharded weights, or weights sharded in two ways.
    """
    if norm not in NORMS:
        raise ConfigError(f"norm is {norm!r}; network_distance takes {', '.join(NORMS)}.")
    comparison = Comparison(*opened(before, after), spectral=norm != "frobenius")
    # First what fails fast.
    wanted = batch is not None or gradients
    measured = measured_on(before, after, batch, gradients) if wanted else None
    comparison.run(progress)
    return comparison.result(measured)


class Comparison:
    """A comparison that can be stopped: what was measured so far is kept.

    Args:
        before, after: the weights.
        spectral: measure operator norms, too.

    Raises:
        ConfigError: they have no weight in common.
    """

    def __init__(self, before: Weights, after: Weights, *, spectral: bool = False) -> None:
        self.before, self.after, self._spectral = before, after, spectral
        self._pairs = paired(before, after)
        self._sums: list[Tensor] = []
        self._norms: list[tuple[float, float] | None] = []
        self._faults: list[str] = [
            f"{file.name}: {fault}"
            for side in (before, after)
            for file, fault in getattr(side, "damaged", {}).items()
        ]

    def run(self, progress: Progress | None = None) -> None:
        """Measure all pairs that are not measured yet."""
        names = self._pairs.names
        for done in range(len(self._sums), len(names)):
            pair = Pair(self.before, self.after, *names[done])
            if progress is not None:
                progress(done, len(names), pair.label)
            try:
                sums = sums_of(pair)
                wanted = self._spectral and len(pair.shape) >= 2
                norms = spectral_norms(pair) if wanted else None
            except (OSError, SafetensorError) as error:
                self._faults.append(f"{pair.label}: {one_line(error)}")
                sums, norms = torch.full((len(SUMS),), torch.nan, dtype=torch.float64), None
            self._sums.append(sums)
            self._norms.append(norms)
        if progress is not None:
            progress(len(names), len(names), "")

    def result(self, measured: Any = None, partial: str | None = None) -> Distance:
        """What was measured so far."""
        names = self._pairs.names[: len(self._sums)]
        pairs = [Pair(self.before, self.after, *each) for each in names]
        plain = layout_of(torch.empty(0))
        whole = all_reduced(self._sums, [pair.layout() or plain for pair in pairs])
        rows = torch.stack([row.cpu() for row in whole]).tolist() if whole else []
        layers: list[LayerDistance] = []
        apart = list(self._pairs.apart)
        copies: dict[tuple[Any, ...], str] = {}
        for pair, row, norms in zip(pairs, rows, self._norms, strict=True):
            layer = _layer(pair, row, norms)
            key = (layer.shape, *row)
            if reason := _left_out(layer, row):
                update = layer.update_norm if layer.update_norm == layer.update_norm else None
                apart.append(Apart(layer.name, reason, update))
            elif key in copies and _MAY_BE_TIED.search(layer.name):
                apart.append(Apart(layer.name, f"tied to {copies[key]}: the same numbers"))
            else:
                if layer.is_matrix and _MAY_BE_TIED.search(layer.name):
                    copies[key] = layer.name
                layers.append(layer)
        faults = [partial] if partial else []
        faults += self._faults[:3] + (["and more"] if len(self._faults) > 3 else [])
        return Distance(
            before=self.before.label,
            after=self.after.label,
            layers=tuple(layers),
            apart=tuple(apart),
            measured=measured,
            partial="; ".join(faults) or None,
        )


def _layer(pair: Pair, row: list[float], norms: tuple[float, float] | None) -> LayerDistance:
    before, after, update, signs, changed, entries = row
    norm, update_norm, product = before**0.5, update**0.5, (before * after) ** 0.5
    # <W,W'> from three sums of squares in float64: no fourth pass is needed.
    inner = (before + after - update) / 2
    count = max(entries, 1)
    spectral: dict[str, float | None] = {}
    if norms is not None and norms[0] > 0:
        spectral = {
            "spectral_norm": norms[0],
            "spectral_update": norms[1] / norms[0],
            "stable_rank": before / norms[0] ** 2,
            "update_stable_rank": update / norms[1] ** 2 if norms[1] > 0 else None,
        }
    return LayerDistance(
        name=pair.label,
        shape=tuple(pair.shape),
        norm=norm,
        update_norm=update_norm,
        relative_update=update_norm / norm if norm else float("nan"),
        cosine=max(-1.0, min(1.0, inner / product)) if product else 0.0,
        sign_changes=signs / count,
        changed=changed / count,
        **spectral,
    )


def _left_out(layer: LayerDistance, row: list[float]) -> str | None:
    """Why a layer has no relative change; None if it has one."""
    before, after, update, *_ = row
    if update != update and before != before and after != after:
        return "cannot be read, or not finite in both"
    if not all(map(_is_finite, (before, after, update))):
        return f"not finite {'before' if not _is_finite(before) else 'after'}"
    return "zero before" if before == 0 else None


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def opened(before: Network | None, after: Network) -> tuple[Weights, Weights]:
    """The weights of both sides, ready to be read; arguments as for network_distance."""
    # Once: a model of the hub is asked for over the network.
    before, after = _located(before), _located(after)
    base = _own_base(after) if before is None else _open(before, "before")
    if isinstance(after, Path) and files.is_adapter(after):
        return base, adapters.in_folder(after, base)
    if isinstance(after, nn.Module) and before is None:
        adapted = adapters.of_peft_model(after)
        return adapted.base, adapted
    return base, _open(after, "after")


def _located(source: Any) -> Any:
    """``source``, or the path of what a name or a path stands for."""
    return files.locate(source) if isinstance(source, (str, os.PathLike)) else source


def _own_base(after: Network) -> Weights:
    """The base that an adapter names, or is wrapped around."""
    if isinstance(after, nn.Module) and adapters.is_peft_model(after):
        return adapters.base_of(after)
    named = None
    if isinstance(after, Path) and files.is_adapter(after):
        named = adapters.config_in(after).get("base_model_name_or_path")
    if not named:
        raise ConfigError(
            "before is None, but after is no LoRA adapter that names its base. Pass the network to "
            "measure from."
        )
    return files.weights_in(files.locate(named))


def _open(source: Network, side: str) -> Weights:
    if isinstance(source, nn.Module):
        peft = adapters.is_peft_model(source)
        if not peft:
            return of_module(source)
        return adapters.base_of(source) if side == "before" else adapters.of_peft_model(source)
    if isinstance(source, Mapping):
        return of_state_dict(source)
    if isinstance(source, Path):
        if files.is_adapter(source):
            raise ConfigError(
                f"{source} is an adapter, and {side} has to be a network. Pass the base as before "
                "and the adapter as after."
            )
        return files.weights_in(source)
    raise ConfigError(
        f"{side} is a {type(source).__name__}; network_distance takes a module, a state dict, a "
        "file, a folder or a model of the hub."
    )
