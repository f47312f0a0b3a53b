"""The distance from the base model, where that lies on this machine; else how to add it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_relopt.distance.compare import network_distance
from hf_relopt.hf import card_distance
from hf_relopt.hf.card_facts import CardDetails, facts_of_folder
from hf_relopt.hf.run_files import read_run
from tests.hf.tiny import gpt2


@pytest.fixture
def facts(told_run):
    return facts_of_folder(read_run(told_run), CardDetails())


def test_the_section_has_the_numbers_of_the_distance(facts, told_run):
    section = card_distance.of_folder(facts, online=False)
    found = network_distance(told_run.parent / "base", told_run)
    assert section.note is None
    assert f"- deep relative trust: {found.drt:.4g}\n" in section.text
    most = max(found.layers, key=lambda layer: layer.relative_update)
    assert f"| {most.name} | " in section.text and f"| {most.relative_update:.4g} |" in section.text
    assert str(told_run.parent) not in section.text


def test_a_model_in_memory_has_the_distance_of_its_files(facts, told_run):
    model = type(gpt2()).from_pretrained(told_run)
    text = card_distance.of_model(facts, model).text
    assert text == card_distance.of_folder(facts, online=False).text


def test_new_weights_and_who_wants_none_have_no_section(facts):
    scratch = replace(facts, record={**facts.record, "base_model": None})
    for each in (scratch, replace(facts, told=CardDetails(with_distance=False))):
        assert card_distance.of_folder(each, online=False) == card_distance.Section()
        assert card_distance.of_model(each, gpt2()) == card_distance.Section()


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("user/nowhere", "neither a folder here nor in the hub's cache"),
        ("/nowhere/else", "neither a folder here nor in the hub's cache"),
        ("a name", "neither a folder here nor in the hub's cache"),
    ],
)
def test_a_base_that_is_not_here_is_one_note_with_the_command(base, words, facts):
    lost = replace(facts, record={**facts.record, "base_model": base, "base_is_local": False})
    section = card_distance.of_folder(lost, online=False)
    assert section.text == "" and words in section.note and "--base" in section.note
    assert "\n" not in section.note and "/nowhere/" not in section.note


def test_another_network_is_one_note(facts, tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"other": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    other = replace(facts, told=CardDetails(finetuned_from=str(tmp_path)))
    section = card_distance.of_folder(other, online=True)
    assert section.text == "" and "is not measured" in section.note
    assert str(tmp_path) not in section.note


def test_a_truncated_file_of_weights_is_one_note(told):
    weights = told / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    facts = facts_of_folder(read_run(told), CardDetails())
    section = card_distance.of_folder(facts, online=False)
    assert section.text == "" and "cannot be read" in section.note
    assert str(told) not in section.note


def test_a_folder_without_weights_says_how_to_save_them(facts):
    section = card_distance.of_folder(replace(facts, weights=None), online=False)
    assert "trainer.save_model()" in section.note


def test_a_large_model_is_left_for_the_command(facts, monkeypatch):
    monkeypatch.setattr(card_distance, "LARGEST_AT_ONCE", 10)
    section = card_distance.of_model(facts, gpt2())
    assert section.text == "" and "hf-relopt card" in section.note
