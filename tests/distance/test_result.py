"""Distance as a record: what it says of itself survives JSON, and its totals are consistent."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch

from hf_relopt import network_distance
from hf_relopt.distance.result import LAYER_FIELDS
from tests.distance.nets import gpt2, moved


@pytest.fixture(scope="module")
def found():
    model = gpt2()
    return network_distance(model, moved(model), norm="both")


def test_to_dict_is_json_with_everything(found):
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["drt"] == found.drt and read["depth"] == found.depth == len(found.matrices)
    assert [tuple(layer) for layer in read["layers"]] == [LAYER_FIELDS] * len(found.layers)
    assert read["layers"][0]["shape"] == list(found.layers[0].shape)
    assert {entry["reason"] for entry in read["apart"]} == {
        "zero before", "tied to transformer.wte.weight",
    }  # fmt: skip
    assert {"log_drt", "drt_all", "spectral_drt", "largest_lr", "partial", "measured"} < set(read)


def test_to_csv_has_a_line_per_layer(found):
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["name"] for row in rows] == [layer.name for layer in found.layers]
    assert float(rows[3]["relative_update"]) == found.layers[3].relative_update
    assert rows[0]["shape"] == "48x16"


def test_vectors_are_in_the_second_total_only(found):
    vectors = [layer for layer in found.layers if not layer.is_matrix]
    assert vectors and found.drt_all > found.drt
    assert found.log_drt_all > found.log_drt


def test_without_matrices_there_is_no_depth():
    found = network_distance({"b": torch.ones(2)}, {"b": torch.ones(2)})
    assert (found.depth, found.drt, found.largest_lr) == (0, 0.0, None)
    assert "descent lemma" not in found.to_markdown()
