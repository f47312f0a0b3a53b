"""LNSConfig: formats by name and of one's own, and files of other versions."""

from __future__ import annotations

import pytest

from hf_relopt import ConfigError, FormatError, LNSConfig
from hf_relopt.lns.format import FORMATS, LNSFormat


@pytest.mark.parametrize("form", [*FORMATS.values(), LNSFormat("own", 10, 0.02, "tensor")])
def test_it_is_written_and_read_again(form):
    config = LNSConfig(form, skip=["head"])
    again = LNSConfig.from_dict(config.to_dict())
    assert again.form == form and again.skip == ["head"]
    assert again.to_dict() == config.to_dict()
    assert config.to_dict()["quant_method"] == "lns"


def test_what_it_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="format is 'lns9'"):
        LNSConfig("lns9")
    with pytest.raises(ConfigError, match="has all three"):
        LNSConfig("own", bits=8)
    with pytest.raises(FormatError, match=r"version 2.*pip install -U hf_relopt"):
        LNSConfig.from_dict({**LNSConfig().to_dict(), "version": 2})
    with pytest.raises(FormatError, match=r"lns8, with 8 bits and a spacing of 0\.06"):
        LNSConfig.from_dict({**LNSConfig().to_dict(), "spacing": 0.06})
