"""DeepSpeed's own JSON is known, and judged as training would judge it."""

from __future__ import annotations

import json

import pytest

from tests.cli.doctor_calls import facts, fails

pytestmark = pytest.mark.usefixtures("no_launcher")


def test_deepspeed_s_own_file_decides(written, tmp_path, capsys):
    file = tmp_path / "ds.json"
    given = {"distributed_type": "DEEPSPEED", "num_processes": 2}
    path = written(**given, deepspeed_config={"deepspeed_config_file": str(file)})
    assert "deepspeed_config_file" in fails(capsys, accelerate=path)
    file.write_text("[]")
    assert "not a DeepSpeed configuration" in fails(capsys, accelerate=path)
    file.write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    found = facts(path)
    assert found["verdict"] == "exact" and any("stage 0" in note for note in found["notes"])
    file.write_text(json.dumps({"optimizer": {"type": "AdamW"}}))
    assert "AdamW" in facts(path)["reason"]


@pytest.mark.parametrize(
    ("config", "verdict", "words"),
    [
        ({"zero_optimization": {"stage": 3}}, "refused", "ZeRO stage 3"),
        ({"zero_optimization": {"stage": "2"}, "bf16": {"enabled": True}}, "refused", "stage 2"),
        ({"zero_optimization": True, "train_batch_size": 8}, "refused", "stage 1"),
        ({"optimizer": {"type": "AdamW"}, "fp16": {"enabled": "auto"}}, "refused", "AdamW"),
        ({"zero_optimization": {"stage": 0}}, "exact", None),
        ({"train_micro_batch_size_per_gpu": "auto"}, "exact", None),
    ],
)
def test_deepspeed_s_own_file_is_known(config, verdict, words, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    found = facts(str(path))
    assert (found["verdict"], found["launch"]["mode"]) == (verdict, "DeepSpeed")
    assert words is None or words in found["reason"]
    assert any("--processes" in note for note in found["notes"])
    mixed = "bf16" if "bf16" in config else "fp16" if "fp16" in config else "no"
    assert found["launch"]["mixed_precision"] == mixed
    assert facts(str(path), processes=4)["launch"]["processes"] == 4


def test_a_deepspeed_stage_that_is_no_number(tmp_path, capsys):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": "auto"}}))
    assert "stage 'auto'; it takes a whole number" in fails(capsys, accelerate=str(path))
