"""The heat map: its cells, its stretches where there are many, its names."""

from __future__ import annotations

import numpy as np
import pytest

from hf_relopt.report.heat_map import block_of, heat_map, shortened, stretches
from hf_relopt.report.telemetry_file import read_telemetry
from tests.report import written


def of(tmp_path, steps, layers, every=1):
    lines = written.telemetry_of(steps, layers, every)
    return read_telemetry(written.write_telemetry(tmp_path, lines))


def test_one_cell_per_layer_and_logged_step(tmp_path):
    layers = written.gpt2_layers()
    telemetry = of(tmp_path, 60, layers, 2)
    found = heat_map(telemetry)
    assert found.values.shape == (len(layers), 30) and found.note == ""
    np.testing.assert_array_equal(found.values, telemetry.tables["relative_update"].T)
    assert found.rows[2] == "h.0.attn.c_attn.weight" and found.blocks[2] == "h.0"
    assert found.spans[0] == (2, 2) and found.spans[-1] == (60, 60)


def test_many_steps_and_layers_are_shown_by_their_medians(tmp_path):
    telemetry = of(tmp_path, 250, written.numbered_layers(810))
    found = heat_map(telemetry)
    assert found.values.shape == (400, 60)
    assert found.values[0, 0] == pytest.approx(
        np.median(np.median(telemetry.tables["relative_update"][:4, :2], axis=0))
    )
    assert found.spans[0] == (1, 4) and found.spans[-1][1] == 250
    assert "250 logged steps are shown in 60 columns" in found.note
    assert "810 layers are shown in 400 rows" in found.note
    assert found.rows[0] == "0.part_0.weight to 0.part_1.weight (2 layers)"


def test_nothing_measured_is_no_map(tmp_path):
    layers = written.gpt2_layers()
    line = written.step_line(1, len(layers), relative_update=None)
    path = written.write_telemetry(tmp_path, [written.run_line(layers), line])
    assert heat_map(read_telemetry(path)) is None


def test_stretches_hold_each_place_once():
    for count, most in ((1, 5), (5, 5), (7, 3), (20_000, 80)):
        parts = stretches(count, most)
        assert [place for part in parts for place in part] == [*range(count)]
        assert len(parts) == min(count, most)
    assert stretches(0, 5) == []


def test_names_of_blocks():
    assert block_of("transformer.h.11.attn.c_attn.weight") == "h.11"
    assert block_of("model.layers.3.mlp.experts.5.up.weight") == "layers.3"
    assert block_of("lm_head.weight") == "lm_head" and block_of("weight") == "weight"
    assert shortened(["a.b.c", "a.b.d"]) == ["c", "d"] and shortened(["a.b"]) == ["a.b"]
    assert shortened(["a.b", "a"]) == ["a.b", "a"]
