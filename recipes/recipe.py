"""The description of a recipe's script: its arguments, and the module that trains.

The scripts import nothing heavy: a mistake on the command line is reported before torch,
transformers and datasets are loaded, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunArguments:
    """What to do with a folder that holds a run."""

    _argument_group_name = "Run"

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "delete the run in the folder, and start over"}
    )


@dataclass(frozen=True)
class Recipe:
    """One script.

    Attributes:
        about: one paragraph for --help.
        request: a dataclass with a field for each of ``kinds`` in order, and last ``args``.
        kinds: the recipe's own argument dataclasses; RunArguments is one of them.
        training: module and class of the training arguments.
        defaults: the recipe's values of arguments that the user does not give.
        metric: the evaluation metric of the summary, as in "eval_accuracy".
        work: the module whose ``train(request, run)`` does the run.
        extras: package -> the extra of hf_relopt that installs it, from what the user asked for.
        complete: sets what depends on several arguments, from the request and the names of what
            the user gave.
    """

    about: str
    request: type
    kinds: tuple[type, ...]
    training: tuple[str, str]
    defaults: Mapping[str, Any]
    metric: str
    work: str
    extras: Callable[[Any], Mapping[str, str]] = lambda _: {}
    complete: Callable[[Any, set[str]], None] = lambda _request, _given: None
