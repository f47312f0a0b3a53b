"""A model card with the metrics and the optimizer of the run.

The Trainer's own card looks for "adam" in the optimizer's name, so it would describe madam as Adam
and list options that madam does not have. This card describes the optimizer that really ran.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_relopt.hf.optimizer_words import peak_lr_of, rule_words, rules_in_use
from hf_relopt.plans.entries import entry_of_rule
from hf_relopt.plans.plan import followed_lr, follows
from hf_relopt.version import __version__

if TYPE_CHECKING:
    from transformers import Trainer

TIMING = ("_runtime", "_per_second", "_time")


@dataclass(frozen=True)
class CardDetails:
    """Facts for a model card that the trainer does not know; all are optional.

    Args:
        model_name: the title; the output directory's name if None.
        summary: a paragraph about what the model is.
        tasks: hub task names, as in "text-generation".
        tags: further hub tags.
        language: language codes.
        license: licence of the weights, as the hub spells it.
        finetuned_from: the pretrained model that was fine-tuned.
        dataset: the data set in words.
        dataset_tags: its name(s) on the hub, if it is there.
        dataset_args: its configuration.
        metrics_before: evaluation before the first step, as `trainer.evaluate` returns it.
        metrics: evaluation at the end; the last one in the trainer's log if None.
        seconds: wall time of training.
        curve: file name of a plot of the loss, in the card's folder.
        sample: text the model generated.
        command: the command that started the training.
        limits: what the model should not be used for.
    """

    model_name: str | None = None
    summary: str = ""
    tasks: str | list[str] | None = None
    tags: str | list[str] | None = None
    language: str | list[str] | None = None
    license: str | None = None
    finetuned_from: str | None = None
    dataset: str | list[str] | None = None
    dataset_tags: str | list[str] | None = None
    dataset_args: str | list[str] | None = None
    metrics_before: Mapping[str, float] | None = None
    metrics: Mapping[str, float] | None = None
    seconds: float | None = None
    curve: str | None = None
    sample: str | None = None
    command: str | None = None
    limits: str = ""


def write_model_card(
    trainer: Trainer, path: str | os.PathLike[str] | None = None, **details: Any
) -> Path:
    """Write README.md for the model a Trainer has trained.

    Args:
        trainer: after `train`, so that optimizer, steps and log are those of the run.
        path: the file; README.md in the output directory if None.
        details: fields of CardDetails. The arguments of the stock `Trainer.create_model_card` are
            among them.

    Returns:
        The path of the card. The file is written atomically.

    Raises:
        TypeError: a name that is not a field of CardDetails.
    """
    told = CardDetails(**details)
    name = told.model_name or Path(trainer.args.output_dir).name
    before = _metrics(told.metrics_before)
    after = _metrics(told.metrics if told.metrics is not None else _last_evaluation(trainer))
    sections = [
        f"# {name}",
        told.summary,
        _results_section(before, after, _words(told.dataset)),
        f"![Training and validation loss]({told.curve})" if told.curve else "",
        f"## Sample\n\n{_fenced(told.sample)}" if told.sample else "",
        _training_section(trainer, told.seconds),
        _weights_section(trainer.optimizer),
        f"## Made with\n\n{_fenced(told.command, 'bash')}" if told.command else "",
        f"## Limits\n\n{told.limits}" if told.limits else "",
        _versions_section(),
    ]
    head = _metadata(trainer, name, after, told).to_yaml()
    body = "\n\n".join(section for section in sections if section)
    target = Path(path) if path is not None else Path(trainer.args.output_dir) / "README.md"
    unfinished = target.with_name(f".{target.name}.unfinished")
    ModelCard(f"---\n{head}\n---\n\n{body}\n").save(unfinished)
    os.replace(unfinished, target)
    return target


def _metadata(
    trainer: Trainer, name: str, after: Mapping[str, float], told: CardDetails
) -> ModelCardData:
    task = next(iter(_listed(told.tasks)), None)
    hub_names = _listed(told.dataset_tags)
    results = [
        EvalResult(
            task_type=task or "other",
            dataset_type=hub_names[0] if hub_names else "local",
            dataset_name=_words(told.dataset) or "validation data",
            dataset_config=_words(told.dataset_args) or None,
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in after.items()
        if isinstance(value, float)  # counts, as of tokens, are no results
    ]
    rules = sorted(rule for rule in rules_in_use(trainer) if entry_of_rule(rule) is not None)
    return ModelCardData(
        language=told.language,
        license=told.license,
        library_name="transformers",
        pipeline_tag=task,
        tags=["generated_from_trainer", "hf_relopt", *rules, *_listed(told.tags)],
        base_model=told.finetuned_from,
        datasets=hub_names or None,
        model_name=name,
        eval_results=results or None,
    )


def _last_evaluation(trainer: Trainer) -> Mapping[str, float]:
    log = reversed(trainer.state.log_history)
    return next((entry for entry in log if any(key.startswith("eval_") for key in entry)), {})


def _metrics(metrics: Mapping[str, float] | None) -> dict[str, float]:
    return {
        name.removeprefix("eval_"): value
        for name, value in (metrics or {}).items()
        if name.startswith("eval_") and not name.endswith(TIMING)
    }


def _results_section(before: dict[str, float], after: dict[str, float], dataset: str) -> str:
    if not after:
        return ""
    rows = [
        (name.replace("_", " "), *([_number(before.get(name))] if before else []), _number(value))
        for name, value in after.items()
    ]
    head = ("", "before training", "after") if before else ("", "value")
    where = f", on validation data from {dataset}" if dataset else ""
    return f"## Results\n\nMeasured by the run that wrote this card{where}.\n\n{_table(head, rows)}"


def _training_section(trainer: Trainer, seconds: float | None) -> str:
    args, state = trainer.args, trainer.state
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    warmup = args.get_warmup_steps(state.max_steps)
    rows = [
        ("optimizer", "; ".join(rule_words(trainer))),
        ("peak learning rate", _number(peak_lr_of(trainer))),
        ("schedule", f"{schedule}, {warmup} steps of warm-up" if warmup else str(schedule)),
        ("steps", f"{state.global_step:,} of {state.max_steps:,}"),
        ("sequences per step", f"{batch:,}"),
        ("epochs", _number(state.epoch)),
        ("parameters", f"{sum(p.numel() for p in trainer.model.parameters()):,}"),
        ("precision", _precision(trainer)),
        ("processes", f"{args.world_size} on {args.device.type}"),
        ("seed", str(args.seed)),
    ]
    if seconds:
        rows.append(("time", f"{seconds:,.0f} s"))
    return f"## Training\n\n{_table(('', ''), rows)}"


def _weights_section(optimizer: Any) -> str:
    groups = getattr(optimizer, "param_groups", [])
    if not any("role" in group for group in groups):
        return ""
    rows = [
        (
            str(group.get("role", "")),
            follows(group["params"][0], group),
            _number(followed_lr(group)),
            f"{len(group['params']):,}",
            f"{sum(p.numel() for p in group['params']):,}",
        )
        for group in groups
    ]
    head = ("weights", "follows", "learning rate", "tensors", "parameters")
    return f"## What each weight follows\n\n{_table(head, rows)}"


def _versions_section() -> str:
    rows = [
        ("hf_relopt", __version__),
        ("transformers", transformers.__version__),
        ("accelerate", accelerate.__version__),
        ("torch", torch.__version__),
        ("Python", platform.python_version()),
    ]
    return f"## Versions\n\n{_table(('', ''), rows)}"


def _precision(trainer: Trainer) -> str:
    weights = str(next(trainer.model.parameters()).dtype).removeprefix("torch.")
    mixed = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else ""
    return f"{weights} weights, {mixed} mixed precision" if mixed else f"{weights}"


def _listed(value: str | Iterable[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _words(value: str | Iterable[str] | None) -> str:
    return ", ".join(_listed(value))


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _fenced(text: str, language: str = "text") -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
