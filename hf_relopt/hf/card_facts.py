"""What a card says of a run, gathered from a Trainer or from the folder of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_relopt.hf.run_facts import base_of, record_of
from hf_relopt.hf.run_files import RunFiles, is_finite
from hf_relopt.hf.run_record import BASE

if TYPE_CHECKING:
    from transformers import Trainer

_INTERPRETER = re.compile(r"^/\S*/(python[\d.]*)(?= )")
TIMING = ("_runtime", "_per_second", "_time")


@dataclass(frozen=True)
class CardDetails:
    """Facts for a model card that the trainer does not know; all are optional.

    Args:
        model_name: the title; the output directory's name if None.
        summary: a paragraph about what the model is.
        tasks: hub task names, as in "text-generation"; found by the model's class if None.
        tags: further hub tags.
        language: language codes.
        license: licence of the weights, as the hub spells it; the base model's if None, where its
            card can be read.
        finetuned_from: the pretrained model that was fine-tuned.
        dataset: the data set in words.
        validation: the validation data in words, if it is not a part of ``dataset``.
        dataset_tags: its name(s) on the hub, if it is there.
        dataset_args: its configuration.
        metrics_before: evaluation before the first step, as `trainer.evaluate` returns it.
        metrics: evaluation at the end; the last one in the trainer's log if None.
        seconds: wall time of training.
        curve: file name of a plot of the loss, in the card's folder.
        sample: text the model generated.
        command: the command that started the training.
        limits: what the model should not be used for.
        repo: the model's name on the hub, if it is to be there.
        with_distance: measure the distance from the base model, where that can be read offline.
    """

    model_name: str | None = None
    summary: str = ""
    tasks: str | list[str] | None = None
    tags: str | list[str] | None = None
    language: str | list[str] | None = None
    license: str | None = None
    finetuned_from: str | None = None
    dataset: str | list[str] | None = None
    validation: str | None = None
    dataset_tags: str | list[str] | None = None
    dataset_args: str | list[str] | None = None
    metrics_before: Mapping[str, float] | None = None
    metrics: Mapping[str, float] | None = None
    seconds: float | None = None
    curve: str | None = None
    sample: str | None = None
    command: str | None = None
    limits: str = ""
    repo: str | None = None
    with_distance: bool = True


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card is written from.

    Attributes:
        folder: of the run.
        record: as relopt_run.json; parts may be missing.
        log: as the Trainer's log_history.
        before, after: metrics of the first and the last evaluation.
        finished: whether training has ended; None if nothing says so.
        told: what else somebody said.
        has_processor: a tokenizer, or what else prepares inputs, is saved beside the model.
        lacks_evaluations: the log is that of the telemetry, which has training losses alone.
        weights: the folder with the weights, or None; relative to ``folder`` in a card.
        notes: what is missing.
    """

    folder: Path
    record: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    before: dict[str, Any]
    after: dict[str, Any]
    finished: bool | None
    told: CardDetails = field(default_factory=CardDetails)
    has_processor: bool = False
    lacks_evaluations: bool = False
    weights: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The title."""
        return self.told.model_name or self.folder.absolute().name

    @property
    def base(self) -> str | None:
        """What training began with: a model's name or path; None for new weights."""
        return self.told.finetuned_from or self.record.get("base_model") or None

    @property
    def seconds(self) -> float | None:
        """Wall time of training."""
        said = self.told.seconds or self.record.get("seconds")
        return said if is_finite(said) and said else None

    @property
    def command(self) -> str | None:
        """The command that started the training."""
        said = self.told.command or self.record.get("command")
        # Recipes name this machine's interpreter, to be typed here; a card is read elsewhere.
        return _INTERPRETER.sub(r"\1", said) if isinstance(said, str) and said else None

    def part(self, name: str) -> Mapping[str, Any]:
        """A section of the record; empty if it is missing or damaged."""
        found = self.record.get(name)
        return found if isinstance(found, dict) else {}

    def noting(self, *notes: str) -> CardFacts:
        """The same facts with more notes."""
        return replace(self, notes=(*self.notes, *notes))


def facts_of_trainer(trainer: Trainer, told: CardDetails) -> CardFacts:
    """What a Trainer knows, after training or during it."""
    args, state = trainer.args, trainer.state
    folder = Path(args.output_dir)
    kept = getattr(getattr(trainer, "_record", None), "record", None) or {}
    record = record_of(args, state, trainer.model, trainer.optimizer, trainer.lr_scheduler)
    record |= base_of(trainer.model) if not kept and not state.global_step else {}
    # What ran is what was there when it began: a commit may have come since.
    begun = ("git", "command", "versions", "launch", "hardware")
    names = ("started", "seconds", *BASE, "evaluations", *begun)
    record |= {name: kept[name] for name in names if name in kept}
    best = kept.get("training", {}).get("best_step")
    before, after = evaluations(state.log_history, best)
    if told.repo is None and args.push_to_hub:
        told = replace(told, repo=getattr(trainer, "hub_model_id", None) or args.hub_model_id)
    return CardFacts(
        folder=folder,
        record=record,
        log=state.log_history,
        before=_given(told.metrics_before, before),
        after=_given(told.metrics, after),
        finished=None if state.global_step == 0 else not trainer.is_in_train,
        told=told,
        has_processor=hasattr(trainer.processing_class, "save_pretrained"),
        weights=folder,
    )


def facts_of_folder(files: RunFiles, told: CardDetails) -> CardFacts:
    """What the folder of a run tells, and what somebody says beside it."""
    told = _with_recipe(files.recipe, told)
    training = files.record.get("training")
    training = training if isinstance(training, dict) else {}
    best = training.get("best_step")
    before, after = evaluations(files.log, best)
    kept = _evaluated(files.record)
    first, last = _of_record(kept, best)
    known = "global_step" in files.state
    steps = files.state.get("global_step")
    if isinstance(steps, int) and steps > (training.get("steps") or 0):
        training = {**training, "steps": steps, "epochs": files.state.get("epoch")}
    most = {"max_steps": files.state["max_steps"]} if "max_steps" in files.state else {}
    return CardFacts(
        folder=files.folder,
        record={**files.record, "training": {**most, **training}},
        log=files.log if known else [*files.log, *kept],
        lacks_evaluations=not known,
        before=_given(told.metrics_before, {**first, **before}),
        # Of the record, which knows an evaluation after training too; unless an older log goes on.
        after=_given(told.metrics, last or after),
        finished=files.finished,
        told=told,
        has_processor=_has_processor(files.weights),
        weights=files.weights,
        notes=files.notes,
    )


def _evaluated(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first and the last evaluation, as a Trainer logs them."""
    kept = record.get("evaluations")
    return [
        {"step": each.get("step", 0), **each["metrics"]}
        for each in (kept if isinstance(kept, list) else [])
        if isinstance(each, dict) and isinstance(each.get("metrics"), dict)
    ]


def _of_record(entries: list[dict[str, Any]], best: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    first, last = evaluations(entries, None)
    is_other = best is not None and entries and entries[-1]["step"] != best
    return first, {} if is_other else last


def _with_recipe(recipe: Mapping[str, Any], told: CardDetails) -> CardDetails:
    """What a recipe has written into its run.json, where nobody says otherwise."""
    kept = recipe.get("card")
    known = {each.name for each in fields(CardDetails)}
    said = {n: v for n, v in (kept if isinstance(kept, dict) else {}).items() if n in known}
    if recipe.get("finished"):
        said |= {"metrics_before": recipe.get("before"), "metrics": recipe.get("after")}
        said |= {"seconds": recipe.get("seconds"), "sample": recipe.get("sample")}
    said["command"] = recipe.get("command")
    plain = CardDetails()
    given = {n: v for n in known if (v := getattr(told, n)) != getattr(plain, n)}
    return CardDetails(**{n: v for n, v in said.items() if v} | given)


def evaluations(
    log: Iterable[Mapping[str, Any]], best_step: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics before the first step, and those of the weights that were kept.

    Args:
        log: as in TrainerState; several evaluations at a step are of several data sets.
        best_step: whose weights were loaded at the end; None: the last step's were kept.
    """
    by_step: dict[Any, dict[str, Any]] = {}
    for entry in log:
        found = metrics_of(entry)
        if found:
            by_step.setdefault(entry.get("step", 0), {}).update(found)
    if not by_step:
        return {}, {}
    last = best_step if best_step in by_step else max(by_step)
    return by_step.get(0, {}) if last != 0 else {}, by_step[last]


def metrics_of(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metrics of an evaluation, without their prefix and without times."""
    return {
        str(name).removeprefix("eval_"): value
        for name, value in (entry or {}).items()
        if str(name).startswith("eval_")
        and not str(name).endswith(TIMING)
        and isinstance(value, (int, float))
    }


def _given(told: Mapping[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    return found if told is None else metrics_of(told)


def _has_processor(folder: Path | None) -> bool:
    names = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
    return folder is not None and any((folder / name).is_file() for name in names)
