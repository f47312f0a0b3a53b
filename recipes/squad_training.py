"""Fine-tuning a question answerer: the answer is a span of a text.

Questions come from the hub or SQuAD files. A text that is too long for the model is cut into
overlapping windows; each is a sample. Where a window does not hold the answer, the answer is its
first token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from clear_messages import blamed_on
from command_line import check_optimizer
from datasets import Dataset, DatasetDict
from local_files import check_table
from model_loading import (
    ANSWERER,
    in_codes,
    named_model,
    padding_tokenizer,
    require_one_batch,
    require_vocabulary,
)
from recipe import Request
from recipe_run import Prepared, RecipeRun, say_main
from text_tables import load_tables, read_table
from training_session import (
    load_metric,
    make_trainer,
    read_data,
    train_and_finish,
)
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from typed_command import OWN_SCRIPT, Rates, next_steps

from hf_relopt.errors import ConfigError

if TYPE_CHECKING:
    from finetune_squad import AnswererModel, QuestionSource

    SquadRequest = Request[AnswererModel, QuestionSource]

LIMITS = "It answers every question with a span of the text, even if the text has no answer."
# Fromage's is the paper's; none is tuned here.
RATES = Rates(
    {"fromage_spectral": 0.001, "adamw_torch": 3e-5, "fromage": 0.001, "madam": 0.001},
    said=("adamw_torch",),
)
# What a model learns from, of all that a window has.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "start_positions", "end_positions")
COLUMNS = ("context", "question", "answers")
# Of the logits at both ends; more change no answer that anyone would give.
BEST_ENDS = 20


def prepare(request: SquadRequest) -> Prepared:
    """Make questions, tokenizer and model; every mistake of the user shows up here."""
    questions = read_data(request, ANSWERER, load_questions)
    source = request.model.model_name_or_path
    name = request.model.tokenizer_name or source
    tokenizer = padding_tokenizer(name)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{name} has no fast tokenizer, and only fast tokenizers report the "
            "positions of tokens."
        )
    model = build_model(request)
    require_vocabulary(model, tokenizer, source)
    check_optimizer(request.args, model)
    splits = DatasetDict(
        train=encode(questions["train"], tokenizer, request.data),
        validation=encode(questions["validation"], tokenizer, request.data),
        questions=questions["validation"],
    )
    windows = splits["train"].select_columns(
        [name for name in MODEL_INPUTS if name in splits["train"].column_names]
    )
    require_one_batch(model, DataCollatorWithPadding(tokenizer), windows, source)
    return splits, tokenizer, model


def build_model(request: SquadRequest) -> PreTrainedModel:
    """The pretrained model with a new task head: a start and an end logit for each token."""
    name = request.model.model_name_or_path
    model = named_model(AutoModelForQuestionAnswering, name, request.args.seed)
    return in_codes(model, request.model)


def train(request: SquadRequest, run: RecipeRun) -> None:
    """Train, measure and write everything into the run folder."""
    args = request.args
    splits, tokenizer, model = run.prepare(lambda: prepare(request))
    model = model or build_model(request)
    say_main(
        args,
        f"{request.model.model_name_or_path}: {model.num_parameters():,} parameters; "
        f"{len(splits['train']):,} windows to train on, {len(splits['questions']):,} questions to "
        "validate on",
    )
    last: dict[str, list[str]] = {}
    trainer = make_trainer(
        run,
        model,
        splits,
        tokenizer,
        unit="windows",
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=scores_of(
            splits["validation"],
            splits["questions"],
            request.data.max_answer_length,
            load_metric("answer_exact_and_f1", args),
            last,
        ),
    )
    file = ["--train_file", "mine.json"]
    train_and_finish(
        trainer,
        run,
        sample=lambda: some_answers(splits["questions"], last["answers"]) if last else None,
        summary=f"{request.model.model_name_or_path} fine-tuned to answer the questions of "
        f"{request.data.words}.",
        tasks="question-answering",
        limits=LIMITS,
        hints=[*next_steps(args, RATES, "your own questions", file), OWN_SCRIPT],
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


def load_questions(source: QuestionSource, seed: int) -> DatasetDict:
    """Read "train" and "validation" with the columns context, question and answers.

    ``answers`` holds lists ``text`` and ``answer_start`` (characters into the context).

    Raises:
        ConfigError: a missing or empty file, missing columns, a question without an answer.
    """
    tables = load_tables(source, seed, read=_read)
    for name, table in tables.items():
        missing = [column for column in COLUMNS if column not in table.column_names]
        if missing:
            raise ConfigError(
                f"{source.words} has no column {missing[0]!r}; its columns are "
                f"{', '.join(table.column_names)}."
            )
        with blamed_on(
            f"the column 'answers' of {source.words} is not like SQuAD's",
            "Each answer has lists text and answer_start.",
        ):
            unanswered = any(
                not answers["text"] or not answers["answer_start"] for answers in table["answers"]
            )
        if unanswered:
            raise ConfigError(
                f"the {name} data of {source.words} has questions without an answer, as SQuAD 2 "
                "has; this recipe is for SQuAD 1.1."
            )
    return DatasetDict({name: table.select_columns(COLUMNS) for name, table in tables.items()})


def _read(path: Path) -> Dataset:
    check_table(path)
    if path.suffix.lower() == ".json":
        with blamed_on(f"cannot read {path}", "Is it in SQuAD's own form?"):
            rows = _squad_file(path)
            if rows is not None:
                return Dataset.from_list(rows)
    return read_table(path)


def _squad_file(path: Path) -> list[dict[str, Any]] | None:
    """Rows of a file in SQuAD's own nested form; None if it is something else.

    Raises:
        KeyError, TypeError: it is nested otherwise.
    """
    try:
        nested = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # lines of JSON, perhaps
    if not isinstance(nested, dict) or "data" not in nested:
        return None
    return [
        {
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {
                "text": [answer["text"] for answer in question["answers"]],
                "answer_start": [answer["answer_start"] for answer in question["answers"]],
            },
        }
        for article in nested["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def encode(
    questions: Dataset, tokenizer: PreTrainedTokenizerBase, source: QuestionSource
) -> Dataset:
    """Windows as samples: token ids, start_positions, end_positions, and the way back.

    ``question_number`` is the row of ``questions``; ``spans`` are for each token its first and last
    character in the context, or -1 for tokens of the question and special ones.
    """
    # Not the source itself: its class is the script's, which `map` would have to hash.
    max_length, stride = source.max_length, source.doc_stride

    def encoded(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
        windows = tokenizer(
            [question.strip() for question in batch["question"]],
            batch["context"],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        belongs = windows.pop("overflow_to_sample_mapping")
        spans = [
            [list(span) if part == 1 else [-1, -1] for span, part in zip(each, parts, strict=True)]
            for number, each in enumerate(windows.pop("offset_mapping"))
            for parts in [windows.sequence_ids(number)]
        ]
        result = {**windows, "question_number": [rows[number] for number in belongs]}
        result["spans"] = spans
        ends = [
            _positions(window, batch["answers"][number])
            for window, number in zip(spans, belongs, strict=True)
        ]
        result["start_positions"], result["end_positions"] = map(list, zip(*ends, strict=True))
        return result

    return questions.map(
        encoded, batched=True, with_indices=True, remove_columns=questions.column_names
    )


def _positions(spans: list[list[int]], answers: dict[str, list[Any]]) -> tuple[int, int]:
    """First and last token of the first answer; (0, 0) if the window does not hold all of it."""
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    inside = [token for token, (first, last) in enumerate(spans) if first >= 0 and last > first]
    if not inside or spans[inside[0]][0] > start or spans[inside[-1]][1] < end:
        return 0, 0
    first = max(token for token in inside if spans[token][0] <= start)
    last = min(token for token in inside if spans[token][1] >= end)
    return first, last


def answers_of(
    starts: np.ndarray,
    ends: np.ndarray,
    windows: Dataset,
    contexts: Sequence[str],
    max_answer_length: int,
) -> list[str]:
    """The likeliest span of every question over all of its windows.

    Args:
        starts, ends: logits, [windows, longest window]; what lies beyond a window is ignored.
        windows: from :func:`encode`.
        contexts: the text of each question.
        max_answer_length: in tokens.
    """
    best = [(-np.inf, "")] * len(contexts)
    for start, end, spans, number in zip(
        starts, ends, windows["spans"], windows["question_number"], strict=True
    ):
        for first in np.argsort(-start[: len(spans)])[:BEST_ENDS]:
            for last in np.argsort(-end[: len(spans)])[:BEST_ENDS]:
                if not first <= last < first + max_answer_length:
                    continue
                if spans[first][0] < 0 or spans[last][0] < 0:
                    continue
                score = start[first] + end[last]
                if score > best[number][0]:
                    text = contexts[number][spans[first][0] : spans[last][1]]
                    best[number] = (score, text)
    return [text for _, text in best]
