"""Which metric of a run is shown where."""

from __future__ import annotations

import numpy as np
import pytest

from hf_relopt.report.run_charts import (
    learning_charts,
    metric_names,
    norm_ratios,
    speed_charts,
    step_charts,
    weight_charts,
)
from hf_relopt.report.run_files import read_run
from tests.report import written


def by_key(charts):
    return {chart.key: chart for chart in charts}


def test_learning(whole_run):
    charts = by_key(learning_charts(read_run(whole_run)))
    assert list(charts) == ["loss", "learning_rate", "validation_accuracy", "grad_norm"]
    assert [line.name for line in charts["loss"].lines] == ["training", "validation"]
    assert charts["loss"].lines[1].steps.tolist() == [0, 20, 40, 60]


def test_steps_and_weights(whole_run):
    run = read_run(whole_run)
    steps, weights = by_key(step_charts(run)), by_key(weight_charts(run))
    assert list(steps) == ["relative_update", "relative_update_by_role", "step_distance"]
    names = [line.name for line in steps["relative_update"].lines]
    assert names == ["all weights together", "median layer", "learning rate"]
    roles = [line.name for line in steps["relative_update_by_role"].lines]
    assert roles == ["matrix", "embedding", "vector"]
    assert list(weights) == ["norms", "at_bound_by_role", "changed_entries"]
    assert [line.name for line in weights["norms"].lines] == ["embedding", "matrix", "vector"]
    assert weights["norms"].lines[0].values[0] == 1
    shares = {line.name: line.values[-1] for line in weights["at_bound_by_role"].lines}
    assert shares == pytest.approx({"all": 10, "matrix": 2, "embedding": 10})


def test_roles_come_from_the_layers_where_the_log_has_none(tmp_path):
    layers = written.gpt2_layers()
    lines = written.telemetry_of(6, layers)
    for line in lines[1:]:
        line["metrics"] = {}
    run = read_run(written.write_telemetry(tmp_path, lines).parent)
    chart = by_key(step_charts(run))["relative_update_by_role"]
    assert [line.name for line in chart.lines] == ["embedding", "matrix", "vector"]
    assert chart.lines[0].values == pytest.approx(
        np.median([line["relative_update"][:2] for line in lines[1:]], axis=1), rel=1e-5
    )
    assert "at_bound_by_role" in by_key(weight_charts(run))


def test_a_stock_trainer_has_no_steps_and_no_weights(trained):
    run = read_run(trained / "adamw")
    assert by_key(learning_charts(run)).keys() == {"loss", "learning_rate", "grad_norm"}
    assert step_charts(run) == [] and weight_charts(run) == [] and speed_charts(run) == []


def test_distance_and_skipped_tensors_where_they_are_known(tmp_path):
    log = [{"step": 1, "loss": 1.0, "drt_since_start": 0.1, "unchanged_by_rounding": 0.2}]
    log[0]["skipped_tensors"] = 0.0
    written.write_json(tmp_path / "trainer_state.json", written.trainer_state(log))
    assert by_key(weight_charts(read_run(tmp_path))).keys() == {"distance", "changed_entries"}
    log[0]["skipped_tensors"] = 2.0
    written.write_json(tmp_path / "trainer_state.json", written.trainer_state(log))
    assert "skipped_tensors" in by_key(weight_charts(read_run(tmp_path)))


def test_speed(whole_run, tmp_path):
    (chart,) = speed_charts(read_run(whole_run))
    assert chart.unit == "sequences per second"
    assert chart.lines[0].values[1:] == pytest.approx(64)
    log = [{"step": step, "loss": 1.0, "seconds": step / 5} for step in (1, 2, 4)]
    written.write_json(tmp_path / "trainer_state.json", written.trainer_state(log))
    (chart,) = speed_charts(read_run(tmp_path))
    assert chart.lines[0].values == pytest.approx([5, 5]) and chart.unit == "steps per second"


def test_norms_are_over_the_initial_ones_or_the_first_that_are_known():
    table = np.array([[np.nan, 0, 2], [4, 1, 3], [6, 2, 1]], dtype=np.float32)
    expected = [[np.nan, np.nan, 1], [1, np.nan, 1.5], [1.5, np.nan, 0.5]]
    unknown = np.full(3, np.nan, dtype=np.float32)
    np.testing.assert_allclose(norm_ratios(table, unknown), expected)
    initial = np.array([2, np.nan, 0], dtype=np.float32)
    expected = [[np.nan] * 3, [2, np.nan, np.nan], [3, np.nan, np.nan]]
    np.testing.assert_allclose(norm_ratios(table, initial), expected)


def test_counts_and_times_are_no_metrics(whole_run):
    assert metric_names(read_run(whole_run)) == ["eval_accuracy"]


def test_a_loss_that_spans_orders_is_logarithmic(tmp_path):
    log = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 1e12}, {"step": 3, "loss": 6.0}]
    written.write_json(tmp_path / "trainer_state.json", written.trainer_state(log))
    assert by_key(learning_charts(read_run(tmp_path)))["loss"].log


def test_several_validation_sets_have_a_curve_each(tmp_path):
    log = [{"step": 1, "loss": 5.0, "eval_a_loss": 1.0, "eval_b_loss": 2.0, "eval_a/x": 0.5}]
    written.write_json(tmp_path / "trainer_state.json", written.trainer_state(log))
    charts = by_key(learning_charts(read_run(tmp_path)))
    assert [line.name for line in charts["loss"].lines] == ["training", "a", "b"]
    assert "validation_a_x" in charts
