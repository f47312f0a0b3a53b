"""Adapters in a ball: what is held is dW = s B A, and nothing is copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from torch import nn

from hf_relopt.distance.budget import Budget
from hf_relopt.distance.lora_ball import LoraBall, factors_of
from hf_relopt.errors import ConfigError
from tests.distance.nets import gpt2

TARGETS = ["c_attn", "wte"]
# PEFT and Transformers about each other, and what PEFT says of GPT-2's layers and tied weights.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out"),
    pytest.mark.filterwarnings("ignore:.*tie"),
    pytest.mark.filterwarnings("ignore:.*multiple adapters:UserWarning"),
]


def adapted(**given: Any) -> nn.Module:
    options = {"r": 3, "target_modules": TARGETS, "lora_alpha": 12, "fan_in_fan_out": True, **given}
    model = get_peft_model(gpt2(), LoraConfig(**options))
    torch.manual_seed(4)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora" in name:
                param.copy_(torch.randn_like(param))
    return model


def change(layer: Any) -> torch.Tensor:
    return layer.get_delta_weight("default").detach().double()


def layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "base_layer")]


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"target_modules": ["c_fc"]}], ids=str
)
def test_the_change_is_brought_to_the_surface_in_its_own_direction(options):
    model = adapted(**options)
    before = [change(layer) for layer in layers(model)]
    LoraBall(factors_of(model), 0.02).pull()
    assert before
    for layer, old in zip(layers(model), before, strict=True):
        new, base = change(layer), layer.get_base_layer().weight.detach().double()
        assert float(new.norm()) == pytest.approx(0.02 * float(base.norm()), rel=1e-5)
        torch.testing.assert_close(new / new.norm(), old / old.norm(), rtol=1e-4, atol=1e-6)


def test_what_is_inside_keeps_every_bit_and_a_zero_change_too():
    model = adapted()
    with torch.no_grad():
        for layer in layers(model):
            for factor in (*layer.lora_B.parameters(), *layer.lora_embedding_B.values()):
                factor.mul_(1e-5)
        layers(model)[0].lora_embedding_B["default"].zero_()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    LoraBall(factors_of(model), 0.02).pull()
    for name, param in model.named_parameters():
        assert torch.equal(param, before[name]), name


def test_names_are_the_weights_own():
    names = [each.name for each in factors_of(adapted())]
    assert names[0] == "transformer.wte.weight"
    assert "transformer.h.1.attn.c_attn.weight" in names
    assert factors_of(gpt2()) == []


@pytest.mark.parametrize("limit", [{"hold": 0.1}, {"drt": 0.1}], ids=str)
def test_adapters_that_are_no_product_are_refused(limit):
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for model in (
        get_peft_model(plain, LoHaConfig(target_modules=["0"])),
        adapted(use_dora=True, target_modules=["c_attn"]),
    ):
        with pytest.raises(ConfigError, match="under a budget, use LoRA"):
            Budget(**limit).begin(model)


def test_several_merged_and_trained_below_are_refused():
    model = adapted()
    model.add_adapter("second", LoraConfig(r=2, target_modules=TARGETS, fan_in_fan_out=True))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ConfigError, match=r"active adapters.*set_adapter"):
        factors_of(model)
    merged = adapted()
    merged.merge_adapter()
    with pytest.raises(ConfigError, match="unmerged"):
        factors_of(merged)
    trained = adapted()
    layers(trained)[0].get_base_layer().weight.requires_grad_(True)
    with pytest.raises(ConfigError, match="below the adapter is trained"):
        factors_of(trained)
