"""From a command line to a finished run: what recipes do around the training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, TypeVar, get_type_hints

import torch
from closing_summary import print_summary
from one_clear_message import one_clear_message
from recipe_arguments import parse_recipe_arguments
from recipe_run import RecipeRun

Request = TypeVar("Request")


def start_recipe(
    request_type: type[Request],
    train: Callable[[Request, RecipeRun], None],
    *,
    metric: str,
    defaults: dict[str, Any],
    about: str,
    argv: Sequence[str] | None,
) -> None:
    """Read the arguments, train unless the run is finished, print the summary.

    Args:
        request_type: a dataclass of the recipe's argument classes: model, data, run, args.
        train: does the run.
        metric: the evaluation figure of the summary, as in "eval_accuracy".
        defaults: what the recipe wants where the user says nothing.
        about: one paragraph for --help.
        argv: the command line without the program's name; None: this process's own.

    Raises:
        SystemExit: with code 2 and one message, for a user's mistake.
    """
    with one_clear_message():
        parts, given = parse_recipe_arguments(
            tuple(get_type_hints(request_type).values()),
            defaults={"dataloader_pin_memory": torch.cuda.is_available(), **defaults},
            about=about,
            argv=sys.argv[1:] if argv is None else argv,
        )
        request: Any = request_type(*parts)
        run_recipe(request, (request.model, request.data), given, train, metric=metric)


def run_recipe(
    request: Any,
    sources: Sequence[Any],
    given: set[str],
    train: Callable[[Any, RecipeRun], None],
    *,
    metric: str,
) -> None:
    """Train unless the run is finished, and print the summary.

    Args:
        request: has the fields run (RunArguments) and args (TrainingArguments).
        sources: the recipe's argument classes that tell model and data.
        given: names of the arguments the user gave.
        train, metric: as for :func:`start_recipe`.
    """
    run = RecipeRun(request.args, sources, overwrite=request.run.overwrite_output_dir, given=given)
    with closing(run):
        again = run.is_finished
        if not again:
            train(request, run)
        if request.args.process_index == 0:
            print_summary(run.folder, metric, again=again)
