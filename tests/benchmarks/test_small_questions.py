"""small_questions.py writes questions whose answers are spans, and no paragraph twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import Formatter

import pytest

from tests.benchmarks.scripts import start


def paragraphs(load, count: int, seed: int) -> list[dict]:
    return load("small_questions").squad_file(count, seed)["data"][0]["paragraphs"]


def places(text: str) -> set[str]:
    return {place for _, place, _, _ in Formatter().parse(text) if place}


@pytest.mark.parametrize("count", [1, 7, 300])
def test_every_answer_stands_where_the_file_says(load, count: int) -> None:
    found = paragraphs(load, count, seed=0)
    questions = [(part["context"], each) for part in found for each in part["qas"]]
    assert len(questions) == count == len({each["id"] for _, each in questions})
    for context, each in questions:
        (answer,) = each["answers"]
        begin, text = answer["answer_start"], answer["text"]
        assert text and context[begin : begin + len(text)] == text
        assert text not in each["question"] and each["question"].endswith("?")


def test_no_paragraph_comes_twice_in_a_file_or_in_those_of_two_seeds(load) -> None:
    train, valid = (
        [part["context"] for part in paragraphs(load, count, seed)]
        for seed, count in enumerate((2000, 400))  # as evidence_squad.py reads them
    )
    assert len(set(train)) == len(train) and len(set(valid)) == len(valid)
    assert not set(train) & set(valid)


def test_a_seed_gives_the_same_file_every_time(
    load, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    script = load("small_questions")
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        out = ["--out", tmp_path / name, "--count", 40, "--seed", seed]
        start(monkeypatch, script, *out)
        assert "40 questions" in capsys.readouterr().out
    first, again, other = ((tmp_path / name).read_text(encoding="utf-8") for name in "abc")
    assert first == again != other
    assert json.loads(first) == script.squad_file(40, 3)


def test_a_file_without_questions_is_refused(
    load, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        start(monkeypatch, load("small_questions"), "--out", tmp_path / "a", "--count", 0)
    assert "--count is 0" in capsys.readouterr().err


def test_facts_of_one_kind_are_said_alike_of_different_words(load) -> None:
    script = load("small_questions")
    said = [pattern for kind in script._KINDS for pattern in kind.patterns]
    forms = [re.sub(r"\\{\w+\\}", "(.+?)", re.escape(pattern)) for pattern in said]
    for part in paragraphs(load, 100, seed=0):
        counts = [len(re.findall(form, part["context"])) for form in forms]
        assert sorted(count for count in counts if count >= 2) == [2, 3]
        # A name that stands twice would be two answers.
        for each in part["qas"]:
            word = re.escape(each["answers"][0]["text"])
            assert len(re.findall(rf"\b{word}\b", part["context"])) == 1


def test_patterns_and_questions_name_the_same_places(load) -> None:
    script = load("small_questions")
    for kind in script._KINDS:
        (known,) = {frozenset(places(pattern)) for pattern in kind.patterns}
        assert {name.rstrip("2") for name in known} <= {"person", *script._WORDS}
        for asked, question in kind.questions:
            assert places(question) <= known - {asked} and asked in known
        assert {asked for asked, _ in kind.questions} == known
    for words in script._WORDS.values():
        assert len(set(words)) == len(words)


def test_nothing_with_a_vowel_follows_the_article_a(load) -> None:
    for part in paragraphs(load, 1000, seed=0):
        text = " ".join([part["context"], *(each["question"] for each in part["qas"])])
        assert not re.search(r"\b[Aa] [aeio]", text), text
