"""A model without its weights, from a configuration alone; what cannot be built is one message."""

from __future__ import annotations

import shutil

import pytest
from transformers import BertConfig, LlamaConfig

from hf_relopt.cli.doctor import run_doctor
from tests.cli.doctor_calls import FSDP2, facts, fails

pytestmark = pytest.mark.usefixtures("no_launcher")


def test_a_folder_without_weights_is_trained_from_scratch(gpt2_config, tmp_path, capsys):
    """What is assumed of the learning rate, with and without weights beside the configuration."""

    def lrs(folder) -> tuple[str, set[float]]:
        plan = facts(model=str(folder), optim="fromage")["plan"]
        return plan["weights"], {group["lr"] for group in plan["groups"]}

    assert lrs(gpt2_config) == ("not there", {0.01})
    beside = shutil.copytree(gpt2_config, tmp_path / "trained")
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


def test_broken_models_are_one_message(tmp_path, gpt2_config, capsys):
    config = tmp_path / "config.json"
    config.write_text("{")
    assert "config" in fails(capsys, model=str(tmp_path))
    config.write_text('{"model_type": "of-nobody"}')
    assert "of-nobody" in fails(capsys, model=str(tmp_path))
    config.write_text('{"model_type": "gpt2", "n_embd": 15, "n_head": 2}')
    assert "no model could be built" in fails(capsys, model=str(tmp_path))
