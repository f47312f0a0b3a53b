"""`hf-relopt doctor`: verdicts on real configurations, plans of real models, bytes, exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config import config_args
from accelerate.commands.config.config_args import ClusterConfig, SageMakerConfig
from accelerate.commands.config.default import write_basic_config
from rich.console import Console
from transformers import BertConfig, GPT2Config, LlamaConfig

from hf_relopt import UnsupportedSetup, shipped
from hf_relopt.cli.doctor import examine, run_doctor
from hf_relopt.cli.doctor_report import amount, lines
from hf_relopt.cli.doctor_terminal import show
from hf_relopt.hf import guards, launch_mode
from hf_relopt.hf.known_faults import installed, known_faults
from hf_relopt.hf.registration import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
DDP = {"distributed_type": "MULTI_GPU", "num_processes": 4}
FSDP1 = {"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {"fsdp_version": 1}}
FSDP2 = {"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {"fsdp_version": 2}}
KEYS = {"verdict", "reason", "launch", "optim", "optim_args", "plan", "memory", "versions"}
KEYS |= {"faults", "notes"}
LAUNCHER = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch, tmp_path):
    """Neither a launcher's variables nor a person's own default configuration."""
    for name in list(os.environ):
        if name.startswith(LAUNCHER):
            monkeypatch.delenv(name)
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "none.yaml"))


@pytest.fixture
def written(tmp_path):
    """A configuration in a file, as `accelerate config` writes it."""

    def write(suffix: str = "yaml", **given: object) -> str:
        base = {"compute_environment": "LOCAL_MACHINE", "mixed_precision": "no", "debug": False}
        config = ClusterConfig(**{**base, "use_cpu": False, **given})
        path = tmp_path / f"config.{suffix}"
        getattr(config, f"to_{suffix}_file")(str(path))
        return str(path)

    return write


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    size = {"vocab_size": 51, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    GPT2Config(**size, **ends, architectures=["GPT2LMHeadModel"]).save_pretrained(folder)
    return str(folder)


def facts(
    accelerate=None, model=None, optim="fromage", optim_args=None, processes=None, dtype=None
):
    return examine(accelerate, model, optim, optim_args, processes, dtype)


def fails(capsys, **given) -> str:
    """The one message of a mistake."""
    assert run_doctor(**given) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hf-relopt doctor: ") and err.count("\n") == 1
    return err


# -- the verdict --------------------------------------------------------------------------------


def test_without_options_it_is_one_process(capsys):
    assert run_doctor() == 0
    out = capsys.readouterr().out
    assert "one process (from environment)" in out and "exact" in out


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize(("config", "mode"), [(DDP, "DDP"), (FSDP2, "FSDP2")])
def test_exact_modes(config, mode, suffix, written):
    found = facts(written(suffix, **config))
    assert (found["verdict"], found["reason"]) == ("exact", None)
    assert found["launch"]["mode"] == mode and found["launch"]["processes"] == 4
    assert found["launch"]["shard_ranks"] == (4 if mode == "FSDP2" else 1)


def test_accelerate_s_own_basic_config(tmp_path):
    path = write_basic_config(save_location=str(tmp_path / "basic.json"))
    assert facts(str(path))["verdict"] == "exact"


@pytest.mark.parametrize(
    ("config", "mode", "words"),
    [
        (FSDP1, "FSDP1", ("FSDP", "1", {})),
        ({**FSDP1, "fsdp_config": {}}, "FSDP1", ("FSDP", "1", {})),
        ({"distributed_type": "MEGATRON_LM"}, "Megatron-LM", ("MEGATRON_LM", "1", {})),
        *(
            (
                {"distributed_type": "DEEPSPEED", "deepspeed_config": config},
                "DeepSpeed",
                ("DEEPSPEED", "1", {"zero_optimization": {"stage": stage}}),
            )
            for config, stage in (({"zero_stage": 1}, 1), ({"zero_stage": 3}, 3), ({}, 2))
        ),
    ],
)
def test_refused_modes_say_what_training_says(config, mode, words, written, capsys):
    with pytest.raises(UnsupportedSetup) as error:
        guards.check_declared(*words)
    path = written(**{"num_processes": 4, **config})
    found = facts(path)
    assert (found["verdict"], found["reason"]) == ("refused", str(error.value))
    assert found["launch"]["mode"] == mode
    assert run_doctor(accelerate=path) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert str(error.value) in said


def test_deepspeed_s_own_file_decides(written, tmp_path, capsys):
    file = tmp_path / "ds.json"
    given = {"distributed_type": "DEEPSPEED", "num_processes": 2}
    path = written(**given, deepspeed_config={"deepspeed_config_file": str(file)})
    assert "deepspeed_config_file" in fails(capsys, accelerate=path)
    file.write_text("[]")
    assert "not a DeepSpeed configuration" in fails(capsys, accelerate=path)
    file.write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    found = facts(path)
    assert found["verdict"] == "exact" and any("stage 0" in note for note in found["notes"])
    file.write_text(json.dumps({"optimizer": {"type": "AdamW"}}))
    assert "AdamW" in facts(path)["reason"]


@pytest.mark.parametrize(
    ("config", "verdict", "words"),
    [
        ({"zero_optimization": {"stage": 3}}, "refused", "ZeRO stage 3"),
        ({"zero_optimization": {"stage": "2"}, "bf16": {"enabled": True}}, "refused", "stage 2"),
        ({"zero_optimization": True, "train_batch_size": 8}, "refused", "stage 1"),
        ({"optimizer": {"type": "AdamW"}, "fp16": {"enabled": "auto"}}, "refused", "AdamW"),
        ({"zero_optimization": {"stage": 0}}, "exact", None),
        ({"train_micro_batch_size_per_gpu": "auto"}, "exact", None),
    ],
)
def test_deepspeed_s_own_file_is_known(config, verdict, words, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    found = facts(str(path))
    assert (found["verdict"], found["launch"]["mode"]) == (verdict, "DeepSpeed")
    assert words is None or words in found["reason"]
    assert any("--processes" in note for note in found["notes"])
    mixed = "bf16" if "bf16" in config else "fp16" if "fp16" in config else "no"
    assert found["launch"]["mixed_precision"] == mixed
    assert facts(str(path), processes=4)["launch"]["processes"] == 4


def test_a_deepspeed_stage_that_is_no_number(tmp_path, capsys):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": "auto"}}))
    assert "stage 'auto'; it takes a whole number" in fails(capsys, accelerate=str(path))


def test_the_environment_of_a_launcher_counts(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert facts()["launch"]["mode"] == "DDP"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert facts()["verdict"] == "refused"
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert facts()["launch"]["shard_ranks"] == 2
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "1")
    assert "stage 1" in facts()["reason"]


def test_processes_take_the_place_of_the_file_s(written, capsys):
    assert facts(processes=3)["launch"]["mode"] == "DDP"
    open_ended = written(**{**FSDP2, "num_processes": -1})
    assert "--processes" in fails(capsys, accelerate=open_ended)
    assert facts(open_ended, processes=8)["launch"]["shard_ranks"] == 8
    alone = written(distributed_type="NO", num_processes=1)
    assert "MULTI_GPU" in fails(capsys, accelerate=alone, processes=2)


def test_hsdp_and_tensor_parallel_sizes(written, gpt2, capsys):
    def sizes(**given: int) -> str:
        parallel = {f"parallelism_config_{name}_size": size for name, size in given.items()}
        return written(**{**FSDP2, "num_processes": 8}, parallelism_config=parallel)

    launch = facts(sizes(dp_replicate=2, dp_shard=4))["launch"]
    assert (launch["mode"], launch["shard_ranks"]) == ("HSDP", 4)
    found = facts(sizes(dp_shard=2, tp=4))
    launch = found["launch"]
    assert (launch["mode"], launch["shard_ranks"]) == ("FSDP2", 2)
    assert launch["tensor_parallel_ranks"] == 4 and any("tp_plan" in n for n in found["notes"])
    assert facts(sizes(dp_shard=2, cp=4))["launch"]["shard_ranks"] == 8
    assert "8 processes" in fails(capsys, accelerate=sizes(dp_shard=4))
    assert "without ranks to shard over" in fails(capsys, accelerate=sizes(tp=8))
    assert "whole number" in fails(capsys, accelerate=sizes(dp_shard=0))
    bare = written(**FSDP2, parallelism_config={"dp_shard_size": 4})
    assert "parallelism_config_dp_shard_size" in fails(capsys, accelerate=bare)


@pytest.mark.parametrize(
    "text",
    [
        "distributed_type: [",
        "- a list",
        "",
        "num_processes: 2",
        "distributed_type: NONSENSE",
        "{distributed_type: MULTI_GPU, num_processes: 2, mixed_precision: no, no_such_key: 1}",
        "{distributed_type: MULTI_GPU, num_processes: many, mixed_precision: no}",
        "{distributed_type: FSDP, num_processes: 2, fsdp_config: [1]}",
        "{distributed_type: XLA, num_processes: 8}",
    ],
)
def test_files_that_are_none_are_one_message(text, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    fails(capsys, accelerate=str(path))
    path.with_suffix(".json").write_bytes(b"\xff\xfe{")
    fails(capsys, accelerate=str(path.with_suffix(".json")))


def test_sagemaker_is_not_known(tmp_path, capsys):
    basics = {"mixed_precision": "no", "use_cpu": False, "debug": False, "iam_role_name": "r"}
    place = {"compute_environment": "AMAZON_SAGEMAKER", "distributed_type": "DATA_PARALLEL"}
    path = tmp_path / "config.yaml"
    SageMakerConfig(**basics, **place, ec2_instance_type="x").to_yaml_file(str(path))
    assert "SageMaker" in fails(capsys, accelerate=str(path))


def test_names_of_shipped_configurations(monkeypatch, tmp_path, written, capsys):
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "package")
    assert "ships no configuration" in fails(capsys, accelerate="mine")
    folder = tmp_path / "recipes" / "accelerate"
    folder.mkdir(parents=True)
    Path(written(**FSDP2)).rename(folder / "mine.yaml")
    assert facts("mine")["launch"]["source"] == "mine"
    assert "mine" in fails(capsys, accelerate="yours").partition("one of these names")[2]


def test_every_shipped_configuration_can_be_judged():
    assert {"single", "ddp", "fsdp2", "hsdp"} <= set(shipped.accelerate_files())
    for name in shipped.accelerate_files():
        launch = launch_mode.from_config(name)
        assert launch.processes >= 1, name


def test_the_default_configuration_is_pointed_at(written, monkeypatch):
    path = written(**FSDP1)
    monkeypatch.setattr(config_args, "default_config_file", path)
    assert any(path in note for note in facts()["notes"])


# -- the plan -----------------------------------------------------------------------------------


def test_plan_of_a_folder_with_a_configuration_alone(gpt2):
    plan = facts(model=gpt2, optim="madam", optim_args="lr=0.02,vector.rule=adamw,vector.lr=1e-3")[
        "plan"
    ]
    assert plan["class"] == "GPT2LMHeadModel" and plan["lr_assumed"] is False
    rules = {(group["role"], group["rule"], group["lr"]) for group in plan["groups"]}
    assert rules == {
        ("embedding", "madam", 0.02),
        ("matrix", "madam", 0.02),
        ("vector", "adamw", 0.001),
    }
    assert plan["parameters"] == sum(group["parameters"] for group in plan["groups"])
    assert "tied: lm_head.weight" in plan["table"]


def test_the_report_says_what_weights_decide(gpt2, capsys):
    assert run_doctor(model=gpt2) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("The weights are unknown", "no weights", "0.01", "from scratch", "min_scale"):
        assert words in out
    assert run_doctor(model=gpt2, optim_args="lr=0.005") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The weights are unknown" in out and "assumed" not in out


def test_a_folder_without_weights_is_trained_from_scratch(gpt2, tmp_path, capsys):
    """What is assumed of the learning rate, with and without weights beside the configuration."""

    def lrs(folder) -> tuple[str, set[float]]:
        plan = facts(model=str(folder), optim="fromage")["plan"]
        return plan["weights"], {group["lr"] for group in plan["groups"]}

    assert lrs(gpt2) == ("not there", {0.01})
    beside = shutil.copytree(gpt2, tmp_path / "trained")
    (beside / "model.safetensors").write_bytes(b"")  # never opened
    assert lrs(beside) == ("not read", {0.001})
    assert run_doctor(model=str(beside)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "only the configuration was read" in out and "norm weights" in out


def test_other_classes(tmp_path):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**size, intermediate_size=16, vocab_size=30)
    config.save_pretrained(tmp_path)
    assert facts(model=str(tmp_path))["plan"]["class"] == "BertModel"
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(tmp_path)
    plan = facts(model=str(tmp_path))["plan"]
    assert plan["class"] == "BertForSequenceClassification"
    assert "head" in {group["role"] for group in plan["groups"]}


def test_seven_billion_parameters_cost_nothing(tmp_path, written):
    LlamaConfig(architectures=["LlamaForCausalLM"], dtype="bfloat16").save_pretrained(tmp_path)
    found = facts(written(**FSDP2), model=str(tmp_path), optim="madam")
    assert found["plan"]["parameters"] == 6_738_415_616
    assert found["memory"]["dtype"] == "bfloat16"
    # All of its first dimensions can be divided by four.
    assert found["memory"]["per_rank"]["weights"] == 2 * 6_738_415_616 // 4


@pytest.mark.parametrize("name", ["no/such-model", "no-such-folder"])
def test_unknown_models_are_one_message(name, capsys):
    assert "name on the hub" in fails(capsys, model=name)


def test_broken_models_are_one_message(tmp_path, gpt2, capsys):
    config = tmp_path / "config.json"
    config.write_text("{")
    assert "config" in fails(capsys, model=str(tmp_path))
    config.write_text('{"model_type": "of-nobody"}')
    assert "of-nobody" in fails(capsys, model=str(tmp_path))
    config.write_text('{"model_type": "gpt2", "n_embd": 15, "n_head": 2}')
    assert "no model could be built" in fails(capsys, model=str(tmp_path))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optim": "adam"}, "hf_relopt has"),
        ({"optim": "formage"}, "Did you mean fromage?"),
        ({"optim": "adamw"}, "For torch's AdamW, use --optim adamw_torch in the Trainer"),
        ({"optim": "adamw_torch_fused"}, "For torch's AdamW"),
        ({"optim": "sgd"}, "not an optimizer of hf_relopt"),
        ({"optim_args": "p_bond=1"}, "p_bound"),
        ({"optim_args": "x"}, "name=value"),
        ({"optim_args": "conv.lr=0.1"}, "matches no trainable weight"),
        ({"optim_args": "vectr.lr=0.1"}, "Did you mean vector?"),
        ({"dtype": "int8"}, "float32"),
    ],
)
def test_mistakes_in_options(given, words, gpt2, capsys):
    assert words in fails(capsys, model=gpt2, **given)


@pytest.mark.parametrize("content", [b"", b"- 1\n- 2\n", b"\x89PNG\r\n\x1a\n", b"5"])
def test_files_that_hold_no_configuration_are_one_sentence(content, tmp_path, capsys):
    (tmp_path / "file.yaml").write_bytes(content)
    words = fails(capsys, accelerate=str(tmp_path / "file.yaml"))
    assert "is not an Accelerate configuration: it does not hold names with values" in words


def test_a_folder_with_a_shipped_name_hides_nothing(tmp_path, monkeypatch):
    (tmp_path / "fsdp2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert facts("fsdp2")["launch"]["mode"] == "FSDP2"


@pytest.mark.parametrize(
    ("make", "words"), [(os.mkdir, "is a directory"), (os.mkfifo, "is not a regular file")]
)
def test_what_is_no_file_is_no_configuration(make, words, tmp_path, capsys):
    make(tmp_path / "here")
    assert words in fails(capsys, accelerate=str(tmp_path / "here"))


# -- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optim", "text", "state"),
    [
        ("fromage", None, 0),
        ("madam", None, 4),
        ("fromage_spectral", None, 4),
        ("fromage_momentum", "momentum_dtype=bfloat16", 2),
        ("fromage", "direction=adam,scale=row", 8),
    ],
)
def test_per_parameter_without_a_model(optim, text, state):
    memory = facts(optim=optim, optim_args=text)["memory"]
    assert memory["per_parameter"] == {
        "weights": 4,
        "gradients": 4,
        "state": state,
        "adamw_state": 8,
    }
    assert memory["per_tensor"] == {"state": 12, "adamw_state": 4}
    assert memory["per_rank"] is None


def test_ddp_is_whole_on_each_rank_and_fsdp2_in_parts(gpt2, written):
    alone = facts(model=gpt2, optim="madam")["memory"]["per_rank"]
    assert facts(written(**DDP), model=gpt2, optim="madam")["memory"]["per_rank"] == alone
    parts = facts(written(**FSDP2), model=gpt2, optim="madam")["memory"]["per_rank"]
    # 51 rows of the embedding in four parts: 13 on the first rank.
    assert alone["weights"] / 4 < parts["weights"] <= alone["weights"] / 4 + 4 * 16
    refused = facts(written(**FSDP1), model=gpt2, optim="madam")
    assert refused["memory"]["per_rank"] == alone
    assert any("This launch is refused" in note for note in refused["notes"])


@pytest.mark.parametrize(("text", "momentum"), [(None, 4), ("momentum_dtype=bfloat16", 2)])
def test_bytes_of_a_momentum_and_of_anchors_by_row(text, momentum, gpt2, written):
    """One matrix of 16 x 48 in three blocks, three of 16 wide, 51 + 16 rows, ten vectors."""
    matrices, rows, vectors = 12 * 16 * 16, 51 + 16, 240
    found = facts(model=gpt2, optim="fromage_spectral", optim_args=text)
    fixed = 16 * 8 + 4 * (3 + 3 + 10)  # two counts each; anchors of blocks, matrices, vectors
    moments = momentum * (matrices + 16 * rows + vectors) + 4 * vectors
    assert found["memory"]["per_rank"]["state"] == fixed + 4 * rows + moments
    parts = facts(written(**FSDP2), model=gpt2, optim="fromage_spectral", optim_args=text)
    # 13 of the 51 rows, 4 of the 16; all else can be divided by four.
    moments = momentum * (matrices / 4 + 16 * 17 + vectors / 4) + 4 * vectors / 4
    assert parts["memory"]["per_rank"]["state"] == fixed + 4 * 17 + moments
    follows = {group["follows"] for group in found["plan"]["groups"]}
    assert follows == {
        "fromage, momentum, by row",
        "fromage, entry by entry",
        "fromage, spectral",
        "fromage, spectral, 3 blocks",
    }


def test_the_report_of_a_preset(gpt2, capsys):
    assert run_doctor(model=gpt2, optim="fromage_spectral", optim_args="p_bound=2") == 0
    out = capsys.readouterr().out
    assert "state of fromage_spectral" in out and "fromage, spectral, 3 blocks" in out


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("float", "float32"),
        ("fp32", "float32"), ("torch.bfloat16", "bfloat16"), ("BF16", "bfloat16"),
    ],
)  # fmt: skip
def test_short_names_of_dtypes(short, name):
    assert facts(dtype=short)["memory"]["dtype"] == name


def test_dtype(gpt2, written):
    assert facts(model=gpt2)["memory"]["dtype"] == "float32"
    half = facts(model=gpt2, dtype="bfloat16")["memory"]
    assert half["per_parameter"]["weights"] == 2 and half["per_parameter"]["adamw_state"] == 4
    upcast = facts(written(**{**FSDP2, "mixed_precision": "bf16"}), gpt2, dtype="bfloat16")
    assert upcast["memory"]["dtype"] == "float32"
    assert any("float32" in note for note in upcast["notes"])


@pytest.mark.parametrize(
    ("size", "words"),
    [(12, "12 B"), (999, "999 B"), (3600, "3.60 kB"), (13_480_000_000, "13.48 GB")],
)
def test_amounts(size, words):
    assert amount(size) == words


# -- versions and faults ------------------------------------------------------------------------


def _status(launch=None, accelerator=True, **versions: str) -> dict[str, str]:
    launch = launch or launch_mode.from_environment()
    found = known_faults({**installed(), **versions}, launch, SUPPORTED, accelerator)
    return {fault.id: fault.status for fault in found}


def test_installed_versions():
    versions = facts()["versions"]
    assert list(versions)[:2] == ["python", "torch"]
    assert torch.__version__.startswith(versions["torch"])  # a build has a suffix, as +cu130


def test_versions_out_of_range_are_present():
    assert _status()["transformers-untried"] == "absent"
    for version in ("4.57.0", "5.3.9", "5.99.0", "6.0"):
        assert _status(transformers=version)["transformers-untried"] == "present"
    assert _status(transformers="5.4.0")["transformers-untried"] == "absent"


def test_faults_of_launch_modes(written):
    ddp, fsdp2 = (launch_mode.from_config(written(**config)) for config in (DDP, FSDP2))
    on_cpu = launch_mode.from_config(written(**{**FSDP2, "use_cpu": True}))
    assert _status(ddp, accelerate="1.14.0")["evaluate-before-train"] == "present"
    assert _status(ddp, accelerate="1.13.0")["evaluate-before-train"] == "absent"
    assert _status(ddp, accelerator=False)["no-sharding-on-a-cpu"] == "absent"
    assert _status(fsdp2)["no-sharding-on-a-cpu"] == "absent"
    assert _status(fsdp2, accelerator=False)["no-sharding-on-a-cpu"] == "present"
    assert _status(on_cpu)["no-sharding-on-a-cpu"] == "present"
    assert _status(fsdp2)["full-state-dict-needs-a-dimension"] == "handled"


def test_a_configuration_for_cpus_starts_one_process_without_mpirun(written):
    cpus = {"distributed_type": "MULTI_CPU", "num_processes": 2, "use_cpu": True}
    launch = launch_mode.from_config(written(**cpus))
    assert (launch.mode, launch.processes) == ("one process", 1)
    launch = launch_mode.from_config(written(**cpus, mpirun_config={"mpirun_hostfile": "hosts"}))
    assert (launch.mode, launch.processes) == ("DDP", 2)
    launch = launch_mode.from_config(written(**{**DDP, "use_cpu": True}))
    assert (launch.mode, launch.processes) == ("DDP", 4)


@pytest.mark.parametrize(
    ("accelerate", "torch", "present"),
    [
        ("1.11.0", "2.13.0", {"sharded-state-is-not-loaded"}),
        ("1.13.0", "2.13.0", {"no-float32-upcast"}),
        ("1.14.0", "2.13.0", {"no-tied-embeddings"}),
        ("1.14.0", "2.12.1", set()),
        ("1.15.0", "2.13.0", set()),
    ],
)
def test_faults_of_accelerate_under_fsdp2(accelerate, torch, present, written):
    ids = {"sharded-state-is-not-loaded", "no-float32-upcast", "no-tied-embeddings"}
    launch = launch_mode.from_config(written(**FSDP2))
    versions = {"accelerate": accelerate, "torch": torch}
    found = _status(launch, **versions)
    assert {name for name in ids if found[name] == "present"} == present
    ddp = _status(launch_mode.from_config(written(**DDP)), **versions)
    assert {ddp[name] for name in ids} == {"absent"}


# -- the command --------------------------------------------------------------------------------


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hf_relopt.cli.main", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_json_is_one_object_and_the_exit_code_is_the_verdict(written, gpt2):
    path = written(**FSDP1)
    done = _command("doctor", "--accelerate", path, "--model", gpt2, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert set(found) == KEYS and found["verdict"] == "refused"
    assert found == facts(path, gpt2)


def test_what_exact_means_is_said(written, capsys):
    assert run_doctor() == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "exact: each step equals that of a single process" in out
    assert run_doctor(accelerate=written(**FSDP1)) == 1
    assert "training raises this error" in " ".join(capsys.readouterr().out.split())


def on_a_terminal(found: dict, **given: object) -> str:
    console = Console(force_terminal=True, width=110, file=io.StringIO(), highlight=False, **given)
    show(found, console)
    return console.file.getvalue()


def test_on_a_terminal_there_are_colours_and_tables(gpt2, written, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    found = facts(model=gpt2, optim="fromage_spectral")
    out = on_a_terminal(found)
    assert "\x1b[1;32mexact" in out and "─" in out
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    for line in lines(found):  # every number and name of the plain report is there
        for word in re.findall(r"[\w.,]*\d[\w.,]*", line):
            assert word.strip(".,") in plain, word
    faulty = on_a_terminal(facts(written(**{**FSDP2, "use_cpu": True})))
    assert "\x1b[1;33mattention: " in faulty and "\x1b[2mhandled: " in faulty
    refused = on_a_terminal(facts(written(**FSDP1)))
    assert "\x1b[1;31mrefused" in refused
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", on_a_terminal(found))


def test_a_pipe_gets_plain_text(gpt2):
    done = _command("doctor", "--model", gpt2)
    assert done.returncode == 0 and "\x1b" not in done.stdout and "─" not in done.stdout


def test_mistakes_are_told_before_torch_is_loaded(tmp_path, capsys):
    code = """
import sys
from hf_relopt.cli.doctor import run_doctor
for given in ({"optim": "adamw"}, {"optim": "formage"}, {"dtype": "int8"}, {"accelerate": "x"},
              {"model": "./nosuch"}, {"model": "/dev"}):
    assert run_doctor(**given) == 2, given
print(sorted({"torch", "transformers", "accelerate", "rich"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr
    assert len(done.stderr.splitlines()) == 6


def test_it_is_a_module_as_well():
    done = subprocess.run(
        [sys.executable, "-m", "hf_relopt", "--version"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "hf_relopt 0.1.0\n")


def test_usage_errors_of_the_command():
    for arguments in (["--processes", "0"], ["--no_such_option"], ["--accelerate", "nothing"]):
        done = _command("doctor", *arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr, arguments


def test_help_shows_examples_as_they_are_typed():
    done = _command("doctor", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("  hf-relopt doctor --accelerate fsdp2 --processes 8\n", "exit code"):
        assert line in done.stdout
    assert "\\b" not in done.stdout and "\\b" not in _command("run", "--help").stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_other_commands_import_no_torch(monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    done = _command("run", "python", "-c", "pass")
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "typer" in loaded
    assert not loaded & {"torch", "transformers", "accelerate"}
