"""The section of a card that says how far the weights are from the model they began with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import nn

from hf_relopt.distance.compare import network_distance
from hf_relopt.distance.files import locate
from hf_relopt.distance.result import Distance
from hf_relopt.distance.table import apart_by_reason, rows, summary
from hf_relopt.errors import FormatError, RelOptError, one_line
from hf_relopt.hf.card_facts import CardFacts
from hf_relopt.hf.card_loading import from_here, shown_base
from hf_relopt.sharding.layout import is_sharded

TOP = 10
# Above it, reading the base model at the end of training takes longer than anyone expects.
LARGEST_AT_ONCE = 1_000_000_000
_NO_WEIGHTS = ("tied to ", "stored as ", "a buffer")
_FILES = ["*.safetensors", "*.safetensors.index.json", "adapter_config.json", "config.json"]


class Section(NamedTuple):
    """Text for a card; or why there is none, as a note."""

    text: str = ""
    note: str | None = None


def of_model(facts: CardFacts, model: nn.Module) -> Section:
    """The distance of a model in memory; of one that is sharded or very large there is none."""
    base = facts.base
    if base is None or not facts.told.with_distance:
        return Section()
    later = f"Run `hf-relopt card` on the run's folder to add it{_hint(facts)}."
    if any(map(is_sharded, model.parameters())):
        return Section(note=f"The distance from {shown_base(facts)} is not measured: the weights "
                       f"are sharded. {later}")  # fmt: skip
    if sum(param.numel() for param in model.parameters()) > LARGEST_AT_ONCE:
        return Section(note=f"The distance from {shown_base(facts)} is not measured: the model is "
                       f"large. {later}")  # fmt: skip
    return _measured(facts, model, online=False)


def of_folder(facts: CardFacts, *, online: bool) -> Section:
    """The distance of the weights in the run's folder.

    Args:
        online: the base model may be downloaded: somebody has named it.
    """
    if facts.base is None or not facts.told.with_distance:
        return Section()
    if facts.weights is None:
        return Section(
            note=f"The distance from {shown_base(facts)} is not measured: the folder holds no "
            "weights that can be read. Save them by trainer.save_model(), and make the card again."
        )
    return _measured(facts, facts.weights.absolute(), online=online)


def _measured(facts: CardFacts, after: Any, *, online: bool) -> Section:
    base, shown = str(facts.base), str(shown_base(facts))
    # Absolute: a short relative path might stand in other words, too.
    names = {str((facts.weights or facts.folder).absolute()): facts.name}
    try:
        before = (locate(base) if online else _on_this_machine(base, facts)).absolute()
        names[str(before)] = shown
        found = network_distance(before, after)
    except (RelOptError, OSError, RuntimeError, ValueError) as error:
        why = _scrubbed(one_line(error), names)
        return Section(note=f"The distance from {shown} is not measured: {why}.{_retry(facts)}")
    names |= {found.before: shown, found.after: facts.name}
    note = f"The distance is partial: {_scrubbed(found.partial, names)}." if found.partial else None
    return Section(_text(found, shown, names), note)


def _on_this_machine(base: str, facts: CardFacts) -> Path:
    """The base model's files here: a folder or the hub's cache. No network is asked."""
    path = Path(base).expanduser()
    if path.exists():
        return path
    revision = facts.record.get("base_revision") if base == facts.record.get("base_model") else None
    try:
        found = snapshot_download(
            base, revision=revision, allow_patterns=_FILES, local_files_only=True
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        raise FormatError("it is neither a folder here nor in the hub's cache") from None
    return Path(found)


def _retry(facts: CardFacts) -> str:
    return f" To add it: hf-relopt card {from_here(facts.folder)} --base MODEL_OR_FOLDER."


def _hint(facts: CardFacts) -> str:
    return f": hf-relopt card {from_here(facts.folder)}"


def _scrubbed(text: str, names: dict[str, str]) -> str:
    """A text with names in place of the paths of this machine."""
    for path, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(path, name)
    return text


def _text(found: Distance, shown: str, names: dict[str, str]) -> str:
    head, cells = rows(found, TOP)
    table = [head, tuple("---" for _ in head), *cells]
    lines = [
        f"From `{shown}`, weight by weight: the relative update is |W' - W| / |W| in Frobenius "
        "norms; deep relative trust is the product of 1 + relative update over all weight "
        "matrices, minus 1 ([Bernstein et al., 2020](https://arxiv.org/abs/2002.03432)).",
        "",
        *(f"- {words}: {value}" for words, value in summary(found)),
        "",
        f"The {min(TOP, len(found.layers))} of {len(found.layers)} weights that moved most:",
        "",
        *(f"| {' | '.join(row)} |" for row in table),
    ]
    # Files and modules know different copies and buffers, and have other orders.
    apart = sorted(
        (each for each in found.apart if not each.reason.startswith(_NO_WEIGHTS)),
        key=lambda each: each.name,
    )
    if apart:
        lines += ["", "Left out of the totals:", ""]
        shown_apart = apart_by_reason(replace(found, apart=tuple(apart)))
        lines += [f"- {reason}: {which}" for reason, which in shown_apart]
    return _scrubbed("\n".join(lines), names)
