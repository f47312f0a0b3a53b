"""Weights of lazy modules: filled later, or refused where their shapes decide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, Fromage, Madam, create_optimizer
from tests.tensors import same_bits, set_gradients, snapshot


def lazy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyBatchNorm1d(), nn.LazyLinear(2))


@pytest.mark.parametrize("kind", [Fromage, Madam])
def test_lazy_modules_may_be_filled_after_the_optimizer_is_made(kind: Any) -> None:
    model, twin = lazy(), lazy()
    batch = torch.randn(4, 3)
    optimizer = kind(model.parameters())
    assert "LazyLinear" not in repr(optimizer)
    torch.manual_seed(1)
    model(batch)
    torch.manual_seed(1)
    twin(batch)
    other = kind(twin.parameters())
    for _ in range(2):
        for each, net in ((optimizer, model), (other, twin)):
            each.zero_grad()
            net(batch).square().sum().backward()
            each.step()
    assert all(map(same_bits, model.parameters(), twin.parameters()))
    again = kind(twin.parameters())
    again.load_state_dict(optimizer.state_dict())  # the shapes are known by now, and kept


def test_a_direction_that_needs_shapes_says_so() -> None:
    for build in (
        lambda: Fromage(lazy().parameters(), direction="spectral"),
        lambda: Fromage(lazy().parameters(), scale="block", split_sizes=2),
        lambda: create_optimizer(lazy(), "fromage"),
        lambda: create_optimizer(lazy(), "fromage_spectral"),
    ):
        with pytest.raises(ConfigError, match=r"no shape yet.*one batch"):
            build()


def test_a_lazy_module_that_was_never_filled_trains_the_rest() -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.LazyLinear(2)])
    optimizer = Fromage(model.parameters())
    before = snapshot(model[0].parameters())
    set_gradients(list(model[0].parameters()), 1)
    optimizer.step()
    assert not any(map(same_bits, model[0].parameters(), before))
