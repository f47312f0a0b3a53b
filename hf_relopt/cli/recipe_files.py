"""The recipes: their folder, their names, and the file of each name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hf_relopt.errors import ConfigError
from hf_relopt.plans.entries import OPTIMIZERS
from hf_relopt.shipped import ACCELERATE, PACKAGE, accelerate_files, find_recipes

# The one that is meant where a task alone is named: the one that did best from scratch and in full
# fine-tuning (benchmarks/results), also where nothing was measured ...
CHOSEN = "fromage_spectral"
# ... but another of ours where it did better: with LoRA on SST-2, Madam has the lowest validation
# loss of ours and the best accuracy, with Fromage (lora_sst2_cpu_202611.md; one seed).
CHOSEN_APART = {"sft-chat-qwen-lora": "madam"}
# Which script a recipe's arguments are for: by the task with which its folder's name begins.
SCRIPTS = {
    "pretrain-": "pretrain_clm.py",
    "continue-pretraining-": "pretrain_clm.py",
    "finetune-classifier-": "finetune_classifier.py",
    "finetune-squad-": "finetune_squad.py",
    "sft-": "sft_chat.py",
}
# Scripts that measure something by themselves: their flags are their own, none has files of them.
STUDIES = {"curvature": "curvature.py"}


@dataclass(frozen=True)
class Recipe:
    """A recipe for one training run: a script, and the file of its arguments."""

    name: str
    script: Path
    arguments: Path


def recipes_folder() -> Path:
    """The folder of the recipes: inside the installed package, or next to it in a clone.

    Raises:
        ConfigError: if neither is there.
    """
    folder = find_recipes()
    if folder is not None:
        return folder
    raise ConfigError(
        f"there are no recipes in {PACKAGE} or next to it. Install hf_relopt again, or work in a "
        "clone of its repository."
    )


def task_names() -> list[str]:
    """Names of the folders, each a task with a model."""
    return sorted(path.parent.name for path in recipes_folder().glob(f"*/{CHOSEN}.yaml"))


def chosen_recipe(task: str) -> str:
    """The default recipe of a task."""
    return f"{task}/{CHOSEN_APART.get(task, CHOSEN)}"


def recipe_names() -> list[str]:
    """Names of all runs, as in pretrain-gpt2-124m/fromage."""
    folder = recipes_folder()
    return [
        f"{task}/{optimizer}"
        for task in task_names()
        for optimizer in sorted(_siblings(folder / task), key=_place_in_lists)
    ]


def _siblings(task: Path) -> list[str]:
    """What a task is trained with: the names of its files."""
    return [path.stem for path in task.glob("*.yaml")]


def _place_in_lists(optimizer: str) -> tuple[bool, int, str]:
    """The chosen one first, then ours in the order of their entries, then others."""
    ours = list(OPTIMIZERS)
    place = ours.index(optimizer) if optimizer in ours else len(ours)
    return optimizer != CHOSEN, place, optimizer


def find_recipe(name: str) -> Recipe:
    """The recipe of this name; for a task, its default recipe.

    Raises:
        ConfigError: there is none; the message lists similar names.
    """
    wanted = name.strip("/")
    if wanted in task_names():
        wanted = chosen_recipe(wanted)
    names = recipe_names()
    if wanted not in names:
        raise ConfigError(_unknown("recipe", name, (*task_names(), *names, *STUDIES)))
    folder = recipes_folder()
    script = next(script for task, script in SCRIPTS.items() if wanted.startswith(task))
    return Recipe(wanted, folder / script, folder / f"{wanted}.yaml")


def find_study(name: str) -> Path | None:
    """The script of a study; None if the name is none of one."""
    script = STUDIES.get(name.strip("/"))
    return None if script is None else recipes_folder() / script


def find_accelerate(name_or_file: str) -> Path:
    """Accelerate's configuration of this name, or the file itself.

    Raises:
        ConfigError: neither a name nor a file.
    """
    files = accelerate_files()
    if name_or_file in files:
        return files[name_or_file]
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    raise ConfigError(_unknown("configuration or file", name_or_file, files))


def find_page(name: str) -> Path:
    """The file that `recipes show` prints: a recipe, a README, a file for Accelerate.

    Raises:
        ConfigError: nothing has this name; the message lists similar names.
    """
    folder, wanted = recipes_folder(), name.strip("/")
    pages = {task: folder / task / "README.md" for task in (*task_names(), *STUDIES)}
    pages |= {recipe: folder / f"{recipe}.yaml" for recipe in recipe_names()}
    for path in sorted((folder / ACCELERATE).iterdir()):
        pages |= {path.stem: path, f"{ACCELERATE}/{path.stem}": path}
    if wanted not in pages:
        raise ConfigError(_unknown("recipe", name, pages))
    return pages[wanted]


def first_sentence(page: Path) -> str:
    """The title of a file: the heading of a README, the first sentence of a comment."""
    lines = page.read_text("utf-8").splitlines()
    if page.suffix == ".md":
        return lines[0].lstrip("# ")
    words = []
    for line in lines:
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# "))
    return " ".join(words).partition(". ")[0].partition(": ")[0].rstrip(".")


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=4)
    if near:
        words = f"similar names: {', '.join(near)}"
    else:
        words = f"available: {', '.join(each for each in names if '/' not in each)}"
    return f"there is no {kind} {name!r}; {words}. `hf-relopt recipes list` shows all."
