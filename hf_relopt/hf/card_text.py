"""The text of a card: what was recorded of a run, as sections for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_relopt.hf.card_facts import CardFacts
from hf_relopt.hf.card_loading import hub_name, loading_code, shown_base
from hf_relopt.hf.card_metadata import in_words, is_result

WEIGHTS_HEAD = ("weights", "follows", "learning rate", "tensors", "parameters")
ORDER = ("hf_relopt", "transformers", "accelerate", "torch", "datasets", "tokenizers", "peft",
         "trl", "python")  # fmt: skip


def card_body(facts: CardFacts, *, curve: str | None, distance: str) -> str:
    """The card below its head.

    Args:
        facts: of the run.
        curve: file name of a picture of the loss, or None.
        distance: the text of its section, or "".
    """
    sections = [
        f"# {facts.name}",
        _standing(facts),
        facts.told.summary or _summary(facts),
        _results(facts),
        f"![Training and validation loss]({curve})" if curve else "",
        f"## Sample\n\n{fenced(facts.told.sample)}" if facts.told.sample else "",
        _titled("How to load it", fenced(loading_code(facts), "python")),
        _titled("Training", table(("", ""), _training(facts))),
        _titled("What each weight follows", _plan(facts)),
        _titled("Distance from the base model", distance),
        _titled("How to reproduce it", _reproduce(facts)),
        _titled("Limits", _limits(facts)),
        _titled("Versions", _versions(facts)),
        _titled("What is missing", "\n".join(f"- {note}" for note in facts.notes)),
    ]
    return "\n\n".join(section for section in sections if section)


def _titled(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _standing(facts: CardFacts) -> str:
    training = facts.part("training")
    steps, most = training.get("steps"), training.get("max_steps")
    if facts.finished is False:
        known = isinstance(steps, int)
        where = f" after {_counted(steps, most)}" if known else ""
        return f"> **This is the card of an unfinished run**{where}. Its results are not final."
    if facts.finished is None and facts.log:
        return "> Whether this run has finished is not recorded."
    return ""


def _counted(steps: Any, most: Any) -> str:
    return f"{number(steps)} of {number(most)} steps" if most else f"{number(steps)} steps"


def _summary(facts: CardFacts) -> str:
    model, base = facts.part("model"), shown_base(facts)
    name = f"`{model['class']}`" if model.get("class") else "model"
    data = in_words(facts.told.dataset or facts.told.dataset_tags)
    on = f" on {data}" if data else ""
    if base is None:
        known = "base_model" in facts.record
        return f"A {name} trained{' from scratch' if known else ''}{on}." if model else ""
    adapters = model.get("adapter")
    linked = f"[{base}](https://huggingface.co/{base})" if hub_name(facts) else f"`{base}`"
    if isinstance(adapters, list) and adapters:
        kinds = ", ".join(dict.fromkeys(map(str, adapters)))
        return f"An adapter ({kinds}) for {linked}{', trained' if on else ''}{on}."
    return f"A {name} fine-tuned from {linked}{on}."


def _results(facts: CardFacts) -> str:
    if not facts.after:
        return ""
    before = facts.before
    rows = [
        (name.replace("_", " "), *([number(before.get(name))] if before else []), number(value))
        for name, value in facts.after.items()
    ]
    head = ("", "before training", "after") if before else ("", "value")
    data = in_words(facts.told.dataset or facts.told.dataset_tags)
    where = f", on validation data from {data}" if data else ""
    best = facts.part("training").get("best_step")
    which = f" The weights are those of step {number(best)}, the best one." if best else ""
    lines = [f"Measured by the run itself{where}.{which}", "", table(head, rows)]
    odd = [name for name, value in facts.after.items()
           if isinstance(value, float) and not is_result(value)]  # fmt: skip
    if odd:
        lines += ["", f"Not finite, and so not among the results for the hub: {', '.join(odd)}."]
    return "## Results\n\n" + "\n".join(lines)


def _training(facts: CardFacts) -> list[tuple[str, str]]:
    training, model, launch = (facts.part(name) for name in ("training", "model", "launch"))
    words = facts.part("optimizer").get("words")
    schedule, warmup = training.get("schedule"), training.get("warmup_steps")
    rows = [
        ("optimizer", "; ".join(map(str, words)) if isinstance(words, list) else None),
        ("peak learning rate", number(training.get("peak_lr"))),
        ("schedule", f"{schedule}, {warmup} steps of warm-up" if warmup else schedule),
        ("steps", _steps(facts)),
        ("sequences per step", _per_step(training, launch)),
        ("epochs", number(training.get("epochs"))),
        ("parameters", _parameters(model)),
        ("precision", training.get("precision")),
        ("launch mode", _mode(launch)),
        ("hardware", _hardware(facts.part("hardware"))),
        ("seed", _seeds(training)),
        ("time", f"{facts.seconds:,.0f} s" if facts.seconds else None),
        ("started", facts.record.get("started")),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _steps(facts: CardFacts) -> str | None:
    training = facts.part("training")
    steps, most = training.get("steps"), training.get("max_steps")
    if steps is None:
        return None
    early = facts.finished and isinstance(most, int) and isinstance(steps, int) and steps < most
    most = most if most and most != -1 else None
    said = f"{number(steps)} of {number(most)}" if most else number(steps)
    return f"{said}, stopped early" if early else said


def _per_step(training: Mapping[str, Any], launch: Mapping[str, Any]) -> str | None:
    total, one = training.get("sequences_per_step"), training.get("per_device_batch_size")
    if total is None or one is None or total == one:
        return number(total)
    parts = [f"{number(one)} per device"]
    if (processes := launch.get("processes", 1)) != 1:
        parts.append(f"{processes} processes")
    if (accumulated := training.get("gradient_accumulation_steps", 1)) != 1:
        parts.append(f"{accumulated} accumulated")
    return f"{number(total)} ({', '.join(parts)})"


def _parameters(model: Mapping[str, Any]) -> str | None:
    total, trained = model.get("parameters"), model.get("trainable")
    if total is None or trained is None or total == trained:
        return number(total)
    return f"{number(total)}, of which {number(trained)} are trained"


def _mode(launch: Mapping[str, Any]) -> str | None:
    mode, processes = launch.get("mode"), launch.get("processes")
    if not mode or not isinstance(processes, int) or processes < 2:
        return mode
    backend = f", {launch['backend']}" if launch.get("backend") else ""
    return f"{mode}, {processes} processes{backend}"


def _hardware(hardware: Mapping[str, Any]) -> str | None:
    device = hardware.get("device")
    if not device:
        return None
    count, cpu = hardware.get("count"), hardware.get("cpu")
    memory = f", {hardware['memory_gb']} GB" if hardware.get("memory_gb") else ""
    many = f"{count} x " if isinstance(count, int) and count > 1 else ""
    if device == "CPU":
        return f"CPU: {cpu}{memory}" if cpu else f"CPU{memory}"
    return f"{many}{device}{memory}" + (f"; CPU: {cpu}" if cpu else "")


def _seeds(training: Mapping[str, Any]) -> str | None:
    seed, data = training.get("seed"), training.get("data_seed")
    if seed is None:
        return None
    return str(seed) if data is None else f"{seed}, of the data {data}"


def _plan(facts: CardFacts) -> str:
    groups = facts.part("optimizer").get("groups")
    groups = [g for g in groups if isinstance(g, dict)] if isinstance(groups, list) else []
    if not any(group.get("role") for group in groups):
        return ""
    rows = [
        (
            str(group.get("role", "")),
            str(group.get("follows", "")),
            *(number(group.get(name)) for name in ("lr", "tensors", "parameters")),
        )
        for group in groups
    ]
    return table(WEIGHTS_HEAD, rows)


def _reproduce(facts: CardFacts) -> str:
    lines = [fenced(facts.command, "bash")] if facts.command else []
    git = facts.part("git")
    if git.get("commit"):
        dirty = {True: ", with changes that are not committed", None: ""}.get(git.get("dirty"), "")
        lines.append(f"Git commit of the training code: `{git['commit']}`{dirty}.")
    return "\n\n".join(lines)


def _limits(facts: CardFacts) -> str:
    if facts.told.limits:
        return facts.told.limits
    measured = "the results above are those of its own validation data" if facts.after else (
        "no evaluation is recorded"
    )  # fmt: skip
    return (
        f"Not tested beyond this run: {measured}. Nothing is known of its errors on other data, of "
        "its biases, or of its safety."
    )


def _versions(facts: CardFacts) -> str:
    known = facts.part("versions")
    names = [*(n for n in ORDER if n in known), *(n for n in known if n not in ORDER)]
    return table(("", ""), [(n.replace("python", "Python"), str(known[n])) for n in names])


def number(value: Any) -> str:
    """A number as people read it; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if 1000 <= abs(value) < float("inf") else f"{value:.4g}"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; nothing without rows."""
    lines = [head, tuple("---" for _ in head), *(_cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) if rows else ""


def _cells(row: Iterable[str]) -> tuple[str, ...]:
    return tuple(" ".join(cell.replace("|", "\\|").split()) for cell in row)


def fenced(text: str, language: str = "text") -> str:
    """A code block that its own text cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
