"""A user's mistake ends a recipe with one message and exit code 2, and costs nothing.

What the first look finds without torch is in test_first_look.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import finetune_classifier
import pretrain_clm
import pytest
from transformers import TrainerState

from tests.distributed.ranks import environment
from tests.recipes.recipe_calls import RECIPES, refusal, tiny_finetuning, tiny_pretraining


def fill(flags: dict[str, object], folder: Path) -> dict[str, object]:
    """Flags with the folder in place of {}."""
    return {
        name: value.format(folder) if isinstance(value, str) else value
        for name, value in flags.items()
    }


@pytest.fixture
def files(tmp_path):
    """Files a user might name by mistake."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "short.txt").write_text("too short\n")
    (tmp_path / "one_line.txt").write_text("one line of text, which is no more than that\n")
    (tmp_path / "columns.csv").write_text("body,stars\nsome words,4\nother words,2\n")
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "broken.json").write_text('{"text": "a"\n{"te')
    (tmp_path / "no_folder").write_text("a file where a folder is wanted")
    (tmp_path / "empty_folder").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("precious")
    (tmp_path / "cut_checkpoint").mkdir()
    state = str(tmp_path / "cut_checkpoint" / "trainer_state.json")
    TrainerState(global_step=1, max_steps=2).save_to_json(state)
    for name in ("optimizer.pt", "scheduler.pt"):
        (tmp_path / "cut_checkpoint" / name).touch()
    (tmp_path / "cut_checkpoint" / "model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "null.json").write_text("null")
    (tmp_path / "header.csv").write_text("text,stars\n")
    (tmp_path / "counts.jsonl").write_text('{"text": 3}\n{"text": 4}\n')
    (tmp_path / "bare").mkdir()
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    return tmp_path


PRETRAINING = [
    ({"train_file": "{}/missing.txt"}, "no file"),
    ({"train_file": "{}/empty.txt"}, "is empty"),
    ({"train_file": "{}/blank.txt"}, "is empty"),
    ({"train_file": "{}/short.txt"}, "no text in the validation split"),
    ({"train_file": "{}/one_line.txt"}, "does not fill one block of 16 tokens"),
    ({"train_file": "{}/empty_folder"}, "no text file"),
    ({"train_file": "{}/numbers.csv"}, "columns are a, b"),
    ({"train_file": "{}/columns.csv", "text_column": "stars"}, "the column 'stars' of"),
    ({"train_file": "{}/broken.json"}, "cannot read"),
    ({"train_file": "{}/null.json"}, "does not hold rows"),
    ({"train_file": "{}/header.csv"}, "has no rows"),
    ({"train_file": "{}/counts.jsonl"}, "the column 'text'"),
    ({"config_name": "{}/bare", "config_overrides": None}, "bare has no tokenizer files"),
    ({"validation_file": "{}/missing.txt"}, "no file"),
    ({"train_file": None, "dataset_name": "{}/nowhere"}, "cannot load the data set"),
    ({"model_name_or_path": "{}/nowhere", "config_overrides": None}, "cannot load the model"),
    ({"config_overrides": "n_layers=4"}, "n_layers"),
    ({"config_overrides": "n_embd=17"}, "cannot build the model"),
    ({"config_overrides": "n_positions=8"}, "8 tokens at most"),
    ({"model_type": "lama", "config_overrides": None}, "no --model_type lama. Did you mean llama?"),
    ({"model_type": "llama", "config_overrides": "n_layer=1"}, "n_layer"),
    ({"model_type": "llama", "config_name": "{}/nowhere"}, "either --config_name or --model_type"),
    ({"block_size": 1}, "block_size is 1"),
    ({"output_dir": "{}/no_folder/run"}, "cannot write"),
    ({"output_dir": "{}/foreign"}, "no recipe wrote them"),
    ({"output_dir": "{}/foreign", "overwrite_output_dir": True}, "no recipe wrote them"),
    ({"resume_from_checkpoint": "{}/cut_checkpoint"}, "model.safetensors is damaged"),
    ({"optim": "fromage", "optim_args": "p_bound="}, "p_bound"),
    ({"optim": "fromage", "optim_args": "p_bound=abc"}, "abc"),
    ({"optim": "fromage", "optim_args": "a=b=c"}, "a=b=c"),
    ({"optim": "fromage", "optim_args": "matrices.lr=1e-3"}, "matrices"),
    ({"optim": "adamw_torch", "optim_args": "betas"}, "betas"),
    ({"learning_rate": "-0.1"}, "-0.1"),
    ({"learning_rate": "inf"}, "inf"),
    ({"optim": "adamw_torch", "learning_rate": "-0.1"}, "-0.1"),
    ({"save_strategy": "sometimes"}, "sometimes"),
]


@pytest.mark.parametrize(("flags", "words"), PRETRAINING, ids=[str(f) for f, _ in PRETRAINING])
def test_pretraining(flags, words, files, tiny_text, capsys):
    before = sorted(files.rglob("*"))
    arguments = tiny_pretraining(
        **{"text": tiny_text, "output": files / "run", **fill(flags, files)}
    )
    assert words in refusal(pretrain_clm.main, arguments, capsys)
    assert sorted(files.rglob("*")) == before


FINETUNING = [
    ({"train_file": "{}/missing.tsv"}, "no file"),
    ({"train_file": "{}/empty.txt"}, "is empty"),
    ({"train_file": "{}/short.txt"}, "must be a table"),
    ({"train_file": "{}/columns.csv"}, "columns are body, stars"),
    ({"train_file": "{}/numbers.csv", "label_column": "b"}, "columns are a, b"),
    ({"text_column": "review"}, "columns are sentence, label"),
    ({"label_column": "stars"}, "columns are sentence, label"),
    ({"model_name_or_path": "{}/nowhere"}, "cannot load"),
    ({"max_length": 1}, "max_length is 1"),
    ({"output_dir": "{}/no_folder/run"}, "cannot write"),
]


@pytest.mark.parametrize(("flags", "words"), FINETUNING, ids=[str(f) for f, _ in FINETUNING])
def test_finetuning(flags, words, files, tiny_table, tiny_classifier, capsys):
    before = sorted(files.rglob("*"))
    named = {"data": tiny_table, "model": tiny_classifier, "output": files / "run"}
    arguments = tiny_finetuning(**{**named, **fill(flags, files)})
    assert words in refusal(finetune_classifier.main, arguments, capsys)
    assert sorted(files.rglob("*")) == before


def test_labels_the_training_data_does_not_have(tiny_table, tiny_classifier, tmp_path, capsys):
    other = tmp_path / "other.tsv"
    other.write_text("sentence\tlabel\nsome film\tmixed\nother film\tgood\n")
    arguments = tiny_finetuning(
        tiny_table, tiny_classifier, tmp_path / "run", validation_file=other
    )
    assert "mixed" in refusal(finetune_classifier.main, arguments, capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tiny_text, tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    message = refusal(pretrain_clm.main, tiny_pretraining(tiny_text, locked / "run"), capsys)
    assert "Permission denied" in message


def test_as_a_real_command(tmp_path):
    done = subprocess.run(
        [sys.executable, RECIPES / "pretrain_clm.py", "--train_file", tmp_path / "no.txt"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f"pretrain_clm.py: error: there is no file {tmp_path / 'no.txt'}.\n")
