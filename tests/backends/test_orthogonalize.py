"""Matrices that are orthogonalized together come out as each alone, in their order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hf_relopt.backends import orthogonalize as together
from hf_relopt.backends.orthogonalize import multiplies_in_bfloat16, orthogonalize
from hf_relopt.rules import orthogonalize as polar
from tests.tensors import gradient, same_bits

SHAPES = [(4, 6), (6, 4), (4, 6), (3, 3), (4, 6), (1, 5), (6, 4)]


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    """Stacks that were made with other limits."""
    together._stacked.cache_clear()
    yield
    together._stacked.cache_clear()


@pytest.mark.parametrize("limit", [1, 50, 2**25])
def test_stacked_or_not_each_is_its_own(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_STACKED", limit)
    matrices = [gradient(torch.empty(shape), n) for n, shape in enumerate(SHAPES)]
    kept = [matrix.clone() for matrix in matrices]
    found = orthogonalize(matrices)
    assert [result.shape for result in found] == [matrix.shape for matrix in matrices]
    assert all(map(same_bits, matrices, kept)), "the momenta were written to"
    for matrix, result in zip(matrices, found, strict=True):
        torch.testing.assert_close(result, polar.orthogonalize(matrix), rtol=1e-4, atol=2e-5)


def test_those_of_one_shape_are_multiplied_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    original = polar.orthogonalize

    def counted(stack: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(stack.shape))
        return original(stack)

    monkeypatch.setattr(polar, "orthogonalize", counted)
    matrices = [gradient(torch.empty(shape), n) for n, shape in enumerate(SHAPES)]
    orthogonalize(matrices)
    assert sorted(seen) == [(1, 1, 5), (1, 3, 3), (2, 6, 4), (3, 4, 6)]
    seen.clear()
    monkeypatch.setattr(together, "_LARGE", 4)
    orthogonalize(matrices)
    assert sorted(seen) == [(1, 1, 5), (1, 3, 3), *[(4, 6)] * 3, *[(6, 4)] * 2], "large ones alone"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_momentum(dtype: torch.dtype) -> None:
    (found,) = orthogonalize([gradient(torch.empty(4, 6, dtype=dtype), 1)])
    assert found.dtype is dtype and found.is_contiguous()


def test_a_cpu_with_bfloat16_multiplies_large_ones_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.dtype] = []
    original = polar.orthogonalize

    def watched(stack: torch.Tensor) -> torch.Tensor:
        used.append(stack.dtype)
        return original(stack)

    monkeypatch.setattr(polar, "orthogonalize", watched)
    monkeypatch.setattr(together, "_SMALLEST_LOW", 4)
    for has in (True, False):
        monkeypatch.setattr(together, "_cpu_has_bfloat16", lambda has=has: has)
        found = orthogonalize([gradient(torch.empty(4, 6), 1), gradient(torch.empty(3, 6), 1)])
        assert {result.dtype for result in found} == {torch.float32}
    assert used == [torch.bfloat16, torch.float32, torch.float32, torch.float32]


def test_what_is_sent_is_bfloat16_where_the_result_will_be() -> None:
    devices = ("cpu", "mps", "cuda", "xpu")
    found = [multiplies_in_bfloat16(torch.device(kind)) for kind in devices]
    assert found == [False, False, True, True]


def test_inside_autocast_the_precision_is_ours() -> None:
    matrices = [gradient(torch.empty(40, 30), 1)]
    (outside,) = orthogonalize(matrices)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = orthogonalize(matrices)
        assert torch.is_autocast_enabled("cpu")
    assert same_bits(inside, outside)


def test_none_are_none() -> None:
    assert orthogonalize([]) == []
