"""The plan: each trainable weight once, with its role and what it follows, in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, Fromage, create_optimizer, plan
from hf_relopt.plans.plan import looks_pretrained
from hf_relopt.plans.roles import ROLES


class Body(nn.Module):
    """One tensor of each role under a transformers-like prefix."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.linear = nn.Linear(4, 4)
        self.layer_norm = nn.LayerNorm(4)
        self.gain = nn.Parameter(torch.ones(()))


class Model(nn.Module):
    base_model_prefix = "body"

    def __init__(self, tie=False, out=3):
        super().__init__()
        torch.manual_seed(0)
        self.body = Body()
        self.classifier = nn.Linear(4, 10 if tie else out, bias=not tie)
        if tie:
            self.classifier.weight = self.body.embed.weight


EXPECTED = {
    "body.gain": "scalar",
    "body.embed.weight": "embedding",
    "body.conv.weight": "conv",
    "body.conv.bias": "vector",
    "body.linear.weight": "matrix",
    "body.linear.bias": "vector",
    "body.layer_norm.weight": "vector",
    "body.layer_norm.bias": "vector",
    "classifier.weight": "head",
    "classifier.bias": "vector",
}


def roles(model, **given):
    return {entry.name: entry.role for entry in plan(model, "fromage", 0.01, **given).entries}


def test_each_tensor_has_its_role_once_and_in_the_model_s_order():
    model = Model()
    assert roles(model) == EXPECTED
    assert list(roles(model)) == [name for name, _ in model.named_parameters()]
    assert set(EXPECTED.values()) | {"lora"} == set(ROLES)


def test_one_element_is_a_scalar_whatever_it_is_in():
    assert roles(nn.Sequential(nn.Linear(1, 1)))["0.weight"] == "scalar"


def test_lora_is_known_by_name():
    model = nn.Module()
    model.lora_A = nn.Linear(4, 2, bias=False)
    assert roles(model) == {"lora_A.weight": "lora"}


def test_embedding_bag_and_the_other_convolutions():
    model = nn.Sequential(
        nn.EmbeddingBag(5, 4),
        nn.Conv2d(2, 2, 3, bias=False),
        nn.ConvTranspose2d(2, 2, 3, bias=False),
    )
    assert list(roles(model).values()) == ["embedding", "conv", "conv"]


def test_tied_weights_are_one_entry_that_names_both():
    chosen = plan(Model(tie=True), "fromage", 0.01)
    (entry,) = [e for e in chosen.entries if e.role == "embedding"]
    assert (entry.name, entry.tied) == ("body.embed.weight", ("classifier.weight",))
    assert not [e for e in chosen.entries if e.role == "head"]
    assert "body.embed.weight (tied: classifier.weight)" in str(chosen)
    assert sum(len(group["params"]) for group in chosen.groups) == len(chosen.entries) == 8


def test_frozen_weights_are_not_in_the_plan():
    model = Model()
    model.body.requires_grad_(False)
    assert roles(model) == {"classifier.weight": "head", "classifier.bias": "vector"}
    assert "body" not in str(plan(model, "fromage", 0.01))


def test_zero_start_tensors_are_known_and_said():
    model = Model()
    nn.init.zeros_(model.classifier.weight)
    chosen = plan(model, "madam", 0.01)
    assert {e.name for e in chosen.entries if e.zero_start} == {
        "body.layer_norm.bias",
        "classifier.weight",
    }
    (line,) = [line for line in str(chosen).splitlines() if "classifier.weight" in line]
    assert "madam, from zero by min_scale" in line


def test_the_table_counts_every_parameter_once():
    model = Model()
    lines = str(plan(model, "fromage", 0.01)).splitlines()
    total = sum(p.numel() for p in model.parameters())
    assert lines[0] == f"fromage: 10 tensors, {total} parameters"
    assert lines[1].split() == ["role", "follows", "lr", "tensors", "parameters", "first"]
    counted = [int(line.split("0.01")[1].split()[1].replace(",", "")) for line in lines[2:]]
    assert sum(counted) == total
    assert len({len(line.split("0.01")[0]) for line in lines[2:]}) == 1  # columns aligned


def test_groups_carry_role_names_and_rule():
    chosen = plan(Model(), "fromage", 0.02)
    optimizer = Fromage(chosen.groups)
    for group in optimizer.param_groups:
        assert group["rule"] == "fromage"
        assert group["lr"] == 0.02
        assert {EXPECTED[name] for name in group["param_names"]} == {group["role"]}
    assert len(optimizer.param_groups) == len(set(EXPECTED.values()))


@pytest.mark.parametrize(
    ("overrides", "name", "expected"),
    [
        ({"vector": {"lr": 0.5}}, "body.linear.bias", {"lr": 0.5, "rule": "fromage"}),
        ({"*.bias": {"lr": 0.5}}, "classifier.bias", {"lr": 0.5}),
        ({"vector": {"lr": 0.5}}, "classifier.weight", {"lr": 0.01}),
        (
            {"head": {"rule": "adamw", "lr": 1e-3, "weight_decay": 0.1}},
            "classifier.weight",
            {"rule": "adamw", "lr": 1e-3, "weight_decay": 0.1},
        ),
        ({"matrix": {"rule": "madam"}}, "body.linear.weight", {"rule": "madam", "lr": 0.01}),
        ({"matrix": {"p_bound": 2.0}}, "body.linear.weight", {"p_bound": 2.0}),
        # Later ones win, key by key.
        (
            {"vector": {"lr": 0.5, "p_bound": 3.0}, "*.bias": {"lr": 0.25}},
            "body.linear.bias",
            {"lr": 0.25, "p_bound": 3.0},
        ),
        ({"*.bias": {"lr": 0.25}, "vector": {"lr": 0.5}}, "body.linear.bias", {"lr": 0.5}),
        ({"body.*": {"lr": 0.5}}, "classifier.bias", {"lr": 0.01}),
    ],
)
def test_overrides_by_role_and_pattern_reach_the_optimizer(overrides, name, expected):
    optimizer = create_optimizer(Model(), "fromage", 0.01, overrides=overrides)
    (group,) = [g for g in optimizer.param_groups if name in g["param_names"]]
    assert {key: group[key] for key in expected} == expected


def test_an_override_reaches_a_tied_weight_by_either_name():
    model = Model(tie=True)
    for target in ("body.embed.*", "classifier.weight"):
        chosen = plan(model, "fromage", 0.01, overrides={target: {"lr": 0.5}})
        (entry,) = [e for e in chosen.entries if e.role == "embedding"]
        assert entry.options["lr"] == 0.5


def test_skip_leaves_weights_alone_and_says_so():
    model = Model()
    chosen = plan(model, "fromage", 0.01, overrides={"*.bias": {"skip": True}})
    skipped = {name for name in EXPECTED if name.endswith(".bias")}
    assert {entry.name for entry in chosen.skipped} == skipped
    assert str(chosen).count("not trained") == len(skipped)
    optimizer = create_optimizer(model, "fromage", 0.1, overrides={"*.bias": {"skip": True}})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    for name, param in model.named_parameters():
        assert torch.equal(param, before[name]) == (name in skipped), name


def test_skip_can_be_taken_back():
    chosen = plan(
        Model(),
        "fromage",
        0.01,
        overrides={"vector": {"skip": True}, "classifier.bias": {"skip": False}},
    )
    assert "classifier.bias" in {entry.name for entry in chosen.entries}


def test_an_override_that_matches_nothing_says_what_there_is():
    with pytest.raises(ConfigError) as error:
        plan(Model(), "fromage", 0.01, overrides={"boddy.*": {"lr": 0.1}})
    for words in ("'boddy.*'", "conv, embedding, head, matrix, scalar, vector", "'body.gain'"):
        assert words in str(error.value)


def test_a_wholly_frozen_model_is_an_error():
    with pytest.raises(ConfigError, match="empty"):
        create_optimizer(Model().requires_grad_(False), "fromage", 0.01)
    with pytest.raises(ConfigError, match="no trainable weight"):
        plan(Model().requires_grad_(False), "fromage", 0.01, overrides={"matrix": {"lr": 0.1}})


def test_a_model_on_the_meta_device_can_be_planned():
    with torch.device("meta"):
        model = Model()
    assert roles(model) == EXPECTED
    assert not any(e.zero_start for e in plan(model, "fromage", 0.01).entries)


def test_the_head_is_known_through_dataparallel():
    assert roles(nn.DataParallel(Model()))["module.classifier.weight"] == "head"


def test_the_head_is_known_through_compile():
    assert roles(torch.compile(Model())) == {f"_orig_mod.{n}": r for n, r in EXPECTED.items()}


def test_the_plan_shows_a_rate_that_all_follow_a_multiple_of():
    assert "0.01" in str(plan(Model(), "fromage", 1e-3, lr_factor=10.0)).splitlines()[2].split()


def test_pretrained_is_known_by_its_norms_then_by_its_source():
    model = Model()
    assert looks_pretrained(model)[0] is False
    with torch.no_grad():
        model.body.layer_norm.weight[0] += 0.1
    found, evidence = looks_pretrained(model)
    assert found
    assert "body.layer_norm.weight" in evidence
    bare = nn.Linear(2, 2)
    assert looks_pretrained(bare)[0] is False
    bare.config = type("Config", (), {"_name_or_path": "some/model"})()
    assert looks_pretrained(bare) == (True, "it was loaded from some/model")
