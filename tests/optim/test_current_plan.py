"""What an optimizer that exists shows of itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

import hf_relopt
from hf_relopt import ConfigError, Fromage, Madam, create_optimizer, plan, plan_of
from tests.hf.tiny import gpt2
from tests.tensors import run, weights


@pytest.mark.parametrize("optim", ["fromage", "madam", "fromage_spectral"])
def test_it_is_the_plan_that_it_was_made_from(optim: str) -> None:
    model = gpt2()
    made = plan(model, optim, overrides={"vector": {"rule": "adamw", "lr": 1e-3}})
    found = plan_of(
        create_optimizer(model, optim, overrides={"vector": {"rule": "adamw", "lr": 1e-3}})
    )
    assert {entry.name: (entry.role, entry.zero_start) for entry in found.entries} == {
        entry.name: (entry.role, entry.zero_start) for entry in made.entries
    }
    tables = [
        {line.split(" (tied")[0] for line in str(each).splitlines()[2:]} for each in (made, found)
    ]
    assert tables[0] == tables[1]


def test_print_is_short_and_says_what_matters() -> None:
    model = gpt2()
    optimizer = create_optimizer(model, "fromage_spectral")
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 4)
    shown = repr(optimizer)
    assert len(shown.splitlines()) < 10 and max(map(len, shown.splitlines())) < 130
    assert "spectral, 3 blocks" in shown and "0.02" in shown and "schedule" not in shown
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    schedule.step()
    assert "the schedule is at 0.75 of these learning rates" in repr(optimizer)
    assert "0.02" in repr(optimizer)  # as they start


def test_from_tensors_shapes_tell_the_roles() -> None:
    params = [*weights(torch.float32), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(()))]
    optimizer = Madam(params, lr=0.0)
    roles = [entry.role for entry in plan_of(optimizer).entries]
    assert roles == ["matrix"] * 3 + ["vector", "scalar"]
    assert [entry.zero_start for entry in plan_of(optimizer).entries] == [
        False,
        False,
        True,
        False,
        False,
    ]
    run(optimizer, params, (1,))
    assert [entry.zero_start for entry in plan_of(optimizer).entries] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert "Madam: 5 tensors, 40 parameters" in repr(optimizer)


def test_another_optimizer_has_none() -> None:
    with pytest.raises(ConfigError, match=r"plan_of was given a AdamW"):
        plan_of(torch.optim.AdamW(weights(torch.float32)))


def test_a_rate_of_zero_prints() -> None:
    assert "Fromage: 3 tensors" in repr(Fromage(weights(torch.float32), lr=0.0))


def test_dir_shows_public_names_alone() -> None:
    assert dir(hf_relopt) == sorted([*hf_relopt.__all__, "__version__"])
    assert len(hf_relopt.__all__) <= 24
    assert all(getattr(hf_relopt, name) is not None for name in dir(hf_relopt))
