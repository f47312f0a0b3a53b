"""The table of a distance: totals, layers in order or by size, and what is left out."""

from __future__ import annotations

import math

import pytest
import torch

from hf_relopt import network_distance
from hf_relopt.distance.table import apart_by_reason, rows, summary, trust
from tests.distance.nets import gpt2, moved


def of_gpt2(**options):
    model = gpt2()
    return network_distance(model, moved(model), **options)


def test_totals_come_first_then_layers_then_what_is_left_out():
    found = of_gpt2(norm="both")
    text = found.to_markdown()
    kinds, text_of_layers = text.split("| layer |")
    assert "| transformer.h.*.mlp.c_fc.weight | 2 |" in kinds
    assert f"- deep relative trust: {found.drt:.4g}" in text
    assert f"- in operator norms: {found.spectral_drt:.4g}" in text
    places = [text_of_layers.index(f"| {layer.name} |") for layer in found.layers]
    assert places == sorted(places)
    assert text_of_layers.index("Left out of the totals") > places[-1]


def test_top_shows_the_layers_that_moved_most():
    found = of_gpt2()
    _, cells = rows(found, 3)
    largest = sorted(found.layers, key=lambda layer: -layer.relative_update)[:3]
    assert [row[0] for row in cells] == [layer.name for layer in largest]
    assert f"The 3 of {len(found.layers)} that moved most." in found.to_markdown(top=3)


def test_columns_of_operator_norms_only_where_they_were_measured():
    assert "stable rank" in rows(of_gpt2(norm="both"), None)[0]
    assert "stable rank" not in rows(of_gpt2(), None)[0]


def test_gradients_that_were_measured_have_a_column():
    tokens = torch.arange(16).view(2, 8)
    found = of_gpt2(batch={"input_ids": tokens, "labels": tokens}, gradients=True)
    head, cells = rows(found, None)
    assert head[-1] == "gradient change"
    changes = found.measured.gradient_change
    assert [row[-1] for row in cells] == [f"{changes[x.name]:.4g}" for x in found.layers]


def test_many_tensors_with_one_reason_are_counted():
    before = {f"b{n}": torch.zeros(2) for n in range(9)} | {"w": torch.ones(2, 2)}
    found = network_distance(before, before)
    assert apart_by_reason(found) == [("zero before (9 tensors)", "b0, b1, b2, b3 and 5 more")]


@pytest.mark.parametrize(
    ("drt", "log", "words"),
    [(0.0, 0.0, "0"), (1.2345678, 0.8, "1.235"), (math.inf, 12345.6, "e^12,346")],
)
def test_trust_in_words(drt, log, words):
    assert trust(drt, log) == words


def test_a_scalar_has_the_shape_one():
    found = network_distance({"s": torch.tensor(2.0)}, {"s": torch.tensor(3.0)})
    assert rows(found, None)[1][0][1] == "1"
    assert dict(summary(found))["weight matrices (depth)"] == "0"
