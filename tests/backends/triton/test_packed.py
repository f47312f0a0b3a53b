"""What is decided of packed numbers in one launch is what the formula says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hf_relopt.backends import packed as portable
from hf_relopt.backends.backend import BACKENDS
from hf_relopt.backends.triton import packed
from tests.cases import CASES, HAS_TRITON, Case
from tests.tensors import run, same_bits, weights

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_formula_of_a_step(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of real steps in bfloat16, which have keys, of weights that started at zero as well."""
    asked = []

    def both(formula: portable.Formula, given: Mapping[str, Tensor], into: Mapping[str, Tensor]):  # type: ignore[no-untyped-def]
        found = packed.work_out(formula, given, {})
        expected = portable.work_out(formula, given, {})
        asked.append(formula)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # 1 - beta^t has no more digits than beta^t, which torch makes in another way.
            torch.testing.assert_close(
                found[name], value.expand_as(found[name]), rtol=1e-6, atol=1e-12, equal_nan=True
            )
        return portable.work_out(formula, given, into)

    monkeypatch.setitem(BACKENDS, "foreach", replace(BACKENDS["foreach"], work_out=both))
    params = [*weights(torch.bfloat16), nn.Parameter(torch.zeros(4, 3, dtype=torch.bfloat16))]
    run(case.make(params, backend="foreach"), params, (1, 2, 3))
    assert len(asked) >= 6


def test_results_are_written_where_they_belong() -> None:
    counts = torch.tensor([1.0, 5.0, 9.0])
    every_other = torch.arange(6.0)[::2]

    def formula(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "count": given["count"] + given["more"] * given["scale"],
            "large": given["more"] > 1,
        }

    given = {"count": counts, "more": every_other, "scale": torch.tensor(10.0)}
    found = packed.work_out(formula, given, {"count": counts})
    assert found["count"] is counts and counts.tolist() == [1.0, 25.0, 49.0]
    assert found["large"].tolist() == [False, True, True]
    assert counts._version > 0


def test_no_numbers_are_no_launch() -> None:
    found = packed.work_out(lambda given: {"x": given["x"] + 1}, {"x": torch.ones(0)}, {})
    assert found["x"].shape == (0,)


def test_many_numbers_take_many_programs() -> None:
    many = torch.arange(1000, dtype=torch.float64)
    found = packed.work_out(lambda given: {"x": given["x"] * 2}, {"x": many}, {})
    assert same_bits(found["x"], many * 2)
