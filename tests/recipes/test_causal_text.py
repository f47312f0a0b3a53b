"""Where text comes from, how it is split, and how it becomes blocks."""

from __future__ import annotations

import json

import pytest
from causal_text import (
    END_OF_TEXT,
    PIECE,
    collate_blocks,
    goes_to_validation,
    learn_tokenizer,
    load_documents,
    make_blocks,
    standard_library_files,
)
from datasets import Dataset, DatasetDict
from pretrain_clm import TextSource

from hf_relopt.errors import ConfigError


@pytest.fixture(scope="module")
def library():
    return load_documents(TextSource())


def joined(split) -> str:
    return "".join(split["text"])


def test_standard_library_is_real_text_split_by_file(library):
    root, files = standard_library_files()
    expected = {"train": 0, "validation": 0}
    for path in files:
        name = path.relative_to(root).as_posix()
        split = "validation" if goes_to_validation(name, 0.05) else "train"
        expected[split] += len(path.read_bytes().decode("utf-8", errors="replace"))
    assert {name: len(joined(split)) for name, split in library.items()} == expected
    assert 0.01 < expected["validation"] / expected["train"] < 0.15
    # One end per file, however many pieces it has.
    assert sum(map(sum, (split["ends"] for split in library.values()))) == len(files)


def test_split_depends_on_the_name_only():
    assert [goes_to_validation(f"a/{n}.py", 0.05) for n in range(3)] == [
        goes_to_validation(f"a/{n}.py", 0.05) for n in range(3)
    ]
    share = sum(goes_to_validation(f"{n}.py", 0.05) for n in range(20_000)) / 20_000
    assert share == pytest.approx(0.05, abs=0.005)


def test_pieces_end_with_a_line_and_lose_nothing(tmp_path):
    text = "".join(f"line {n}\r\n" for n in range(9_000)) + "no newline at the end"
    (tmp_path / "long.txt").write_bytes(text.encode())
    splits = load_documents(TextSource(train_file=str(tmp_path / "long.txt")))
    pieces = [*splits["train"]["text"], *splits["validation"]["text"]]
    assert "".join(pieces) == text
    assert all(piece.endswith("\n") for piece in pieces[:-1])
    assert max(map(len, pieces)) < PIECE + 100
    assert [*splits["train"]["ends"], *splits["validation"]["ends"]] == [False] * (
        len(pieces) - 1
    ) + [True]


@pytest.mark.parametrize("column", ["text", "body"])
def test_table_of_texts(column, tmp_path):
    rows = [{"title": 1, column: f"text {n}"} for n in range(40)] + [{"title": 2, column: None}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    splits = load_documents(TextSource(train_file=str(path)))
    assert len(splits["train"]) == 38 and len(splits["validation"]) == 2
    assert splits["validation"]["text"][1] == "text 39"
    assert all(splits["train"]["ends"])


def test_column_must_be_named_where_there_are_several(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"title": "t", "body": f"b {n}"}) for n in range(40)))
    with pytest.raises(ConfigError, match="title, body"):
        load_documents(TextSource(train_file=str(path)))
    splits = load_documents(TextSource(train_file=str(path), text_column="body"))
    assert splits["validation"]["text"][1] == "b 39"


def test_data_set_in_a_directory_as_on_the_hub(tmp_path):
    for split, rows in (("train", 30), ("test", 5)):
        lines = (json.dumps({"text": f"{split} {n}"}) for n in range(rows))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    splits = load_documents(TextSource(dataset_name=str(tmp_path)))
    assert (len(splits["train"]), len(splits["validation"])) == (30, 5)
    assert splits["validation"]["text"][0] == "test 0"


def test_directory_of_many_files_is_split_by_file(tmp_path):
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(f"file {number}\n")
    splits = load_documents(TextSource(train_file=str(tmp_path)))
    held_out = {f"file {n}\n" for n in range(60) if goes_to_validation(f"{n}.txt", 0.05)}
    assert set(splits["validation"]["text"]) == held_out
    assert len(splits["train"]) == 60 - len(held_out)


def test_tokenizer_gives_back_every_character(library):
    tokenizer = learn_tokenizer(library["train"].select(range(40)), 400)
    assert len(tokenizer) == 400
    for text in ("def f(x):\n\treturn  x\r\n", "naïve 中文 🙂", library["validation"]["text"][0]):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    # The text of the end token itself, inside a document, is the one exception.
    assert tokenizer.eos_token == END_OF_TEXT


def test_blocks_are_the_documents_in_a_row():
    documents = Dataset.from_dict(
        {"text": ["abcd", "ef", "ghi", "j" * 5], "ends": [False, True, True, True]}
    )
    tokenizer = learn_tokenizer(documents, 257)
    blocks = make_blocks(DatasetDict(train=documents), tokenizer, 4)["train"]
    text = tokenizer.decode([token for row in blocks["input_ids"] for token in row])
    whole = f"abcdef{END_OF_TEXT}ghi{END_OF_TEXT}jjjjj{END_OF_TEXT}"
    assert whole.startswith(text)
    assert all(len(row) == 4 for row in blocks["input_ids"])
    assert len(blocks) == 17 // 4


def test_every_token_but_the_first_is_a_label():
    batch = collate_blocks([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, 5, 6]]
