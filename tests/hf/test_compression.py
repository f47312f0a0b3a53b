"""compress and decompress, of models of torch and of Transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hf_relopt
from hf_relopt import ConfigError, compress, decompress
from hf_relopt.lns.format import LNSFormat
from hf_relopt.lns.tensor import LNSTensor
from tests.hf.tiny import gpt2


def test_a_model_is_returned_in_codes_and_made_of_numbers_again():
    model = gpt2()
    before = model.transformer.wpe.weight.detach().clone()
    assert compress(model, "lns16") is model
    assert model.is_quantized and model.config.quantization_config.format == "lns16"
    weight = model.transformer.wpe.weight
    assert isinstance(weight, LNSTensor) and weight.form.name == "lns16"
    assert decompress(model) is model
    assert type(model.transformer.wpe.weight) is nn.Parameter
    gap = (model.transformer.wpe.weight - before).norm() / before.norm()
    assert 0 < float(gap.detach()) < 2e-4
    assert not model.is_quantized and not hasattr(model.config, "quantization_config")


def test_a_format_of_ones_own_and_what_is_skipped():
    form = LNSFormat("own", 8, 0.06)
    model = compress(gpt2(), form, skip="embedding")
    assert model.config.quantization_config.skip == ["embedding"]
    assert model.transformer.h[0].mlp.c_fc.weight.form == form
    assert type(model.transformer.wte.weight) is nn.Parameter


def test_a_module_of_torch_is_no_model_of_transformers():
    layer = compress(nn.Linear(4, 4))
    assert isinstance(layer.weight, LNSTensor) and not hasattr(layer, "hf_quantizer")
    assert type(decompress(layer).weight) is nn.Parameter


def test_unknown_formats_change_nothing():
    model = gpt2()
    with pytest.raises(ConfigError, match="Did you mean lns16"):
        compress(model, "lns13")
    assert not any(isinstance(param, LNSTensor) for param in model.parameters())


def test_the_public_names_are_these():
    assert hf_relopt.compress is compress and hf_relopt.decompress is decompress
    assert torch.equal(compress(nn.Linear(3, 2)).weight.scale > 0, torch.tensor([True, True]))
