"""The head of a card is what the hub takes: names of models there, finite results, its words."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_relopt.errors import ConfigError
from hf_relopt.hf.card_facts import CardDetails, CardFacts
from hf_relopt.hf.card_metadata import check_card, license_of_base, metadata

MODEL = {"class": "GPT2LMHeadModel", "library": "transformers"}


def facts(folder="run", record=None, after=None, finished=True, **told):
    record = {"model": MODEL, **(record or {})}
    return CardFacts(Path(folder), record, [], {}, after or {}, finished, CardDetails(**told))


def test_results_are_finite_numbers_and_read_back_as_the_hub_reads_them():
    after = {"loss": 1.5, "accuracy": 0.5, "tokens": 16, "odd": float("nan"), "far": float("inf")}
    data = metadata(facts(after=after, dataset="some text", dataset_args="plain"))
    card = check_card(f"---\n{data.to_yaml()}\n---\n\n# a")
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "loss": 1.5,
        "accuracy": 0.5,
    }
    assert results["loss"].task_type == "text-generation"
    assert (results["loss"].dataset_name, results["loss"].dataset_type) == ("some text", "local")
    assert card.data.metrics == ["accuracy"] and card.data.pipeline_tag == "text-generation"


@pytest.mark.parametrize("base", ["/home/me/model", "./model", "a/b/c", "~/model", "a b"])
def test_a_base_that_is_no_name_on_the_hub_stays_out_of_the_head(base):
    assert metadata(facts(record={"base_model": base})).base_model is None


def test_a_base_on_the_hub_is_named_unless_it_was_a_folder(tmp_path, monkeypatch):
    record = {"base_model": "user/base", "base_is_local": False}
    assert metadata(facts(record=record)).base_model == "user/base"
    assert metadata(facts(record={**record, "base_is_local": True})).base_model is None
    assert metadata(facts(finetuned_from="user/other")).base_model == "user/other"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "base").mkdir(parents=True)
    assert metadata(facts(record={"base_model": "user/base"})).base_model is None


def test_the_license_is_the_given_one_or_the_base_s(tmp_path):
    ModelCard("---\nlicense: apache-2.0\n---\n").save(tmp_path / "README.md")
    based = {"base_model": str(tmp_path)}
    assert metadata(facts(record=based)).license == "apache-2.0"
    assert metadata(facts(record=based, license="mit")).license == "mit"
    assert license_of_base(facts()) is None
    assert license_of_base(facts(record={"base_model": "user/nowhere"})) is None
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    assert metadata(facts(record=based)).license is None


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"license": "Apache License 2.0"}, "license is 'Apache License 2.0'.*apache-2.0"),
        ({"language": "English"}, "language is 'English'.*as en"),
        ({"language": ["en", "x y"]}, "language is 'x y'"),
    ],
)
def test_what_the_hub_would_refuse_is_refused_here(told, words):
    with pytest.raises(ConfigError, match=words):
        metadata(facts(**told))


def test_tags_name_our_rules_and_an_unfinished_run():
    groups = [{"rule": "madam"}, {"rule": "adamw"}, {"rule": None}, "odd"]
    tags = metadata(facts(record={"optimizer": {"groups": groups}}, tags="mine")).tags
    assert tags == ["generated_from_trainer", "hf_relopt", "madam", "mine"]
    assert "unfinished" in metadata(facts(finished=False)).tags


def test_data_sets_that_are_none_of_the_hub_s_are_words_alone():
    data = metadata(facts(dataset_tags=["user/text", "/home/me/text.txt"]))
    assert data.datasets == ["user/text"]


def test_results_of_another_form_are_refused():
    with pytest.raises(ConfigError, match="metadata is not valid"):
        check_card("---\nmodel-index:\n- 3\n---\n")
