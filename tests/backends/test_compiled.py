"""Large and small tensors of one batch take different ways and end at the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.backends import compiled, loop, sums
from hf_relopt.backends.part import Part
from tests.batches import batch_of, view_of
from tests.cases import DEFAULTS, Case
from tests.tensors import run

SHAPES = [(3,), (200, 100), (), (5, 7), (180, 120), (0,)]


@pytest.mark.parametrize("what", ["grad", "norms", "cosine"])
def test_sums_come_back_in_the_order_of_the_tensors(what: str, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(compiled, "_SMALLEST", 2**14)
    noise = torch.Generator().manual_seed(1)
    parts = [
        Part(view_of(0, shape), *(torch.randn(shape, generator=noise) for _ in "wg"))
        for shape in SHAPES
    ]
    found = compiled.sums(parts, what)
    torch.testing.assert_close(found, sums.sums(parts, what), rtol=1e-12, atol=0)


@pytest.mark.parametrize("noisy", [False, True])
def test_rows_step_as_the_loop_does(noisy: bool, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(compiled, "_SMALLEST", 10)
    shapes = [(6, 5), (4, 3), (6, 5), (40, 7), (3,), (30, 20)]
    one, other = (batch_of(torch.bfloat16, shapes, noisy, (0, 3, 5)) for _ in "ab")
    loop.update(*one.given())
    compiled.update(*other.given())
    for ours, theirs in zip(one.weights(), other.weights(), strict=True):
        # A rounding of the arithmetic may move a rounding of the weight.
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=1e-6)
        assert float((ours != theirs).double().mean()) < 0.02


@pytest.mark.parametrize("build", [Fromage, Madam])
def test_mixed_sizes_end_where_the_loop_does(build, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(compiled, "_SMALLEST", 2**14)
    ends = []
    for backend in ("loop", "compiled"):
        noise = torch.Generator().manual_seed(2)
        params = [nn.Parameter(torch.randn(s, generator=noise)) for s in SHAPES]
        optimizer = build(params, lr=0.1, backend=backend)
        for _ in range(3):
            for param in params:
                param.grad = torch.randn(param.shape, generator=noise)
            optimizer.step()
        ends.append([param.detach() for param in params])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: case.name)
def test_compiled_takes_many_shapes_and_a_schedule_without_falling_back(case: Case) -> None:
    """Past torch's recompile limit a frame quietly runs uncompiled: the limit must not be met."""
    params = [nn.Parameter(torch.randn(n, n + 2)) for n in range(2, 14)]
    params += [nn.Parameter(torch.randn(n)) for n in range(2, 14)]
    optimizer = case.make(params, lr=0.01, backend="compiled")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        run(optimizer, params, (1, 2))  # the first makes anchors, the second is a steady step
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(3, 6):
            optimizer.param_groups[0]["lr"] = 0.01 / number
            run(optimizer, params, (number,))


def test_what_is_in_the_way_of_a_compilation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.fault() is None

    def fails(function):  # type: ignore[no-untyped-def]
        raise RuntimeError("no compiler\nand more of it")

    monkeypatch.setattr(compiled, "compile_once", fails)
    assert compiled.fault() == "RuntimeError: no compiler"
    monkeypatch.setattr(compiled, "compile_once", lambda function: function)
    assert compiled.fault() == "it is switched off"
