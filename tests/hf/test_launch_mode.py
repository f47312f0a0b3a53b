"""Launch modes are told from real configurations and a launcher's environment, and judged."""

from __future__ import annotations

import pytest
from accelerate.commands.config import config_args
from accelerate.commands.config.config_args import SageMakerConfig
from accelerate.commands.config.default import write_basic_config

from hf_relopt import UnsupportedSetup, shipped
from hf_relopt.cli.doctor import run_doctor
from hf_relopt.hf import guards, launch_mode
from tests.cli.doctor_calls import DDP, FSDP1, FSDP2, facts, fails

pytestmark = pytest.mark.usefixtures("no_launcher")


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


def test_hsdp_and_tensor_parallel_sizes(written, gpt2_config, capsys):
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


def test_every_shipped_configuration_can_be_judged():
    assert {"single", "ddp", "fsdp2", "hsdp"} <= set(shipped.accelerate_files())
    for name in shipped.accelerate_files():
        launch = launch_mode.from_config(name)
        assert launch.processes >= 1, name


def test_the_default_configuration_is_pointed_at(written, monkeypatch):
    path = written(**FSDP1)
    monkeypatch.setattr(config_args, "default_config_file", path)
    assert any(path in note for note in facts()["notes"])


@pytest.mark.parametrize("content", [b"", b"- 1\n- 2\n", b"\x89PNG\r\n\x1a\n", b"5"])
def test_files_that_hold_no_configuration_are_one_sentence(content, tmp_path, capsys):
    (tmp_path / "file.yaml").write_bytes(content)
    words = fails(capsys, accelerate=str(tmp_path / "file.yaml"))
    assert "is not an Accelerate configuration: it does not hold names with values" in words


def test_a_configuration_for_cpus_starts_one_process_without_mpirun(written):
    cpus = {"distributed_type": "MULTI_CPU", "num_processes": 2, "use_cpu": True}
    launch = launch_mode.from_config(written(**cpus))
    assert (launch.mode, launch.processes) == ("one process", 1)
    launch = launch_mode.from_config(written(**cpus, mpirun_config={"mpirun_hostfile": "hosts"}))
    assert (launch.mode, launch.processes) == ("DDP", 2)
    launch = launch_mode.from_config(written(**{**DDP, "use_cpu": True}))
    assert (launch.mode, launch.processes) == ("DDP", 4)
