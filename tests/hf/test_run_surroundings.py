"""The command as it can be typed again, without secrets; the machine and the commit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hf_relopt.hf import run_surroundings
from tests.hf.tiny import arguments, passed, python


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--hub_token", "abc"], ["--hub_token", "***"]),
        (["--hub_token=abc", "--x"], ["--hub_token=***", "--x"]),
        (["--api-key", "abc"], ["--api-key", "***"]),
        (["--db_password", "abc"], ["--db_password", "***"]),
        (["x", "hf_" + "a" * 30], ["x", "***"]),
        (["--max_new_tokens", "40"], ["--max_new_tokens", "40"]),
        (["--tokenizer_name", "gpt2"], ["--tokenizer_name", "gpt2"]),
        (["--num_tokens=3"], ["--num_tokens=3"]),
        (["--use_auth_token", "--seed", "1"], ["--use_auth_token", "--seed", "1"]),
    ],
)
def test_tokens_and_passwords_stay_out_and_counts_stay_in(words, expected):
    assert run_surroundings.without_secrets(words) == expected


def test_the_command_is_the_one_that_was_typed(tmp_path):
    script = tmp_path / "train it.py"
    script.write_text("from hf_relopt.hf.run_surroundings import command\nprint(command())")
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, str(script), "--lr", "0.1", "--token", "abc"],
        capture_output=True, text=True, cwd=tmp_path, env=env, timeout=300,
    )  # fmt: skip
    assert passed(done).strip() == "python 'train it.py' --lr 0.1 --token '***'"


def test_a_launcher_and_the_door_are_part_of_the_command(monkeypatch):
    parent = ["/env/bin/python", "/env/bin/torchrun", "--nproc_per_node", "2", "train.py"]
    monkeypatch.setattr(run_surroundings, "_words_of_parent", lambda: parent)
    assert run_surroundings.command() == "torchrun --nproc_per_node 2 train.py"
    door = os.path.join("x", "hf_relopt", "autoload")
    monkeypatch.setenv("PYTHONPATH", door)
    assert run_surroundings.command() == "hf-relopt run torchrun --nproc_per_node 2 train.py"


def test_a_notebook_has_no_command(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "ipykernel_launcher", "-f", "x.json"])
    assert run_surroundings.command() is None


def test_the_commit_is_that_of_the_folder_and_changes_count(tmp_path):
    def run(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    assert run_surroundings.git(tmp_path) is None
    run("init")
    (tmp_path / "a").write_text("a")
    run("add", "a")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    run(*who, "commit", "-m", "a")
    clean = run_surroundings.git(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "untracked").write_text("b")
    assert run_surroundings.git(tmp_path) == clean
    (tmp_path / "a").write_text("b")
    assert run_surroundings.git(tmp_path) == {**clean, "dirty": True}


def test_hardware_and_versions_are_those_of_this_machine(tmp_path):
    found = run_surroundings.hardware(arguments(tmp_path))
    assert found["device"] == "CPU" and found["count"] == 1 and "core" in found["cpu"]
    assert 0.1 < found["memory_gb"] < 1e5
    versions = run_surroundings.versions()
    assert versions["python"].startswith("3.") and versions["transformers"]


def test_one_process_without_a_trainer_is_a_single_process(tmp_path):
    code = """
        import sys
        from transformers import TrainingArguments
        from hf_relopt.hf.run_surroundings import launch
        print(launch(TrainingArguments(sys.argv[1], use_cpu=True)))
    """
    done = python(code, str(tmp_path))
    assert passed(done).strip() == "{'mode': 'single process', 'processes': 1, 'backend': None}"
