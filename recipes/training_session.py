"""The common part of all recipes: train or resume, evaluate, save.

A start that finds a complete checkpoint resumes from it, if it fits the model and the optimizer.
What was measured before the first step is in the checkpoint's log, since a resumed run cannot
measure it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import evaluate
import torch
from clear_messages import blamed_on
from closing_summary import draw_loss_curve
from datasets import DatasetDict
from first_look import optimizer_name
from huggingface_hub import upload_folder
from model_loading import named_config_of, require_class
from progress_lines import ProgressLines, seconds_trained
from recipe import Request
from recipe_run import RecipeRun, samples_per_step, say_main
from safetensors import safe_open
from text_tables import limit
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from typed_command import typed_command

from hf_relopt import RelOptTrainer
from hf_relopt.errors import ConfigError
from hf_relopt.hf.lns_files import flattened
from hf_relopt.hf.model_card import write_model_card
from hf_relopt.plans.entries import rule_of_name
from hf_relopt.shipped import OPTIMIZER_NAMES

CURVE = "loss_curve.png"
# What the folder would not tell otherwise.
KEPT_OF_CARD = (
    "model_name", "summary", "tasks", "limits", "dataset", "validation", "dataset_tags",
    "dataset_args", "finetuned_from", "curve", "license", "language", "tags",
)  # fmt: skip
REMEDY = "Pass the arguments it was trained with, or start without it."


def read_data(
    request: Request[Any, Any], kind: str, load: Callable[[Any, int], DatasetDict]
) -> DatasetDict:
    """What a pretrained model is fine-tuned on, as many rows of it as were asked for.

    Args:
        request: which model, which data.
        kind: what the model must be, see model_loading.require_class.
        load: reads "train" and "validation" from a source and a seed.

    Raises:
        ConfigError: no such model, a model of another kind, data that cannot be used.
    """
    name, data = request.model.model_name_or_path, request.data
    # First the model: none of another kind waits for long data to be read.
    require_class(named_config_of(name), name, kind)
    say_main(request.args, f"reading {data.words}")
    splits = load(data, request.args.seed)
    limit(splits, data.max_train_samples, data.max_eval_samples)
    return splits


def load_metric(name: str, args: TrainingArguments) -> evaluate.EvaluationModule:
    """Load recipes/metrics/<name>; needs no network and leaves no file of predictions behind.

    `evaluate` copies the module into its cache: one process after the other.
    """
    with args.main_process_first(desc="loading the metric"):
        return evaluate.load(str(Path(__file__).parent / "metrics" / name), keep_in_memory=True)


def make_trainer(
    run: RecipeRun,
    model: PreTrainedModel,
    splits: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    unit: str,
    units_per_sample: int = 1,
    kind: type[Trainer] = RelOptTrainer,
    **parts: Any,
) -> Trainer:
    """A Trainer that shows its progress, and counts the run's steps.

    Args:
        run: with the training arguments.
        model: to be trained.
        splits: "train" and "validation".
        tokenizer: is saved beside the model.
        unit: what is counted per second, as in "tokens".
        units_per_sample: how many of them are in one training sample.
        kind: a Trainer with RelOptMixin.
        parts: the rest of Trainer's arguments.

    Raises:
        ConfigError: something the Trainer lacks, as a package for --report_to.
    """
    with blamed_on("the Trainer cannot be made", "Fix that, or install what is missing."):
        trainer = kind(
            args=run.args,
            model=model,
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            processing_class=tokenizer,
            **parts,
        )
    # `finish` writes the card, with what the recipe knows of it.
    trainer.model_card_at_end = False
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ProgressLines(unit, units_per_sample * samples_per_step(run.args), run))
    return trainer


def train_and_finish(
    trainer: Trainer,
    run: RecipeRun,
    *,
    sample: Callable[[], str | None],
    hints: Sequence[tuple[str, str]],
    **card: str,
) -> None:
    """Train, measure and write everything into the run folder.

    Args:
        trainer: of make_trainer.
        run: whose folder it is.
        sample: makes some of the trained model's output, to be shown.
        hints: what to try next, as pairs of words and command.
        card: "summary", "tasks" and "limits" of hf_relopt.hf.model_card.CardDetails.

    Raises:
        ConfigError: the checkpoint is of another model or another optimizer.
    """
    results = train_and_measure(trainer, run)
    # On every rank: where weights are sharded, a forward pass needs all of them.
    results["sample"] = sample()
    finish(trainer, run, {**results, "hints": hints}, {**card, **card_details(run, results)})


def train_and_measure(trainer: Trainer, run: RecipeRun) -> dict[str, Any]:
    """Train from the start or from the last complete checkpoint, with an evaluation at both ends.

    Returns:
        "before" and "after": the evaluations' metrics; "steps" and "seconds" of training,
        and the "sequences" that there are to train on.

    Raises:
        ConfigError: the checkpoint is of another model or another optimizer.
    """
    args = trainer.args
    checkpoint = run.checkpoint()
    # Not trainer.evaluate() before trainer.train(): that marks the model as prepared, and train()
    # then leaves it without DDP, so that several processes would train apart without a word.
    args.eval_on_start = checkpoint is None
    if checkpoint is not None:
        require_fit(checkpoint, trainer.model, optimizer_name(args))
        trainer.add_callback(RenamedWeights(checkpoint))
    # A model from scratch drew random numbers, a reloaded one did not.
    set_seed(args.seed)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    evaluations = [entry for entry in state.log_history if "eval_loss" in entry]
    is_last = bool(evaluations) and evaluations[-1]["step"] == state.global_step
    if args.load_best_model_at_end or not is_last:
        evaluations.append({**trainer.evaluate(), "step": state.global_step})
    first = evaluations[0] if evaluations[0]["step"] == 0 else {}
    return {
        "before": first,
        "after": evaluations[-1],
        "steps": state.global_step,
        "seconds": seconds_trained(state.log_history),
        "sequences": len(trainer.train_dataset),
    }


def card_details(run: RecipeRun, results: dict[str, Any]) -> dict[str, Any]:
    """What every recipe's card says that the trainer does not know."""
    model, data = run.request.model, run.request.data
    dataset, configuration = data.hub_names or (None, None)
    validation = Path(data.validation_file).name if data.validation_file else None
    return {
        "model_name": run.args.run_name,
        "finetuned_from": model.model_name_or_path,
        "dataset": data.words,
        "validation": validation,
        "dataset_tags": dataset,
        "dataset_args": configuration,
        "command": str(typed_command()),
        "metrics_before": results["before"],
        "metrics": results["after"],
        "seconds": results["seconds"],
        "sample": results["sample"],
        "curve": CURVE,
    }


def finish(trainer: Trainer, run: RecipeRun, results: dict[str, Any], card: dict[str, Any]) -> None:
    """Write model, tokenizer, trainer state, loss curve and card; last of all, that it is finished.

    Killed anywhere in here, the next start finds the last checkpoint and does all of it again.

    Args:
        trainer: after training.
        run: whose folder it is.
        results: for its record.
        card: for write_model_card.
    """
    folder, name = run.folder, f"{run.args.run_name}: {optimizer_name(run.args)}"
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.save_state()
        title = f"{name} on {run.request.data.words}"
        draw_loss_curve(trainer.state.log_history, folder.path / CURVE, title=title)
        if trainer.args.push_to_hub:
            card = {**card, "repo": trainer.hub_model_id}
        write_model_card(trainer, **card)
        # `hf-relopt card` makes the same card again.
        kept = {name: card[name] for name in KEPT_OF_CARD if card.get(name)}
        folder.note(**results, card=kept, finished=True)
        if trainer.args.push_to_hub:
            # Not trainer.push_to_hub(): it would write another card, and upload the data as well.
            with blamed_on("cannot upload the result", "The model is saved in the run's folder."):
                upload_folder(
                    repo_id=trainer.hub_model_id,
                    folder_path=folder.path,
                    token=trainer.args.hub_token,
                    ignore_patterns=["checkpoint-*", "data/*", "_*", ".*"],
                    commit_message="Trained model with its card",
                )
    # No rank leaves while another still writes: its end would be taken for a failure.
    trainer.accelerator.wait_for_everyone()


def require_fit(checkpoint: Path, model: torch.nn.Module, optimizer: str) -> None:
    """Check names and shapes only, which is cheap for a large model, too.

    Args:
        checkpoint: a complete checkpoint of a Trainer.
        model: that is to get its weights.
        optimizer: the name that is to get its state, as in "fromage".

    Raises:
        ConfigError: another model's weights, or the state of another optimizer.
    """
    require_same_weights(checkpoint, model)
    if not (checkpoint / "optimizer.pt").is_file():
        return
    rules = saved_rules(checkpoint / "optimizer.pt")
    # A preset's name is not in its groups; their directions are compared when they are loaded.
    rule = rule_of_name(optimizer)
    fits = rule in rules if optimizer in OPTIMIZER_NAMES else not rules
    if not fits:
        trained_with = " and ".join(sorted(rules)) or "neither fromage nor madam"
        raise ConfigError(
            f"{checkpoint} was trained with {trained_with}, not with {optimizer}. {REMEDY}"
        )


def require_same_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Raise a ConfigError if a weight has another shape, or if there are more or fewer of them."""
    # As they are in the file: weights in codes are bytes and scales there.
    here = flattened(model.state_dict())
    size = sum({weight.data_ptr(): weight.numel() for weight in here.values()}.values())
    saved_size, counted = 0, set()
    for file in checkpoint.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118  (not a dict)
                shape = saved.get_slice(name).get_shape()
                # Under FSDP2 a tied weight is saved once for each of its names.
                place = here[name].data_ptr() if name in here else name
                saved_size += 0 if place in counted else math.prod(shape)
                counted.add(place)
                # A name that is not here proves nothing: some models are saved under old names.
                if name in here and shape != list(here[name].shape):
                    raise ConfigError(
                        f"{checkpoint} is a checkpoint of another model: its weight {name} has "
                        f"the shape {shape}, this model's has {list(here[name].shape)}. {REMEDY}"
                    )
    if saved_size and saved_size != size:
        raise ConfigError(
            f"{checkpoint} is a checkpoint of another model: it has {saved_size:,} parameters, "
            f"this model {size:,}. {REMEDY}"
        )


def saved_names(checkpoint: Path) -> set[str]:
    """Names of the weights in a checkpoint."""
    names: set[str] = set()
    for file in checkpoint.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as saved:
            names.update(saved.keys())
    return names


class RenamedWeights(TrainerCallback):
    """Loads what Trainer leaves out when it resumes.

    transformers 5.4 saves BERT's norms as gamma and beta, which from_pretrained understands and
    Trainer does not: it keeps the norms it began with, and only warns of missing keys.

    Args:
        checkpoint: the one that Trainer resumes from.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: Any,
    ) -> None:
        """After Trainer has loaded the checkpoint, before the first step."""
        if model is None:
            return
        if saved_names(self.checkpoint) - flattened(model.state_dict()).keys():
            whole = type(model).from_pretrained(self.checkpoint)
            model.load_state_dict(whole.state_dict())


def saved_rules(file: Path) -> set[str]:
    """Rules named in a saved optimizer's groups; ours name one in each, torch's own none."""
    # mmap leaves the state on disk: only the groups are read.
    saved = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    return {group["rule"] for group in saved["param_groups"] if "rule" in group}
