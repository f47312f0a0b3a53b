"""How codes are stepped: in pieces as at once, by rows as whole, packed as unpacked."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.backends import codes
from hf_relopt.lns.format import FORMATS, LNSFormat
from hf_relopt.lns.tensor import LNSTensor
from hf_relopt.optim.integer_madam import IntegerMadam

SHAPE = (9, 11)


def stepped(form: LNSFormat, steps: int = 4, dtype: torch.dtype = torch.float32, **options):
    generator = torch.Generator().manual_seed(3)
    weight = 0.1 * torch.randn(SHAPE, generator=generator)
    weight[2, 3], weight[4] = 0.0, 0.0
    param = torch.nn.Parameter(LNSTensor.from_float(weight.to(dtype), form))
    optimizer = IntegerMadam([param], lr=0.03, **options)
    for _ in range(steps):
        param.grad = torch.randn(SHAPE, generator=generator).to(dtype)
        optimizer.step()
    return param, optimizer


@pytest.mark.parametrize("second_moment", ["lns8", "float32"])
@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
def test_pieces_are_stepped_as_the_whole(form, second_moment, monkeypatch):
    whole, state = stepped(form, second_moment=second_moment)
    monkeypatch.setattr(codes, "piece_size", lambda device: 25)
    pieces, other = stepped(form, second_moment=second_moment)
    assert torch.equal(whole.packed, pieces.packed)
    for name, value in state.state[whole].items():
        assert torch.equal(value, other.state[pieces][name]), name


@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
def test_signs_zeros_and_scales_stay(form):
    before, _ = stepped(form, steps=0)
    after, _ = stepped(form, steps=6)
    old, new = before.dequantize(), after.dequantize()
    assert torch.equal(old.sign(), new.sign()) and not torch.equal(old, new)
    assert torch.equal(before.scale, after.scale)
    assert bool((new.abs() <= after.by_rows).all())


def test_short_gradients_are_taken_in_float32():
    param, optimizer = stepped(FORMATS["lns8"], dtype=torch.bfloat16, second_moment="float32")
    assert optimizer.state[param]["second_moment"].dtype is torch.float32
    assert param.dtype is torch.bfloat16


def test_the_backend_of_numbers_says_nothing_of_codes():
    each = [stepped(FORMATS["lns10"], backend=name)[0] for name in ("loop", "foreach", "auto")]
    assert torch.equal(each[0].packed, each[1].packed)
    assert torch.equal(each[0].packed, each[2].packed)


@pytest.mark.parametrize("second_moment", ["lns8", "float32"])
@pytest.mark.parametrize("name", ["lns8", "lns12"])
def test_compiled_it_is_the_same(name, second_moment):
    """Last digits of roots and logarithms differ, which a noise seldom tells."""
    for dtype in (torch.float32, torch.bfloat16):
        how = {"second_moment": second_moment, "dtype": dtype}
        plain, _ = stepped(FORMATS[name], **how)
        compiled, _ = stepped(FORMATS[name], **how, backend="compiled")
        assert float((plain.packed != compiled.packed).double().mean()) < 0.02


def test_one_pair_of_programs_serves_rows_of_all_lengths():
    def step(*shape: int) -> None:
        param = torch.nn.Parameter(LNSTensor.from_float(torch.randn(shape), "lns8"))
        param.grad = torch.randn(shape)
        IntegerMadam([param], backend="compiled").step()

    step(*SHAPE)
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    for shape in ((5, 8), (30, 7), (4, 64)):
        step(*shape)
    assert before > 0 and counted["unique_graphs"] == before
