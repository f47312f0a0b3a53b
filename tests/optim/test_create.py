"""From a model and a name to an optimizer: names, and errors before anything is made."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, Fromage, Madam, create_optimizer, plan


def model(trained=False, lora=False):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    if trained:
        net[1].weight.data[0] = 1.5
    if lora:
        net[0].requires_grad_(False)
        net.lora_A = nn.Module()
        net.add_module("adapter", nn.Module())
        net.adapter.lora_B = nn.Linear(4, 2, bias=False)
    return net


@pytest.mark.parametrize(("name", "cls"), [("fromage", Fromage), ("madam", Madam)])
def test_the_name_makes_the_class_with_the_class_s_options(name, cls):
    optimizer = create_optimizer(model(), name, 0.02, seed=3, backend="loop")
    assert type(optimizer) is cls
    assert {(g["lr"], g["seed"], g["backend"]) for g in optimizer.param_groups} == {
        (0.02, 3, "loop")
    }
    plain = cls([nn.Parameter(torch.ones(2))]).param_groups[0]
    for group in create_optimizer(model(), name, 0.01).param_groups:
        shared = set(plain) - {"params", "shapes_crc32"}
        assert {key: group[key] for key in shared} == {key: plain[key] for key in shared}


def test_rate_may_be_a_tensor_that_a_schedule_changes_in_place():
    lr = torch.tensor(0.5)
    net = model()
    optimizer = create_optimizer(net, "fromage", lr)
    lr.zero_()
    before = net[0].weight.detach().clone()
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert torch.equal(net[0].weight, before)
    lr.fill_(0.5)
    optimizer.step()
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m: plan(m, "fromagee"), ["'fromagee'", "Did you mean fromage?"]),
        (
            lambda m: plan(m, "adamw"),
            ["'adamw'", "fromage, madam, integer_madam, fromage_spectral"],
        ),
        (lambda m: plan(m, "fromage", p_scale=3.0), ["p_scale", "belongs to madam"]),
        (lambda m: plan(m, "madam", pscale=3.0), ["'pscale'", "Did you mean p_scale?"]),
        (lambda m: plan(m, "fromage", weight_decay=0.1), ["weight_decay"]),
        (lambda m: plan(m, "fromage", 1.5), ["lr is 1.5", "0 <= lr < 1"]),
        (lambda m: plan(m, "fromage", float("nan")), ["lr is nan"]),
        (lambda m: plan(m, "fromage", "0.1"), ["lr is '0.1'"]),
        (lambda m: plan(m, "fromage", p_bound=0), ["p_bound is 0", "> 0"]),
        (
            lambda m: plan(m, "fromage", overrides={"vector": {"rule": "sgd"}}),
            ["'vector'", "'sgd'", "adamw"],
        ),
        (
            lambda m: plan(m, "fromage", overrides={"vector": {"beta": 0.9}}),
            ["beta is 0.9", "does not read it"],
        ),
        (
            lambda m: plan(m, "fromage", overrides={"vector": {"p_scale": 3.0}}),
            ["p_scale", "belongs to madam"],
        ),
        (lambda m: plan(m, "fromage", overrides={"vector": {"lr": -1}}), ["lr is -1"]),
        (
            lambda m: plan(m, "fromage", overrides={"vector": {"skip": "yes"}}),
            ["skip is 'yes'", "True or False"],
        ),
        (
            lambda m: plan(m, "fromage", overrides={"vector": {"skipp": True}}),
            ["'skipp'", "Did you mean skip?"],
        ),
        (
            lambda m: plan(m, "fromage", overrides={"vector": {"weight_decay": 0.1}}),
            ["weight_decay"],
        ),
    ],
)
def test_bad_requests_are_one_clear_error(call, named):
    with pytest.raises(ConfigError) as error:
        call(model())
    for words in named:
        assert words in str(error.value), str(error.value)


def test_an_error_names_the_weight():
    net = model()
    torch.nn.init.zeros_(net[0].weight)
    with pytest.raises(ConfigError, match=r"0\.weight of shape \(4, 4\) is all zero"):
        plan(net, "fromage_spectral", bound="sphere")


@pytest.mark.parametrize(
    "request_",
    [{"direction": "spectral"}, {"overrides": {"vector": {"direction": "spectral"}}}],
)
def test_a_spectral_direction_needs_a_matrix(request_):
    with pytest.raises(ConfigError, match="none of its weights is a matrix"):
        plan(nn.LayerNorm(8), "fromage", **request_)
    # A preset gives each weight what suits it: where no matrix is trained, none is missed.
    assert len(create_optimizer(nn.LayerNorm(8), "fromage_spectral").param_groups) == 1


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        *[("fromage_spectral", "spectral"), ("fromage_momentum", "momentum")],
        *[("muonh", "spectral"), ("adamh", "adam"), ("fromage", "gradient")],
    ],
)
def test_a_layer_that_is_added_later_follows_like_the_others(name, direction):
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    net[0].requires_grad_(False)
    optimizer = create_optimizer(net, name, 0.05, min_scale=0.2)
    net[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(net[0].named_parameters())})
    added = optimizer.param_groups[-1]
    assert (added["lr"], added["direction"], added["min_scale"]) == (0.05, direction, 0.2)
    (planned,) = [g for g in optimizer.param_groups[:-1] if "2.weight" in g["param_names"]]
    own = {"params", "param_names", "role", "shapes_crc32"}
    assert {k: added[k] for k in set(added) - own} == {k: planned[k] for k in set(planned) - own}


def test_a_plan_changes_nothing_in_the_model():
    net = model()
    before = [param.detach().clone() for param in net.parameters()]
    print(plan(net, "madam", overrides={"vector": {"rule": "adamw", "lr": 1e-3}}))
    assert all(map(torch.equal, before, net.parameters()))
    assert all(param.grad is None for param in net.parameters())


@pytest.mark.parametrize("make", [create_optimizer, plan])
def test_parameters_in_place_of_the_model_are_one_clear_error(make):
    net = model()
    named = net.named_parameters()
    for given in (net.parameters(), list(net.parameters()), named, net.state_dict(), net[0].weight):
        with pytest.raises(ConfigError) as error:
            make(given, "fromage")
        for words in ("model is of type", "Pass the model", "Fromage(params)"):
            assert words in str(error.value)


def test_a_group_that_is_added_without_names_joins_those_with_names():
    net, more = model(), nn.Linear(2, 2)
    optimizer = create_optimizer(net, "fromage_spectral")
    optimizer.add_param_group({"params": more.parameters()})
    group = optimizer.param_groups[-1]
    assert group["param_names"] == ["param_groups.2.0", "param_groups.2.1"]
    assert (group["lr"], group["direction"]) == (0.02, "spectral")
    again = create_optimizer(net, "fromage_spectral")
    again.add_param_group({"params": more.parameters()})
    again.load_state_dict(optimizer.state_dict())
    plain = Fromage(net.parameters())
    plain.add_param_group({"params": list(more.parameters())})
    assert "param_names" not in plain.param_groups[-1]


@pytest.mark.parametrize("overrides", [
    [1], "vector", {"matrix": 5}, {"matrix": {"rule": ["madam"]}}, {5: {"lr": 0.1}},
    {"matrix": {"lr": None}},
])  # fmt: skip
def test_overrides_of_the_wrong_kind_are_one_clear_error(overrides: object) -> None:
    with pytest.raises(ConfigError, match=r"override|lr is None"):
        create_optimizer(model(), "fromage", overrides=overrides)


@pytest.mark.parametrize("optim", [None, ["fromage"], 5, {}])
def test_a_name_of_the_wrong_kind_is_one_clear_error(optim: object) -> None:
    with pytest.raises(ConfigError, match="optim is"):
        create_optimizer(model(), optim)
