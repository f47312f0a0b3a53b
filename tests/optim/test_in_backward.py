"""Steps inside the backward pass: the same weights, and no gradient that outlives its step.

Ranks are in tests/distributed/sharded.py, the Trainer in tests/hf/test_trainer.py.
"""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_relopt import ConfigError, Fromage, create_optimizer
from hf_relopt.nn.compression import convert
from hf_relopt.plans.entries import OPTIMIZERS
from tests.tensors import same_bits

TOKENS = 40
each_optimizer = pytest.mark.parametrize("optim", OPTIMIZERS)


class Tied(nn.Module):
    """Two equal layers, one of which is checkpointed, between a table and the same as a head."""

    def __init__(self, reentrant: bool | None = None, shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(TOKENS, 16)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, TOKENS, bias=False)
        self.head.weight = self.table.weight
        self.reentrant, self.shared = reentrant, shared

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.table(tokens)
        for layer in (self.first, self.first if self.shared else self.second):
            if self.reentrant is None:
                hidden = hidden + torch.tanh(layer(self.norm(hidden)))
            else:
                hidden = checkpoint(layer, hidden, use_reentrant=self.reentrant)
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), tokens.flatten())


def batch(step: int) -> torch.Tensor:
    return torch.randint(TOKENS, (4, 6), generator=torch.Generator().manual_seed(step))


def trained(
    optim: str, in_backward: bool, make: Callable[[], nn.Module] = Tied, steps: int = 6, **how: Any
) -> tuple[nn.Module, Fromage]:
    model = make()
    if optim == "integer_madam":
        convert(model)
    optimizer = create_optimizer(model, optim, 0.02, step_in_backward=in_backward, **how)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    for step in range(steps):
        model(batch(step)).backward()
        left = [param.grad for param in model.parameters() if param.grad is not None]
        assert bool(left) is not in_backward
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, optimizer


def assert_alike(one: tuple[nn.Module, Fromage], other: tuple[nn.Module, Fromage]) -> None:
    assert all(map(same_bits, one[0].parameters(), other[0].parameters()))
    states = [optimizer.state_dict()["state"] for _, optimizer in (one, other)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(same_bits(value, states[1][key][name]) for name, value in state.items())


@each_optimizer
def test_weights_and_state_are_those_of_step(optim: str) -> None:
    """Tied weights, too: they are stepped once, when both parts of their gradient are there."""
    assert_alike(trained(optim, False), trained(optim, True))


WAYS: dict[str, dict[str, Any]] = {
    "loop": {"backend": "loop"},
    "compiled": {"backend": "compiled"},
    "bfloat16": {"make": lambda: Tied().to(torch.bfloat16)},
    "checkpointed": {"make": lambda: Tied(reentrant=False)},
    "a checkpointed layer twice": {"make": lambda: Tied(reentrant=False, shared=True)},
    "re-entrant": {"make": lambda: Tied(reentrant=True)},
    "bound": {"p_bound": 1.001},
    "ascending": {"maximize": True},
}


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_so_they_are_however_the_model_and_the_step_are_run(how: dict[str, Any]) -> None:
    assert_alike(trained("fromage", False, **how), trained("fromage", True, **how))


def test_no_two_gradients_exist_together() -> None:
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
    together: list[int] = []
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(
            lambda _: together.append(sum(p.grad is not None for p in model.parameters()))
        )
    optimizer = create_optimizer(model, "fromage", 0.01, step_in_backward=True)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert together == [1] * 8


def test_a_part_may_step_inside_and_the_rest_at_the_end() -> None:
    ends = []
    for inside in (False, True):
        model = Tied()
        overrides = {"matrix": {"step_in_backward": inside}}
        optimizer = create_optimizer(model, "fromage_spectral", 0.02, overrides=overrides)
        for step in range(4):
            model(batch(step)).backward()
            assert (model.first.weight.grad is None) is inside
            assert model.table.weight.grad is not None
            optimizer.step()
            optimizer.zero_grad()
        ends.append((model, optimizer))
    assert_alike(*ends)


def test_a_second_backward_pass_before_the_step_is_an_error() -> None:
    model = Tied()
    optimizer = create_optimizer(model, "fromage", 0.02, step_in_backward=True)
    model(batch(0)).backward()
    before = copy.deepcopy(list(model.parameters()))
    with pytest.raises(ConfigError, match=r"has stepped \S+ already.*larger batches") as caught:
        model(batch(1)).backward()
    names = [name for name, _ in model.named_parameters()]
    assert any(name in str(caught.value) for name in names)
    assert all(map(same_bits, model.parameters(), before)), "nothing was stepped twice"
    optimizer.zero_grad()
    model(batch(1)).backward()
    optimizer.step()


def test_a_weight_used_twice_under_re_entrant_checkpointing_is_an_error() -> None:
    model = Tied(reentrant=True, shared=True)
    optimizer = create_optimizer(model, "fromage", 0.02, step_in_backward=True)
    with pytest.raises(ConfigError, match="use_reentrant=False"):
        model(batch(0)).backward()
    assert optimizer.state


def test_a_gradient_that_is_not_finite_steps_nothing() -> None:
    ends = []
    for inside in (False, True):
        weight = nn.Parameter(torch.ones(3, 4))
        optimizer = Fromage([weight], 0.1, step_in_backward=inside)
        for factor in (1.0, float("nan"), 2.0):
            (weight.square().sum() * factor).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert float(optimizer.state[weight]["skipped"]) == 1
        ends.append(weight)
    assert same_bits(*ends)


def test_a_closure_runs_the_backward_pass() -> None:
    ends = []
    for inside in (False, True):
        model = Tied()
        optimizer = create_optimizer(model, "fromage", 0.02, step_in_backward=inside)

        def closure(model: nn.Module = model, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(batch(0))
            loss.backward()
            return loss

        losses = [float(optimizer.step(closure).detach()) for _ in range(3)]
        assert losses[2] < losses[0]
        ends.append((model, optimizer))
    assert_alike(*ends)


def test_telemetry_is_that_of_step() -> None:
    measured = []
    for inside in (False, True):
        model, optimizer = trained("fromage_spectral", inside)
        optimizer.measure_next_step()
        model(batch(9)).backward()
        optimizer.step()
        measured.append(optimizer.take_measurement())
    assert measured[0] is not None and measured[0]["relative_update"] > 0
    assert measured[0] == pytest.approx(measured[1], rel=1e-12)


@pytest.mark.parametrize("optim", ["fromage", "fromage_factored", "madam"])
def test_a_checkpoint_says_nothing_of_it_and_takes_nothing_away(optim: str) -> None:
    states = []
    for inside in (False, True):
        _, optimizer = trained(optim, inside, steps=3)
        saved = optimizer.state_dict()
        assert not any("step_in_backward" in group for group in saved["param_groups"])
        model, then = trained(optim, not inside, steps=1)
        then.load_state_dict(saved)
        assert all(group["step_in_backward"] is not inside for group in then.param_groups)
        model(batch(5)).backward()
        assert (model.table.weight.grad is None) is not inside
        then.step()
        states.append(then.state_dict()["state"])
    for key, state in states[0].items():
        assert same_bits(state["step"], states[1][key]["step"])


def test_a_copy_and_a_pickle_step_their_own_weights() -> None:
    model, optimizer = trained("fromage", True, steps=1)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        weight = other.param_groups[0]["params"][0]
        other.zero_grad()
        before = weight.detach().clone()
        weight.square().sum().backward()
        assert weight.grad is None and not same_bits(weight, before)
    kept = copy.deepcopy(list(model.parameters()))
    assert all(map(same_bits, model.parameters(), kept))


def test_the_optimizer_that_was_made_last_steps_a_weight() -> None:
    model = Tied()
    first = create_optimizer(model, "fromage", 0.5, step_in_backward=True)
    second = create_optimizer(model, "fromage", 0.02, step_in_backward=True)
    model(batch(0)).backward()
    assert second.state and not first.state
    del second
    gc.collect()
    first.zero_grad()
    model(batch(0)).backward()
    assert first.state and model.table.weight.grad is None


def test_without_an_optimizer_gradients_stay() -> None:
    model = Tied()
    create_optimizer(model, "fromage", 0.02, step_in_backward=True)
    gc.collect()
    model(batch(0)).backward()
    assert model.table.weight.grad is not None


def test_weights_that_are_thawed_or_added_join() -> None:
    model = Tied()
    model.second.requires_grad_(False)
    frozen = [model.second.weight, model.second.bias]
    optimizer = create_optimizer(model, "fromage", 0.02, step_in_backward=True)
    optimizer.add_param_group({"params": frozen, "step_in_backward": True})
    for step in range(3):
        model.second.requires_grad_(step > 0)
        model(batch(step)).backward()
        # The first gradients of thawed weights are found by step().
        assert (model.second.weight.grad is None) is (step != 1)
        optimizer.step()
        optimizer.zero_grad()
    assert float(optimizer.state[model.second.weight]["step"]) == 2
    optimizer.param_groups[0]["step_in_backward"] = False
    optimizer.zero_grad()
    model(batch(3)).backward()
    others = optimizer.param_groups[0]["params"]
    assert all(param.grad is not None for param in others)


def test_lazy_weights_join_once_they_have_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    optimizer = Fromage(model.parameters(), 0.02, step_in_backward=True)
    for step in range(2):
        model(torch.ones(2, 4)).sum().backward()
        assert (model[0].weight.grad is None) is (step == 1)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("value", "words"), [
    ("yes", ["step_in_backward is 'yes'", "True or False"]), (1, ["step_in_backward is 1"]),
], ids=str)  # fmt: skip
def test_bad_values_are_refused(value: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Fromage([nn.Parameter(torch.ones(2))], step_in_backward=value)
    assert all(word in str(caught.value) for word in words)


def test_sharing_the_work_of_replicas_is_refused() -> None:
    """Every process would step before the gradients of all are averaged."""
    options = {"direction": "spectral", "share_work": True, "step_in_backward": True}
    with pytest.raises(ConfigError, match=r"share_work is True with step_in_backward.*FSDP2"):
        Fromage([nn.Parameter(torch.ones(2, 2))], **options)


def test_a_sparse_gradient_is_refused_inside_the_pass() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = Fromage(table.parameters(), step_in_backward=True)
    before = table.weight.detach().clone()
    with pytest.raises(ConfigError, match="sparse=False"):
        table(torch.tensor([1, 2])).sum().backward()
    assert same_bits(table.weight, before) and not optimizer.state
