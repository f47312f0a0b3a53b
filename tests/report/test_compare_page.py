"""The page that compares runs."""

from __future__ import annotations

from hf_relopt.report.compare_page import compare_page, comparing_charts
from hf_relopt.report.run_files import read_run
from tests.report import written


def test_two_real_runs(trained):
    runs = [read_run(trained / name) for name in ("relopt", "adamw")]
    page = compare_page(runs)
    texts = ("relopt and adamw", "Settings that differ", "peak_lr", "Training loss", "wall time")
    for text in (*texts, "Validation loss", "No relative update was logged: adamw."):
        assert text in page, text
    charts = {chart.key: chart for chart in comparing_charts(runs, ["relopt", "adamw"])}
    assert [line.name for line in charts["loss"].lines] == ["relopt", "adamw"]
    # A run keeps its colour where another has no curve.
    assert [line.look for line in charts["eval_loss"].lines] == [0, 1]
    assert [line.name for line in charts["relative_update"].lines] == ["relopt"]


def test_runs_of_one_name_are_told_apart(tmp_path):
    for above in ("first", "second"):
        log = written.trainer_state([{"step": 1, "loss": 1.0}])
        written.write_json(tmp_path / above / "run" / "trainer_state.json", log)
    page = compare_page([read_run(tmp_path / above / "run") for above in ("first", "second")])
    assert "first/run" in page and "second/run" in page
    assert "No setting that two of the runs hold differs." in page


def test_loss_by_time_leaves_out_the_time_between_two_starts(tmp_path):
    layers = written.gpt2_layers()
    for name, later in (("a", 0), ("b", 9000)):
        lines = written.telemetry_of(4, layers)
        again = written.run_line(layers, step=4, time=written.START + later + 1)
        lines += [again, written.step_line(5, len(layers), time=written.START + later + 1.25)]
        written.write_telemetry(tmp_path / name, lines)
    runs = [read_run(tmp_path / name) for name in "ab"]
    (chart,) = [each for each in comparing_charts(runs, ["a", "b"]) if each.key == "loss_by_time"]
    for line in chart.lines:
        assert len(line.steps) == 5 and line.steps[-1] < 0.05 and chart.across == "minutes"


def test_a_fault_names_its_run(tmp_path, trained):
    written.write_telemetry(tmp_path / "cut", written.telemetry_of(4, written.gpt2_layers()))
    path = tmp_path / "cut" / "telemetry.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    page = compare_page([read_run(tmp_path / "cut"), read_run(trained / "adamw")])
    assert "cut: The last line of telemetry.jsonl is cut" in page


def test_names_are_escaped(tmp_path):
    names = ["<b>&", 'x"y']
    for name in names:
        log = written.trainer_state([{"step": 1, "loss": 1.0}])
        written.write_json(tmp_path / name / "trainer_state.json", log)
    page = compare_page([read_run(tmp_path / name) for name in names])
    assert "<b>&" not in page and 'x"y' not in page and "&lt;b&gt;&amp;" in page
