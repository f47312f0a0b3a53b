"""Formats: what their figures are, and which ones are none."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hf_relopt import ConfigError
from hf_relopt.lns.format import FORMATS, LNSFormat, borders_of, format_of, levels_of

CPU = torch.device("cpu")


def test_levels_rise_by_one_factor_up_to_one_on_both_sides_of_zero(form: LNSFormat) -> None:
    levels = levels_of(form, CPU)
    above, below = levels.double().chunk(2)
    assert len(levels) == 2**form.bits and above[0] == below[0] == 0 and above[-1] == 1
    assert torch.equal(above, -below)
    ratios = above[2:] / above[1:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, math.exp(form.spacing)))
    assert 1 / float(above[1]) == pytest.approx(form.dynamic_range, rel=1e-6)
    assert above[1:].unique().numel() == form.levels


def test_tables_are_float32_on_their_device_whatever_the_defaults_are() -> None:
    form = LNSFormat("fresh", 8, 0.0567)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            levels, borders = levels_of(form, CPU), borders_of(form, CPU)
    finally:
        torch.set_default_dtype(before)
    assert levels.dtype is borders.dtype is torch.float32
    assert levels.device == borders.device == CPU


def test_a_border_is_halfway_between_two_levels_in_log_space(form: LNSFormat) -> None:
    above = levels_of(form, CPU)[1 : form.levels + 1].double()
    middle = (above[1:] * above[:-1]).sqrt()
    torch.testing.assert_close(borders_of(form, CPU).double(), middle, rtol=1e-6, atol=0.0)


def test_the_errors_are_those_of_weights_that_are_spread_evenly(form: LNSFormat) -> None:
    step = torch.linspace(-form.spacing / 2, form.spacing / 2, 100_001, dtype=torch.float64)
    errors = (torch.exp(step) - 1).abs()
    assert form.worst_error == pytest.approx(float(errors.max()))
    assert form.mean_error == pytest.approx(float(errors.mean()), rel=1e-4)


def test_named_formats_have_more_of_everything_with_more_bits() -> None:
    each = list(FORMATS.values())
    assert [form.bits for form in each] == [8, 10, 12, 16]
    for name, form in FORMATS.items():
        assert form.name == name and format_of(name) is form and format_of(form) is form
    for fewer, more in itertools.pairwise(each):
        assert more.worst_error < fewer.worst_error and more.dynamic_range > fewer.dynamic_range


@pytest.mark.parametrize(("given", "words"), [
    ({"bits": 9}, r"bits is 9.*8, 10, 12 or 16"), ({"bits": True}, "bits is True"),
    ({"spacing": 0.0}, r"spacing is 0.0.*at least"), ({"spacing": 0.4}, r"spacing is 0.4.*at most"),
    ({"spacing": float("nan")}, "spacing is nan"), ({"spacing": "fine"}, "spacing is 'fine'"),
    ({"scale": "column"}, "scale is 'column'.*'row' or 'tensor'"),
], ids=str)  # fmt: skip
def test_what_is_no_format_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LNSFormat(**{"name": "own", "bits": 8, "spacing": 0.05, **given})  # type: ignore[arg-type]


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'LNS8'.*lns8, lns10, lns12, lns16.*mean lns8\?"):
        format_of("LNS8")
    with pytest.raises(ConfigError, match="format is 8"):
        format_of(8)  # type: ignore[arg-type]
