"""AdamH and MuonH by name: what each role gets, and what a user's own words do to that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Shard
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from hf_relopt import ConfigError, create_optimizer, plan
from hf_relopt.optim.create import rule_of_override
from hf_relopt.plans.defaults import remarks
from hf_relopt.plans.entries import rules_of_name
from hf_relopt.plans.plan import followed_lr
from tests.sharding import one_of_many

DIRECTIONS = {"muonh": "spectral", "adamh": "adam"}
each_name = pytest.mark.parametrize("optim", DIRECTIONS)
C_FC = "transformer.h.0.mlp.c_fc.weight"


def gpt2(kind: Any = GPT2LMHeadModel, **given: Any) -> Any:
    torch.manual_seed(0)
    size = {"vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return kind(GPT2Config(**size, **tokens, tie_word_embeddings=False, **given))


def by_role(optim: str, lr: float = 0.02, **given: Any) -> dict[str, dict[str, Any]]:
    """The last group of each role."""
    return {g["role"]: g for g in create_optimizer(gpt2(), optim, lr, **given).param_groups}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    tokens = torch.arange(8)[None]
    for _ in range(steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@each_name
def test_matrices_are_on_their_spheres_and_adamw_has_the_rest_at_its_own_rates(optim: str) -> None:
    groups = create_optimizer(gpt2(), optim).param_groups
    assert rules_of_name(optim) == ("fromage", "adamw")
    assert {group["lr"] for group in groups} == {0.02}, "a loop may set one for all"
    matrices = [group for group in groups if group["role"] == "matrix"]
    assert {group["scale"] for group in matrices} == {"tensor", "block"}
    for group in matrices:
        assert (group["rule"], group["direction"]) == ("fromage", DIRECTIONS[optim])
        assert (group["bound"], group["p_bound"], group["lr_factor"]) == ("sphere", None, None)
    others = {group["role"]: group for group in groups if group not in matrices}
    rates = {role: followed_lr(group) for role, group in others.items()}
    assert rates == pytest.approx({"embedding": 0.003, "head": 0.003, "vector": 0.001})
    for group in others.values():
        assert (group["rule"], group["betas"]) == ("adamw", (0.9, 0.99))
        assert group["weight_decay"] == 0.0


@each_name
def test_norms_are_kept_all_weights_move_and_one_learning_rate_stops_them_all(optim: str) -> None:
    model = gpt2()
    optimizer = create_optimizer(model, optim)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train(model, optimizer)
    # Positions and tokens that the text does not have stay, rows that are never seen.
    for name, weight in model.named_parameters():
        assert not torch.equal(weight, start[name]), name
    matrix = dict(model.named_parameters())[C_FC]
    assert matrix.norm().item() == pytest.approx(start[C_FC].norm().item(), rel=1e-5)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    end = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train(model, optimizer, 1)
    assert all(torch.equal(weight, end[name]) for name, weight in model.named_parameters())


@each_name
def test_fused_projections_keep_the_norm_of_each_part(optim: str) -> None:
    model = gpt2()
    fused = model.transformer.h[0].attn.c_attn.weight
    start = [part.norm().item() for part in fused.detach().chunk(3, 1)]
    train(model, create_optimizer(model, optim))
    assert [part.norm().item() for part in fused.detach().chunk(3, 1)] == pytest.approx(start)


@pytest.mark.parametrize(
    ("lr", "followed"), [(0.0, 0.0), (1e-3, 2e-4), (0.01, 2e-3), (0.02, 3e-3), (0.1, 3e-3)]
)
@each_name
def test_a_task_head_has_the_rate_of_fine_tuning_and_no_more_than_that_from_scratch(
    optim: str, lr: float, followed: float
) -> None:
    for given in (lr, torch.tensor(lr)):
        groups = create_optimizer(gpt2(GPT2ForSequenceClassification), optim, given).param_groups
        (head,) = [group for group in groups if group["role"] == "head"]
        assert head["rule"] == "adamw" and followed_lr(head) == pytest.approx(followed)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"lr": 1e-3}, {"lr": 1e-3, "lr_factor": None, "betas": (0.9, 0.99)}),
        ({"lr": 1e-3, "lr_factor": 0.5}, {"lr": 1e-3, "lr_factor": 0.5}),
        ({"lr_factor": 0.3}, {"lr": 0.02, "lr_factor": 0.3}),
        ({"weight_decay": 0.1}, {"weight_decay": 0.1, "lr_factor": 0.15}),
        ({"betas": (0.9, 0.95), "eps": 1e-6}, {"betas": (0.9, 0.95), "eps": 1e-6}),
        ({"rule": "adamw"}, {"lr_factor": 0.15, "betas": (0.9, 0.99)}),
        ({"rule": "fromage"}, {"direction": "gradient", "bound": None, "lr_factor": None}),
        (
            {"rule": "fromage", "direction": "momentum", "scale": "row"},
            {"direction": "momentum", "scale": "row", "bound": None},
        ),
        ({"rule": "madam"}, {"p_scale": 3.0, "lr": 0.02}),
    ],
)
@each_name
def test_an_override_wins_and_another_rule_starts_from_its_own_defaults(
    optim: str, said: dict[str, Any], expected: dict[str, Any]
) -> None:
    for target in ("embedding", "*.wte.weight"):
        groups = create_optimizer(gpt2(), optim, overrides={target: said}).param_groups
        (group,) = [g for g in groups if "transformer.wte.weight" in g["param_names"]]
        assert {name: group[name] for name in expected} == expected
        assert group["rule"] == said.get("rule", "adamw")


def test_an_override_of_several_rules_sets_what_all_of_them_have() -> None:
    model = gpt2()
    groups = create_optimizer(model, "muonh", overrides={"*.weight": {"lr": 0.004}}).param_groups
    named = [g for g in groups if any(name.endswith(".weight") for name in g["param_names"])]
    assert {(g["rule"], g["lr"], g["lr_factor"]) for g in named} == {
        ("fromage", 0.004, None), ("adamw", 0.004, None),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"p_bound": 2.0}, {"p_bound": 2.0, "bound": None}),
        ({"bound": None}, {"bound": None, "p_bound": None}),
        ({"momentum": 0.8}, {"momentum": 0.8, "bound": "sphere"}),
        ({"direction": "momentum"}, {"direction": "momentum", "bound": "sphere"}),
        ({"direction": "gradient"}, {"direction": "gradient", "bound": "sphere"}),
        ({"lr_factor": 0.5}, {"lr_factor": 0.5}),
        ({"min_scale": 0.2, "seed": 3}, {"min_scale": 0.2, "seed": 3}),
    ],
)
@each_name
def test_options_for_all_weights_are_the_matrices_and_leave_adamw_alone(
    optim: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    plain, groups = by_role(optim), by_role(optim, **given)
    assert {name: groups["matrix"][name] for name in expected} == expected
    for role in ("embedding", "head", "vector"):
        shared = {name: given[name] for name in ("seed",) if name in given}
        assert {**groups[role], "params": 0} == {**plain[role], **shared, "params": 0}
    override = by_role(optim, overrides={"matrix": given})["matrix"]
    assert {name: override[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"betas": (0.9, 0.95)}, ("betas", "adamw", "embedding, head, vector", "embedding.betas")),
        ({"weight_decay": 0.1}, ("weight_decay", "adamw", "embedding.weight_decay")),
        ({"p_scale": 3.0}, ("p_scale", "belongs to madam")),
        ({"bound": "sphere", "p_bound": 2.0}, ("p_bound is 2.0", "'sphere'")),
        ({"lr": 0.02, "lr_factor": 80.0}, ("lr_factor is 80.0", "below 1")),
        ({"overrides": {"matrix": {"betas": (0.9, 0.95)}}}, ("matrix", "follows fromage")),
        ({"overrides": {"embedding": {"p_bound": 1.0}}}, ("wte", "follows adamw", "p_bound")),
        ({"overrides": {"*.weight": {"betas": (0.9, 0.95)}}}, ("'*.weight'", "follows fromage")),
        ({"overrides": {"vector": {"betas": (0.9, 0.95), "p_bound": 1.0}}}, ("betas",)),
        (
            {"overrides": {"embedding": {"lr": 0.5, "lr_factor": 3.0}}},
            ("lr_factor is 3.0", "adamw takes a product below 1"),
        ),
        ({"overrides": {"embedding": {"lr_factor": 0.0}}}, ("lr_factor is 0.0", "0 < lr_factor")),
    ],
)
@each_name
def test_what_nothing_would_read_is_refused_and_says_who_does(
    optim: str, given: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as error:
        plan(gpt2(), optim, **given)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_the_rule_of_an_override_is_that_which_has_its_options() -> None:
    for changes, rule in (
        ({"lr": 0.1}, "fromage"), ({"betas": (0.9, 0.95), "lr": 0.1}, "adamw"),
        ({"p_bound": 2.0, "skip": True}, "fromage"), ({"rule": "madam"}, "madam"),
    ):  # fmt: skip
        assert rule_of_override("muonh", "*", changes) == rule


def test_learning_rates_of_adamw_are_not_remarked_on() -> None:
    overrides = {"embedding": {"lr": 1e-4}, "vector": {"rule": "adamw"}, "matrix": {"lr": 1e-5}}
    chosen = plan(gpt2(), "muonh", overrides=overrides)
    (remark,) = remarks(chosen, overrides, lr_is_given=False, look=None)
    assert "matrix.lr is 1e-05, which hardly moves" in remark


@each_name
def test_a_matrix_of_zeros_is_refused_and_the_remedy_trains_it(optim: str) -> None:
    model = gpt2()
    zero = model.transformer.h[0].mlp.c_proj.weight
    torch.nn.init.zeros_(zero)
    name = "transformer.h.0.mlp.c_proj.weight"
    with pytest.raises(ConfigError) as error:
        create_optimizer(model, optim)
    assert f"{name} of shape" in str(error.value) and f"{name}.bound=none" in str(error.value)
    optimizer = create_optimizer(model, optim, overrides={name: {"bound": None}})
    train(model, optimizer)
    assert zero.count_nonzero()


def test_a_matrix_whose_shards_are_all_zero_is_refused_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with one_of_many.as_rank(0, (1,)) as mesh:
        for layer, value in zip(model, (1.0, 0.0), strict=True):
            full = torch.full((4, 4), value)
            layer.weight = nn.Parameter(one_of_many.sharded(full, mesh, [Shard(0)]))
        with pytest.raises(ConfigError, match=r"1\.weight of shape \(4, 4\) is all zero"):
            create_optimizer(model, "muonh")
        create_optimizer(model, "muonh", overrides={"1.weight": {"bound": None}})


@each_name
def test_a_model_without_matrices_is_trained_by_adamw(optim: str) -> None:
    optimizer = create_optimizer(nn.LayerNorm(8), optim)
    assert [group["rule"] for group in optimizer.param_groups] == ["adamw"]
