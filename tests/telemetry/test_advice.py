"""Advice is true, names what it means, and is given once; good runs hear nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, IntegerMadam, Madam, create_optimizer
from hf_relopt.lns.tensor import LNSTensor
from hf_relopt.telemetry.advice import Advice, _one_digit_up
from hf_relopt.telemetry.network import layers_of, norms_of
from hf_relopt.telemetry.snapshots import Since
from tests.tensors import gradient


class Job:
    """A few weights of 64 x 64 that follow random gradients, and what is said of their steps."""

    def __init__(self, make, dtype=torch.float32, count=2, dims=2):
        generator = torch.Generator().manual_seed(0)
        shape = (64,) * dims
        self.params = [
            nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for _ in range(count)
        ]
        self.optimizer = make([(f"layer.{n}", param) for n, param in enumerate(self.params)])
        layers = layers_of(self.optimizer, None)
        self.advice = Advice(layers, norms_of(layers))
        self.step = 0

    def run(self, steps=1, grad=None, since=None):
        said = []
        for _ in range(steps):
            self.step += 1
            for number, param in enumerate(self.params):
                own = gradient(param, 10 * self.step + number)
                param.grad = own if grad is None else grad(number, param, own)
            self.optimizer.measure_next_step()
            self.optimizer.step()
            said += self.advice.on_step(self.optimizer.take_measured(), self.step, since)
        return said


def outwards(number, param, own):
    return -param.detach()


@pytest.mark.parametrize(
    ("rule", "lr", "needed"),
    [(Fromage, 1e-3, "0.002"), (Madam, 1e-3, "0.004"), (Fromage, 5e-4, "0.002")],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_stall_is_told_with_the_lr_that_ends_it(rule, lr, needed, dtype):
    if dtype is torch.float16:  # whose spacing is an eighth
        lr, needed = lr / 8, f"{_one_digit_up(float(needed) * 0.98 / 8):g}"
    job = Job(lambda params: rule(params, lr=lr, rounding="nearest"), dtype)
    said = [line for line in job.run(3) if "resolution" in line]
    assert len(said) == 1
    share = round(100 * job_share(job))
    assert said[0].startswith(f"{share}% of the entries that step 1 was to change")
    name = str(dtype).removeprefix("torch.")
    assert f"lr {lr:g} is below {name}'s resolution" in said[0]
    assert said[0].endswith(f"use stochastic rounding or lr >= {needed}.")
    # And it is true: with what is recommended nothing is said.
    cured = Job(lambda params: rule(params, lr=float(needed), rounding="nearest"), dtype)
    assert not [line for line in cured.run(3) if "resolution" in line]
    noisy = Job(lambda params: rule(params, lr=lr), dtype)
    assert not [line for line in noisy.run(3) if "resolution" in line]


def job_share(job):
    """What the first step left as it was, counted by hand."""
    again = Job(
        lambda params: type(job.optimizer)(
            params, lr=job.optimizer.param_groups[0]["lr"], rounding="nearest"
        ),
        job.params[0].dtype,
    )
    before = [param.detach().clone() for param in again.params]
    again.run(1)
    pairs = zip(again.params, before, strict=True)
    same = [int((param.detach() == old).sum()) for param, old in pairs]
    return sum(same) / sum(param.numel() for param in again.params)


def test_float32_has_a_resolution_too():
    job = Job(lambda params: Fromage(params, lr=1e-8))
    (said,) = [line for line in job.run(1) if "resolution" in line]
    assert said.endswith("lr 1e-08 is below float32's resolution; use lr >= 3e-08.")


def test_adamw_s_own_lr_is_told_for_its_own_weights():
    job = Job(
        lambda p: Fromage([{"params": p, "rule": "adamw", "lr": 1e-4, "rounding": "nearest"}]),
        torch.bfloat16,
    )
    (said,) = [line for line in job.run(1) if "resolution" in line]
    assert "lr 0.0001 is below" in said and said.endswith("or lr >= 0.002.")  # weights of one


def test_with_a_snapshot_the_share_is_that_since_then():
    def make(params):
        return Fromage(params, lr=1e-3, rounding="nearest")

    still = Since(0.0, 50, {0: 0.9 * 64 * 64, 1: 0.74 * 64 * 64})
    (said,) = Job(make, torch.bfloat16).run(2, since=still)
    assert said.startswith("82% of entries did not change in the last 50 steps: lr 0.001 is below")
    most = Since(0.0, 50, {0: 0.2 * 64 * 64, 1: 0.3 * 64 * 64})
    assert Job(make, torch.bfloat16).run(2, since=most) == []  # in 50 steps they did


def test_small_steps_of_warm_up_and_of_the_end_are_meant_to_be_small():
    job = Job(lambda params: Fromage(params, lr=1e-2, rounding="nearest"), torch.bfloat16)
    job.optimizer.param_groups[0].update(initial_lr=1e-2, lr=1e-4)
    assert job.run(2) == []
    job.optimizer.param_groups[0].update(initial_lr=1e-3, lr=1e-3)
    assert len(job.run(2)) == 1


def test_a_doubled_norm_is_told_by_name_and_once():
    job = Job(lambda params: Fromage(params, lr=0.3, direction="momentum", p_bound=10.0))
    said = job.run(6, grad=lambda n, param, own: -param.detach() if n == 1 else own)
    said = [line for line in said if "doubled" in line]
    assert said[0].startswith("layer.1 doubled its norm since the start (x 2")
    assert len(said) == 1


def test_many_doubled_norms_are_few_lines():
    job = Job(lambda params: Fromage(params, lr=0.3, direction="momentum", p_bound=10.0), count=8)
    said = job.run(20, grad=lambda n, param, own: -param.detach() if job.step > n else own)
    said = [line for line in said if "doubled" in line]
    assert 1 < len(said) <= 4
    assert "so far" in said[-1]


def test_vectors_and_what_started_at_zero_double_in_silence():
    job = Job(lambda params: Fromage(params, lr=0.3, direction="momentum", p_bound=10.0), dims=1)
    assert job.run(9, grad=outwards) == []
    job = Job(lambda params: Fromage(params, lr=0.3))
    with torch.no_grad():
        job.params[0].zero_()
    job.advice.start_norms = [0.0, None]
    assert job.run(9) == []


def test_an_lr_of_adamw_is_told():
    (said,) = Job(lambda params: Fromage(params, lr=5e-5)).run(3)
    assert said.startswith("lr 5e-05 is far below what a relative rule needs")
    assert Job(lambda params: Fromage(params, lr=1e-3)).run(3) == []
    groups = [{"rule": "adamw", "lr": 5e-5}]
    assert Job(lambda p: Fromage([{**groups[0], "params": p}])).run(3) == []
    job = Job(lambda params: Fromage(params, lr=1e-2))
    job.optimizer.param_groups[0].update(initial_lr=1e-2, lr=1e-6)  # warm-up
    assert job.run(3) == []


def test_tensors_that_stay_at_p_bound_are_told_after_three_steps():
    job = Job(lambda params: Fromage(params, lr=0.1, direction="momentum", p_bound=1.05), count=3)
    assert job.run(2, grad=outwards) == []
    (said,) = job.run(9, grad=outwards)
    assert said.startswith("3 of 3 tensors are held at p_bound (1.05) in each of the last 3")
    # A bound that is where the norm begins is kept on purpose.
    job = Job(lambda params: Fromage(params, lr=0.1, direction="momentum", p_bound=1.0))
    assert job.run(9, grad=outwards) == []


def test_entries_that_stay_at_p_scale_are_told():
    job = Job(lambda params: Madam(params, lr=0.3, p_scale=0.3))
    (said,) = job.run(9, grad=outwards)
    assert "% of the entries under Madam are held at p_scale (0.3)" in said


@pytest.mark.parametrize(("way", "word"), [(1, "smallest"), (-1, "largest")])
def test_codes_at_the_ends_of_their_range_are_told(way, word):
    def make(params):
        codes = [(name, nn.Parameter(LNSTensor.from_float(p.detach()))) for name, p in params]
        return IntegerMadam(codes, lr=0.5)

    job = Job(make)
    job.params = job.optimizer.param_groups[0]["params"]
    said = job.run(14, grad=lambda number, param, own: way * param.detach().sign())
    told = [line for line in said if "of the entries in codes" in line]
    assert len(told) == 1
    assert f"(lns8) are at the {word} level of their format" in told[0]


def test_gradients_that_are_not_finite_are_told_by_name_and_when_they_are_twice_as_many():
    job = Job(lambda params: Fromage(params, lr=0.01))
    nan = torch.full((64, 64), float("nan"))
    said = job.run(8, grad=lambda n, param, own: nan if n == 1 else own)
    assert [line.split(" time")[0].split()[-1] for line in said] == ["1", "2", "4", "8"]
    assert "(layer.1)" in said[0]


def test_good_runs_hear_nothing():
    for name in ("fromage", "fromage_spectral", "fromage_momentum", "muonh", "adamh", "madam"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        optimizer = create_optimizer(net, name)
        layers = layers_of(optimizer, net)
        advice = Advice(layers, norms_of(layers))
        for step in range(6):
            optimizer.zero_grad()
            net(torch.randint(9, (16,))).square().mean().backward()
            optimizer.measure_next_step()
            optimizer.step()
            assert list(advice.on_step(optimizer.take_measured(), step, None)) == []


def test_numbers_of_one_digit():
    values = [1.953e-3, 2e-3, 2.1e-3, 9.9e-4, 9.6e-3, 1.0]
    assert list(map(_one_digit_up, values)) == [0.002, 0.002, 0.003, 0.001, 0.01, 1.0]
