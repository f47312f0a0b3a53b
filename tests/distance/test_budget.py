"""Budgets in plain loops: what is promised of the weights, for any optimizer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from hf_relopt import DistanceBudget, Madam, compress, create_optimizer, network_distance
from hf_relopt.distance.budget import Budget
from hf_relopt.errors import ConfigError, FormatError
from tests.distance.nets import by_hand

OPTIMIZERS = ("adamw", "fromage", "fromage_spectral", "madam")
RHO = 0.03


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Embedding(20, 8), nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 4)]
    model = nn.Sequential(*layers).to(dtype)
    nn.init.zeros_(model[1].bias)
    return model


def optimizer_of(model: nn.Module, name: str, lr: float = 0.02) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr)
    return create_optimizer(model, name, lr)


def train(
    model: nn.Module, optimizer: Any, budget: Budget, steps: int, first: int = 0, **begin: Any
) -> int:
    """The steps taken until the budget said stop, or all of them."""
    budget.begin(model, optimizer, **begin)
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 20, (8,), generator=generator)
        (model(tokens) - 1).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if budget.after_step():
            return step + 1 - first
    return steps


def far(before: nn.Module, after: nn.Module) -> dict[str, float]:
    return by_hand(before, after)


@pytest.mark.parametrize(
    ("name", "copies"),
    [
        *[(name, "exact") for name in OPTIMIZERS],
        *[("adamw", copies) for copies in ("bfloat16", "disk", "initial", "initial on disk")],
    ],
)
def test_held_weights_are_in_the_ball_and_reach_its_surface(name, copies, tmp_path):
    model = net()
    start = copy.deepcopy(model)
    options: dict[str, Any] = {"copy": copies}
    if copies.startswith("initial"):
        save_model(model, tmp_path / "start.safetensors")
        options = {"initial": tmp_path / "start.safetensors"}
        options["copy"] = "disk" if copies.endswith("disk") else None
    budget = DistanceBudget(hold=RHO, **options)
    optimizer = optimizer_of(model, name)
    train(model, optimizer, budget, 30, folder=tmp_path / "kept")
    moved = far(start, model)
    # The centre is rounded: its own distance from W0 comes on top.
    slack = 2.0**-8 if copies == "bfloat16" else 1e-6
    assert all(r <= RHO * (1 + 1e-6) + slack for r in moved.values()), moved
    assert max(moved.values()) > RHO - slack
    assert budget.left_alone == dict.fromkeys(["1.bias", "3.bias"], "zero at the beginning")
    assert float(model[1].bias.detach().abs().sum()) > 0


def test_a_ball_that_nothing_leaves_changes_no_bit():
    ends = []
    for hold in (None, 10.0):
        model = net()
        optimizer = optimizer_of(model, "adamw", 1e-3)
        budget = Budget(hold=hold) if hold else Budget(drt=100.0, copy="exact")
        train(model, optimizer, budget, 5)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("name", ["fromage", "fromage_spectral"])
def test_anchors_stay_what_they_are(name):
    kept = []
    for hold in (RHO, 10.0):
        model = net()
        optimizer = optimizer_of(model, name)
        train(model, optimizer, Budget(hold=hold), 10)
        states = [optimizer.state[param] for param in model.parameters()]
        kept.append([state["anchor_norm"] for state in states if "anchor_norm" in state])
    assert kept[0] and all(map(torch.equal, *kept))


@pytest.mark.parametrize("name", ["fromage", "madam"])
def test_bfloat16_weights_meet_the_ball_up_to_their_rounding(name):
    """W0 itself is kept exactly; what is written back is rounded to nearest."""
    model = net(torch.bfloat16)
    start = copy.deepcopy(model)
    budget = Budget(hold=RHO)
    train(model, optimizer_of(model, name, 0.05), budget, 20)
    moved = far(start, model)
    assert max(moved.values()) > 0.8 * RHO
    # Entries are off by up to 2^-8 of themselves, by less than half of that in the mean square.
    assert all(r <= (RHO**2 + 2.0**-18) ** 0.5 * 1.05 for r in moved.values()), moved


@pytest.mark.parametrize(
    ("name", "source"),
    [
        *[(name, "initial") for name in OPTIMIZERS],
        *[("adamw", copies) for copies in ("exact", "bfloat16", "disk")],
    ],
)
def test_training_stops_with_the_weights_of_the_last_look_within(name, source, tmp_path):
    model = net()
    start = copy.deepcopy(model)
    options: dict[str, Any] = {"copy": source}
    if source == "initial":
        save_model(model, tmp_path / "start.safetensors")
        options = {"initial": str(tmp_path / "start.safetensors")}
    budget = DistanceBudget(drt=0.5, every=3, **options)
    optimizer = optimizer_of(model, name)
    taken = train(model, optimizer, budget, 200, folder=tmp_path / "kept")
    assert taken < 200 and taken % 3 == 0
    assert budget.last is not None and budget.last.step == taken and budget.last.drt > 0.5
    # The same run, stopped there by hand.
    other = net()
    ends = network_distance(start, model)
    train(other, optimizer_of(other, name), Budget(drt=1e9, copy="exact"), taken - 3)
    for param, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(param, same)
    assert ends.drt <= 0.5


def test_the_limit_of_a_layer_stops_for_the_one_that_passes_it():
    model = net()
    start = copy.deepcopy(model)
    optimizer = torch.optim.SGD([{"params": model[4].parameters(), "lr": 0.5}])
    budget = Budget(layer=0.05, every=1, copy="exact")
    train(model, optimizer, budget, 100)
    assert budget.last is not None and budget.last.name == "4.weight"
    assert "4.weight" in str(budget.last.passed) and far(start, model)["4.weight"] <= 0.05


def test_vectors_are_held_and_do_not_count_at_looks():
    model = net()
    optimizer = torch.optim.SGD([model[3].weight], lr=1.0)
    assert train(model, optimizer, Budget(layer=1e-6, every=1, copy="exact"), 5) == 5
    model = net()
    start = copy.deepcopy(model)
    train(model, torch.optim.SGD([model[3].weight], lr=1.0), Budget(hold=RHO), 5)
    assert far(start, model)["3.weight"] == pytest.approx(RHO, rel=1e-5)


def test_buffers_come_back_with_the_weights():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    budget = Budget(layer=0.01, every=1, copy="exact")
    budget.begin(model)
    model(torch.ones(3, 4) + torch.randn(3, 4))
    before = copy.deepcopy(model.state_dict())
    assert not budget.after_step()
    model(torch.randn(3, 4))
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert budget.after_step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_weight_that_is_no_number_stops_training():
    model = net()
    budget = Budget(drt=1e6, every=1, copy="exact")
    budget.begin(model)
    with torch.no_grad():
        model[4].weight[0, 0] = torch.nan
    assert budget.after_step()
    assert all(bool(param.isfinite().all()) for param in model.parameters())


@pytest.mark.parametrize("name", ["fromage", "fromage_spectral"])
def test_a_bound_stops_before_the_limit_and_reads_nothing(name):
    # Plain matrices: the preset's vectors and embeddings have their own rules.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
    start = copy.deepcopy(model)
    optimizer = optimizer_of(model, name, 0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 5))
    budget = Budget(drt=0.3)
    budget.begin(model, optimizer)
    bounds = []
    for _ in range(100):
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        stop = budget.after_step()
        assert budget.last is not None and budget.last.bound
        bounds.append(budget.last.drt)
        assert network_distance(start, model).drt <= budget.last.drt
        if stop:
            break
    # Within, and one more step would not be.
    assert len(bounds) < 100 and 0.27 < bounds[-1] <= 0.3
    assert "after one more step" in str(budget.last.passed)


@pytest.mark.parametrize(
    ("name", "copies"),
    [("fromage_spectral", "exact"), *[("adamw", each) for each in ("exact", "bfloat16", "disk")]],
)
def test_a_resumed_hold_is_the_same_bit_for_bit(name, copies, tmp_path):
    model = net()
    train(
        model, optimizer_of(model, name), Budget(hold=RHO, copy=copies), 12, folder=tmp_path / "a"
    )
    first, there = net(), tmp_path / "b"
    optimizer, budget = optimizer_of(first, name), Budget(hold=RHO, copy=copies)
    train(first, optimizer, budget, 6, folder=there)
    saved = copy.deepcopy([first.state_dict(), optimizer.state_dict()])
    state = json.loads(json.dumps(budget.state_dict()))
    again = net()
    again.load_state_dict(saved[0])
    optimizer = optimizer_of(again, name)
    optimizer.load_state_dict(saved[1])
    budget = Budget(hold=RHO, copy=copies)
    train(again, optimizer, budget, 6, first=6, folder=there, state=state)
    for param, same in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(param, same)


def test_a_resumed_bound_goes_on_where_it_was():
    def parts() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 4))
        return model, create_optimizer(model, "fromage", 0.01)

    model, optimizer = parts()
    whole = Budget(drt=0.4)
    taken = train(model, optimizer, whole, 100)
    model, optimizer = parts()
    budget = Budget(drt=0.4)
    assert train(model, optimizer, budget, 5) == 5
    state = json.loads(json.dumps(budget.state_dict()))
    after = Budget(drt=0.4)
    assert train(model, optimizer, after, 100, first=5, state=state) == taken - 5
    assert after.last is not None and after.last.drt == whole.last.drt  # type: ignore[union-attr]
    assert after.last.step == taken


def test_free_weights_are_left_alone_and_so_are_those_that_the_checkpoint_lacks(tmp_path):
    model = net()
    body = nn.Sequential(*list(model)[:2])
    save_model(body, tmp_path / "body.safetensors")
    for options in (
        {"free": ["3.*", "4.*"]},
        {"initial": tmp_path / "body.safetensors"},
    ):
        model = net()
        start = copy.deepcopy(model)
        budget = Budget(hold=0.001, **options)
        train(model, optimizer_of(model, "adamw"), budget, 5)
        moved = far(start, model)
        assert moved["4.weight"] > 0.01 and moved["1.weight"] <= 0.001 * (1 + 1e-4)
        assert {"4.weight", "4.bias", "3.weight", "3.bias"} <= set(budget.left_alone)
    stop = Budget(layer=0.05, every=1, copy="exact", free=["4.*", "0.*"])
    model = net()
    train(model, optimizer_of(model, "adamw"), stop, 20)
    assert stop.last is not None and stop.last.name == "1.weight"


def begin_fails(words: str, budget: Budget, model: nn.Module, *args: Any, **begin: Any) -> None:
    with pytest.raises((ConfigError, FormatError), match=words):
        budget.begin(model, *args, **begin)


def test_what_cannot_be_exact_is_refused_at_the_beginning(tmp_path):
    model = net()
    adamw = optimizer_of(model, "adamw")
    begin_fails("follows AdamW.*initial=", Budget(drt=0.1), model, adamw)
    begin_fails("follows madam.*initial=", Budget(layer=0.1), model, Madam(model.parameters()))
    begin_fails("no optimizer was given", Budget(drt=0.1), model)
    begin_fails(r"free has 'head.\*'", Budget(hold=0.1, free=["head.*"]), model)
    begin_fails("hold is 0.001 with copy 'bfloat16'", Budget(hold=1e-3, copy="bfloat16"), model)
    begin_fails("copy is 'disk' without a folder", Budget(hold=0.1, copy="disk"), model)
    begin_fails("resumes.*initial=", Budget(hold=0.1), model, state=Budget(hold=0.1).state_dict())
    begin_fails(
        "had no bound",
        Budget(drt=0.1),
        model[:1],
        create_optimizer(model[:1], "fromage"),
        state=Budget(hold=0.1).state_dict(),
    )
    used = create_optimizer(model, "fromage")
    model(torch.tensor([1])).sum().backward()
    used.step()
    begin_fails("taken steps before", Budget(drt=0.1), model, used)
    save_model(net(), tmp_path / "start.safetensors")
    with torch.no_grad():
        model[1].weight.add_(1)
    begin_fails(
        "already, before the first step",
        Budget(drt=0.1, initial=tmp_path / "start.safetensors"),
        model,
    )
    with torch.no_grad():
        model[1].weight[0, 0] = torch.inf
    begin_fails("1.weight is not finite", Budget(hold=0.1), model)
    frozen = net().requires_grad_(False)
    begin_fails("no trainable weight", Budget(hold=0.1), frozen)
    free = ["*.weight"]
    begin_fails("no weight matrix", Budget(drt=0.1, copy="exact", free=free), net())
    optimizer = create_optimizer(used := net(), "fromage")
    begin_fails("no weight matrix", Budget(drt=0.1, free=free), used, optimizer)


def test_a_weight_that_is_unfrozen_later_is_refused():
    model = net()
    model[4].requires_grad_(False)
    budget = Budget(hold=0.1)
    budget.begin(model)
    budget.after_step()
    model[4].requires_grad_(True)
    with pytest.raises(ConfigError, match=r"4.weight was frozen.*requires_grad"):
        budget.after_step()


def test_a_checkpoint_that_is_damaged_later_is_reported(tmp_path):
    model, path = net(), tmp_path / "start.safetensors"
    save_model(model, path)
    budget = Budget(drt=1.0, every=1, initial=path)
    budget.begin(model)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError, match="cannot be read any more"):
        budget.after_step()


def test_a_budget_says_what_it_is():
    assert repr(DistanceBudget(hold=0.1, free=["a"])) == (
        "DistanceBudget(hold=0.1, every=100, free=['a'])"
    )


def test_tied_weights_are_held_once():
    model = net()
    tied = nn.Sequential(model[0], nn.Linear(8, 20, bias=False))
    tied[1].weight = tied[0].weight
    start: Tensor = tied[0].weight.detach().clone()
    budget = Budget(hold=RHO)
    budget.begin(tied)
    with torch.no_grad():
        tied[0].weight.mul_(2)
    budget.after_step()
    moved = (tied[1].weight.detach() - start).norm() / start.norm()
    assert float(moved) == pytest.approx(RHO, rel=1e-5)


@pytest.mark.parametrize("copy", ["exact", "bfloat16", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_codes_are_looked_at_and_given_back(
    tmp_path: Path, copy: str, dtype: torch.dtype
):
    model = compress(net().to(dtype), "lns12")
    begin_fails("is stored in codes", Budget(hold=0.1), model)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = create_optimizer(model, "integer_madam", lr=0.1)
    budget = Budget(drt=0.05, copy=copy, every=1)
    budget.begin(model, optimizer, folder=tmp_path)
    state = budget.state_dict()
    model(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert budget.after_step() and budget.last is not None and budget.last.log_drt > 0.05
    assert all(map(torch.equal, model.parameters(), before))
    again = Budget(drt=0.05, copy=copy)
    again.begin(model, optimizer, folder=tmp_path, state=state)
    assert again.last is not None
    # The codes' numbers are rounded in bfloat16 alone.
    assert 0 < again.last.log_drt < 0.01 if copy == "bfloat16" else again.last.log_drt == 0


def test_files_of_a_folder_are_only_written_where_one_is_given(tmp_path: Path):
    budget = Budget(hold=RHO)
    budget.begin(net(), folder=tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [
        "initial-00000-of-00001.safetensors"
    ]
