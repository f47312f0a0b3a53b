"""Trainers with param groups of their own: what they ask the Trainer for serves their calls.

Each trainer here calls as one that exists: GLiNER, LLaVA, axolotl, LLaMA-Factory, sentence-
transformers, PEFT's LoRA+. The last two are the real ones.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_relopt import ConfigError, Fromage, RelOptTrainer, create_optimizer
from hf_relopt.hf.callbacks import unwrapped
from tests.hf.group_callers import Caller, asked, facts, split
from tests.hf.tiny import arguments, gpt2, pretrained, rows, same, weights


def test_it_is_a_class_of_torch_s_and_its_options_can_be_read(tmp_path):
    args = arguments(tmp_path, optim="fromage_spectral")
    job = Trainer(gpt2(), args, train_dataset=rows())
    cls, kwargs = job.get_optimizer_cls_and_kwargs(args, job.model)
    assert issubclass(cls, Fromage) and issubclass(cls, torch.optim.Optimizer)
    assert cls.__name__ == "Fromage"
    assert kwargs == {"lr": 0.04}
    # With another class, as some trainers put in its place.
    assert torch.optim.AdamW(job.model.parameters(), **kwargs).defaults["lr"] == 0.04
    ours = cls(list(job.model.named_parameters()), **kwargs)
    assert type(ours) is Fromage
    assert facts(ours) == facts(cls(job.model)) == facts(cls(params=job.model.parameters()))
    assert type(copy.deepcopy(ours)) is Fromage


def test_axolotl_reads_the_learning_rate_and_works_out_its_own(tmp_path):
    class Axolotl(Trainer):
        def create_optimizer(self, model=None):
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = split(self, lr=kwargs["lr"])
            groups[0]["lr"] *= 0.5
            for key in ("params", "model", "optimizer_dict"):
                assert key not in kwargs  # these would replace the trainer's groups
            self.optimizer = cls(groups, **kwargs)
            return self.optimizer

    _, ours = asked(Axolotl, tmp_path, pretrained(gpt2()), optim="fromage")
    assert {(g["role"], g["lr"]) for g in ours.param_groups} == {
        ("matrix", 0.0005),
        ("embedding", 0.0005),
        ("vector", 0.001),
    }


def test_groups_that_all_have_a_learning_rate_need_no_other(tmp_path):
    class Popped(Caller):
        def create_optimizer(self, model=None):
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            kwargs.pop("lr")
            kwargs["weight_decay"] = self.args.weight_decay
            self.optimizer = cls(split(self, lr=0.007), **kwargs)
            return self.optimizer

    job, ours = asked(Popped, tmp_path, optim="madam")
    assert {g["lr"] for g in ours.param_groups} == {0.007}
    job.train()


def test_a_learning_rate_that_the_trainer_passes_is_the_common_one(tmp_path, said):
    class Passed(Caller):
        def create_optimizer(self, model=None):
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(split(self), **{**kwargs, "lr": 0.004, "min_scale": 0.2})
            return self.optimizer

    job, ours = asked(Passed, tmp_path, optim="fromage")
    assert {(g["lr"], g["min_scale"]) for g in ours.param_groups} == {(0.004, 0.2)}
    assert job.args.learning_rate == 0.004
    assert said.about("learning rate 0.004, as the trainer passes it")


def test_without_a_trainer_and_a_model_there_must_be_a_learning_rate(tmp_path):
    """A function that builds an optimizer out of arguments alone."""
    model = gpt2()
    args = arguments(tmp_path, optim="fromage")
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    with pytest.raises(ConfigError) as error:
        cls(model.parameters(), **kwargs)
    for words in ("learning_rate", "0.001", "optimizers=(hf_relopt.create_optimizer(model"):
        assert words in str(error.value)
    args = arguments(tmp_path, optim="fromage", learning_rate=0.02)
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    ours = cls(model.parameters(), **kwargs)
    assert {(g["role"], g["lr"]) for g in ours.param_groups} == {("matrix", 0.02), ("vector", 0.02)}
    assert sum(len(g["params"]) for g in ours.param_groups) == 16


def test_without_a_model_a_preset_says_what_to_do(tmp_path):
    args = arguments(tmp_path, optim="fromage_spectral", learning_rate=0.02)
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    with pytest.raises(ConfigError) as error:
        cls(gpt2().parameters(), **kwargs)
    assert "create_optimizer(model, 'fromage_spectral'), None)" in str(error.value)


def test_rates_that_were_worked_out_of_the_arguments_default_are_refused(tmp_path):
    """No Trainer is known by then: what is read is 5e-5, which nobody gave."""
    args = arguments(tmp_path, optim="fromage")
    model = gpt2()
    params = list(model.parameters())
    groups = [
        {"params": params[:4], "lr": args.learning_rate * 1.0},
        {"params": params[4:], "lr": args.learning_rate * 16},
    ]
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
    with pytest.raises(ConfigError, match=r"5e-05 and 0\.0008.*Give learning_rate"):
        cls(groups, **kwargs)


def test_an_optimizer_for_each_weight(tmp_path, said):
    """Layer-wise steps in the backward pass, each weight with an optimizer of its own."""
    args = arguments(tmp_path, optim="fromage")
    job = Trainer(gpt2(), args, train_dataset=rows())
    cls, kwargs = job.get_optimizer_cls_and_kwargs(args, job.model)
    made = {param: cls([{"params": [param]}], **kwargs) for param in job.model.parameters()}
    plan = facts(create_optimizer(job.model, "fromage"))
    assert {name: own for o in made.values() for name, own in facts(o).items()} == plan
    assert len(said.about("learning rate")) == 1
    before = weights(job.model)
    for param, optimizer in made.items():
        param.grad = torch.ones_like(param)
        optimizer.step()
    assert not any(torch.equal(before[n], p) for n, p in job.model.named_parameters())


def test_a_group_can_be_added_later_without_names(tmp_path):
    """Callbacks that thaw layers do this; the Trainer's own groups have names."""

    class Thaws(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == 2:
                optimizer.optimizer.add_param_group({"params": [late.requires_grad_(True)]})
                schedule = kwargs["lr_scheduler"]  # torch's wants to be told
                schedule.base_lrs.append(0.01)
                schedule.lr_lambdas.append(schedule.lr_lambdas[0])

    model = gpt2()
    late = model.transformer.h[0].mlp.c_fc.weight.requires_grad_(False)
    before = late.clone()
    args = arguments(tmp_path, optim="fromage", lr_scheduler_type="constant")
    job = RelOptTrainer(model, args, train_dataset=rows(), callbacks=[Thaws()])
    job.train()
    assert not torch.equal(late, before)
    assert job.optimizer.param_groups[-1]["lr"] == 0.01


# PEFT itself still asks for the old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
def test_lora_plus_of_peft(tmp_path):
    peft = pytest.importorskip("peft")
    from peft.optimizers import create_loraplus_optimizer

    class Plus(Trainer):
        def create_optimizer(self, model=None):
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = create_loraplus_optimizer(
                self.model, cls, loraplus_lr_ratio=4, loraplus_lr_embedding=1e-6, **kwargs
            )
            return self.optimizer

    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(pretrained(gpt2()), config)
    job, ours = asked(Plus, tmp_path, model, optim="fromage")
    rates = {name.split(".")[-3]: own["lr"] for name, own in facts(ours).items()}
    assert rates == {"lora_A": 0.03, "lora_B": 0.12}
    job.train()
    assert job.state.global_step == 4


def test_resume_with_groups_of_the_trainer_s_own_is_bit_equal(tmp_path):
    class Own(Caller):
        def groups(self):
            return [*split(self)[:1], {**split(self)[1], "lr": 0.004}]

    class StopAfterSave(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = True

    given = {"optim": "madam", "save_strategy": "steps", "save_steps": 2}
    straight, cut, resumed = gpt2(), gpt2(), gpt2(seed=5)
    Own(straight, arguments(tmp_path / "a", **given), train_dataset=rows()).train()
    args = arguments(tmp_path / "b", **given)
    Own(cut, args, train_dataset=rows(), callbacks=[StopAfterSave()]).train()
    args = arguments(tmp_path / "b", **given)
    job = Own(resumed, args, train_dataset=rows())
    job.train(resume_from_checkpoint=True)
    assert same(weights(straight), weights(resumed))
    assert {g["initial_lr"] for g in unwrapped(job.optimizer).param_groups} == {0.01, 0.004}


def test_a_lazy_module_is_one_clear_error(tmp_path):
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.LazyLinear(4)

        def forward(self, x):
            return {"loss": self.first(x).square().mean()}

    args = arguments(tmp_path, optim="fromage")
    data = [{"x": torch.ones(3)} for _ in range(8)]
    model = Lazy()
    with pytest.raises(ConfigError, match=r"first\.weight belongs to a lazy module.*Run one batch"):
        Trainer(model, args, train_dataset=data).train()
    model(torch.ones(3))
    Trainer(model, args, train_dataset=data).train()
    assert args.learning_rate == 0.01


def test_a_model_that_holds_none_of_the_weights_decides_nothing(tmp_path):
    """A probe beside a model that is looked at, and not trained."""

    class Probe(Caller):
        def groups(self):
            return [{"params": [nn.Parameter(torch.ones(3, 4))]}]

    with pytest.raises(ConfigError, match="No learning rate is given"):
        asked(Probe, tmp_path, optim="fromage")
    with pytest.raises(ConfigError, match="what each weight is for"):
        asked(Probe, tmp_path, optim="fromage_spectral", learning_rate=0.02)
    _, ours = asked(Probe, tmp_path, optim="madam", learning_rate=0.02)
    assert [(g["role"], g["lr"]) for g in ours.param_groups] == [("matrix", 0.02)]
