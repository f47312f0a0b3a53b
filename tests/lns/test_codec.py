"""The fast codec says what the definition says, on every code of every format."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_relopt import ConfigError
from hf_relopt.lns import codec, definition
from hf_relopt.lns.format import FORMATS, SMALLEST_SCALE, LNSFormat, borders_of, levels_of
from hf_relopt.lns.scale import scale_of
from tests.tensors import gradient, same_bits

CPU = torch.device("cpu")
ONE = torch.ones(())
SCALES = [1.0, 3.0, 0.0123, SMALLEST_SCALE, 2.0**100, 3e38]


def every_code(form: LNSFormat) -> torch.Tensor:
    """All that a weight may have: -0 is none."""
    codes = torch.arange(2**form.bits, dtype=torch.int32)
    return codes[codes != form.sign_bit].to(form.dtype)


@pytest.mark.parametrize("scale", SCALES)
def test_every_code_comes_back_and_both_codecs_agree(form: LNSFormat, scale: float) -> None:
    codes, own = every_code(form), torch.tensor(scale)
    weights = codec.decode(codes, own, form)
    assert same_bits(weights, definition.decode(codes, own, form))
    assert torch.isfinite(weights).all() and weights.unique().numel() == len(codes)
    for encode in (codec.encode, definition.encode):
        again = encode(weights, own, form)
        assert again.dtype is form.dtype and torch.equal(again, codes)


def test_zero_is_exact_and_a_code_of_no_weight_is_zero(form: LNSFormat) -> None:
    zeros = torch.tensor([0.0, -0.0])
    assert codec.encode(zeros, ONE, form).tolist() == [0, 0]
    bits = torch.zeros(2, dtype=torch.int32)
    assert codec.encode_stochastically(zeros, ONE, form, bits).tolist() == [0, 0]
    there = torch.tensor([0, form.sign_bit]).to(form.dtype)
    assert codec.decode(there, ONE, form).abs().tolist() == [0.0, 0.0]


def test_greater_weights_have_greater_levels(form: LNSFormat) -> None:
    weights = torch.linspace(-1.2, 1.2, 30_001).sort().values
    found = codec.decode(codec.encode(weights, ONE, form), ONE, form)
    assert (found.diff() >= 0).all()
    twice = codec.decode(codec.encode(found, ONE, form), ONE, form)
    assert same_bits(found, twice)


def test_the_nearest_level_is_meant_up_to_the_last_bit_before_a_border(form: LNSFormat) -> None:
    """Where a logarithm in float32 does not know the side."""
    borders = borders_of(form, CPU)
    nothing, all_of_it = torch.zeros(()), torch.full((), torch.inf)
    sizes = torch.cat([borders, borders.nextafter(nothing), borders.nextafter(all_of_it)])
    for weights in (sizes, -sizes):
        found = codec.encode(weights, ONE, form)
        assert torch.equal(found, definition.encode(weights, ONE, form))
        errors = (codec.decode(found, ONE, form) / weights - 1).abs()
        assert float(errors.max()) <= form.worst_error * (1 + 1e-3) + 1e-6


def test_beyond_the_range_weights_have_its_ends_and_never_zero(form: LNSFormat) -> None:
    levels = levels_of(form, CPU)
    weights = torch.tensor([1e-45, 1e-38, float(levels[1]) / 3, 1.5, 3e38])
    for encode in (codec.encode, definition.encode):
        assert encode(weights, ONE, form).tolist() == [1, 1, 1, form.levels, form.levels]
        below = encode(-weights, ONE, form).to(torch.int32) - form.sign_bit
        assert below.tolist() == [1, 1, 1, form.levels, form.levels]
    # What is nothing in float32 once it is divided by its scale.
    nothing = codec.encode(torch.tensor([1e-45, -1e-45]), torch.tensor(3e38), form)
    assert nothing.to(torch.int32).tolist() == [1, form.sign_bit + 1]


@given(st.data())
def test_any_weights_in_any_format_are_encoded_as_defined(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([8, 10, 12, 16]))
    most = 40.0 / 2 ** (bits - 1)
    form = LNSFormat("drawn", bits, data.draw(st.floats(2.0**-18, most)))
    floats = st.floats(-1e6, 1e6, width=32)
    weights = torch.tensor(data.draw(st.lists(floats, min_size=1, max_size=40)))
    scale = scale_of(weights, form)
    assert torch.equal(codec.encode(weights, scale, form), definition.encode(weights, scale, form))
    noise = torch.randint(2**16, weights.shape, dtype=torch.int32)
    one = codec.encode_stochastically(weights, scale, form, noise)
    assert torch.equal(one, definition.encode_stochastically(weights, scale, form, noise))


def test_the_mean_of_many_stochastic_codes_is_the_weight(form: LNSFormat) -> None:
    weights = torch.tensor([0.5, -0.37, 0.1234, 1.0, -0.9])
    each = weights.repeat(2**16, 1)
    bits = torch.arange(2**16, dtype=torch.int32).unsqueeze(1).expand_as(each)
    codes = codec.encode_stochastically(each, ONE, form, bits)
    mean = codec.decode(codes, ONE, form).double().mean(0)
    torch.testing.assert_close(mean, weights.double(), rtol=2**-15, atol=0.0)
    # A level itself stays whatever the noise says.
    level = levels_of(form, CPU)[form.levels - 3].repeat(2**16)
    assert codec.encode_stochastically(level, ONE, form, bits[:, 0]).unique().numel() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_every_dtype_by_row(form: LNSFormat, dtype: torch.dtype) -> None:
    weight = gradient(torch.empty(6, 50), 1).to(dtype) * torch.logspace(-3, 0, 6)[:, None]
    weight = weight.to(dtype)
    scale = scale_of(weight, form)
    kept = weight.clone()
    codes = codec.encode(weight, scale, form)
    assert same_bits(weight, kept) and codes.shape == weight.shape
    found = codec.decode(codes, scale, form, dtype)
    assert found.dtype is dtype
    inside = weight.double().abs() >= scale.double() / form.dynamic_range
    errors = (found.double() / weight.double() - 1).abs()[inside]
    own = torch.finfo(dtype).eps if dtype is not torch.float64 else 1e-6
    assert float(errors.max()) <= form.worst_error + own + 1e-6


def test_nothing_and_other_layouts(form: LNSFormat) -> None:
    assert codec.encode(torch.empty(0, 3), torch.empty(0, 1), form).shape == (0, 3)
    weight = gradient(torch.empty(5, 4), 1).t()
    scale = scale_of(weight, form)
    codes = codec.encode(weight, scale, form)
    assert torch.equal(codes, codec.encode(weight.contiguous(), scale, form))
    turned = codes.t().contiguous().t()
    assert same_bits(codec.decode(turned, scale, form), codec.decode(codes, scale, form))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    weight, form = torch.tensor([1.0, bad]), FORMATS["lns8"]
    with pytest.raises(ConfigError, match="NaN or infinite"):
        codec.encode(weight, ONE, form)
    with pytest.raises(ConfigError, match="NaN or infinite"):
        codec.encode_stochastically(weight, ONE, form, torch.zeros(2, dtype=torch.int32))
