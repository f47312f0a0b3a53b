"""The doctor's facts as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

from hf_relopt.plans.entries import OPTIMIZERS

WIDTH = 100
EXACT = (
    "exact: each step equals that of a single process with the full model and the full batch, up "
    "to rounding."
)
REFUSED = "refused: training raises this error before its first step."
# Of a plan without weights: {read} says why, {lr} what that means for the learning rate.
NOT_SEEN = (
    "The weights are unknown: {read}.{lr} They also decide which tensors start at zero and "
    "are stepped by min_scale."
)
NOT_READ = "only the configuration was read"
LR_READ = (
    " The learning rate above is assumed. Without --optim_args lr=... it depends on the weights: "
    "{new} from scratch, where all norm weights are equal; 0.001 for a pretrained model, where "
    "they differ; 0.03 with LoRA adapters."
)
NOT_COUNTED = "Not counted: activations, buffers, and temporary memory of a step."
NO_WEIGHTS = "the folder has a configuration and no weights"
LR_NO_WEIGHTS = (
    " The learning rate above is assumed, for training from scratch: {new}. For a pretrained "
    "model it would be 0.001, with LoRA adapters 0.03."
)


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """The report: launch, plan, memory, versions, faults; facts as doctor.examine makes them."""
    yield from _launch(facts)
    if facts["plan"] is not None:
        yield from ("", *_plan(facts))
    yield from ("", *_memory(facts))
    yield from ("", *_versions(facts))


def _launch(facts: dict[str, Any]) -> Iterator[str]:
    yield from _table([("launch", launch_words(facts)), ("verdict", facts["verdict"])])
    for text in paragraphs(facts):
        yield from _paragraph(text)


def launch_words(facts: dict[str, Any]) -> str:
    """The launch mode in a few words."""
    launch = facts["launch"]
    count = launch["processes"]
    words = [launch["mode"]]
    if launch["mode"] != "one process":
        words.append(f"{count} process{'es' if count > 1 else ''}")
    if launch["shard_ranks"] > 1:
        words.append(f"each weight in {launch['shard_ranks']} shards")
    return f"{', '.join(words)} (from {launch['source']})"


def paragraphs(facts: dict[str, Any]) -> list[str]:
    """The texts below the verdict: its meaning, the reason, the notes."""
    meaning = EXACT if facts["verdict"] == "exact" else REFUSED
    return [meaning, *filter(None, (facts["reason"], *facts["notes"]))]


def not_seen(facts: dict[str, Any]) -> str:
    """What a plan without weights cannot know."""
    plan, new = facts["plan"], OPTIMIZERS[facts["optim"]].lr_words
    there = plan["weights"] != "not there"
    lr = (LR_READ if there else LR_NO_WEIGHTS) if plan["lr_assumed"] else ""
    return NOT_SEEN.format(read=NOT_READ if there else NO_WEIGHTS, lr=lr.format(new=new))


def _plan(facts: dict[str, Any]) -> Iterator[str]:
    plan = facts["plan"]
    yield f"plan for {plan['model']} ({plan['class']})"
    yield from plan["table"].splitlines()
    yield from _paragraph(not_seen(facts))


def _memory(facts: dict[str, Any]) -> Iterator[str]:
    yield from _table(memory_rows(facts), numbers_from=1)
    for text in memory_words(facts):
        yield from _paragraph(text)


def memory_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table of bytes, its head first."""
    memory, optim = facts["memory"], facts["optim"]
    rows = [
        ("weights", "weights"),
        ("gradients", "gradients"),
        (f"state of {optim}", "state"),
        ("state of torch's AdamW", "adamw_state"),
    ]
    each, extra, ranks = memory["per_parameter"], memory["per_tensor"], memory["per_rank"]
    title = ("bytes", f"per parameter ({memory['dtype']})", "per tensor")
    table: list[tuple[str, ...]] = [(*title, "per rank") if ranks else title]
    for words, key in rows:
        lines, neurons = (memory[name].get(key, 0) for name in ("per_row_and_column", "per_neuron"))
        beside = f" + {lines} per row and column" if lines else ""
        beside += f" + {neurons} per neuron" if neurons else ""
        row = (words, str(each[key]), f"{extra.get(key, 0)}{beside}")
        table.append((*row, amount(ranks[key])) if ranks else row)
    if ranks:
        for words, total in zip((optim, "torch's AdamW"), totals(ranks).values(), strict=True):
            table.append((f"total with {words}", "", "", amount(total)))
    return table


def totals(ranks: dict[str, int]) -> dict[str, int]:
    """Bytes of weights, gradients and state together, by the key of the state: ours and AdamW's."""
    return {
        "state": ranks["weights"] + ranks["gradients"] + ranks["state"],
        "adamw_state": ranks["weights"] + ranks["all_gradients"] + ranks["adamw_state"],
    }


def memory_words(facts: dict[str, Any]) -> list[str]:
    """The texts below the table of bytes: what would fit, and what is not counted."""
    found, fits = [], facts["memory"]["fits"]
    if not facts["memory"]["per_parameter"]["gradients"]:
        found.append("step_in_backward: only the largest gradient exists at a time.")
    if fits:
        ours, others = (
            " and ".join([f"{each[key] / 1e9:.2g} in {size} GB" for size, each in fits.items()])
            for key in ("state", "adamw_state")
        )
        found.append(
            "Billions of parameters of a model like this one that fit, before activations: "
            f"{ours}; under torch's AdamW {others}."
        )
    return [*found, NOT_COUNTED]


def _versions(facts: dict[str, Any]) -> Iterator[str]:
    yield from _table(version_rows(facts))
    for text in fault_words(facts):
        yield from _paragraph(text)


def version_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Packages and their versions."""
    return [(name, version or "not installed") for name, version in facts["versions"].items()]


def fault_words(facts: dict[str, Any]) -> list[str]:
    """The known faults that matter here, and those that are dealt with."""
    words = {"present": "attention", "handled": "handled"}
    return [
        f"{words[fault['status']]}: {fault['package']}: {fault['what']} {fault['do']}"
        for fault in facts["faults"]
        if fault["status"] in words
    ]


def amount(size: int) -> str:
    """Bytes in the unit that fits, powers of 1000: "3.6 kB", "13.48 GB"."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.995:
            return f"{value:.2f} {unit}"
    return f"{value / 1000:,.2f} TB"


def _paragraph(text: str) -> Iterator[str]:
    yield from wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _table(rows: Sequence[Sequence[str]], numbers_from: int = 99) -> Iterator[str]:
    """Columns aligned; those from ``numbers_from`` on to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if i >= numbers_from else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
