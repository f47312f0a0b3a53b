"""A recipe's work after the first look at its command line: arguments, run folder, training."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch
from closing_summary import print_summary
from one_clear_message import Outcome, blamed_on
from recipe import Recipe
from recipe_arguments import parse_recipe_arguments
from recipe_run import RecipeRun
from stopping import Stopped


def work(recipe: Recipe, words: Sequence[str], outcome: Outcome) -> None:
    """Train unless the run is finished, and print the summary.

    Args:
        recipe: what the script is.
        words: flags and values.
        outcome: learns what the last line has to know.

    Raises:
        ConfigError: arguments that cannot be used.
        Stopped: a signal; it says how far the run has come.
    """
    request, given = read_request(recipe, words)
    sources = [getattr(request, name) for name in _names_of_sources(recipe)]
    run = RecipeRun(request.args, sources, overwrite=request.run.overwrite_output_dir, given=given)
    train = importlib.import_module(recipe.work).train
    with closing(run):
        again = run.is_finished
        outcome.run, outcome.signals.at_once = run, False
        try:
            if not again:
                train(request, run)
            if request.args.process_index == 0:
                print_summary(run.folder, recipe.metric, again=again)
        except Stopped as stopped:
            stopped.standing = f"stopped {run.standing()}"
            run.leaves_in_haste = True
            raise


def read_request(recipe: Recipe, words: Sequence[str]) -> tuple[Any, set[str]]:
    """What was asked for, with our defaults where nothing was, and the names of what was given."""
    package, name = recipe.training
    with blamed_on(f"cannot load {package}", f"Try pip install -U {package}."):
        training = getattr(importlib.import_module(package), name)
    parts, given = parse_recipe_arguments(
        (*recipe.kinds, training),
        defaults={**machine_defaults(recipe), **recipe.defaults},
        about=recipe.about,
        words=words,
    )
    request = recipe.request(*parts)
    recipe.complete(request, given)
    return request, given


def machine_defaults(recipe: Recipe) -> dict[str, Any]:
    """Defaults that depend on the hardware."""
    gpu = torch.cuda.is_available()
    defaults: dict[str, Any] = {"dataloader_pin_memory": gpu}
    if recipe.training[1] == "SFTConfig":
        # TRL's own default is bfloat16 everywhere, and an error on a CPU.
        defaults["bf16"] = gpu and torch.cuda.is_bf16_supported()
    return defaults


def _names_of_sources(recipe: Recipe) -> list[str]:
    """The fields of a request that tell model and data."""
    names = list(recipe.request.__dataclass_fields__)
    return [name for name in names if name not in ("run", "args")]
