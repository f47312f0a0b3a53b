"""Distances from the start are true, whatever the copies are rounded to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, FormatError, Fromage, network_distance
from hf_relopt.telemetry.network import layers_of
from hf_relopt.telemetry.snapshots import Copies, OnDisk, check, taken
from tests.hf.tiny import gpt2


def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.LayerNorm(60), nn.Linear(60, 30)).to(dtype)
    return model, layers_of(Fromage(model.parameters()), model)


def moved(model, by):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            size = param.norm() / param.numel() ** 0.5
            param.add_(by * size * torch.randn(param.shape, generator=generator).to(param.dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("by", [0.0, 0.001, 0.1])
def test_distance_from_the_start_is_that_of_the_weights(dtype, by):
    """A step of 0.001 is less than what bfloat16 rounds away: that is taken out."""
    model, layers = network()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    copies = Copies(layers, getattr(torch, dtype), 0)
    moved(model, by)
    expected = network_distance(before, model).drt
    found = copies.look(10)
    assert found.drt == pytest.approx(expected, rel=0.1 if dtype == "bfloat16" else 1e-5)
    assert found.steps == 10


def test_copies_of_bfloat16_weights_are_exact():
    model, layers = network(torch.bfloat16)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    copies = Copies(layers, torch.bfloat16, 0)
    moved(model, 0.02)
    assert copies.look(1).drt == pytest.approx(network_distance(before, model).drt, rel=1e-9)


def test_what_changed_is_counted_since_the_last_look():
    model, layers = network()
    copies = Copies(layers, torch.float32, 0)
    with torch.no_grad():
        model[0].weight[0, :7] += 1.0
    numbers = {layer.name: layer.number for layer in layers}
    first = copies.look(5)
    assert first.unchanged[numbers["0.weight"]] == 40 * 60 - 7
    assert first.unchanged[numbers["2.weight"]] == 60 * 30
    second = copies.look(8)
    assert second.steps == 3 and second.unchanged[numbers["0.weight"]] == 40 * 60
    assert second.drt == first.drt > 0


def test_the_start_can_be_read_from_disk(tmp_path):
    model = gpt2()
    model.save_pretrained(tmp_path)
    disk = OnDisk(tmp_path, model)
    assert disk.look(0).drt == 0
    moved(model, 0.1)
    found = disk.look(7)
    assert found.drt == network_distance(tmp_path, model).drt > 0.1
    assert found.unchanged is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("disk", "bfloat16", None), "'memory'"),
        (("memory", "int8", None), "'float32' (8 bytes)"),
        (("memory", "float32", "folder"), "Leave one out"),
    ],
)
def test_what_is_no_way_to_take_snapshots_is_refused(given, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(").replace(")", r"\)")):
        check(*given)


def test_a_start_that_is_not_there_is_refused_at_once(tmp_path):
    model, layers = network()
    with pytest.raises(ConfigError, match="Pass model="):
        taken(None, "bfloat16", tmp_path, layers, None, 0)
    with pytest.raises(FormatError, match="does not exist"):
        taken(None, "bfloat16", tmp_path / "none", layers, model, 0)
