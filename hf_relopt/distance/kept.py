"""Initial weights that are kept: in memory, or in files of the run's folder, one from each rank.

Of weights in codes the numbers that they stand for are kept.

A file holds the shards of its rank and says where they lie in the full weights, so that a run that
resumes on another number of ranks reads what it needs from any of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_relopt.distance.measure import PIECE
from hf_relopt.distance.weights import HeldWeights, Slices, Weights, pieces_of, within
from hf_relopt.errors import FormatError, one_line
from hf_relopt.lns.tensor import is_lns
from hf_relopt.sharding.layout import Layout, layout_of, local
from hf_relopt.whole_file import whole_file

FOLDER = "distance_budget"
_INITIAL = "pass initial=, the checkpoint that training began with"


class Copies(HeldWeights):
    """Copies in memory, sharded as the weights are and where they lie.

    Args:
        params: the weights by name.
        source: where to read them; None to copy the weights as they are.
        low: keep what is wider in bfloat16.

    Attributes:
        tensors: the copies by name.
    """

    def __init__(self, params: Mapping[str, Tensor], source: Weights | None, low: bool) -> None:
        self.tensors: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, param in params.items():
                start = _numbers(param.detach())
                kind = torch.bfloat16 if low and is_wide(start) else start.dtype
                kept = start.to(kind, copy=True)
                if source is not None:
                    _read_into(kept, source, name)
                self.tensors[name] = kept
        super().__init__(self.tensors, "the initial weights")


def is_wide(param: Tensor) -> bool:
    """Whether bfloat16 would round it."""
    return param.dtype in (torch.float32, torch.float64)


def _numbers(param: Tensor) -> Tensor:
    """A weight; of codes what they stand for, which a shorter dtype would round."""
    return param.float().dequantize() if is_lns(param) else param


def _read_into(kept: Tensor, source: Weights, name: str) -> None:
    layout, part = layout_of(kept), local(kept)
    for where in pieces_of(tuple(part.shape), layout.offset, PIECE):
        part[within(where, layout.offset)].copy_(source.read(name, where))


def write(folder: Path, params: Mapping[str, Tensor], rank: int, ranks: int, run: str) -> None:
    """Write this rank's part of the weights; the file appears complete or not at all.

    Args:
        folder: made if it is not there.
        params: the weights by name; what is not sharded is written by the first rank alone.
        run: a word that tells these weights from others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    boxes: dict[str, tuple[int, ...]] = {}
    tensors: dict[str, Tensor] = {}
    for name, param in params.items():
        layout, part = layout_of(param), local(param.detach())
        if part.numel() and (rank == 0 or layout.sharded):
            boxes[name] = layout.offset
            tensors[name] = _numbers(part).contiguous().cpu()
    if not tensors and rank > 0:
        return  # the first rank has it all
    path = folder / f"initial-{rank:05d}-of-{ranks:05d}.safetensors"
    with whole_file(path) as unfinished:
        save_file(tensors, unfinished, metadata={"run": run, "offsets": json.dumps(boxes)})


class KeptWeights:
    """Initial weights in the files that ``write`` has left.

    Args:
        folder: where they are.
        shapes: of the full weights that have to be there.
        run: the word that they were written with.

    Raises:
        FormatError: files that are missing, damaged or of another run.
    """

    in_order = True

    def __init__(self, folder: Path, shapes: Mapping[str, torch.Size], run: str) -> None:
        self.label = str(folder)
        self.shapes = dict(shapes)
        self.others: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        # Of each weight: where a shard begins, its shape, and the file that has it.
        self._shards: dict[str, dict[tuple[int, ...], tuple[torch.Size, Path]]] = {}
        files = sorted(folder.glob("initial-*-of-*.safetensors"))
        self.others_run = False
        for file in files:
            try:
                self._look_into(file, run)
            except (SafetensorError, OSError, ValueError) as error:
                raise FormatError(
                    f"{file} cannot be read: {one_line(error)}. It holds the weights that training "
                    f"began with. Restore it, or {_INITIAL}."
                ) from error
        for name, shape in self.shapes.items():
            held = sum(math.prod(part) for part, _ in self._shards.get(name, {}).values())
            if held != math.prod(shape):
                why = "are those of another run" if self.others_run else "are missing"
                raise FormatError(
                    f"{folder}: the weights that training began with {why} ({name}). Every rank "
                    f"has to see this folder of the interrupted run; or {_INITIAL}."
                )

    def _look_into(self, file: Path, run: str) -> None:
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata() or {}
            if said.get("run") != run:
                self.others_run = True
                return
            for name, offset in json.loads(said["offsets"]).items():
                shape = torch.Size(opened.get_slice(name).get_shape())
                # Replicas of a shard, as under HSDP, count once.
                self._shards.setdefault(name, {})[tuple(offset)] = shape, file

    def read(self, name: str, where: Slices) -> Tensor:
        """A copy of a piece, put together from the shards that it lies in."""
        shape = [each.stop - each.start for each in where]
        found: Tensor | None = None
        for offset, (size, file) in self._shards[name].items():
            begins = [max(w.start, at) for w, at in zip(where, offset, strict=True)]
            ends = [min(w.stop, at + n) for w, at, n in zip(where, offset, size, strict=True)]
            if any(end <= begin for begin, end in zip(begins, ends, strict=True)):
                continue
            there = tuple(
                slice(b - at, e - at) for b, e, at in zip(begins, ends, offset, strict=True)
            )
            with safe_open(file, framework="pt") as opened:
                part = opened.get_slice(name)[there] if where else opened.get_tensor(name)
            if list(part.shape) == shape:
                return part
            if found is None:
                found = part.new_empty(shape)
            here = tuple(
                slice(b - w.start, e - w.start) for b, e, w in zip(begins, ends, where, strict=True)
            )
            found[here] = part
        assert found is not None
        return found

    def layout(self, name: str) -> Layout | None:
        """None: every rank can read all of it."""
        return None


class RenamedWeights:
    """Weights under the names of another network.

    Args:
        source: the weights.
        names: of the other network: what they are called in ``source``.
    """

    in_order = True

    def __init__(self, source: Weights, names: Mapping[str, str]) -> None:
        self.label, self._source, self._names = source.label, source, dict(names)
        self.shapes = {name: source.shapes[own] for name, own in names.items()}
        self.others: dict[str, str] = {}
        self.aliases: dict[str, str] = {}

    def read(self, name: str, where: Slices) -> Tensor:
        """A piece of a weight."""
        return self._source.read(self._names[name], where)

    def layout(self, name: str) -> Layout | None:
        """As it lies in the source."""
        return self._source.layout(self._names[name])
