"""finetune_squad.py trains: spans to tokens and back, two real steps, files of several kinds."""

from __future__ import annotations

import json
from pathlib import Path

import evaluate
import numpy as np
import pytest
from finetune_squad import QuestionSource, main
from huggingface_hub import ModelCard
from run_folder import RunFolder
from squad_training import answers_of, encode, load_questions
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from hf_relopt.lns.tensor import LNSTensor
from tests.distributed.ranks import forked
from tests.recipes.recipe_calls import RECIPES, refusal, tiny_finetuning, write_rows

COLOURS = ("grey", "red", "dull green", "blue")


def questions(count: int) -> list[dict]:
    """Each text holds many films; the answer stands somewhere in it, once in two words."""
    rows = []
    for number in range(count):
        colour = COLOURS[number % 4]
        before = " ".join(f"film number {other} is fine." for other in range(number % 7))
        context = f"{before} cat number {number} is {colour}, and film {number} is good.".strip()
        answers = {"text": [colour], "answer_start": [context.index(colour)]}
        question = f"what is cat number {number}?"
        rows.append({"context": context, "question": question, "answers": answers})
    return rows


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("questions") / "table.jsonl", questions(40))


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in SQuAD's own form."""
    path = tmp_path_factory.mktemp("questions") / "squad.json"
    paragraphs = [
        {
            "context": row["context"],
            "qas": [
                {
                    "id": str(number),
                    "question": row["question"],
                    "answers": [
                        {"text": text, "answer_start": begin}
                        for text, begin in zip(*row["answers"].values(), strict=True)
                    ],
                }
            ],
        }
        for number, row in enumerate(questions(40))
    ]
    path.write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": paragraphs}]}))
    return path


def tiny(data: Path, model: Path, output: Path, **more: object) -> list[str]:
    return tiny_finetuning(data, model, output, **{"max_length": 32, "doc_stride": 8, **more})


@pytest.mark.parametrize("max_length", [24, 32, 64])
def test_spans_go_to_tokens_and_back(table: Path, tiny_classifier: Path, max_length: int) -> None:
    source = QuestionSource(train_file=str(table), max_length=max_length, doc_stride=8)
    tokenizer = AutoTokenizer.from_pretrained(tiny_classifier)
    train = load_questions(source, seed=0)["train"]
    windows = encode(train, tokenizer, source)
    longest = max(map(len, windows["spans"]))
    starts, ends = (np.full((len(windows), longest), -5.0) for _ in "se")
    for row, window in enumerate(windows):
        # A window without the answer points at its first token, which is no answer.
        starts[row, window["start_positions"]] = ends[row, window["end_positions"]] = 5.0
    found = answers_of(starts, ends, windows, train["context"], 30)
    assert found == [answers["text"][0] for answers in train["answers"]]
    assert len(windows) > len(train) or max_length == 64


def test_the_two_forms_are_the_same_data(table: Path, nested: Path) -> None:
    both = [load_questions(QuestionSource(train_file=str(p)), seed=0) for p in (table, nested)]
    assert both[0]["train"].to_list() == both[1]["train"].to_list()


def test_an_answer_is_not_longer_than_asked(table: Path, tiny_classifier: Path) -> None:
    source = QuestionSource(train_file=str(table))
    tokenizer = AutoTokenizer.from_pretrained(tiny_classifier)
    train = load_questions(source, seed=0)["train"]
    windows = encode(train, tokenizer, source)
    flat = np.random.default_rng(0).normal(size=(len(windows), max(map(len, windows["spans"]))))
    assert max(len(a.split()) for a in answers_of(flat, -flat, windows, train["context"], 1)) <= 1


def test_weights_in_codes(table: Path, tiny_classifier: Path, tmp_path: Path) -> None:
    codes = {"optim": "integer_madam", "lns_format": "lns12"}
    main(tiny(table, tiny_classifier, tmp_path / "run", **codes))
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run")
    assert isinstance(model.get_input_embeddings().weight, LNSTensor)


def test_two_real_steps_and_the_figures_are_the_saved_model_s(
    table: Path, tiny_classifier: Path, tmp_path: Path
) -> None:
    main(tiny(table, tiny_classifier, tmp_path / "run"))
    record = RunFolder(tmp_path / "run").record
    assert record["finished"] and record["steps"] == 2
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run")
    results = ModelCard.load(tmp_path / "run" / "README.md").data.eval_results
    scores = {result.metric_type: result.metric_value for result in results}
    assert scores["f1"] == pytest.approx(record["after"]["eval_f1"])
    assert 0 <= record["after"]["eval_exact_match"] <= record["after"]["eval_f1"] <= 100
    assert "truth:" in record["sample"]


@pytest.mark.dist
def test_two_processes(nested: Path, tiny_classifier: Path, tmp_path: Path) -> None:
    done = forked(
        2, RECIPES / "finetune_squad.py", *tiny(nested, tiny_classifier, tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "run").record["finished"]


def test_unanswerable_questions_are_refused(tiny_classifier, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    rows = questions(8)
    rows[3]["answers"] = {"text": [], "answer_start": []}
    path = write_rows(tmp_path / "two.jsonl", rows)
    assert "SQuAD 1.1" in refusal(main, tiny(path, tiny_classifier, tmp_path / "run"), capsys)


@pytest.mark.parametrize(
    ("answer", "known", "exact", "f1"),
    [
        ("the Cat!", ["cat"], 100.0, 100.0),
        ("grey cat", ["cat", "a dog"], 0.0, 200 / 3),
        ("", ["cat"], 0.0, 0.0),
        ("the", ["a"], 100.0, 100.0),
        ("x y z", ["x y", "z"], 0.0, 80.0),
    ],
)
def test_scores_count_as_squad_does(answer, known, exact, f1) -> None:  # type: ignore[no-untyped-def]
    metric = evaluate.load(str(RECIPES / "metrics" / "answer_exact_and_f1"), keep_in_memory=True)
    found = metric.compute(predictions=[answer], references=[known])
    assert found == {"exact_match": exact, "f1": pytest.approx(f1)}
