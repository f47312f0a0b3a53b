"""One command of `accelerate launch` from a recipe and the changes of a user."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from hf_relopt.cli.recipe_command import launch_command
from hf_relopt.cli.recipe_files import (
    find_accelerate,
    find_recipe,
    recipe_names,
)

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"


def flags_of(command: list[str]) -> dict[str, list[str]]:
    """What the script gets, by flag; the last of two counts, as it does for argparse."""
    script = next(place for place, word in enumerate(command) if word.endswith(".py"))
    flags: dict[str, list[str]] = {}
    for word in command[script + 1 :]:
        if word.startswith("--"):
            name = word[2:]
            flags[name] = []
        else:
            flags[name].append(word)
    return flags


@pytest.mark.parametrize("name", recipe_names())
def test_the_command_says_all_that_the_file_says(name):
    recipe = find_recipe(name)
    command = launch_command(recipe, find_accelerate("ddp"), [])
    assert command[:3] == [sys.executable, "-m", "hf_relopt.cli.launch"]
    assert command[3:5] == ["--config_file", str(RECIPES / "accelerate" / "ddp.yaml")]
    assert command[5] == str(recipe.script) and recipe.script.is_file()
    written = yaml.safe_load(recipe.arguments.read_text())
    assert flags_of(command) == {key: [str(value)] for key, value in written.items()}


def test_overrides_win_and_launcher_flags_go_to_the_launcher():
    recipe = find_recipe("pretrain-gpt2-124m/madam")
    words = ["--learning_rate", "0.01", "--num_processes", "8", "--seed=3", "--eval-steps", "7"]
    command = launch_command(recipe, None, [*words, "--gpu_ids=0,1"])
    script = command.index(str(recipe.script))
    assert command[3:script] == ["--num_processes", "8", "--gpu_ids=0,1"]
    flags = flags_of(command)
    assert flags["learning_rate"] == ["0.01"]
    assert flags["eval-steps"] == ["7"] and "eval_steps" not in flags
    assert command[-5:] == ["--learning_rate", "0.01", "--seed=3", "--eval-steps", "7"]


@pytest.mark.parametrize(
    ("words", "gone", "kept"),
    [
        ("--train_file t.txt", {"dataset_name", "dataset_config_name"}, {"tokenizer_name"}),
        ("--dataset_name a/b", {"dataset_config_name"}, {"dataset_name"}),
        ("--num_train_epochs 1", {"max_steps"}, {"num_train_epochs"}),
        (
            "--model_name_or_path here",
            {"model_type", "config_overrides", "tokenizer_name"},
            {"block_size"},
        ),
        ("--model_type llama", {"config_overrides"}, {"model_type", "tokenizer_name"}),
    ],
)
def test_what_contradicts_an_override_gives_way(words, gone, kept):
    flags = flags_of(launch_command(find_recipe("pretrain-gpt2-124m"), None, words.split()))
    assert not gone & flags.keys()
    assert kept <= flags.keys()
