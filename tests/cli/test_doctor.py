"""`hf-relopt doctor`: verdicts on real configurations, plans of real models, bytes, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hf_relopt.cli.doctor import run_doctor
from tests.cli.doctor_calls import DDP, FSDP1, FSDP2, ROOT, facts

pytestmark = pytest.mark.usefixtures("no_launcher")
KEYS = {"verdict", "reason", "launch", "optim", "optim_args", "plan", "memory", "versions"}
KEYS |= {"faults", "notes"}


def test_plan_of_a_folder_with_a_configuration_alone(gpt2_config):
    text = "lr=0.02,vector.rule=adamw,vector.lr=1e-3"
    plan = facts(model=gpt2_config, optim="madam", optim_args=text)["plan"]
    assert plan["class"] == "GPT2LMHeadModel" and plan["lr_assumed"] is False
    rules = {(group["role"], group["rule"], group["lr"]) for group in plan["groups"]}
    assert rules == {
        ("embedding", "madam", 0.02),
        ("matrix", "madam", 0.02),
        ("vector", "adamw", 0.001),
    }
    assert plan["parameters"] == sum(group["parameters"] for group in plan["groups"])
    assert "tied: lm_head.weight" in plan["table"]


@pytest.mark.parametrize(
    ("optim", "text", "state"),
    [
        ("fromage", None, 0),
        ("madam", None, 4),
        ("fromage_spectral", None, 4),
        ("fromage_momentum", "momentum_dtype=bfloat16", 2),
        ("muonh", None, 4),
        ("adamh", "embedding.betas=0.9;0.95", 8),
        ("fromage", "direction=adam,scale=row", 8),
        ("fromage_factored", None, 0),
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
    per_line = 4 if optim == "fromage_factored" else 0
    assert memory["per_row_and_column"] == {"state": per_line, "adamw_state": 0}
    per_neuron = 4 if optim == "fromage_spectral" else 0
    assert memory["per_neuron"] == {"state": per_neuron, "adamw_state": 0}
    assert memory["per_rank"] is None


def test_ddp_is_whole_on_each_rank_and_fsdp2_in_parts(gpt2_config, written):
    alone = facts(model=gpt2_config, optim="madam")["memory"]["per_rank"]
    assert facts(written(**DDP), model=gpt2_config, optim="madam")["memory"]["per_rank"] == alone
    parts = facts(written(**FSDP2), model=gpt2_config, optim="madam")["memory"]["per_rank"]
    # 51 rows of the embedding in four parts: 13 on the first rank.
    assert alone["weights"] / 4 < parts["weights"] <= alone["weights"] / 4 + 4 * 16
    refused = facts(written(**FSDP1), model=gpt2_config, optim="madam")
    assert refused["memory"]["per_rank"] == alone
    assert any("This launch is refused" in note for note in refused["notes"])


@pytest.mark.parametrize(("text", "momentum"), [(None, 4), ("momentum_dtype=bfloat16", 2)])
def test_bytes_of_a_momentum_and_of_numbers_by_row(text, momentum, gpt2_config, written):
    """One matrix of 16 x 48 in three blocks, three of 16 wide, 51 + 16 rows, ten vectors."""
    matrices, rows, vectors = 12 * 16 * 16, 51 + 16, 240
    found = facts(model=gpt2_config, optim="fromage_spectral", optim_args=text)
    fixed = 16 * 8 + 4 * (3 + 3 + 10)  # two counts each; anchors of blocks, matrices, vectors
    neurons = 4 * (3 * 16 + 16 + 64 + 64)
    moments = momentum * (matrices + vectors) + 4 * vectors
    # Of each row its anchor, the root mean square of its gradients and their count.
    assert found["memory"]["per_rank"]["state"] == fixed + 12 * rows + moments + neurons
    parts = facts(written(**FSDP2), model=gpt2_config, optim="fromage_spectral", optim_args=text)
    # 13 of the 51 rows, 4 of the 16; all else can be divided by four.
    moments = momentum * (matrices / 4 + vectors / 4) + 4 * vectors / 4
    # Where they are columns, as those of the first layer of the MLP, every rank has all.
    neurons = 4 * (3 * 4 + 4 + 64 + 16)
    assert parts["memory"]["per_rank"]["state"] == fixed + 12 * 17 + moments + neurons
    follows = {group["follows"] for group in found["plan"]["groups"]}
    assert follows == {
        "fromage, rms, by row",
        "fromage, entry by entry",
        "fromage, spectral",
        "fromage, spectral, 3 blocks",
    }


def test_what_fits_follows_from_the_bytes_of_a_rank(gpt2_config, capsys):
    """With steps inside the backward pass the largest gradient counts; AdamW keeps them all."""
    words = {"model": gpt2_config, "optim_args": "step_in_backward=true", "dtype": "bfloat16"}
    found = facts(**words)
    memory, parameters = found["memory"], found["plan"]["model_parameters"]
    ranks = memory["per_rank"]
    assert ranks["weights"] == ranks["all_gradients"] == 2 * parameters
    assert ranks["gradients"] == 2 * max(51 * 16, 16 * 64)
    assert memory["per_parameter"]["gradients"] == 0
    ours = ranks["weights"] + ranks["gradients"] + ranks["state"]
    others = ranks["weights"] + ranks["all_gradients"] + ranks["adamw_state"]
    for size in (24, 80):
        expected = {"state": ours, "adamw_state": others}
        expected = {key: parameters * size * 10**9 // own for key, own in expected.items()}
        assert memory["fits"][str(size)] == expected
    assert facts()["memory"]["fits"] is None
    assert run_doctor(**words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "only the largest gradient exists at a time" in said
    assert f"activations: {memory['fits']['24']['state'] / 1e9:.2g} in 24 GB and" in said


def test_dtype(gpt2_config, written):
    assert facts(model=gpt2_config)["memory"]["dtype"] == "float32"
    half = facts(model=gpt2_config, dtype="bfloat16")["memory"]
    assert half["per_parameter"]["weights"] == 2 and half["per_parameter"]["adamw_state"] == 4
    upcast = facts(written(**{**FSDP2, "mixed_precision": "bf16"}), gpt2_config, dtype="bfloat16")
    assert upcast["memory"]["dtype"] == "float32"
    assert any("float32" in note for note in upcast["notes"])


def test_json_is_one_object_and_the_exit_code_is_the_verdict(written, gpt2_config):
    path = written(**FSDP1)
    words = ["doctor", "--accelerate", path, "--model", gpt2_config, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "hf_relopt", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert set(found) == KEYS and found["verdict"] == "refused"
    assert found == facts(path, gpt2_config)


def test_a_pipe_gets_plain_text(gpt2_config, capsys):
    assert run_doctor(model=gpt2_config) == 0
    out = capsys.readouterr().out
    assert out and "\x1b" not in out and "─" not in out
