"""The report of one run: what it says, and that it says what is missing."""

from __future__ import annotations

import json
import math
import os

import pytest

from hf_relopt.report.chart import Chart
from hf_relopt.report.run_files import read_run
from hf_relopt.report.run_page import figures, missing, plan_table, rowed, run_page
from tests.report import written
from tests.report.test_markup import Seen

# All elements that a page of ours has.
WORDS = """html head meta link title style body main header footer section p h1 h2 h3 dl dt dd div
    ul li small b code pre figure figcaption details summary table thead tbody tr th td span script
    svg g line path rect circle text"""
KINDS = set(WORDS.split())


def test_everything_of_a_whole_run_is_there(whole_run):
    page = run_page(read_run(whole_run))
    texts = [
        "whole", "fromage_spectral · GPT2LMHeadModel, gpt2", "Warnings of the run", "finished",
        "82 % of entries did not change", "Relative update by layer", "Share at the bound",
        "Norm of the weights", "Throughput", "single process", "torch 2.13.0", "python train.py",
        "331,776", "18 layers in network order",
    ]  # fmt: skip
    assert [text for text in texts if text not in page] == []
    assert "What is missing" not in page


def test_a_stock_trainers_page_says_how_to_get_the_rest(trained):
    page = run_page(read_run(trained / "adamw"))
    assert "There is no telemetry.jsonl" in page and "hf-relopt run --telemetry" in page
    assert "There is no relopt_run.json" in page and 'id="loss"' in page
    assert 'id="relative_update' not in page


def test_of_another_optimizer_the_page_does_not_promise_what_nobody_measures(tmp_path):
    log = written.trainer_state([{"step": 1, "loss": 1.0}])
    written.write_json(tmp_path / "trainer_state.json", log)
    for name, told in (("adamw_torch", False), ("madam", True)):
        written.write_json(tmp_path / "run.json", {"recipe": {"optim": name}})
        page = run_page(read_run(tmp_path))
        assert ("add RelOptCallback" in page) == told
        assert (f"{name} is no optimizer of hf_relopt" in page) != told


def test_a_distance_that_was_not_measured_is_said_where_it_would_stand(whole_run):
    words = "The distance from the initial network was not measured"
    assert words in run_page(read_run(whole_run))
    lines = written.telemetry_of(4, written.gpt2_layers())
    for line in lines[1:]:
        line["metrics"]["drt_since_start"] = line["step"] / 10
    written.write_telemetry(whole_run, lines)
    page = run_page(read_run(whole_run))
    assert words not in page and 'id="distance"' in page


def test_relopt_trainers_page_shows_its_steps(trained):
    page = run_page(read_run(trained / "relopt"))
    for key in ("relative_update", "relative_update_by_layer", "at_bound_by_role", "norms"):
        assert f'id="{key}"' in page, key
    assert "There is no telemetry.jsonl" not in page


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a & b", 'x" onload="y', "</style>"])
def test_text_of_any_file_is_escaped(tmp_path, text):
    folder = tmp_path / text.replace("/", "|")
    layer = {"name": text, "role": text, "shape": [2], "follows": text}
    step = written.step_line(1, 1, metrics={f"at_bound/{text}": 0.1, "at_bound": 0.1})
    lines = [written.run_line([layer], optimizer=text), step, written.warning_line(1, text)]
    written.write_telemetry(folder, lines)
    record = written.record(command=text, versions={text: text}, base_model=text)
    record["optimizer"]["groups"] = [{"role": text, "follows": text, "lr": text}]
    written.write_json(folder / "relopt_run.json", record)
    log = [{"step": 1, f"eval_{text}_loss": 1.0, f"eval_{text}": 0.5}]
    written.write_json(folder / "trainer_state.json", written.trainer_state(log))
    seen = Seen(run_page(read_run(folder)))
    assert seen.text.count(text) > 8
    kinds = {kind for kind, _ in seen.tags}
    assert kinds <= KINDS and [kind for kind, _ in seen.tags].count("style") == 1
    assert [a for kind, a in seen.tags if kind == "script" and "type" not in a] == [{}]
    assert not [name for _, given in seen.tags for name in given if name.startswith("on")]


def test_a_name_that_is_no_unicode(tmp_path):
    folder = tmp_path / os.fsdecode(b"run-\xff")
    written.write_json(
        folder / "trainer_state.json", written.trainer_state([{"step": 1, "loss": 1.0}])
    )
    run_page(read_run(folder)).encode()


def test_nothing_logged_yet(tmp_path):
    written.write_json(tmp_path / "relopt_run.json", written.record(finished=False))
    page = run_page(read_run(tmp_path))
    assert "Nothing was logged yet" in page and "not finished" in page and "<figure" not in page


def test_telemetry_before_its_first_step_and_without_layers(tmp_path):
    written.write_telemetry(tmp_path, [written.run_line(written.gpt2_layers())])
    assert any("no logged step yet" in note for note in missing(read_run(tmp_path)))
    written.write_telemetry(tmp_path, [written.run_line([]), written.step_line(1, 0)])
    run = read_run(tmp_path)
    assert any("names no layers" in note for note in missing(run))
    assert 'class="cells' not in run_page(run)


def test_a_log_of_nan_alone(tmp_path):
    log = [{"step": step, "loss": math.nan, "grad_norm": math.inf} for step in (1, 2, 3)]
    written.write_json(tmp_path / "trainer_state.json", written.trainer_state(log))
    page = run_page(read_run(tmp_path))
    assert "3 of 3 values are not finite" in page and "NaN," not in page


def test_a_single_logged_step(tmp_path):
    written.write_telemetry(tmp_path, written.telemetry_of(1, written.gpt2_layers()))
    page = run_page(read_run(tmp_path))
    assert page.count('class="dot') >= 5 and 'id="relative_update_by_layer"' in page


def test_the_plan_comes_from_the_record_or_from_the_layers(whole_run, trained):
    assert "fromage, entry by entry" in plan_table(read_run(whole_run))
    (whole_run / "relopt_run.json").unlink()
    table = plan_table(read_run(whole_run))
    assert "108,288" in table and "fromage, spectral" in table
    assert plan_table(read_run(trained / "adamw")) is None


def test_the_largest_page_stays_small(tmp_path):
    """20,000 logged steps of 300 layers; the file is made short by giving few digits."""
    layers, count = written.numbered_layers(300), 20_000
    few = {"norm": None, "changed": None, "at_bound": None, "step": "STEP"}
    few["relative_update"] = [round(0.01 + layer / 1e5, 5) for layer in range(300)]
    short = [json.dumps({**written.step_line(step, 300), **few}) for step in range(50)]
    with open(tmp_path / "telemetry.jsonl", "w") as file:
        file.write(json.dumps(written.run_line(layers)) + "\n")
        for step in range(1, count + 1):
            file.write(short[step % 50].replace('"STEP"', str(step)) + "\n")
    run = read_run(tmp_path)
    page = run_page(run)
    assert len(page.encode()) < 5e6
    assert "20,000 logged steps are shown in 80 columns" in page
    assert "Of 20,000 logged values the smallest and the largest" in page


def test_a_chart_alone_in_its_row_takes_all_of_it(whole_run):
    def chart(key, wide=False):
        return Chart(key, key, [], wide=wide)

    drawn = rowed([chart("a"), chart("b"), chart("c"), chart("d", wide=True), chart("e")])
    assert [each.wide for each in drawn] == [False, False, True, True, True]
    assert rowed([]) == [] and not rowed([chart("a"), chart("b")])[1].wide
    keys = [each.key for _, part in figures(read_run(whole_run)) for each in part]
    assert len(set(keys)) == len(keys)
