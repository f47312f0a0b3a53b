"""finetune_classifier.py trains: true results, two real steps on tables of several kinds."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from datasets import load_from_disk
from finetune_classifier import main
from huggingface_hub import ModelCard
from run_folder import RunFolder
from transformers import AutoModelForSequenceClassification

from hf_relopt.lns.tensor import LNSTensor
from tests.distributed.ranks import forked
from tests.recipes.recipe_calls import RECIPES, as_if_stopped, tiny_finetuning


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_table, tiny_classifier):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    main(tiny_finetuning(tiny_table, tiny_classifier, folder, max_steps=4))
    return folder


def test_accuracy_is_that_of_the_saved_model(finished):
    model = AutoModelForSequenceClassification.from_pretrained(finished)
    rows = load_from_disk(finished / "data")["validation"]
    with torch.no_grad():
        right = [
            model(input_ids=torch.tensor([row["input_ids"]])).logits.argmax().item()
            == row["labels"]
            for row in rows
        ]
    accuracy = sum(right) / len(right)
    assert RunFolder(finished).record["after"]["eval_accuracy"] == pytest.approx(accuracy)
    results = ModelCard.load(finished / "README.md").data.eval_results
    assert {r.metric_type: r.metric_value for r in results}["accuracy"] == pytest.approx(accuracy)


def test_classes_keep_their_names(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}


def test_started_again_it_resumes_to_the_same_result(
    finished, tiny_table, tiny_classifier, tmp_path
):
    folder = shutil.copytree(finished, tmp_path / "stopped")
    as_if_stopped(folder, "checkpoint-4")
    main(tiny_finetuning(tiny_table, tiny_classifier, folder, max_steps=4))
    both = [(path / "model.safetensors").read_bytes() for path in (folder, finished)]
    assert both[0] == both[1]


def test_weights_in_codes(tiny_table, tiny_classifier, tmp_path):
    codes = {"optim": "integer_madam", "lns_format": "lns8"}
    main(tiny_finetuning(tiny_table, tiny_classifier, tmp_path / "run", **codes))
    assert "deep relative trust: 0." in (tmp_path / "run" / "README.md").read_text()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert isinstance(model.get_input_embeddings().weight, LNSTensor)


def write_csv(path):
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["left", "right", "grade"])
        # "null" is a text like any other, not a missing one.
        rows.writerows(
            [["null" if n == 3 else f'a "{n}", b', f"c {n % 3}", n % 3 + 1] for n in range(48)]
        )


def write_json(path):
    path.write_text("\n".join(json.dumps({"text": f"t {n}", "label": n % 2}) for n in range(32)))


@pytest.mark.parametrize(
    ("name", "write", "columns", "names"),
    [
        ("pairs.csv", write_csv,
         {"text_column": "left", "text_pair_column": "right", "label_column": "grade"},
         {"1", "2", "3"}),
        ("lines.jsonl", write_json, {}, {"0", "1"}),
    ],
)  # fmt: skip
def test_kinds_of_tables(name, write, columns, names, tiny_classifier, tmp_path):
    write(tmp_path / name)
    main(tiny_finetuning(tmp_path / name, tiny_classifier, tmp_path / "run", **columns))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert set(config["id2label"].values()) == names


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes(tiny_table, tiny_classifier, tmp_path):
    arguments = tiny_finetuning(tiny_table, tiny_classifier, tmp_path / "two")
    done = forked(2, RECIPES / "finetune_classifier.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "two").finished
