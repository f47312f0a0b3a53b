"""The plan's AdamW is torch's AdamW: torch.optim.AdamW is the witness."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam, create_optimizer
from hf_relopt.rules import adamw

OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.01},
    {"betas": (0.0, 0.99)},
    {"lr_factor": 0.25},
]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    nn.init.zeros_(model[0].bias)
    return model


def gradients(model, step, scale=1.0):
    for index, param in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(100 * step + index)
        param.grad = scale * torch.randn(param.shape, generator=generator)


@pytest.mark.parametrize(
    ("backend", "options"),
    [*[("foreach", options) for options in OPTIONS], ("compiled", {"betas": (0.5, 0.75)})],
    ids=str,
)
def test_all_tensors_by_override_take_torch_s_steps(backend, options):
    ours, theirs = net(), net()
    override = {"*": {"rule": "adamw", "lr": 0.01, **options}}
    optimizer = create_optimizer(ours, "fromage", 0.1, overrides=override, backend=backend)
    given = {"weight_decay": 0.0, **options}
    lr = 0.01 * given.pop("lr_factor", 1.0)
    witness = torch.optim.AdamW(theirs.parameters(), lr, **given)
    schedules = [
        torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=30) for o in (optimizer, witness)
    ]
    for step in range(30):
        for model in (ours, theirs):
            gradients(model, step, scale=10.0 ** (step % 5 - 2))
        for job in (optimizer, witness, *schedules):
            job.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
        state, expected = optimizer.state[one], witness.state[other]
        assert set(state) == {"step", "skipped", "exp_avg", "exp_avg_sq"}
        assert float(state["step"]) == float(expected["step"]) == 30
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[name], expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cls", [Fromage, Madam])
def test_a_group_of_its_own_leaves_the_others_to_the_main_rule(cls):
    mixed, alone = net(), net()
    biases = [p for p in mixed.parameters() if p.dim() == 1]
    matrices = [p for p in mixed.parameters() if p.dim() == 2]
    optimizer = cls(
        [{"params": matrices}, {"params": biases, "rule": "adamw", "lr": 1e-3, "eps": 1e-6}],
        lr=0.02,
    )
    pure = cls(alone.parameters(), lr=0.02)
    theirs = net()
    witness = torch.optim.AdamW(theirs.parameters(), 1e-3, eps=1e-6, weight_decay=0.0)
    for step in range(5):
        for model in (mixed, alone, theirs):
            gradients(model, step)
        for job in (optimizer, pure, witness):
            job.step()
    for param, main, adam in zip(
        mixed.parameters(), alone.parameters(), theirs.parameters(), strict=True
    ):
        expected = main if param.dim() == 2 else adam
        torch.testing.assert_close(param, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_moments_stay_float32_in_low_precision(dtype):
    weight = nn.Parameter(torch.ones(64, dtype=dtype))
    optimizer = Fromage([{"params": [weight], "rule": "adamw", "lr": 1e-4}])
    for _ in range(20):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    state = optimizer.state[weight]
    assert state["exp_avg"].dtype is state["exp_avg_sq"].dtype is torch.float32
    # Far below the spacing at 1: only stochastic rounding moves the mean by 20 x 1e-4.
    assert float(weight.detach().double().mean()) == pytest.approx(1 - 20e-4, abs=1.5e-3)
    assert not torch.equal(weight, torch.ones_like(weight))


def test_one_step_of_the_equation_by_hand():
    one = torch.tensor(1.0)
    facts = adamw.coefficients(lr=torch.tensor(0.1), step=one, betas=(0.9, 0.99))
    weight, first, second = adamw.update(
        torch.tensor([2.0, -2.0]),
        torch.tensor([3.0, 0.0]),
        torch.zeros(2),
        torch.zeros(2),
        betas=(0.9, 0.99),
        eps=1.0,
        weight_decay=0.5,
        **facts,
    )
    # m = 0.3, v = 0.09; corrected 3 and 9: W <- W - 0.1 (0.5 W + 3 / (3 + 1))
    torch.testing.assert_close(first, torch.tensor([0.3, 0.0]))
    torch.testing.assert_close(second, torch.tensor([0.09, 0.0]))
    torch.testing.assert_close(weight, torch.tensor([2 - 0.1 * (1 + 0.75), -2 + 0.1]))
