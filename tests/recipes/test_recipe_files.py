"""The files in recipes/: Accelerate's configurations launch, every recipe parses and trains."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import finetune_classifier
import finetune_squad
import pretrain_clm
import pytest
import sft_chat
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from causal_training import named_config
from command_line import read_request
from recipe import Request
from run_folder import RunFolder
from transformers import AutoModelForCausalLM, TrainingArguments
from typed_command import expanded

from hf_relopt.cli.recipe_command import launch_command
from hf_relopt.cli.recipe_files import find_accelerate, find_recipe, recipe_names
from hf_relopt.hf.guards import check_arguments
from hf_relopt.shipped import accelerate_files
from tests.recipes.recipe_calls import ROOT, as_arguments, write_rows

MAINS = {
    "pretrain_clm.py": pretrain_clm.main,
    "finetune_classifier.py": finetune_classifier.main,
    "finetune_squad.py": finetune_squad.main,
    "sft_chat.py": sft_chat.main,
}
RECIPES = {
    script: module.RECIPE
    for script, module in (
        ("pretrain_clm.py", pretrain_clm),
        ("finetune_classifier.py", finetune_classifier),
        ("finetune_squad.py", finetune_squad),
        ("sft_chat.py", sft_chat),
    )
}
# A recipe for another model, and not a sibling of the others.
IN_BACKWARD = "_in_backward"
KINDS = {
    DistributedType.NO: {"single", "cpu"},
    DistributedType.MULTI_GPU: {"ddp", "multi-node"},
    DistributedType.FSDP: {"fsdp2", "hsdp"},
}
SHORT = {
    "max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
    "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "use_cpu": True, "max_eval_samples": 4,
}  # fmt: skip
SHAPES = {
    "pretrain-gpt2-124m": "n_layer=1,n_embd=16,n_head=2,n_positions=16",
    "pretrain-llama-350m": "num_hidden_layers=1,hidden_size=16,intermediate_size=24,"
    "num_attention_heads=2,num_key_value_heads=2,max_position_embeddings=16,"
    "tie_word_embeddings=true",
}


def arguments(name: str) -> tuple[dict[str, object], Request]:
    """A recipe as it is written, and as its script understands it."""
    recipe = find_recipe(name)
    written = yaml.safe_load(recipe.arguments.read_text())
    request, given = read_request(RECIPES[recipe.script.name], expanded([str(recipe.arguments)]))
    assert given == set(written)
    return written, request


def launched(name: str, *flags: str):
    """What Accelerate's launcher makes of a configuration."""
    words = ["--config_file", str(find_accelerate(name)), "--num_cpu_threads_per_process", "1"]
    args = launch_command_parser().parse_args([*words, *flags, "script.py"])
    args, defaults, _ = _validate_launch_command(args)
    return args, defaults


# Of TRL and PEFT: see test_sft_chat.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


@pytest.mark.parametrize("name", accelerate_files())
def test_accelerate_reads_the_configuration(name, caplog, monkeypatch):
    # The first line that a launcher reads of a process, not the tests' own.
    monkeypatch.setattr(sys, "argv", ["accelerate-launch"])
    config = load_config_from_file(str(find_accelerate(name)))
    assert name in KINDS[config.distributed_type]
    args, _ = launched(name, "--main_process_port", "0")
    assert args.mixed_precision == ("no" if name == "cpu" else "bf16")
    assert args.num_processes == {"hsdp": 4, "multi-node": 16, "ddp": 2, "fsdp2": 2}.get(name, 1)
    assert args.use_fsdp == (name in KINDS[DistributedType.FSDP])
    assert args.multi_gpu == (name in KINDS[DistributedType.MULTI_GPU])
    assert caplog.text == ""  # it would list what a configuration left open


def test_one_process_goes_where_the_file_says():
    command, environment = prepare_simple_launcher_cmd_env(launched("cpu")[0])
    assert command == [sys.executable, "script.py"]
    assert environment["ACCELERATE_USE_CPU"] == "True"
    _, environment = prepare_simple_launcher_cmd_env(launched("single")[0])
    assert environment["ACCELERATE_USE_CPU"] == "False"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.parametrize("name", ["fsdp2", "hsdp"])
def test_sharded_launches_are_version_2_and_not_refused(name, monkeypatch):
    args, _ = launched(name, "--main_process_port", "0")
    environment = prepare_multi_gpu_env(args)
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    sizes = [
        environment.get(f"PARALLELISM_CONFIG_DP_{kind}_SIZE") for kind in ("REPLICATE", "SHARD")
    ]
    assert sizes == (["2", "2"] if name == "hsdp" else [None, None])
    ours = TrainingArguments("out", optim="fromage", report_to=[], use_cpu=True)
    for key in ("ACCELERATE_USE_FSDP", "FSDP_VERSION"):
        monkeypatch.setenv(key, environment[key])
    check_arguments(ours)
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(Exception, match="FSDP1"):
        check_arguments(ours)


def test_several_machines_meet_at_the_first():
    flags = "--num_machines 3 --num_processes 12 --machine_rank 2 --main_process_ip n0"
    args, _ = launched("multi-node", *flags.split())
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("3", "4", 2)
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "n0:29500")


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_parses_with_the_types_it_needs(name):
    written, request = arguments(name)
    parts = vars(request).values()
    understood = {key: value for part in parts for key, value in vars(part).items()}
    for key, value in written.items():
        found = understood[key]
        found = getattr(found, "value", found)
        # A field for a float takes a whole number, too.
        kinds = (type(value), float) if isinstance(value, int) else (type(value),)
        assert found == value and type(found) in kinds, key
    task, _, optimizer = name.partition("/")
    assert written["run_name"] == f"{task}-{optimizer}"
    assert written["optim"].removesuffix("_torch_fused") == optimizer.removesuffix(IN_BACKWARD)
    assert find_recipe(name).arguments.read_text().splitlines()[1:3] == [
        f"#   python recipes/{find_recipe(name).script.name} recipes/{name}.yaml",
        f"#   hf-relopt recipes run {name}",
    ]


@pytest.mark.parametrize("task", sorted({name.partition("/")[0] for name in recipe_names()}))
def test_siblings_differ_in_the_optimizer_alone(task):
    allowed = {
        "run_name", "optim", "optim_args", "learning_rate", "weight_decay", "warmup_steps",
        "adam_beta2", "max_grad_norm",
    }  # fmt: skip
    names = [name for name in recipe_names() if name.startswith(f"{task}/")]
    names = [name for name in names if not name.endswith(IN_BACKWARD)]
    siblings = ("fromage_spectral", "fromage", "madam", "adamw")
    assert names == [f"{task}/{name}" for name in siblings]
    first, *others = (arguments(name)[0] for name in names)
    for other in others:
        keys = {*first, *other} - allowed
        assert {key: first.get(key) for key in keys} == {key: other.get(key) for key in keys}
    readme = (find_recipe(task).arguments.parent / "README.md").read_text()
    for word in ("| hardware |", "| time |", "| result |", "| card |", f"recipes run {task}"):
        assert word in readme


@pytest.mark.parametrize(
    ("task", "millions"), [("pretrain-gpt2-124m", 124.4), ("pretrain-llama-350m", 353.9)]
)
def test_new_models_are_as_large_as_their_names_say(task, millions):
    config = named_config(arguments(task + "/fromage")[1].model)
    config.vocab_size = 50257
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert round(model.num_parameters() / 1e6, 1) == millions
    assert config.max_position_embeddings == 1024


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory, tiny_text) -> Path:
    """A trained GPT-2 of one layer with its tokenizer: a stand-in for the hub's."""
    folder = tmp_path_factory.mktemp("gpt2") / "run"
    name = "pretrain-gpt2-124m/madam"
    words = {"train_file": tiny_text, "output_dir": folder, "config_overrides": SHAPES[name[:-6]]}
    more = {"tokenizer_name": None, "vocab_size": 270, "block_size": 16}
    pretrain_clm.main(script_arguments(name, {**SHORT, **words, **more}))
    assert RunFolder(folder).record["steps"] == 2
    return folder


@pytest.fixture(scope="module")
def tiny_answers(tmp_path_factory) -> Path:
    """Questions whose answer is in the text, which are prompts with a completion as well."""
    rows = [
        {
            "context": f"the cat is grey {number}",
            "question": "what is grey?",
            "answers": {"text": ["cat"], "answer_start": [4]},
            "prompt": "what is grey?",
            "completion": f" the cat {number}",
        }
        for number in range(24)
    ]
    return write_rows(tmp_path_factory.mktemp("answers") / "answers.jsonl", rows)


def script_arguments(name: str, changes: dict[str, object]) -> list[str]:
    """What `hf-relopt recipes run NAME --changes` hands to the script."""
    recipe = find_recipe(name)
    gone = [key for key, value in changes.items() if value is None]
    command = launch_command(recipe, None, as_arguments(changes))
    words = command[command.index(str(recipe.script)) + 1 :]
    for key in gone:
        place = words.index(f"--{key}")
        del words[place : place + 2]
    return words


@pytest.mark.parametrize(
    "name",
    [  # each task, and each optimizer
        "pretrain-gpt2-124m/fromage",
        "pretrain-llama-350m/fromage_spectral",
        "continue-pretraining-gpt2/adamw",
        "finetune-classifier-minilm/madam",
        "finetune-squad-bert/fromage_spectral",
        "sft-chat-qwen/fromage_spectral",
        "sft-chat-qwen/fromage_in_backward",
        "sft-chat-qwen-lora/madam",
    ],
)
def test_recipe_trains_two_steps(
    name, tmp_path, tiny_text, tiny_table, tiny_classifier, tiny_gpt2, tiny_answers, capsys
):
    task = name.partition("/")[0]
    changes = {**SHORT, "output_dir": tmp_path / "run"}
    if task.startswith("pretrain"):
        changes |= {"train_file": tiny_text, "config_overrides": SHAPES[task], "block_size": 16}
        changes |= {"tokenizer_name": tiny_gpt2}
    elif task.startswith("continue"):
        changes |= {"train_file": tiny_text, "model_name_or_path": tiny_gpt2, "block_size": 16}
    elif task.startswith("finetune-squad"):
        changes |= {"train_file": tiny_answers, "model_name_or_path": tiny_classifier}
        changes |= {"max_length": 32, "doc_stride": 8, "validation_share": 0.25}
    elif task.startswith("sft"):
        changes |= {"train_file": tiny_answers, "model_name_or_path": tiny_gpt2, "bf16": False}
        changes |= {"max_length": 16, "validation_share": 0.25}
        changes |= {} if name.endswith(IN_BACKWARD) else {"gradient_checkpointing": False}
    else:
        changes |= {"train_file": tiny_table, "model_name_or_path": tiny_classifier}
    MAINS[find_recipe(name).script.name](script_arguments(name, changes))
    record = RunFolder(tmp_path / "run").record
    assert (record["steps"], record["finished"]) == (2, True)
    written, _ = arguments(name)
    assert record["recipe"]["optim"] == written["optim"]
    assert record["recipe"]["learning_rate"] == written["learning_rate"]
    assert "Done: 2 steps" in capsys.readouterr().out
    if "model_dtype" in written:
        weights = AutoModelForCausalLM.from_pretrained(tmp_path / "run", dtype="auto")
        assert weights.dtype is getattr(torch, written["model_dtype"])
    text = (tmp_path / "run" / "README.md").read_text()
    for words, rule in (("Fromage", "fromage"), ("Madam", "madam"), ("AdamW", "adamw")):
        assert (words in text) == written["optim"].startswith(rule), words


@pytest.mark.slow
def test_recipes_run_trains_with_accelerate_launch(tmp_path, tiny_text, tiny_gpt2):
    """The whole way: command line, launcher, script, two steps, run folder."""
    changes = {
        **SHORT, "train_file": tiny_text, "tokenizer_name": tiny_gpt2, "block_size": 16,
        "config_overrides": SHAPES["pretrain-gpt2-124m"], "num_cpu_threads_per_process": 1,
    }  # fmt: skip
    command = [sys.executable, "-m", "hf_relopt.cli.main", "recipes", "run", "pretrain-gpt2-124m"]
    done = subprocess.run(
        [*command, "--accelerate", "cpu", *as_arguments(changes)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "hf-relopt: accelerate launch --config_file" in done.stderr
    assert "Done: 2 steps" in done.stdout
    folder = tmp_path / "runs" / "pretrain-gpt2-124m-fromage_spectral"
    assert (folder / "model.safetensors").is_file()
    assert "fromage" in (folder / "README.md").read_text()
    # What it suggests is this command with another recipe's name.
    hints = dict(RunFolder(folder).record["hints"])
    words = shlex.split(hints["AdamW, to compare"])
    place = words.index("pretrain-gpt2-124m/adamw")
    assert words[place - 2 : place] == ["recipes", "run"]
    assert words[place + 1 :] == ["--accelerate", "cpu", *as_arguments(changes)]
