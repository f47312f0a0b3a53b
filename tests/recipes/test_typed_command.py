"""What a run suggests is the user's own command, and it runs when it is pasted."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pretrain_clm
import pytest
import typed_command as module
from first_look import check_optimizer_words
from run_folder import RunFolder
from typed_command import typed_command

from hf_relopt.shipped import DOOR
from tests.recipes.recipe_calls import RECIPES, ROOT, tiny_pretraining


@pytest.fixture
def started(monkeypatch, tmp_path):
    """As if a script had been started by these words, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(DOOR, raising=False)
    monkeypatch.setattr(module, "_words_of_parent", list)

    def start(*words: str, door=None, parent=(), script="pretrain_clm.py"):
        monkeypatch.setattr(sys, "argv", [str(RECIPES / script), *words])
        if door is not None:
            monkeypatch.setenv(DOOR, json.dumps(door))
        if parent:
            monkeypatch.setattr(module, "_words_of_parent", lambda: [*parent, *sys.argv])
        return typed_command()

    return start


def adamw(command, rate=0.002, *, implied=True) -> list[str]:
    return shlex.split(str(command.with_optimizer("adamw_torch", "adamw", rate, implied=implied)))


def test_flags_stay_and_the_optimizer_s_own_give_way(started):
    command = started(
        "--train_file", "my text.txt", "--max_steps", "7", "--optim", "fromage", "--seed=3",
        "--optim_args", "p_bound=2", "--learning-rate", "0.03", "--run_name", "one",
        "--overwrite_output_dir", "--weight_decay", "0.0",
    )  # fmt: skip
    assert adamw(command)[2:] == [
        "--train_file", "my text.txt", "--max_steps", "7", "--seed=3", "--weight_decay", "0.0",
        "--run_name", "one-adamw", "--optim", "adamw_torch",
    ]  # fmt: skip
    assert adamw(command, 2e-4, implied=False)[-2:] == ["--learning_rate", "0.0002"]


def test_a_folder_of_one_s_own_gets_a_sibling(started):
    assert "--output_dir=x" not in adamw(started("--output_dir=out/x/"))
    assert adamw(started("--output_dir=out/x/"))[2:4] == ["--output_dir", "out/x-adamw"]


def test_weight_decay_does_not_come_along_to_ours(started):
    command = started("--optim", "adamw_torch", "--weight_decay", "0.1", "--adam_beta2", "0.95")
    ours = command.with_optimizer("fromage_spectral", "ours", 0.02, implied=True)
    assert shlex.split(str(ours))[2:] == [
        "--adam_beta2", "0.95", "--run_name", "ours", "--optim", "fromage_spectral",
    ]  # fmt: skip


def test_a_file_of_arguments_stays_and_what_it_says_is_overridden(started, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "optim: fromage\nlearning_rate: 0.03\noptim_args: p_bound=2\nrun_name: first\n"
    )
    assert adamw(started("mine.yaml", "--max_steps", "5"))[2:] == [
        "mine.yaml", "--max_steps", "5", "--run_name", "first-adamw", "--optim", "adamw_torch",
        "--learning_rate", "0.002", "--optim_args=",
    ]  # fmt: skip


def test_a_format_in_a_file_is_taken_back_for_those_that_cannot_step_it(started, tmp_path):
    (tmp_path / "mine.yaml").write_text("optim: integer_madam\nlns_format: lns8\n")
    words = adamw(started("mine.yaml"))
    assert words[-1] == "--lns_format="
    check_optimizer_words({"optim": "adamw_torch", "lns_format": ""}, ())


def test_a_shipped_file_has_a_sibling(started):
    file = str(RECIPES / "sft-chat-qwen" / "fromage.yaml")
    words = adamw(started(file, "--max_steps", "5", script="sft_chat.py"))
    assert words[2:] == [file.replace("fromage.yaml", "adamw.yaml"), "--max_steps", "5"]


def test_a_recipe_by_name_keeps_its_launcher(started):
    typed = ["pretrain-gpt2-124m", "--accelerate", "cpu", "--train_file", "notes.txt"]
    command = started("--run_name", "x", door=[["hf-relopt", "recipes", "run"], typed])
    assert str(command) == "hf-relopt recipes run " + " ".join(typed)
    assert adamw(command) == [
        "hf-relopt", "recipes", "run", "pretrain-gpt2-124m/adamw", *typed[1:]
    ]  # fmt: skip
    named = started(door=[["hf-relopt", "recipes", "run"], [*typed, "--run_name", "mine"]])
    assert adamw(named)[-2:] == ["--run_name", "mine-adamw"]


@pytest.mark.parametrize(
    ("parent", "front"),
    [
        (["/p/python", "/elsewhere/torchrun", "--nproc_per_node", "2"], ["/elsewhere/torchrun"]),
        (["/p/python", "/x/accelerate", "launch", "--num_processes", "1"], ["/x/accelerate"]),
        (["/p/python", "-m", "torch.distributed.run", "--standalone"], None),
        (["/bin/bash"], None),
    ],
)
def test_a_launcher_comes_along(parent, front, started):
    words = adamw(started("--seed", "1", parent=parent))
    script = words.index(str(RECIPES / "pretrain_clm.py"))
    if len(parent) > 1:
        assert words[1 if front is None else 0 : script] == (front or [*parent[1:2]]) + parent[2:]
    else:
        assert script == 1


def test_make_demo_is_said_as_make_says_it(started):
    make = [["make", "demo"], []]
    own = ["--run_name", "demo"]
    assert str(started(*own, door=make)) == "make demo"
    other = started(*own, "--seed", "4", door=[["make", "demo", "VENV=.venv two"], []])
    assert str(other) == "make demo 'VENV=.venv two' ARGS=\"--seed 4\""
    command = started(*own, "--train_file", "a b$c.txt", "--seed", "4", door=make)
    suggested = command.with_optimizer("adamw_torch", "adamw", 0.002, implied=True)
    # Make and the shell together give the script its words.
    done = subprocess.run(
        ["bash", "-c", f"{suggested} -n --old-file=.venv/.installed VENV=.venv PINS=x"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    line = next(text for text in done.stdout.splitlines() if "pretrain_clm.py" in text)
    words = shlex.split(line)
    assert words[words.index("recipes/pretrain_clm.py") + 1 :] == [
        *own, "--train_file", "a b$c.txt", "--seed", "4", "--run_name", "demo-adamw", "--optim",
        "adamw_torch",
    ]  # fmt: skip


@pytest.mark.parametrize("door", ["", "{", "[1]", "[[], []]", '"x"', "[[1], 2]"])
def test_a_door_that_says_nothing_is_passed_over(door, started, monkeypatch):
    monkeypatch.setenv(DOOR, door)
    assert adamw(started("--seed", "1"))[1] == str(RECIPES / "pretrain_clm.py")


def test_words_that_are_no_flags_do_not_break_a_run(started):
    assert "-q" in str(started("-q", "--seed", "1").changed("x"))


@pytest.mark.parametrize("in_a_file", [False, True], ids=["flags", "a file"])
def test_what_is_suggested_runs_as_it_stands(in_a_file, started, tiny_text, tmp_path):
    """Pasted, it trains the same model on the same data with the other optimizer."""
    words = tiny_pretraining(tiny_text, tmp_path / "run", optim="fromage", learning_rate=0.01)
    if in_a_file:
        pairs = zip(words[::2], words[1::2], strict=True)
        lines = [f"{name[2:]}: {json.dumps(value)}" for name, value in pairs]
        (tmp_path / "flags.yaml").write_text("\n".join(lines) + "\n")
        words = ["flags.yaml"]
    started(*words)
    pretrain_clm.main(words)
    first = RunFolder(tmp_path / "run").record
    hints = dict(first["hints"])
    assert {"fromage_spectral", "AdamW, to compare", "longer"} <= set(hints)
    pasted = shlex.split(hints["AdamW, to compare"])
    pretrain_clm.main(pasted[2:])
    second = RunFolder(tmp_path / "run-adamw").record
    changed = {
        name
        for name in {*first["recipe"], *second["recipe"]}
        if first["recipe"].get(name) != second["recipe"].get(name)
    }
    # AdamW has the learning rate and the warm-up that suit it.
    assert changed == {"optim", "learning_rate", "max_grad_norm", "warmup_steps"}
    assert second["recipe"]["optim"] == "adamw_torch" and second["finished"]
    assert second["recipe"]["learning_rate"] == 0.002
    # And back again.
    assert "fromage_spectral" in dict(second["hints"])


def test_the_python_of_the_command_is_this_one():
    word = shlex.split(str(typed_command()))[0]
    found = subprocess.run([word, "-c", "import sys; print(sys.executable)"], cwd=Path.cwd(),
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert os.path.samefile(found.stdout.strip(), sys.executable)
