"""What comes with the package: optimizer names, recipes and launch configurations."""

from __future__ import annotations

from pathlib import Path

from hf_relopt.plans.entries import OPTIMIZERS

PACKAGE = Path(__file__).resolve().parent
ACCELERATE = "accelerate"
OPTIMIZER_NAMES = tuple(OPTIMIZERS)
# The variable by which a recipe knows the command that was typed to start it: JSON, the words
# before a recipe's name and those from it on.
DOOR = "HF_RELOPT_DOOR"


def find_recipes() -> Path | None:
    """The folder of the recipes: inside the installed package, or next to it in a clone."""
    for folder in (PACKAGE / "recipes", PACKAGE.parent / "recipes"):
        if (folder / ACCELERATE).is_dir():
            return folder
    return None


def accelerate_files() -> dict[str, Path]:
    """Accelerate's configurations by name, as in fsdp2, sorted; empty if there are no recipes."""
    folder = find_recipes()
    found = (folder / ACCELERATE).glob("*.yaml") if folder else ()
    return {path.stem: path for path in sorted(found)}
