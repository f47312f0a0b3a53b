"""What the scripts' arguments say of model and data, and what each script makes of its own."""

from __future__ import annotations

import finetune_classifier
import finetune_squad
import pretrain_clm
import pytest
import sft_chat
from recipe import DataSource, ModelSource, TableSource

from hf_relopt.cli.launch import LOOK_ONLY
from hf_relopt.errors import ConfigError


@pytest.mark.parametrize(
    ("source", "names", "words"),
    [
        (finetune_classifier.LabelledSource(), ("nyu-mll/glue", "sst2"), "nyu-mll/glue sst2"),
        (finetune_squad.QuestionSource(), ("rajpurkar/squad", None), "rajpurkar/squad"),
        (sft_chat.ChatSource(dataset_name="a/b"), ("a/b", None), "a/b"),
        (sft_chat.ChatSource(train_file="x/chats.jsonl"), None, "chats.jsonl"),
        (DataSource(dataset_name="a/b", dataset_config_name="c"), ("a/b", "c"), "a/b c"),
        (pretrain_clm.TextSource(), None, "the source text of the Python standard library"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_source_says_where_it_is(source, names, words):
    assert (source.hub_names, source.words) == (names, words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"dataset_name": "a/b", "train_file": "c.csv"}, "not both"),
        ({"validation_file": "c.csv"}, "needs --train_file"),
        ({"train_file": ""}, "must not be empty"),
        ({"validation_share": 1.0}, "between 0 and 1, as in 0.05"),
        ({"max_eval_samples": 0}, "1 or more, not 0"),
    ],
    ids=str,
)
def test_sources_that_contradict_themselves(flags, words):
    with pytest.raises(ConfigError, match=words):
        TableSource(**flags)


def test_names_that_can_only_be_paths_are_looked_at(tmp_path):
    (tmp_path / "file").touch()
    for name, words in (
        ("", "is empty"),
        ("./nosuch", "no such folder"),
        (f"{tmp_path}/file", "is a file"),
    ):
        with pytest.raises(ConfigError, match=words):
            ModelSource(name).look()
    for name in ("gpt2", "owner/name", str(tmp_path)):
        ModelSource(name).look()


def test_a_launcher_s_look_ends_before_torch_is_needed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(LOOK_ONLY, "1")
    monkeypatch.setattr("recipe_run.work", lambda *_: pytest.fail("it went on"))
    pretrain_clm.main([])
    assert list(tmp_path.iterdir()) == []
