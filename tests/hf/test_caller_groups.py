"""Param groups of a trainer's own: each weight gets its plan, then what its group says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_relopt import ConfigError, Fromage, Madam, create_optimizer
from hf_relopt.plans.plan import followed_lr
from tests.hf.group_callers import NAMES, Caller, asked, facts, split
from tests.hf.tiny import VOCABULARY, arguments, gpt2


@pytest.mark.parametrize("optim", NAMES)
def test_groups_that_say_nothing_get_the_plan(optim, tmp_path):
    _, stock = asked(Trainer, tmp_path, optim=optim)
    job, ours = asked(Caller, tmp_path, optim=optim)
    assert type(ours) is (Madam if optim == "madam" else Fromage)
    assert (
        facts(ours) == facts(stock) == facts(create_optimizer(gpt2(), optim, num_training_steps=4))
    )
    assert [g["param_names"] for g in ours.param_groups] == [
        g["param_names"] for g in stock.param_groups
    ]
    job.train()
    assert job.state.global_step == 4


def test_a_group_s_own_learning_rate_is_obeyed_and_the_rest_keeps_the_plan(tmp_path, said):
    class Llava(Caller):
        def groups(self):
            first, second = split(self, lr=self.args.learning_rate, name="body")
            embedding = self.model.transformer.wpe.weight
            first["params"] = [p for p in first["params"] if p is not embedding]
            return [first, second, {"params": [embedding], "lr": 0.004, "name": "positions"}]

    job, ours = asked(Llava, tmp_path, optim="fromage_spectral")
    plan = facts(create_optimizer(gpt2(), "fromage_spectral", num_training_steps=4))
    own = facts(ours)
    positions = own.pop("transformer.wpe.weight")
    before = plan.pop("transformer.wpe.weight")
    assert own == plan
    # An own rate is that of the weights: the plan's factor does not come on top.
    assert (before["lr_factor"], positions["lr_factor"]) == (2.5, None)
    assert {**positions, "lr": 0.04, "lr_factor": 2.5} == before
    assert positions["lr"] == 0.004
    assert {g["name"] for g in ours.param_groups} == {"body", "positions"}
    assert not said.about("param group is")
    job.train()


def test_a_group_s_learning_rate_is_the_common_one_where_a_preset_leads_from_it_to_adamw(tmp_path):
    class Decayed(Caller):
        def groups(self):
            return split(self, lr=0.01)

    job, ours = asked(Decayed, tmp_path, optim="muonh")
    rates = {(g["role"], g["rule"], g["lr"], followed_lr(g)) for g in ours.param_groups}
    assert ("embedding", "adamw", 0.01, 0.0015) in rates and (
        "matrix",
        "fromage",
        0.01,
        0.01,
    ) in rates
    job.train()
    _, own = asked(Decayed, tmp_path, optim="muonh", optim_args="embedding.lr=1e-3")
    (lr,) = {followed_lr(g) for g in own.param_groups if g["role"] == "embedding"}
    assert lr == 1e-3


def test_an_override_of_the_user_wins_over_a_group(tmp_path):
    class Own(Caller):
        def groups(self):
            return split(self, lr=0.004)

    text = "vector.lr=0.007,embedding.rule=adamw,embedding.lr=1e-3"
    _, ours = asked(Own, tmp_path, optim="fromage", optim_args=text)
    found = {(g["role"], g["rule"], g["lr"]) for g in ours.param_groups}
    assert found == {
        ("vector", "fromage", 0.007),
        ("embedding", "adamw", 1e-3),
        ("matrix", "fromage", 0.004),
    }


@pytest.mark.parametrize("where", ["group", "options"])
@pytest.mark.parametrize("optim", ["fromage", "madam"])
def test_weight_decay_in_the_trainer_s_own_code_is_refused(where, optim, tmp_path):
    class Decays(Caller):
        def create_optimizer(self, model=None):
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args)
            groups = split(self)
            if where == "group":
                groups[0]["weight_decay"] = 0.01
            else:
                kwargs["weight_decay"] = 0.01
            return cls(groups, **kwargs)

    remedy = "p_scale" if optim == "madam" else "p_bound"
    with pytest.raises(ConfigError) as error:
        asked(Decays, tmp_path, optim=optim)
    for words in ("weight_decay is 0.01", "param group 0" if where == "group" else "options",
                  optim, "to 0", remedy):  # fmt: skip
        assert words in str(error.value)


def test_weight_decay_of_a_group_that_follows_adamw_is_its_own(tmp_path):
    class Mixed(Caller):
        def groups(self):
            first, second = split(self)
            return [first, {**second, "rule": "adamw", "lr": 1e-3, "weight_decay": 0.1}]

    job, ours = asked(Mixed, tmp_path, optim="fromage_spectral")
    (vectors,) = [g for g in ours.param_groups if g["rule"] == "adamw"]
    assert (vectors["lr"], vectors["weight_decay"], vectors["betas"]) == (1e-3, 0.1, (0.9, 0.999))
    job.train()


def test_overrides_without_a_model(tmp_path):
    given = {"optim": "fromage", "learning_rate": 0.02}
    model = gpt2()

    def made(text, params):
        args = arguments(tmp_path, **given, optim_args=text)
        cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
        return facts(cls(params, **kwargs))

    found = made("vector.lr=0.004,*.wpe.*.lr=0.003", model.named_parameters())
    assert found["transformer.wpe.weight"]["lr"] == 0.003
    assert found["transformer.ln_f.weight"]["lr"] == 0.004
    assert found["transformer.wte.weight"]["lr"] == 0.02
    with pytest.raises(ConfigError, match=r"'embedding' matches no weight.*matrix, vector"):
        made("embedding.lr=0.003", model.parameters())


@pytest.mark.parametrize("optim", NAMES)
def test_weights_beside_the_model_are_trained(optim, tmp_path):
    class WithLoss(Caller):
        head = None

        def groups(self):
            self.head = nn.Linear(VOCABULARY, 2)
            return [*split(self), {"params": self.head.parameters()}]

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            logits = model(input_ids=inputs["input_ids"]).logits
            return self.head(logits).square().mean() + logits.square().mean()

    job, ours = asked(WithLoss, tmp_path, optim=optim)
    before = job.head.weight.clone(), job.head.bias.clone()
    job.train()
    assert not torch.equal(job.head.weight, before[0])
    assert not torch.equal(job.head.bias, before[1])
    roles = [facts(ours)[f"param_groups.2.{n}"]["role"] for n in range(2)]
    assert roles == ["matrix", "vector"]


def test_frozen_weights_in_a_group_train_once_they_are_thawed(tmp_path):
    class All(Caller):
        def groups(self):
            return [{"params": list(self.model.parameters())}]

    model = gpt2()
    model.transformer.wte.weight.requires_grad_(False)
    _, ours = asked(All, tmp_path, model, optim="fromage_spectral")
    found = facts(ours)["transformer.wte.weight"]
    assert (found["role"], found["scale"]) == ("embedding", "row")
    assert not model.transformer.wte.weight.requires_grad


def test_the_same_weight_twice_is_refused(tmp_path):
    class Twice(Caller):
        def groups(self):
            first, second = split(self)
            return [first, second, {"params": [first["params"][0]]}]

    with pytest.raises(ConfigError, match="twice"):
        asked(Twice, tmp_path, optim="fromage")


def test_empty_groups_are_left_out_and_nothing_at_all_is_refused(tmp_path):
    class Empty(Caller):
        def groups(self):
            return [*split(self), {"params": [], "lr": 0.5}]

    _, ours = asked(Empty, tmp_path, optim="fromage")
    assert facts(ours) == facts(create_optimizer(gpt2(), "fromage"))
    args = arguments(tmp_path, optim="fromage", learning_rate=0.02)
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    with pytest.raises(ConfigError, match="empty"):
        cls([], **kwargs)
