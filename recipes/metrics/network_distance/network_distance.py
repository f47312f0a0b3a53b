"""How far apart the networks of two lists of checkpoints are, pair by pair.

Loads offline: evaluate.load("recipes/metrics/network_distance", module_type="comparison").
"""

import os
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from hf_relopt import network_distance
from hf_relopt.errors import ConfigError, RelOptError

DESCRIPTION = """
The distance between two states of one network: for each weight the relative update
r = |W' - W| / |W|, and over all weight matrices deep relative trust, prod(1 + r) - 1, which bounds
how much outputs and gradients can change (Bernstein, Vahdat, Yue, Liu; NeurIPS 2020). Checkpoints
are read in pieces: two of any size need about 100 MB.
"""

CITATION = """
@inproceedings{bernstein2020distance,
  title={On the distance between two neural networks and the stability of learning},
  author={Bernstein, Jeremy and Vahdat, Arash and Yue, Yisong and Liu, Ming-Yu},
  booktitle={Advances in Neural Information Processing Systems},
  year={2020}
}
"""

INPUTS = """
Args:
    before: checkpoints to measure from, a list: folders of save_pretrained, safetensors or torch
        files, names of the hub ("name" or "name@revision").
    after: checkpoints to measure to, as many; also adapters of PEFT over the one before.
    norm: "frobenius" (default), or "both" for operator norms, too, which take longer.
Returns:
    drt: deep relative trust of each pair; infinite beyond 1.8e308.
    log_drt: the logarithm of 1 + drt, which is always finite.
    depth: how many weight matrices drt is taken over.
    relative_update: of each pair a dict: name of a weight -> its relative update.
    partial: of each pair, what could not be read; None if all was.
    spectral_drt: drt in operator norms, with norm="both".
Example:
    >>> distance = evaluate.load("recipes/metrics/network_distance", module_type="comparison")
    >>> found = distance.compute(before=["runs/base"], after=["runs/tuned"])
    >>> found["drt"][0], found["relative_update"][0]["lm_head.weight"]
"""

NORMS = ("frobenius", "both")


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class NetworkDistance(evaluate.Comparison):
    """Two columns of checkpoints."""

    def _info(self) -> evaluate.ComparisonInfo:
        name = datasets.Value("string")
        return evaluate.ComparisonInfo(
            module_type="comparison",
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"before": name, "after": name}),
            homepage="https://github.com/hf-relopt/hf_relopt",
            license="Apache-2.0",
        )

    def compute(
        self,
        *,
        before: Sequence[str | os.PathLike[str]] | None = None,
        after: Sequence[str | os.PathLike[str]] | None = None,
        norm: str = NORMS[0],
        **others: Any,
    ) -> dict[str, Any] | None:
        """Compare pair by pair; without lists, what add and add_batch have collected.

        Raises:
            ConfigError: lists that are empty or of different length, or another argument.
            FormatError: a checkpoint that is missing or damaged.
        """
        _refuse(others)
        if norm not in NORMS:
            raise ConfigError(f"norm is {norm!r}; network_distance takes {' or '.join(NORMS)}.")
        if before is not None or after is not None:
            found = super().compute(**_columns(before, after), norm=norm)
        elif self.writer is not None:
            found = super().compute(norm=norm)
        else:
            raise ConfigError("network_distance needs before and after: two lists of checkpoints.")
        if found is not None and (error := found.pop("error", None)):
            raise error
        return found

    def add_batch(self, *, before: Any = None, after: Any = None, **others: Any) -> None:
        """Add pairs; see compute."""
        _refuse(others)
        super().add_batch(**_columns(before, after))

    def add(self, *, before: Any = None, after: Any = None, **others: Any) -> None:
        """Add one pair; see compute."""
        self.add_batch(before=[before], after=[after], **others)

    def _compute(self, before: list[str], after: list[str], norm: str) -> dict[str, Any]:
        found: dict[str, list[Any]] = {
            name: [] for name in ("drt", "log_drt", "depth", "relative_update", "partial")
        }
        if norm != NORMS[0]:
            found["spectral_drt"] = []
        for number, (first, second) in enumerate(zip(before, after, strict=True), start=1):
            try:
                distance = network_distance(first, second, norm=norm)
            except RelOptError as error:
                # Not raised here, where evaluate would be left with an open file.
                return {"error": type(error)(f"pair {number} of {len(before)}: {error}")}
            for name in found.keys() - {"relative_update"}:
                found[name].append(getattr(distance, name))
            updates = {layer.name: layer.relative_update for layer in distance.layers}
            found["relative_update"].append(updates)
        return found


def _refuse(others: dict[str, Any]) -> None:
    # evaluate.combine passes predictions and references to every module, as None.
    wrong = [name for name, value in others.items() if value is not None]
    if wrong:
        raise ConfigError(f"network_distance has no {wrong[0]!r}; it takes before, after, norm.")


def _columns(before: Any, after: Any) -> dict[str, list[str]]:
    """Both lists as words.

    Raises:
        ConfigError: they are no lists of checkpoints, empty, or of different length.
    """
    columns = {"before": _column("before", before), "after": _column("after", after)}
    lengths = [len(column) for column in columns.values()]
    if lengths[0] != lengths[1]:
        raise ConfigError(
            f"before has {lengths[0]} checkpoints, and after {lengths[1]}. Pass pairs: as many of "
            "one as of the other."
        )
    return columns


def _column(side: str, found: Any) -> list[str]:
    if isinstance(found, (str, os.PathLike)):
        raise ConfigError(f"{side} is {str(found)!r}; pass a list, as in {side}=[{str(found)!r}].")
    if not isinstance(found, Sequence):
        raise ConfigError(
            f"{side} is a {type(found).__name__}; pass a list of folders, files or hub names."
        )
    if not found:
        raise ConfigError(f"{side} is empty; pass at least one checkpoint.")
    for each in found:
        if not isinstance(each, (str, os.PathLike)) or not str(each):
            raise ConfigError(
                f"{side} holds {each!r}; each entry has to be a folder, a file or a hub name. "
                "Modules in memory: hf_relopt.network_distance takes them."
            )
    return [os.fspath(each) for each in found]
