"""Tables from files and folders: two splits, columns as they stand, no more rows than asked for."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, DatasetDict
from recipe import TableSource
from text_tables import limit, load_hub_splits, load_tables, text_columns

from hf_relopt.errors import ConfigError
from tests.recipes.recipe_calls import write_rows


def test_a_share_is_split_off_by_the_seed(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [{"text": f"t {n}", "label": n} for n in range(40)])
    source = TableSource(train_file=str(path), validation_share=0.1)
    first, again, other = (load_tables(source, seed) for seed in (1, 1, 2))
    assert (len(first["train"]), len(first["validation"])) == (36, 4)
    assert first["validation"].to_list() == again["validation"].to_list()
    assert first["validation"].to_list() != other["validation"].to_list()
    assert text_columns(first["train"]) == ["text"]


def test_one_row_cannot_be_split(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [{"text": "t"}])
    with pytest.raises(ConfigError, match="only one row"):
        load_tables(TableSource(train_file=str(path)), seed=0)


def test_validation_comes_before_test_in_a_data_set(tmp_path):
    for split in ("train", "test", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split}))
    found = load_hub_splits(str(tmp_path), None)
    assert {name: table["text"][0] for name, table in found.items()} == {
        "train": "train", "validation": "validation",
    }  # fmt: skip


def test_a_data_set_needs_a_split_to_train_on(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "a"}))
    with pytest.raises(ConfigError, match="has no split train; it has test"):
        load_hub_splits(str(tmp_path), None)


@pytest.mark.parametrize(
    ("most", "rows"), [(None, list(range(10))), (99, list(range(10))), (4, [0, 2, 5, 7]), (1, [0])]
)
def test_a_limit_takes_rows_from_the_whole_table(most, rows):
    table = Dataset.from_dict({"row": list(range(10))})
    splits = DatasetDict(train=table, validation=table)
    limit(splits, most, 2)
    assert list(splits["train"]["row"]) == rows and list(splits["validation"]["row"]) == [0, 5]
