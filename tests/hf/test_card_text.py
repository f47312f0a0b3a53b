"""The text of a card says what was recorded, and nothing that was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_relopt.hf.card_facts import CardDetails, CardFacts
from hf_relopt.hf.card_text import card_body, fenced, number, table

TRAINING = {
    "peak_lr": 0.01, "schedule": "linear", "warmup_steps": 5, "max_steps": 100, "steps": 40,
    "per_device_batch_size": 4, "gradient_accumulation_steps": 2, "sequences_per_step": 16,
    "seed": 1, "data_seed": 2, "precision": "float32",
}  # fmt: skip
RECORD = {
    "model": {"class": "GPT2LMHeadModel", "parameters": 1000, "trainable": 10,
              "library": "transformers"},
    "training": TRAINING,
    "optimizer": {"words": ["Madam"], "groups": [
        {"role": "matrix", "follows": "madam", "lr": 0.01, "tensors": 2, "parameters": 10}]},
    "launch": {"mode": "DDP", "processes": 2, "backend": "nccl"},
    "hardware": {"device": "NVIDIA H200", "count": 2, "cpu": "a CPU", "memory_gb": 150.1},
    "git": {"commit": "c0ffee", "dirty": True}, "base_model": None,
    "versions": {"python": "3.11", "hf_relopt": "0.1.0", "extra": "1"},
}  # fmt: skip


def body(record=RECORD, *, after=None, finished=True, notes=(), log=(), before=None, **told):
    facts = CardFacts(
        Path("run"), record, list(log), before or {}, after or {}, finished, CardDetails(**told),
        notes=tuple(notes),
    )  # fmt: skip
    return card_body(facts, curve=None, distance="")


def test_the_training_is_described_as_it_was():
    text = body()
    for row in (
        "optimizer | Madam",
        "schedule | linear, 5 steps of warm-up",
        "steps | 40 of 100, stopped early",
        "sequences per step | 16 (4 per device, 2 processes, 2 accumulated)",
        "parameters | 1,000, of which 10 are trained",
        "launch mode | DDP, 2 processes, nccl",
        "hardware | 2 x NVIDIA H200, 150.1 GB; CPU: a CPU",
        "seed | 1, of the data 2",
        "matrix | madam | 0.01 | 2 | 10",
        "Python | 3.11",
    ):
        assert f"| {row} |" in text
    assert "`c0ffee`, with changes that are not committed." in text
    assert "trained from scratch" in text


def test_an_unfinished_run_is_marked_at_the_top():
    text = body(finished=False)
    mark = "> **This is the card of an unfinished run** after 40 of 100 steps."
    assert mark in text and text.index(mark) < text.index("## ")
    assert "stopped early" not in text and "| steps | 40 of 100 |" in text
    assert "unfinished" not in body()
    assert "not recorded" in body(finished=None, log=[{"step": 1}])


def test_an_empty_record_makes_a_card_without_empty_sections():
    text = body({}, finished=None, notes=["There is no record."])
    assert "## What is missing\n\n- There is no record." in text
    for title in (
        "Results",
        "Training",
        "What each weight follows",
        "How to reproduce",
        "Versions",
    ):
        assert f"## {title}" not in text
    assert "None" not in text and "from scratch" not in text


@pytest.mark.parametrize("odd", [{"groups": 3, "words": "x"}, {"groups": [3, {"role": "a"}]}, 3])
def test_parts_of_another_form_stop_no_card(odd):
    assert body({**RECORD, "optimizer": odd, "git": [], "versions": {"a": 1}, "training": {}})


def test_metrics_that_are_not_finite_are_shown_and_explained():
    text = body(after={"loss": float("nan"), "accuracy": 0.5}, before={"loss": 3.0})
    assert "| loss | 3 | nan |" in text and "Not finite" in text and ": loss." in text


def test_the_best_weights_are_named():
    record = {**RECORD, "training": {**TRAINING, "best_step": 20}}
    assert "The weights are those of step 20, the best one." in body(record, after={"loss": 1.0})


def test_a_base_on_the_hub_is_linked_and_a_folder_is_not():
    record = {**RECORD, "base_model": "user/base", "base_is_local": False}
    assert "[user/base](https://huggingface.co/user/base)" in body(record)
    record = {**RECORD, "base_model": "/home/me/base", "base_is_local": True}
    assert "fine-tuned from `base`." in body(record) and "/home/me" not in body(record)
    record["model"] = {**RECORD["model"], "adapter": ["LORA"]}
    assert "An adapter (LORA) for `base`" in body(record)


def test_words_cannot_break_a_table_or_a_fence():
    assert table(("a",), [("x | y\nz",)]).splitlines()[-1] == "| x \\| y z |"
    assert fenced("```\na").startswith("````text\n") and table(("a",), []) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (1234, "1,234"), (0.12345, "0.1235"), (4205.94, "4,205.9"), (True, "True"),
     (float("nan"), "nan"), (float("inf"), "inf"), ("x", "x")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text
