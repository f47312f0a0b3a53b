"""LNSTensor: a weight that reads as the numbers of its codes, whatever reads it."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_relopt.errors import ConfigError
from hf_relopt.lns.format import LNSFormat
from hf_relopt.lns.tensor import LNSTensor, is_lns, lns_of, plain
from hf_relopt.optim.integer_madam import IntegerMadam

ROWS, COLUMNS = 7, 13  # full groups of no format


@pytest.fixture
def pair(form: LNSFormat) -> tuple[nn.Parameter, nn.Parameter]:
    """A weight in codes, and the numbers that they stand for."""
    weight = 0.1 * torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    codes = LNSTensor.from_float(weight, form)
    return nn.Parameter(codes), nn.Parameter(codes.dequantize())


def same(one: Any, other: Any) -> None:
    assert type(one) is torch.Tensor and type(other) in (torch.Tensor, nn.Parameter)
    assert torch.equal(one, other)


def test_it_is_a_parameter_of_its_codes(pair, form):
    codes, numbers = pair
    assert isinstance(codes, nn.Parameter) and type(codes) is LNSTensor and codes.requires_grad
    assert codes.dtype is torch.float32 and codes.shape == numbers.shape
    assert codes.packed.dtype is torch.uint8 and form.name in repr(codes)
    assert is_lns(codes) and lns_of(codes) is codes and not is_lns(numbers)
    same(plain(codes), numbers)
    assert plain(numbers) is numbers


OPERATORS = {
    "linear": lambda x, w: F.linear(x, w),
    "linear with bias": lambda x, w: F.linear(x, w, torch.ones(ROWS)),
    "linear of a batch": lambda x, w: F.linear(x.view(1, 5, COLUMNS), w),
    "conv1d of gpt2": lambda x, w: torch.addmm(torch.ones(COLUMNS), x[:, :ROWS], w),
    "matmul": lambda x, w: x @ w.T,
    "embedding": lambda x, w: F.embedding(torch.tensor([[0, 3, 3], [6, 1, 0]]), w, padding_idx=1),
    "sum of squares": lambda x, w: w.square(),
    "a row": lambda x, w: w[2] * x,
    "a column": lambda x, w: w[:, 2] + x[0, 0],
    "permuted": lambda x, w: w.permute(1, 0).reshape(-1) * 2,
    "stacked": lambda x, w: torch.cat([w, w.t().contiguous().view(ROWS, COLUMNS)]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_and_gradients_are_those_of_the_numbers(name, pair):
    made = []
    for weight in pair:
        x = torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(2)).requires_grad_()
        out = OPERATORS[name](x, weight)
        out.sin().sum().backward()
        made.append((out.detach(), weight.grad, x.grad))
    for codes, numbers in zip(*made, strict=True):
        if numbers is None:
            assert codes is None
        else:
            same(codes, numbers)


def test_tied_weights_get_one_gradient(pair):
    ids = torch.tensor([[0, 3, 6]])
    grads = []
    for weight in pair:
        F.linear(F.embedding(ids, weight), weight).square().sum().backward()
        grads.append(weight.grad)
    same(*grads)


def test_views_share_the_bytes_and_are_whole_rows_where_they_can_be(pair):
    codes, numbers = pair
    with torch.no_grad():
        rows, flat, turned = codes[2:5], codes.view(-1), codes.t()
    assert rows.packed.data_ptr() == codes.packed[2:].data_ptr() and len(rows.packed) == 3
    assert flat.is_canonical and not turned.is_canonical
    for view, like in ((rows, numbers[2:5]), (flat, numbers.view(-1)), (turned, numbers.t())):
        same(view.dequantize(), like.detach())
    parts = codes.detach().split(3)
    same(torch.cat([part.dequantize() for part in parts]), numbers.detach())
    assert codes.detach()[7:].shape == (0, COLUMNS) and codes.detach()[7:].dequantize().numel() == 0


def test_it_is_saved_copied_and_loaded_to_the_bit(pair, form):
    codes = pair[0]
    buffer = io.BytesIO()
    torch.save({"weight": codes}, buffer)
    assert buffer.tell() < 4000
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)["weight"]
    for other in (loaded, copy.deepcopy(codes), codes.detach().clone()):
        assert type(other) is LNSTensor and other.form == form
        assert torch.equal(other.packed, codes.packed) and torch.equal(other.scale, codes.scale)
        assert other.packed.data_ptr() != codes.packed.data_ptr()
    assert isinstance(loaded, nn.Parameter)


def test_modules_load_cast_and_move_it(pair):
    module, other = nn.Linear(COLUMNS, ROWS), nn.Linear(COLUMNS, ROWS)
    module.weight = pair[0]
    other.weight = nn.Parameter(LNSTensor.from_float(torch.randn(ROWS, COLUMNS), pair[0].form))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.weight.packed, module.weight.packed)
    other.to(torch.bfloat16)
    assert type(other.weight) is LNSTensor and other.weight.dtype is torch.bfloat16
    assert torch.equal(other.weight.packed, module.weight.packed)
    assert other(torch.ones(2, COLUMNS, dtype=torch.bfloat16)).dtype is torch.bfloat16
    other.to("meta")
    assert other.weight.device.type == "meta"


def test_autocast_decodes_to_the_short_dtype(pair):
    made = []
    for weight in pair:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = F.linear(torch.ones(2, COLUMNS), weight)
        out.float().square().sum().backward()
        made.append((out.detach(), weight.grad))
    for one, other in zip(*made, strict=True):
        same(one, other)
    assert made[0][0].dtype is torch.bfloat16 and made[0][1].dtype is torch.float32


def test_what_is_made_like_it_is_plain(pair):
    codes = pair[0]
    for made in (
        torch.zeros_like(codes),
        torch.empty_like(codes, dtype=torch.uint8),
        codes.new_zeros(3),
        codes.new_ones(2, 2),
    ):
        assert type(made) is torch.Tensor
    assert type(codes.detach() + 1) is torch.Tensor


@pytest.mark.parametrize(
    "write",
    [
        lambda w: nn.init.normal_(w),
        lambda w: w.detach().add_(1.0),
        lambda w: w.detach().copy_(torch.ones(ROWS, COLUMNS)),
        lambda w: torch.add(torch.ones(ROWS, COLUMNS), 1, out=w.detach()),
    ],
)
def test_numbers_are_not_written_into_it(write, pair):
    before = pair[0].packed.clone()
    with pytest.raises(ConfigError, match="would write numbers into a weight"):
        write(pair[0])
    assert torch.equal(pair[0].packed, before)


def test_the_same_numbers_may_be_copied_into_it(pair):
    """DDP copies the first process's weights to all, as numbers."""
    codes, numbers = pair
    before = codes.packed.clone()
    with torch.no_grad():
        codes.copy_(numbers)
    assert torch.equal(codes.packed, before)


def test_codes_of_another_format_or_shape_are_refused(form):
    weight = LNSTensor.from_float(torch.randn(4, 8), form)
    other = LNSFormat("other", 8, 0.07)
    with pytest.raises(ConfigError, match=r"is stored in .*other"):
        LNSTensor.from_float(torch.randn(4, 8), other).copy_(weight)
    with pytest.raises(ConfigError, match="cannot be copied"):
        weight.copy_(LNSTensor.from_float(torch.randn(2, 8), form))


@pytest.mark.parametrize(
    "weight",
    [torch.ones(3), torch.ones(2, 2, dtype=torch.int32), torch.ones(2, 2, device="meta")],
)
def test_what_has_no_rows_of_numbers_is_refused(weight):
    with pytest.raises(ConfigError, match="cannot be stored in lns8"):
        LNSTensor.from_float(weight)


def test_large_weights_are_encoded_in_pieces_alike(form, monkeypatch):
    weight = torch.randn(9, 11)
    at_once = LNSTensor.from_float(weight, form)
    monkeypatch.setattr("hf_relopt.lns.rows._PIECE", 24)
    assert torch.equal(LNSTensor.from_float(weight, form).packed, at_once.packed)


def test_three_dimensions_and_half_precision(form):
    weight = torch.randn(2, 3, 5).to(torch.bfloat16)
    codes = LNSTensor.from_float(weight, form)
    assert codes.shape == weight.shape and codes.dtype is torch.bfloat16
    gap = (codes.dequantize().float() - weight.float()).abs() / weight.float().abs()
    assert float(gap.median()) < form.worst_error + 2**-7


def test_a_compiled_module_has_the_same_results(pair):
    module = nn.Linear(COLUMNS, ROWS)
    module.weight = pair[0]
    x = torch.randn(2, COLUMNS)
    expected = module(x)
    expected.square().sum().backward()
    grad, module.weight.grad = module.weight.grad, None
    found = torch.compile(module, backend="aot_eager", fullgraph=True)(x)
    found.square().sum().backward()
    assert torch.equal(found, expected) and torch.equal(module.weight.grad, grad)


def test_data_is_an_alias_and_takes_codes_alone(pair, form):
    codes, numbers = pair
    assert type(codes.data) is LNSTensor and not codes.data.requires_grad
    assert codes.data.packed.data_ptr() == codes.packed.data_ptr()
    other = LNSTensor.from_float(torch.ones(3, COLUMNS + 1), form)
    codes.data = other
    assert codes.shape == (3, COLUMNS + 1) and codes.requires_grad
    same(codes.dequantize(), other.dequantize())
    for wrong in (numbers, LNSTensor.from_float(torch.ones(2, 2), LNSFormat("other", 8, 0.07))):
        with pytest.raises(ConfigError, match=r"An assignment to \.data would write numbers"):
            codes.data = wrong


def test_a_graph_that_a_step_has_overtaken_is_refused(form):
    """As torch does for numbers, and for the same reason."""
    weight = nn.Parameter(LNSTensor.from_float(torch.randn(4, 4), form))
    x = torch.randn(2, 4, requires_grad=True)
    loss = F.linear(x, weight).square().sum()
    loss.backward(retain_graph=True)
    IntegerMadam([weight], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tables_that_are_views_and_other_dtypes_of_the_same_bits_are_decoded(form):
    weight = LNSTensor.from_float(torch.randn(6, 8), form)
    ids = torch.tensor([0, 5, 11])
    same(F.embedding(ids, weight.view(12, 4)), F.embedding(ids, weight.dequantize().view(12, 4)))
    same(weight.view(torch.int32), weight.dequantize().view(torch.int32))


def test_bytes_can_be_shared(form):
    module = nn.Linear(4, 4)
    module.weight = nn.Parameter(LNSTensor.from_float(module.weight.detach(), form))
    module.share_memory()
    assert module.weight.is_shared() and module.weight.packed.is_shared()


def test_a_view_is_taken_apart_with_its_offset(form):
    weight = LNSTensor.from_float(torch.randn(6, 8), form)
    part = weight[:, 2:5]
    names, meta = part.__tensor_flatten__()
    inner = {name: getattr(part, name) for name in names}
    again = LNSTensor.__tensor_unflatten__(inner, meta, part.shape, part.stride())
    same(again.dequantize(), part.dequantize())
