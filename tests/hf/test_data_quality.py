"""Perplexity and accuracy on files, against a direct computation."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hf_relopt.errors import ConfigError, FormatError
from hf_relopt.hf import data_quality
from hf_relopt.hf.data_quality import measured, quality_on
from tests.hf.compress_inputs import classifier, language_model, sentences, text, words


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    folder = language_model(tmp_path_factory.mktemp("gpt2"))
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = classifier(tmp_path_factory.mktemp("bert"))
    return AutoModelForSequenceClassification.from_pretrained(folder)


def of(model, file, tokenizer="own"):
    tokenizer = words() if tokenizer == "own" else tokenizer
    return quality_on(file, type(model).__name__, model.config, tokenizer)


def test_perplexity_is_that_of_windows_as_long_as_the_model_takes(gpt, tmp_path):
    file = text(tmp_path / "text.txt", 3 * 16 + 5)
    quality = of(gpt, file)
    assert (quality.metric, quality.on) == ("perplexity", "4 windows of 16 tokens")
    ids = torch.tensor([int(word[1:]) for word in file.read_text().split()])
    losses = []
    for begin in range(0, len(ids), 16):
        window = ids[begin : begin + 16]
        with torch.no_grad():
            chances = gpt(window[None]).logits[0].double().softmax(-1)
        losses += [-float(chances[n, window[n + 1]].log()) for n in range(len(window) - 1)]
    assert len(losses) == 3 * 15 + 4
    assert quality.of(gpt) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_of_a_long_text_the_first_windows_are_taken(gpt, tmp_path, monkeypatch):
    assert of(gpt, text(tmp_path / "a.txt", 64 * 16 + 40)).on == "64 windows of 16 tokens"
    # The one token that is left is not predicted.
    assert of(gpt, text(tmp_path / "b.txt", 17)).on == "1 windows of 16 tokens"
    monkeypatch.setattr(data_quality, "TOKENS", 4)
    assert of(gpt, text(tmp_path / "c.txt", 17)).on == "4 windows of 4 tokens"


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("pad", [True, False])
def test_accuracy_is_that_of_each_sentence(named, pad, bert, tmp_path, monkeypatch):
    file = sentences(tmp_path / "dev.tsv", named=named)
    tokenizer = words()
    if not pad:
        tokenizer.pad_token = None
    quality = of(bert, file, tokenizer)
    assert (quality.metric, quality.on) == ("accuracy", "21 sentences")
    assert len(quality.batches) == (2 if pad else 21)
    right = 0
    for n, line in enumerate(file.read_text().splitlines()[1:]):
        ids = tokenizer(line.split("\t")[1], return_tensors="pt")
        with torch.no_grad():
            right += int(bert(**ids).logits.argmax()) == n % 3
    assert 0 < right < 21 and quality.of(bert) == right / 21


def test_names_that_are_numbers_are_names_where_all_are(bert, tmp_path):
    bert.config.id2label, kept = {0: "1", 1: "2", 2: "3"}, bert.config.id2label
    file = sentences(tmp_path / "dev.tsv", 3)
    # 0 is no name: these are numbers.
    assert of(bert, file).labels[0].tolist() == [0, 1, 2]
    file.write_text("sentence\tlabel\n4 4\t3\n4 4\t1\n")
    assert of(bert, file).labels[0].tolist() == [2, 0]
    bert.config.id2label = kept


@pytest.mark.parametrize(
    ("content", "fault", "message"),
    [
        ("sentence,label\n1,1\n", ConfigError, "does not name these columns"),
        ("", ConfigError, "does not name these columns"),
        ("sentence\tlabel\n", ConfigError, "has no row below its head"),
        ("sentence\tlabel\n1 2\tworse\n", ConfigError, "'worse'; this model has 0 to 2, or .* bad"),
        ("sentence\tlabel\n1 2\n", ConfigError, "has the label ''"),
        ("sentence\tlabel\n1 2\t3\n", ConfigError, "has the label '3'"),
        (b"\xff\xfe\x00", FormatError, "cannot be read: 'utf-8' codec"),
        ("sentence\tlabel\n" + "1" * (csv.field_size_limit() + 1) + "\t1", FormatError, "limit"),
    ],
)
def test_bad_files_for_a_classifier(content, fault, message, bert, tmp_path):
    file = tmp_path / "dev.tsv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(fault, match=message):
        of(bert, file)


def test_models_and_files_that_do_not_fit(gpt, bert, tmp_path):
    file = text(tmp_path / "text.txt", 1)
    with pytest.raises(ConfigError, match="has no two tokens"):
        of(gpt, file)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        of(gpt, file, None)
    with pytest.raises(FormatError, match="cannot be read"):
        of(gpt, tmp_path / "nowhere.txt")
    with pytest.raises(ConfigError, match=r"takes a text for a causal.*this is a BertModel"):
        quality_on(file, "BertModel", bert.config, words())
    regression = type(bert.config)(num_labels=1)
    with pytest.raises(ConfigError, match=r"1 label\(s\) of a regression"):
        quality_on(file, "BertForSequenceClassification", regression, words())
    file.write_text("w1 w2 w60")
    strange = words()
    strange.add_tokens(["w60"])
    with pytest.raises(FormatError, match="does not run on --data"):
        measured(of(gpt, file, strange), gpt, file)
