"""The common part of all recipes: train or resume, evaluate, save.

A start that finds a complete checkpoint resumes from it. What was measured before the first step is
in the checkpoint's log, since a resumed run cannot measure it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from checkpoint_fit import RenamedWeights, require_fit
from huggingface_hub import upload_folder
from loss_curve import draw_loss_curve
from one_clear_message import blamed_on
from optimizer_choice import check_optimizer  # noqa: F401  (recipes take it from here)
from progress_lines import ProgressLines, seconds_trained
from recipe_arguments import optimizer_name
from recipe_run import RecipeRun
from transformers import PrinterCallback, ProgressCallback, Trainer, set_seed

from hf_relopt import RelOptTrainer
from hf_relopt.hf.model_card import write_model_card

CURVE = "loss_curve.png"


def make_trainer(
    run: RecipeRun,
    unit: str,
    units_per_sample: int,
    kind: type[Trainer] | None = None,
    **parts: Any,
) -> Trainer:
    """A RelOptTrainer that shows its progress, and counts the run's steps.

    Args:
        run: with the training arguments.
        unit: what is counted per second, as in "tokens".
        units_per_sample: how many of them are in one training sample.
        kind: a Trainer with RelOptMixin; None: RelOptTrainer.
        parts: the rest of Trainer's arguments.

    Raises:
        ConfigError: something the Trainer lacks, as a package for --report_to.
    """
    args = run.args
    with blamed_on("the Trainer cannot be made", "Fix that, or install what is missing."):
        trainer = (kind or RelOptTrainer)(args=args, **parts)
    samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ProgressLines(unit, samples * units_per_sample, run))
    return trainer


def train_and_measure(trainer: Trainer, run: RecipeRun) -> dict[str, Any]:
    """Train from the start or from the last complete checkpoint, with an evaluation at both ends.

    Returns:
        "before" and "after": the evaluations' metrics; "steps" and "seconds" of training.

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
    }


def finish(
    trainer: Trainer,
    run: RecipeRun,
    results: dict[str, Any],
    *,
    data: str,
    card: dict[str, Any],
    hints: Sequence[tuple[str, str]],
) -> None:
    """Write model, tokenizer, trainer state, loss curve and card; last of all, that it is finished.

    Killed anywhere in here, the next start finds the last checkpoint and does all of it again.

    Args:
        trainer: after training.
        run: whose folder it is.
        results: what `train_and_measure` returned, perhaps with a "sample".
        data: what was trained on, in words, for the line above the loss curve.
        card: what write_model_card should say that the trainer does not know.
        hints: what to try next, as pairs of words and command.
    """
    folder, title = run.folder, f"{run.args.run_name}: {optimizer_name(run.args)} on {data}"
    trainer.save_model()
    card = {
        **card,
        "metrics_before": results["before"],
        "metrics": results["after"],
        "seconds": results["seconds"],
        "sample": results.get("sample"),
        "curve": CURVE,
    }
    if trainer.is_world_process_zero():
        trainer.save_state()
        draw_loss_curve(trainer.state.log_history, folder.path / CURVE, title=title)
        write_model_card(trainer, **card)
        folder.note(**results, hints=hints, finished=True)
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
