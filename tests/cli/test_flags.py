"""Command lines as lists of words: what is read from them, and what is written into them."""

from __future__ import annotations

import pytest

from hf_relopt.cli.flags import Flag, as_words, joined, split, without
from hf_relopt.errors import ConfigError


def test_flags_are_read_with_their_values_and_written_as_they_were():
    words = ["--max-steps", "7", "--seed=3", "--bf16", "--report_to", "none", "tensorboard"]
    flags = split(words)
    assert [(flag.name, flag.value) for flag in flags] == [
        ("max_steps", "7"),
        ("seed", "3"),
        ("bf16", ""),
        ("report_to", "none tensorboard"),
    ]
    assert joined(flags) == words


def test_a_value_may_hold_an_equals_sign_or_be_negative():
    assert Flag("optim_args", ("--optim_args=p_bound=2.0",)).value == "p_bound=2.0"
    assert [flag.value for flag in split(["--seed", "-1"])] == ["-1"]


def test_a_word_before_the_first_flag_is_a_mistake():
    with pytest.raises(ConfigError, match="'max_steps' is not a flag; write changes as --flag"):
        split(["max_steps", "--seed", "1"])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"train_file"}, {"max_steps", "model_type"}),
        ({"num_train_epochs"}, {"train_file", "dataset_name", "model_type"}),
        ({"model_name_or_path", "seed"}, {"train_file", "dataset_name", "max_steps"}),
        ({"seed"}, {"train_file", "dataset_name", "max_steps", "model_type"}),
    ],
)
def test_a_flag_takes_away_itself_and_what_it_contradicts(given, kept):
    names = ("train_file", "dataset_name", "max_steps", "model_type")
    assert without(given, dict.fromkeys(names, 1)).keys() == kept


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, []),
        (3, ["--name", "3"]),
        (True, ["--name", "True"]),
        (["a", 2], ["--name", "a", "2"]),
        ([], ["--name", "[]"]),
        ({"a": [1]}, ["--name", '{"a": [1]}']),
        (-1, ["--name=-1"]),
        ("", ["--name="]),
    ],
)
def test_a_value_of_a_file_is_the_flag_that_says_the_same(value, words):
    assert as_words("name", value) == words
