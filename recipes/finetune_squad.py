"""Fine-tune a pretrained model to answer questions about a text, with Fromage.

Without arguments: bert-base-cased on SQuAD 1.1, both from the hub, as in the papers: batches of 12,
2 epochs, linear decay, rate .001. Local models and files work as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from answer_spans import QuestionSource, answers_of, encode, load_questions
from datasets import Dataset, DatasetDict
from offline_metric import load_metric
from one_clear_message import blamed_on
from pretrained import CHECK_NAME, fine_tuning_card, named_tokenizer
from recipe_arguments import optimizer_name
from recipe_run import (
    Prepared,
    RecipeRun,
    RunArguments,
    limited,
    python_word,
    say_main,
    script_word,
)
from recipe_start import start_recipe
from training_session import check_optimizer, finish, make_trainer, train_and_measure
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

from hf_relopt.errors import ConfigError

METRIC = "eval_f1"
DEFAULTS = {
    "run_name": "finetune_squad",
    "optim": "fromage",
    "lr_scheduler_type": "linear",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 12,
    "per_device_eval_batch_size": 32,
    "logging_steps": 50,
    "eval_strategy": "epoch",
    "save_steps": 1000,
    "save_total_limit": 2,
    # The model's columns do not tell that these are what it is trained on.
    "label_names": ["start_positions", "end_positions"],
}
LIMITS = "Gives a span of the text for every question, also for one that the text does not answer."


@dataclass(frozen=True)
class ModelArguments:
    """Which pretrained model learns to answer."""

    _argument_group_name = "Model"

    model_name_or_path: str = field(
        default="google-bert/bert-base-cased",
        metadata={"help": "the pretrained model, from the hub or a directory"},
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "this tokenizer, instead of the model's"}
    )


@dataclass(frozen=True)
class SquadRequest:
    """Everything the command line asked for."""

    model: ModelArguments
    data: QuestionSource
    run: RunArguments
    args: TrainingArguments


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe; a user's mistake ends it with one message and exit code 2."""
    start_recipe(
        SquadRequest,
        finetune,
        metric=METRIC,
        defaults=DEFAULTS,
        about=__doc__ or "",
        argv=argv,
    )


def prepare(request: SquadRequest) -> Prepared:
    """Questions, tokenizer and model; everything the user can get wrong is tried here."""
    say_main(request.args, f"reading {request.data.words}")
    questions = load_questions(request.data, request.args.seed)
    train = limited(questions["train"], request.data.max_train_samples)
    validation = limited(questions["validation"], request.data.max_eval_samples)
    name = request.model.tokenizer_name or request.model.model_name_or_path
    tokenizer = named_tokenizer(name)
    if not tokenizer.is_fast:
        raise ConfigError(f"{name} has no fast tokenizer, and only those know where tokens lie.")
    model = build_model(request)
    check_optimizer(request.args, model)
    splits = DatasetDict(
        train=encode(train, tokenizer, request.data),
        validation=encode(validation, tokenizer, request.data),
        questions=validation,
    )
    return splits, tokenizer, model


def build_model(request: SquadRequest) -> PreTrainedModel:
    """The pretrained model with a new head: a start and an end logit for each token."""
    source = request.model.model_name_or_path
    set_seed(request.args.seed)
    with blamed_on(f"cannot load the model {source}", CHECK_NAME):
        return AutoModelForQuestionAnswering.from_pretrained(source)


def finetune(request: SquadRequest, run: RecipeRun) -> None:
    """Train, measure and write everything into the run folder."""
    args = request.args
    splits, tokenizer, model = run.prepare(lambda: prepare(request))
    model = model or build_model(request)
    windows = f"{len(splits['train']):,} windows to train on"
    say_main(
        args,
        f"{request.model.model_name_or_path}: {model.num_parameters():,} parameters; {windows}, "
        f"{len(splits['questions']):,} questions to validate on",
    )
    last: dict[str, list[str]] = {}
    trainer = make_trainer(
        args,
        "windows",
        1,
        model=model,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=scores_of(
            splits["validation"],
            splits["questions"],
            request.data.max_answer_length,
            load_metric("answer_exact_and_f1", args),
            last,
        ),
    )
    figures = train_and_measure(trainer)
    if trainer.is_world_process_zero() and last:
        figures["sample"] = some_answers(splits["questions"], last["answers"])
    finish(
        trainer,
        run.folder,
        figures,
        title=f"{args.run_name}: {optimizer_name(args)} on {request.data.words}",
        card=card_details(request),
        hints=hints(),
    )


def scores_of(
    windows: Dataset,
    questions: Dataset,
    max_answer_length: int,
    metric: Any,
    last: dict[str, list[str]],
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Trainer's compute_metrics: exact match and F1; leaves the answers in ``last``."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        starts, ends = prediction.predictions[:2]
        contexts = questions["context"]
        last["answers"] = answers_of(starts, ends, windows, contexts, max_answer_length)
        return metric.compute(
            predictions=last["answers"],
            references=[answers["text"] for answers in questions["answers"]],
        )

    return compute


def some_answers(questions: Dataset, answers: list[str]) -> str:
    """The first validation questions with the model's answer and a true one."""
    rows = questions.select(range(min(4, len(questions))))
    return "\n".join(
        f"{row['question']} {answer or '(nothing)'} (truth: {row['answers']['text'][0]})"
        for row, answer in zip(rows, answers, strict=False)
    )


def card_details(request: SquadRequest) -> dict[str, Any]:
    """What the card says that the trainer does not know."""
    return fine_tuning_card(
        request.args,
        request.model.model_name_or_path,
        request.data,
        summary=f"{request.model.model_name_or_path} fine-tuned to answer the questions of "
        f"{request.data.words}.",
        tasks="question-answering",
        limits=LIMITS,
    )


def hints() -> list[list[str]]:
    """What to try next, each with the command for it."""
    command = f"{python_word()} {script_word()}"
    return [
        ["with Madam", f"{command} --run_name madam --optim madam"],
        [
            "AdamW, to compare",
            f"{command} --run_name adamw --optim adamw_torch --learning_rate 3e-5",
        ],
        ["your own questions", f"{command} --run_name mine --train_file mine.json"],
        ["your own script", "import hf_relopt, then pass --optim fromage"],
    ]


if __name__ == "__main__":
    main()
