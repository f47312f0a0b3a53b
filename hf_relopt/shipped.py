"""Where the recipes and launch configurations lie that come with the package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ACCELERATE = "accelerate"


def find_recipes() -> Path | None:
    """The folder of the recipes: inside the installed package, or beside it in a clone."""
    for folder in (PACKAGE / "recipes", PACKAGE.parent / "recipes"):
        if (folder / ACCELERATE).is_dir():
            return folder
    return None


def accelerate_files() -> dict[str, Path]:
    """Accelerate's configurations by name, as in fsdp2, sorted; empty if there are no recipes."""
    folder = find_recipes()
    found = (folder / ACCELERATE).glob("*.yaml") if folder else ()
    return {path.stem: path for path in sorted(found)}
