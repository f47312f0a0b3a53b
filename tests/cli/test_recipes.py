"""`hf-relopt recipes`: what is listed and shown, what is launched, and what is no name."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_relopt.cli.main import app
from hf_relopt.cli.recipe_command import launch_command
from hf_relopt.cli.recipe_files import (
    STUDIES,
    find_accelerate,
    find_recipe,
    recipe_names,
    task_names,
)
from hf_relopt.shipped import accelerate_files

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"


def call(*words: str):
    return CliRunner().invoke(app, ["recipes", *words])


def test_list_names_everything_there_is():
    done = call("list")
    assert done.exit_code == 0
    for name in (*recipe_names(), *task_names(), *STUDIES, *accelerate_files(), "slurm"):
        assert name in done.output
    # Each of ours, and AdamW to compare, in each task; and one for a model of 8 billion parameters.
    assert (len(task_names()), len(recipe_names())) == (7, 4 * 7 + 1)
    assert max(map(len, done.output.splitlines())) <= 110


def test_list_as_json_says_the_same():
    done = call("list", "--json")
    found = json.loads(done.output)
    assert done.exit_code == 0 and set(found) == {"folder", "tasks", "studies", "accelerate"}
    assert [name for task in found["tasks"] for name in task["recipes"]] == recipe_names()
    assert [way["name"] for way in found["accelerate"]] == list(accelerate_files())
    for study in found["studies"]:
        assert study["what"] and (RECIPES / study["script"]).is_file()
    for task in found["tasks"]:
        assert task["chosen"] in task["recipes"] and task["what"]
        assert (RECIPES / task["script"]).is_file()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pretrain-gpt2-124m", "pretrain-gpt2-124m/README.md"),
        ("pretrain-gpt2-124m/madam", "pretrain-gpt2-124m/madam.yaml"),
        ("curvature", "curvature/README.md"),
        ("fsdp2", "accelerate/fsdp2.yaml"),
        ("accelerate/fsdp2", "accelerate/fsdp2.yaml"),
        ("slurm", "accelerate/slurm.sh"),
    ],
)
def test_show_prints_the_file_as_it_is(name, file):
    done = call("show", name)
    assert (done.exit_code, done.output) == (0, (RECIPES / file).read_text())


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["show", "fsdp"], "similar names: fsdp2"),
        (["run", "curvatures"], "similar names: curvature"),
        (["run", "curvature", "--accelerate", "cpu"], "leave --accelerate cpu out"),
        (["show", "quux"], "available: continue-pretraining-gpt2, finetune-classifier-minilm"),
        (["run", "pretrain-gpt2-124/madam"], "pretrain-gpt2-124m/madam"),
        (["run", "pretrain-gpt2-124m", "--accelerate", "fsdp1"], "similar names: fsdp2"),
        (["run", "pretrain-gpt2-124m", "--accelerate", "missing.yaml"], "available: cpu, ddp"),
        (["run", "pretrain-gpt2-124m", "max_steps", "--seed", "1"], "'max_steps' is not a flag"),
        (["run", "pretrain-gpt2-124m", "--num_processes", "two"], "it takes a whole number"),
        (["run", "pretrain-gpt2-124m", "--mixed_precision", "bf8"], "it takes no, fp16, bf16"),
        (["run", "pretrain-gpt2-124m", "--gpu_ids"], "'not given'; it takes a value"),
    ],
)
def test_what_is_no_name_is_one_message_and_code_2(words, near):
    done = call(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("hf-relopt: ") and near in line


def test_a_study_runs_with_its_own_flags_and_exit_code(tmp_path):
    words = ["curvature", "--depths", "0", "--seeds", "7"]
    script = str(RECIPES / "curvature.py")
    dry = call("run", *words, "--dry-run")
    assert dry.exit_code == 0 and shlex.split(dry.output)[1:] == [script, *words[1:]]
    command = [sys.executable, "-m", "hf_relopt.cli.main", "recipes", "run", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    first, second = done.stderr.splitlines()
    assert first.startswith("hf-relopt: ") and first.endswith("curvature.py --depths 0 --seeds 7")
    assert second.startswith("curvature.py: error: --depths is 0; it takes 1 or more.")


def test_a_dry_run_prints_the_command_and_runs_nothing(tmp_path):
    words = ["pretrain-gpt2-124m", "--accelerate", "cpu", "--train_file", "no such.txt"]
    done = call("run", *words, "--dry-run")
    recipe = find_recipe("pretrain-gpt2-124m")
    command = launch_command(recipe, find_accelerate("cpu"), words[3:])
    assert (done.exit_code, done.stderr) == (0, "")
    assert shlex.split(done.stdout) == ["accelerate", "launch", *command[3:]]


@pytest.mark.parametrize("flag", ["--acelerate", "--accelerat=cpu", "--dry_run"])
def test_a_slip_in_the_command_s_own_flags_is_no_flag_of_the_script(flag):
    done = call("run", "pretrain-gpt2-124m", "--dry-run", flag, "cpu")
    assert done.exit_code == 2 and not done.stdout
    assert f"unknown argument {flag.partition('=')[0]}; did you mean --" in done.stderr


def test_slurm_script_starts_one_launcher_per_machine(tmp_path):
    """Slurm's two commands and ours are stand-ins; bash runs the script itself."""
    stand_ins = {
        "srun": 'while [[ $1 == --* ]]; do shift; done\nfor id in 0 1; do SLURM_NODEID=$id "$@"; '
        "done",
        "scontrol": 'test "$*" = "show hostnames n[7-8]" && printf "n7\\nn8\\n"',
        "hf-relopt": 'echo "$@"',
    }
    for name, body in stand_ins.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    slurm = {"NNODES": "2", "JOB_ID": "41234", "JOB_NODELIST": "n[7-8]", "GPUS_ON_NODE": "4"}
    done = subprocess.run(
        ["bash", RECIPES / "accelerate" / "slurm.sh", "--max_steps", "7"],
        env={
            "PATH": os.pathsep.join([str(tmp_path), os.environ["PATH"]]),
            **{f"SLURM_{name}": value for name, value in slurm.items()},
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "recipes run pretrain-gpt2-124m/fromage_spectral --accelerate multi-node --num_machines 2 "
        f"--num_processes 8 --machine_rank {rank} --main_process_ip n7 --main_process_port 21234 "
        "--max_steps 7"
        for rank in (0, 1)
    ]


def test_slurm_s_own_lines_come_before_the_first_command():
    lines = (RECIPES / "accelerate" / "slurm.sh").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and line[0] != "#")
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]
    assert len([line for line in lines if line.startswith("# Name ")]) == 2
