"""Where a run began: its initial weights, from a checkpoint, from a copy, or kept in its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_relopt.distance import files
from hf_relopt.distance.ball import Held, full_squares, held_as, local_squares
from hf_relopt.distance.kept import Copies, KeptWeights, RenamedWeights, write
from hf_relopt.distance.pairing import paired
from hf_relopt.distance.weights import HeldWeights, Weights
from hf_relopt.errors import ConfigError
from hf_relopt.sharding.layout import local
from hf_relopt.sharding.ranks import rank_and_count, wait_for_all


@dataclass(frozen=True)
class Origin:
    """Initial weights under the names of the model that is trained.

    Attributes:
        weights: to be read; copies in memory are a Copies.
        run: a word that tells weights kept in a folder from others; None if they are a checkpoint.
        absent: weights that the checkpoint does not have.
    """

    weights: Weights
    run: str | None
    absent: tuple[str, ...] = ()


def of_checkpoint(initial: str, params: Mapping[str, Tensor], copy: str) -> Origin:
    """W0 from a file, a folder or the hub.

    Args:
        initial: where it is.
        params: the weights, by the model's names.
        copy: "disk" to read it each time; "exact" or "bfloat16" for copies.

    Raises:
        ConfigError: an adapter, another network, or a weight of another shape.
        FormatError: it cannot be read.
    """
    path = files.locate(initial)
    if files.is_adapter(path):
        raise ConfigError(
            f"initial is {initial!r}, an adapter; pass the network that training begins with."
        )
    stored = files.weights_in(path)
    pairs = paired(stored, HeldWeights(params, "the model"))
    for entry in pairs.apart:
        if entry.reason.startswith("shape "):
            raise ConfigError(
                f"initial is {initial!r}, where {entry.name} has another shape than in the model "
                f"({entry.reason}), so it has no distance. Leave it out by free=."
            )
    names = {own: theirs for theirs, own in pairs.names}
    found: Weights = RenamedWeights(stored, names)
    if copy != "disk":
        here = {name: param for name, param in params.items() if name in names}
        found = Copies(here, found, low=copy == "bfloat16")
    return Origin(found, None, tuple(name for name in params if name not in names))


def of_now(
    params: Mapping[str, Tensor], folder: Path | None, copy: str, trained: Mapping[str, Tensor]
) -> Origin:
    """W0 as the weights are now, written into ``folder`` for a resume; every rank takes part.

    Args:
        params: the weights, by the model's names.
        folder: None if they are not kept.
        copy: as for of_checkpoint.
        trained: all weights that are trained. Budgets of one run may be for other ones each, and
            what they keep is the same.

    Raises:
        ConfigError: copy is "disk", and there is no folder.
    """
    if copy == "disk" and folder is None:
        raise ConfigError(
            "copy is 'disk' without a folder to keep W0 in. Pass begin(..., folder=), or initial=, "
            "the checkpoint that training begins with."
        )
    run = _fingerprint(trained)
    if folder is not None:
        write(folder, trained, *rank_and_count(), run)
        wait_for_all()
    if copy == "disk":
        assert folder is not None
        return Origin(KeptWeights(folder, _shapes(params), run), run)
    return Origin(Copies(params, None, low=copy == "bfloat16"), run)


def of_folder(
    params: Mapping[str, Tensor], folder: Path | None, copy: str, run: str | None
) -> Origin:
    """W0 of a run that resumes, as ``of_now`` has written it at its beginning.

    Raises:
        ConfigError: it was not kept.
        FormatError: it is missing, damaged, or of another run.
    """
    if folder is None or run is None:
        why = "no folder was given" if folder is None else "the checkpoint was written without them"
        raise ConfigError(
            f"this run resumes, and the weights that it began with are not kept: {why}. Pass "
            "initial=, the checkpoint that training began with."
        )
    kept = KeptWeights(folder, _shapes(params), run)
    if copy == "disk":
        return Origin(kept, run)
    return Origin(Copies(params, kept, low=copy == "bfloat16"), run)


def squares_of(held: Sequence[Held], weights: Weights) -> list[Tensor]:
    """|W0|^2 of full weights, 0-dim, where they are read; one all-reduce."""
    squares = []
    for each in held:
        if isinstance(weights, Copies):
            squares.append(local_squares([local(weights.tensors[each.name])])[0])
            continue
        total = torch.zeros((), dtype=torch.float64)
        for _, where in each.pieces():
            total += local_squares([weights.read(each.name, where)])[0]
        squares.append(total)
    return full_squares(squares, [each.layout for each in held])


def _shapes(params: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: param.shape for name, param in params.items()}


def _fingerprint(params: Mapping[str, Tensor]) -> str:
    """A word for weights: the same on every rank, another for other weights."""
    held = [held_as(name, param) for name, param in params.items()]
    squares = [local_squares([local(each.param.detach())])[0] for each in held]
    full = full_squares(squares, [each.layout for each in held])
    said = [f"{each.name} {float(square)!r}" for each, square in zip(held, full, strict=True)]
    return hashlib.sha256(";".join(said).encode()).hexdigest()[:16]
