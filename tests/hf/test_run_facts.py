"""What is recorded is what runs: the optimizer made by hand, the base, the schedule, the sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel

from hf_relopt import RelOptTrainer, create_optimizer
from hf_relopt.hf.run_facts import base_of, record_of
from hf_relopt.hf.run_record import read_or_none
from tests.hf.tiny import arguments, gpt2, pretrained, rows


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    pretrained(gpt2()).save_pretrained(folder)
    return folder


def test_a_model_that_was_read_has_a_base_and_new_weights_have_none(saved):
    assert base_of(gpt2())["base_model"] is None
    read = GPT2LMHeadModel.from_pretrained(saved)
    assert base_of(read) == {
        "base_model": str(saved),
        "base_revision": None,
        "base_is_local": True,
    }
    assert base_of(read.train())["base_model"] == str(saved)
    # The configuration alone was read: it keeps the name, the weights are new.
    new = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(saved))
    assert new.config._name_or_path and base_of(new)["base_model"] is None


# PEFT itself still asks for the old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
def test_an_adapter_has_the_base_that_it_names(saved):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_fc"])
    config.fan_in_fan_out = True
    model = peft.get_peft_model(GPT2LMHeadModel.from_pretrained(saved), config)
    assert base_of(model)["base_model"] == str(saved)
    assert base_of(torch.nn.Linear(2, 2))["base_model"] is None


def recorded(tmp_path, optimizers=(None, None), **given):
    model = gpt2()
    made = optimizers(model) if callable(optimizers) else optimizers
    args = arguments(tmp_path, **given)
    RelOptTrainer(model, args, train_dataset=rows(), optimizers=made).train()
    return read_or_none(tmp_path)


def test_an_optimizer_made_by_hand_is_recorded_and_not_the_arguments_default(tmp_path):
    record = recorded(tmp_path, lambda m: (create_optimizer(m, "madam", 0.02), None))
    assert record["optimizer"]["name"] == "madam"
    assert "arxiv.org/abs/2006.14560" in record["optimizer"]["words"][0]
    assert record["training"]["peak_lr"] == 0.02
    assert not {"betas", "eps", "epsilon"} & set(record["optimizer"]["options"])


def test_another_optimizer_is_recorded_by_its_class(tmp_path):
    record = recorded(tmp_path, lambda m: (torch.optim.SGD(m.parameters(), lr=0.1), None))
    assert record["optimizer"]["name"] == "SGD" and record["training"]["peak_lr"] == 0.1
    assert record["optimizer"]["groups"][0]["follows"] == "SGD"
    assert not (tmp_path / "README.md").exists()  # the card is for ours


def test_a_schedule_made_by_hand_is_not_called_as_the_arguments_call_theirs(tmp_path):
    def by_hand(model):
        optimizer = create_optimizer(model, "fromage", 0.02)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)

    training = recorded(tmp_path, by_hand)["training"]
    assert training["schedule"] == "StepLR" and training["warmup_steps"] is None


@pytest.mark.parametrize("schedule", ["cosine", "constant_with_warmup", "reduce_lr_on_plateau"])
def test_schedules_of_the_arguments_keep_their_names(schedule, tmp_path):
    plateau = {"eval_strategy": "steps", "eval_steps": 4} if "plateau" in schedule else {}
    args = arguments(
        tmp_path, optim="fromage", lr_scheduler_type=schedule, warmup_steps=2, **plateau
    )
    trainer = RelOptTrainer(gpt2(), args, train_dataset=rows(), eval_dataset=rows(4))
    trainer.train()
    training = read_or_none(tmp_path)["training"]
    assert (training["schedule"], training["warmup_steps"]) == (schedule, 2)


def test_before_training_the_arguments_speak(tmp_path):
    trainer = RelOptTrainer(gpt2(), arguments(tmp_path, optim="madam"), train_dataset=rows())
    record = record_of(trainer.args, trainer.state, trainer.model, None)
    assert record["optimizer"]["name"] == "madam" and record["optimizer"]["groups"] == []


def test_a_module_of_one_s_own_is_described(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 1)

        def forward(self, input_ids, labels=None):
            return {"loss": self.layer(input_ids.float()).square().mean()}

    RelOptTrainer(
        Net(), arguments(tmp_path, optim="fromage", save_strategy="steps"), train_dataset=rows()
    ).train()
    record = read_or_none(tmp_path)
    assert record["model"]["class"] == "Net" and record["model"]["library"] is None
    assert record["model"]["parameters"] == 9
    assert (tmp_path / "README.md").read_text().count("load_file") == 2
