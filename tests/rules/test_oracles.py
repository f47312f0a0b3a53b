"""The oracles agree with the papers' equations, with each other and with torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles import fromage as fromage_oracle
from tests.oracles import madam as madam_oracle
from tests.oracles.adamw import adamw as adamw_trajectory
from tests.oracles.frame import exact_factor, frame, polar_express
from tests.oracles.fromage import fromage as fromage_trajectory
from tests.oracles.madam import madam as madam_trajectory
from tests.rules.problems import assert_same_path
from tests.tensors import gradient, to_numpy


def test_oracles_agree_with_the_papers_rule_where_nothing_intervenes() -> None:
    gen = np.random.default_rng(0)
    weight = gen.uniform(-1, 1, (6, 5))
    grads = list(gen.normal(size=(50, 6, 5)))
    for bound in (None, 1.0):
        ours = fromage_trajectory(weight, grads, 0.02, p_bound=bound, min_scale=0.1)
        assert_same_path(
            ours.weights, fromage_oracle.paper(weight, grads, 0.02, p_bound=bound).weights, 1e-14
        )
    assert_same_path(
        madam_trajectory(weight, grads, 0.02, min_scale=0.1).weights,
        madam_oracle.paper(weight, grads, 0.02).weights,
        1e-14,
    )


def test_oracle_norm_follows_the_closed_form() -> None:
    """||W'||^2 = (||W||^2 - 2 lr ||W||/||g|| <W,g> + lr^2 ||W||^2) / (1 + lr^2)."""
    gen = np.random.default_rng(3)
    w, g, lr = gen.normal(size=(5, 4)), gen.normal(size=(5, 4)), 0.3
    new = fromage_oracle.paper(w, [g], lr).last
    size = np.linalg.norm(w)
    square = size**2 - 2 * lr * size / np.linalg.norm(g) * np.sum(w * g) + lr**2 * size**2
    assert np.linalg.norm(new) ** 2 == pytest.approx(square / (1 + lr**2), rel=1e-12)


def test_adamw_oracle_is_torchs() -> None:
    param = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    first, grads = to_numpy(param).copy(), []
    optimizer = torch.optim.AdamW([param], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for number in range(30):
        param.grad = gradient(param, number)
        grads.append(to_numpy(param.grad).copy())
        optimizer.step()
    path = adamw_trajectory(first, grads, 0.01, betas=(0.8, 0.95), weight_decay=0.1)
    assert_same_path([to_numpy(param)], [path.last], 1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4), (5,), (), (0, 3)], ids=str)
@pytest.mark.parametrize("p_bound", [None, 0.5, 1.0])
def test_the_frames_oracle_has_the_papers_rule_in_it(
    p_bound: float | None, shape: tuple[int, ...]
) -> None:
    gen = np.random.default_rng(0)
    options = {"p_bound": p_bound, "min_scale": 0.1, "maximize": True}
    rates = [0.1, 0.1, 0.2, 0.1, 0.0, 0.3]
    for weight in (gen.normal(size=shape), np.zeros(shape)):
        grads = [gen.normal(size=shape) for _ in rates]
        grads[1:4] = [None, np.zeros(shape), np.full(shape, np.nan)]
        ours = frame(weight, grads, rates, **options)
        theirs = fromage_trajectory(weight, grads, rates, **options)
        for one, other in zip(ours.weights, theirs.weights, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-14)
        assert (ours.step, ours.skipped) == (theirs.step, theirs.skipped)


def test_the_frames_vectors_follow_adam_without_epsilon() -> None:
    gen = np.random.default_rng(1)
    weight, grads = gen.normal(size=7), list(gen.normal(size=(20, 7)))
    size = float(np.linalg.norm(weight) / np.sqrt(7))
    adam = adamw_trajectory(weight, grads, 0.1 * size, betas=(0.9, 0.99), eps=0.0)
    for direction in ("momentum", "spectral", "adam"):
        ours = frame(weight, grads, 0.1, direction=direction, min_scale=0.1)
        assert_same_path(ours.weights, adam.weights, 1e-12)


def test_four_steps_bring_singular_values_near_one() -> None:
    """Those from .004 of |M M^T|^(1/2) on, with which the steps start."""
    for value in np.geomspace(4e-3, 0.7, 300):
        matrix = np.diag([value, np.sqrt(1.0 - value**2)])
        found = np.diag(polar_express(matrix))
        assert found.min() > 0.84 and found.max() < 1.13
    gen = np.random.default_rng(2)
    for shape in ((5, 8), (8, 5), (4, 4)):
        matrix = gen.normal(size=shape)
        exact, found = exact_factor(matrix), polar_express(matrix)
        np.testing.assert_allclose(np.linalg.svd(exact)[1], 1.0, rtol=1e-12)
        assert np.sum(exact * found) > 0.98 * np.linalg.norm(exact) * np.linalg.norm(found)
        np.testing.assert_allclose(polar_express(matrix.T), found.T, rtol=1e-9, atol=1e-12)


# --- a second witness ---------------------------------------------------------------------
