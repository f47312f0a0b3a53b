"""The recipes: their folder, their names, and the file of each name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_relopt import shipped
from hf_relopt.cli.recipe_files import (
    find_recipe,
    recipe_names,
    recipes_folder,
    task_names,
)
from hf_relopt.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"


def test_in_a_clone_the_folder_is_the_clone_s():
    assert recipes_folder() == RECIPES


def test_the_folder_in_the_package_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "pkg")
    with pytest.raises(ConfigError, match="no recipes in"):
        recipes_folder()
    (tmp_path / "recipes" / "accelerate").mkdir(parents=True)
    assert recipes_folder() == tmp_path / "recipes"
    (tmp_path / "pkg" / "recipes" / "accelerate").mkdir(parents=True)
    assert recipes_folder() == tmp_path / "pkg" / "recipes"


@pytest.mark.parametrize("task", task_names())
def test_a_task_alone_means_what_did_best(task):
    best = "madam" if task.endswith("lora") else "fromage_spectral"
    assert find_recipe(task) == find_recipe(f"{task}/{best}")


@pytest.mark.parametrize("name", recipe_names())
def test_each_learning_rate_has_a_record_behind_it_or_says_that_it_has_none(name):
    file = find_recipe(name).arguments.read_text()
    above = file.partition("\nlearning_rate:")[0].splitlines()
    comment = []
    while above[-1].startswith("#"):
        comment.insert(0, above.pop().lstrip("# "))
    words = " ".join(comment)
    records = re.findall(r"benchmarks/results/[\w.]+", words)
    assert all((ROOT / record).is_file() for record in records), records
    assert records or "No record" in words, words


def test_the_chosen_one_is_listed_first_then_ours_then_others(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path)
    (tmp_path / "recipes" / "accelerate").mkdir(parents=True)
    (tmp_path / "recipes" / "sft-x").mkdir()
    for name in ("zeta", "adamw", "madam", "fromage", "fromage_spectral"):
        (tmp_path / "recipes" / "sft-x" / f"{name}.yaml").write_text("seed: 1\n")
    listed = [name.partition("/")[2] for name in recipe_names()]
    assert listed == ["fromage_spectral", "fromage", "madam", "adamw", "zeta"]
