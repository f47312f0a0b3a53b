"""The first look: what it finds without torch, and that it knows what the real parser knows."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import finetune_classifier
import finetune_squad
import pretrain_clm
import pytest
import sft_chat
from command_line import RecipeParser, machine_defaults
from first_look import _Parser, first_look, require_extras, training_flags
from transformers import TrainingArguments, trainer_utils
from trl import SFTConfig

from hf_relopt.errors import ConfigError
from hf_relopt.optim.create import OPTIMIZERS
from hf_relopt.shipped import OPTIMIZER_NAMES
from tests.recipes.recipe_calls import RECIPES, ROOT

SCRIPTS = [pretrain_clm, finetune_classifier, finetune_squad, sft_chat]


def test_the_names_that_need_no_torch_are_those_that_there_are():
    assert tuple(OPTIMIZERS) == OPTIMIZER_NAMES


@pytest.mark.parametrize(
    ("module", "kind"), [("transformers", TrainingArguments), ("trl", SFTConfig)]
)
def test_flags_read_from_the_source_are_the_fields(module, kind):
    assert set(training_flags(module, kind.__name__)) == {f.name for f in dataclasses.fields(kind)}


def test_a_class_that_is_not_where_it_was_is_unknown():
    assert training_flags("transformers", "NoSuchArguments") == {}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_both_parsers_agree_on_flags_types_and_choices(script):
    recipe = script.RECIPE
    training = {"TrainingArguments": TrainingArguments, "SFTConfig": SFTConfig}[recipe.training[1]]
    defaults = {**machine_defaults(recipe), **recipe.defaults}
    real = RecipeParser((*recipe.kinds, training), defaults, "")
    light = {word: a for a in _Parser(recipe)._actions for word in a.option_strings}
    for action in real._actions:
        for word in action.option_strings:
            if word in ("-h", "--help", "--help_all"):
                continue
            found = light[word]
            assert found.dest == action.dest
            if action.type in (int, float):
                assert found.type is action.type, word
            if found.type in (int, float):
                assert found.type is action.type, word
            if found.choices:
                known = [getattr(c, "value", c) for c in action.choices or ()]
                ours = set(found.choices)
                assert ours <= set(known), word
    assert {a.dest for a in real._actions} - {"help", "help_all"} == {
        a.dest for a in light.values()
    }


@pytest.mark.parametrize(
    "words",
    [
        "--use_cpu", "--use_cpu true --bf16 no --no_dataloader_pin_memory", "--report_to none",
        "--lr_scheduler_type cosine --save_strategy no --optim adafactor",
        "--eval_steps 0.5 --warmup_steps 0.1 --max_steps -1 --label_names a b",
        "--logging-steps=3 --seed=7",
    ],
)  # fmt: skip
def test_what_the_real_parser_takes_passes(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first_look(pretrain_clm.RECIPE, words.split())


MISTAKES = {
    "pretrain_clm.py": [
        ("--no_such_flag 3", "unknown argument --no_such_flag"),
        ("--max_stepz=3", "did you mean --max_steps?"),
        ("--max_steps many", "argument --max_steps: invalid int value: 'many'"),
        ("--learning_rate fast", "invalid float value"),
        ("--bf16 perhaps", "neither true nor false"),
        ("--lr_scheduler_type steps", "invalid choice: 'steps'"),
        ("--optim", "expected one argument"),
        ("--optim formage", "Did you mean fromage?"),
        ("--optim adamw", "Did you mean adamw_torch?"),
        ("--optim AdamW", "Did you mean adamw_torch?"),
        ("--optim zzz", "which is unknown"),
        ("--learning_rate nan", "learning_rate is nan"),
        ("--learning_rate 2", "0 <= learning_rate < 1"),
        ("--optim_args p_bound", "name=value"),
        ("--weight_decay 0.1", "takes only 0"),
        ("--lns_format lns8", "fromage_spectral cannot step weights in codes"),
        ("--train_file nosuch.txt", "there is no file nosuch.txt"),
        ("--train_file /dev", "the directory /dev"),
        ("--train_file t --dataset_name a/b", "not both"),
        ("--model_name_or_path ./nosuch", "cannot load the model ./nosuch"),
        ("--config_name /nosuch/folder", "cannot load the configuration"),
        ("--tokenizer_name ../nosuch", "cannot load the tokenizer"),
        ("--dataset_name ./nosuch", "cannot load the data set"),
        ("--model_name_or_path a --model_type b", "from scratch"),
        ("--vocab_size 10", "257"),
        ("--max_train_samples 0", "1 or more"),
        ("--output_dir /dev/null/x", "is a file"),
        ("--run_name " + "n" * 300, "File name too long"),
        ("--resume_from_checkpoint nosuch", "there is no such folder"),
        ("--report_to neptune", "pip install neptune"),
        ("nosuch.yaml", "neither a flag"),
    ],
    "finetune_classifier.py": [
        ("--train_file nosuch.tsv", "there is no file"),
        ("--text_pair_column b", "--text_column"),
        ("--model_name_or_path /nosuch", "cannot load the model"),
    ],
    "finetune_squad.py": [
        ("--train_file nosuch.json", "there is no file"),
        ("--doc_stride 999", "doc_stride is 999"),
        ("--max_answer_length 0", "max_answer_length is 0"),
        ("--validation_share 0", "validation_share is 0"),
    ],
    "sft_chat.py": [
        ("--train_file nosuch.jsonl", "there is no file"),
        ("--lora_rank -1", "lora_rank is -1"),
        ("--model_dtype float16", "model_dtype is 'float16'; it is float32 or bfloat16"),
        ("--lora_alpha 8", "--lora_rank"),
        ("--lora_rank 8 --optim integer_madam --lns_format lns8", "whose adapters stay numbers"),
        ("--max_length x", "invalid int"),
    ],
}
# All in one process, which must not have loaded anything heavy in the end.
DRIVER = """
import contextlib, importlib, io, json, os, sys
sys.path.insert(0, os.environ["RECIPES"])
for script, mistakes in json.loads(sys.stdin.read()).items():
    main = importlib.import_module(script.removesuffix(".py")).main
    sys.argv = [script]
    for line, words in mistakes:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
            main(line.split())
            said.write("NOT REFUSED")
        text = said.getvalue()
        ok = words in text and text.count("\\n") == 1 and text.startswith(f"{script}: error: ")
        if not ok:
            print(line, "->", text)
heavy = {"torch", "transformers", "datasets", "accelerate", "numpy", "evaluate", "trl"}
print("loaded:", sorted(heavy & set(sys.modules)))
"""


def driven(mistakes: dict[str, list[tuple[str, str]]], folder: Path) -> str:
    """What the driver says of mistakes that are made in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(mistakes),
        env={"RECIPES": str(RECIPES), "PYTHONPATH": str(ROOT), "PATH": ""},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.stderr == "" and list(folder.iterdir()) == []
    return done.stdout


def test_mistakes_are_told_before_anything_heavy_is_loaded(tmp_path):
    begun = time.monotonic()
    assert driven(MISTAKES, tmp_path) == "loaded: []\n"
    # 40 of them; one alone used to take longer.
    assert time.monotonic() - begun < 20


def test_optim_args_need_torch_and_no_more(tmp_path):
    mistakes = {"pretrain_clm.py": [
        ("--optim fromage --optim_args p_scale=3", "fromage has no option 'p_scale'"),
        ("--optim_args p_bound=-1", "p_bound is -1"),
        ("--optim madam --optim_args momentum=0.9", "madam has no option 'momentum'"),
    ]}  # fmt: skip
    assert driven(mistakes, tmp_path) in ("loaded: ['torch']\n", "loaded: ['numpy', 'torch']\n")


def test_a_missing_package_names_the_extra(monkeypatch, capsys):
    with pytest.raises(ConfigError, match=r"pip install 'hf_relopt\[trl\]'"):
        require_extras({"no_such_package": "trl"})
    import importlib.util

    real = importlib.util.find_spec
    for missing, words in (("trl", []), ("peft", ["--lora_rank", "4"])):
        monkeypatch.setattr(
            importlib.util, "find_spec",
            lambda name, *a, missing=missing: None if name == missing else real(name, *a),
        )  # fmt: skip
        with pytest.raises(SystemExit) as end:
            sft_chat.main(words)
        assert end.value.code == 2
        line = capsys.readouterr().err
        assert f"{missing} is not installed" in line and f"hf_relopt[{missing}]" in line
        assert line.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        "--per_device_train_batch_size 0", "--per_device_eval_batch_size -1", "--seed -1",
        "--gradient_accumulation_steps 0", "--max_steps 0", "--max_steps -5", "--logging_steps 0",
        "--eval_steps -0.5", "--num_train_epochs 0", "--warmup_steps -3", "--run_name=",
    ],
)  # fmt: skip
def test_counts_with_which_nothing_can_be_trained(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = words.split()[0].lstrip("-").rstrip("=")
    with pytest.raises(ConfigError, match=f"^{name} is "):
        first_look(pretrain_clm.RECIPE, words.split())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lr_scheduler_type", trainer_utils.SchedulerType),
        ("save_strategy", trainer_utils.SaveStrategy),
        ("hub_strategy", trainer_utils.HubStrategy),
    ],
)
def test_choices_are_those_of_the_enum(name, kind):
    found = training_flags("transformers", "TrainingArguments")[name].choices
    assert set(found) == {member.value for member in kind}
